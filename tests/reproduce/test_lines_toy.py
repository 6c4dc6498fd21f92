"""The study of two Gaussians in 128 dimensions: closed forms, conversions, and what it keeps."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "reproduce"))

import lines_toy as study

SHIFT = (0.5, -2.0)


@pytest.fixture
def small(monkeypatch):
    """A tiny network and few pairs."""
    sizes = {"WIDTH": 8, "SLOPES": 4, "NUM_PAIRS": 40, "BATCH": 16, "NUM_TRAJECTORIES": 8}
    for name, value in {**sizes, "ODE_STEPS": 4}.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "TEACHER_STEPS", {"denoiser": 2, "velocity": 2})
    study.mlp.cache_clear()
    yield
    study.mlp.cache_clear()


def log_density(x, alpha, sigma):
    """Of one x [DIM] = α x1 + σ x0, written once more."""
    std = jnp.sqrt(jnp.where(jnp.arange(study.DIM) < 2, 0.1, 1.0) ** 2 * alpha**2 + sigma**2)
    of = lambda sign: jax.scipy.stats.norm.logpdf(
        x, alpha * jnp.zeros(study.DIM).at[:2].set(sign + jnp.array(SHIFT)), std
    ).sum()
    return jnp.logaddexp(of(-1.0), of(1.0)) - jnp.log(2)


def test_the_posterior_is_that_of_the_density():
    """Tweedie's formula, with the score by differentiation, for any α and σ."""
    alpha, sigma = jnp.array([1.0, 0.3, 0.9, 1.0]), jnp.array([0.1, 0.7, 0.2, 5.0])

    @jax.jit
    def both(key):
        k0, k1 = jax.random.split(key)
        noise = sigma[:, None] * jax.random.normal(k0, (4, study.DIM))
        x = alpha[:, None] * study.draw(k1, 4, SHIFT) + noise
        score = jax.vmap(jax.grad(log_density))(x, alpha, sigma)
        return x, score, *study.posterior(x, alpha, sigma, SHIFT)

    x, score, x1, x0 = both(jax.random.key(0))
    np.testing.assert_allclose(x0, -sigma[:, None] * score, atol=2e-4)
    expected = (x + sigma[:, None] ** 2 * score) / alpha[:, None]
    np.testing.assert_allclose(x1, expected, atol=1e-3)


def test_draws_are_of_the_mixture():
    draw = jax.jit(study.draw, static_argnums=(1, 2))
    x = np.asarray(draw(jax.random.key(1), 20_000, SHIFT)) - np.pad(SHIFT, (0, 126))[None]
    upper = x[:, 0] > 0
    assert upper.mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(x[upper].mean(0)[:2], 1, atol=0.01)
    np.testing.assert_allclose(x[~upper].mean(0)[:2], -1, atol=0.01)
    np.testing.assert_allclose(x[upper].std(0), study.STD, rtol=0.05)


def test_the_exact_flows_are_one():
    """Same ends by either process, samples of the data; straightness as it is known."""
    x0 = jax.random.normal(jax.random.key(2), (256, study.DIM))
    found = {}
    for kind in ("exact velocity", "exact denoiser"):
        z, t = study.trajectories(kind, {}, x0, 60)
        deviation = study.path_geometry.straightness(z, t).deviation
        found[kind] = float(deviation.mean()), z[-1]
    (one, end), (other, other_end) = found.values()
    # Elsewhere z = x0 √(t² + (1-t)²), whose length is (2 - √2) |x0|; the plane adds 0.07. EDM's
    # starts at t = 1/81, without the first stretch, on which it would move by |x0| / 81.
    expected = (2 - np.sqrt(2)) * float(jnp.linalg.norm(x0[:, 2:], axis=1).mean())
    assert expected < one < expected + 0.15
    assert other == pytest.approx(one - expected / (2 - np.sqrt(2)) / 81, abs=0.03)
    assert study.drift(other_end, end, "")["plane "] < 0.03
    assert study.quality(end, "")["rms "] == pytest.approx(0.1, abs=0.02)
    x, t = jnp.array([[0.4, -0.3], [1.5, 0.7]]), jnp.array([0.3, 0.8])
    fields = [study.plane_velocity(kind, {})(x, t) for kind in found]
    np.testing.assert_allclose(*fields, atol=1e-4)


def test_the_variance_of_few_steps():
    """As predicted with fresh noise; kept along lines."""
    x0 = jax.random.normal(jax.random.key(3), (4_000, study.DIM))
    for indices in ((0,), (0, 8), (0, 5, 11)):
        for noise in ("fresh", "line"):
            x = study.few_steps("identity", {}, x0, jax.random.key(4), indices, noise)
            kept = study.predicted_variance(indices if noise == "fresh" else (0,))
            assert x.var() == pytest.approx(kept, rel=0.01), (indices, noise)
    assert study.predicted_variance((0, 8)) < 0.66


def test_heun_inflates_and_converges():
    excess = [study.heun_inflation(n) - 1 for n in (20, 40, 80)]
    assert excess[0] > excess[1] > excess[2] > 0
    assert np.log2(excess[1] / excess[2]) == pytest.approx(2, abs=0.5)


def test_ddpm_time():
    sigma = jnp.array([0.05, 1.0, 80.0])
    t = study.vp_time(sigma)
    path = study.variance_preserving
    np.testing.assert_allclose(path.sigma(t) / path.alpha(t), sigma, rtol=1e-3)
    np.testing.assert_allclose(path.sigma(t) ** 2 + path.alpha(t) ** 2, 1, rtol=1e-5)


def test_where_exact_models_point(monkeypatch):
    """Each parametrisation's own minimiser gives E[x1 | x], scaled where it is DDPM's."""

    def of_vp(x, t, cond=None):
        path = study.variance_preserving
        return study.posterior(x, path.alpha(t), path.sigma(t), study.MOVED)[1]

    def of_flow(x, t, cond=None):
        x1, x0 = study.posterior(x, t, 1 - t, study.MOVED)
        return x1 - x0

    def of_levels(x, t, cond=None):
        return study.posterior(x, jnp.ones_like(t), t, study.MOVED)[0]

    sigma = jnp.array([0.3, 1.0, 3.0, 20.0])
    noise = jax.random.normal(jax.random.key(5), (4, study.DIM))
    x = study.draw(jax.random.key(6), 4, study.MOVED) + sigma[:, None] * noise
    expected = np.asarray(of_levels(x, sigma))
    monkeypatch.setitem(study.FIELDS, "denoiser", lambda params: of_levels)
    for name, field in {"CFM": of_flow, "NCSN": None, "DDPM": of_vp}.items():
        monkeypatch.setattr(study, "network", lambda params, field=field: field)
        found = study.pointed(name, {}, x, sigma)
        scale = 1 / np.sqrt(1 + np.asarray(sigma) ** 2) if name == "DDPM" else np.ones(4)
        np.testing.assert_allclose(found, scale[:, None] * expected, atol=2e-3)


def test_collapsed_points():
    cloud = np.asarray(study.draw(jax.random.key(7), 20_000, study.MOVED))[:, :2]
    found = study.collapsed(cloud)
    assert found["spread"] == pytest.approx(1, abs=0.02)
    assert found["to data"] < 0.05
    assert found["to source"] == pytest.approx(np.hypot(*study.MOVED), abs=0.05)
    assert study.collapsed(np.tile(study.DATA, (5, 1))) == pytest.approx(
        {"to data": 0, "to source": np.hypot(*study.MOVED), "spread": 0}, abs=1e-6
    )


def test_models_are_kept_and_students_take_pairs(small, tmp_path, monkeypatch):
    models = study.Models(tmp_path, 0, 40)
    student = models.params("2-RF")
    assert {path.name for path in tmp_path.iterdir()} == {
        "cfm_seed0_steps40.npz",
        "2-rf_seed0_steps40.npz",
    }
    pairs = models.pairs("CFM")
    expected = study.ends("velocity", models.params("CFM"), pairs["x0"], 2)
    np.testing.assert_allclose(pairs["x1"], expected, atol=1e-5)
    key = jax.random.key(8)
    x0, x1 = study.examples(key, pairs)
    rows = [int(np.argmin(((pairs["x0"] - row[None]) ** 2).sum(1))) for row in x0]
    np.testing.assert_array_equal(x1, pairs["x1"][np.array(rows)])
    monkeypatch.setattr(study, "train", None)  # would raise
    again = study.Models(tmp_path, 0, 40).params("2-RF")
    jax.tree.map(np.testing.assert_array_equal, student, again)
    found = study.measure("velocity", student, x0, study.ends("velocity", student, x0[:8], 4))
    assert found["rest ode"] < 1e-5 < found["straightness"]
    assert all(np.isfinite(value) for value in found.values())


def test_a_few_steps_of_training_lower_the_loss(small):
    """Of each kind of objective, on the same examples."""
    pairs = {"x0": jax.random.normal(jax.random.key(9), (40, study.DIM))}
    pairs["x1"] = study.draw(jax.random.key(10), 40)
    key = jax.random.key(11)
    for name, row in {"LMM": study.ROWS["LMM"], "DDPM": study.POINTING["DDPM"]}.items():
        loss = jax.jit(lambda params, row=row: row.loss(params, key, pairs))
        before = loss(study.initial(study.rng.stream(0, f"{name} init")))
        after = loss(study.train(name, row, 0, 40, pairs))
        assert before.shape == (16,)
        assert after.mean() < before.mean()
