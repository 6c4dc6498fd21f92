"""The study of controllable fields: fields, reference and losses against closed forms."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "reproduce"))

import controllable as study

SCALE = np.array([1.68980397, 16.6931, 25.0435])  # the quadrature's, below


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def controls(family):
    by = jnp.asarray(study.mixed(np.ones(3), family, SCALE))
    return lambda x: jnp.einsum("kij,bkj->bki", by, study.gradients(x))


def test_preserving_controls_have_no_flux_divergence():
    x = study.draw(np.random.default_rng(0), 200)
    residual = lambda f: study.evaluate(functools.partial(study.stein, controls(f)), x, 256)
    kept, broken = (np.abs(residual(family)) for family in study.FAMILIES)
    assert (kept.max(0) < 1e-12 * broken.max(0)).all()


def test_the_templates_are_where_they_should_be():
    """The triangle's edges, its inside and the bump, at points where they are plain."""
    middles = 0.5 * (study.MEANS + np.roll(study.MEANS, -1, 0))
    places = np.concatenate([middles, [[0, 0]], 3 * study.MEANS])
    psi = study.evaluate(study.psi_triangle, places, 8)
    np.testing.assert_allclose(psi[:3], 1 / 3 + 0.06, rtol=1e-6)  # R_j = 1, sigmoid(0) = 1/2
    # At the origin: each edge at its distance, 1.15 or that of the sides, and the whole inside.
    far = np.exp(-0.5 * (np.array([1.15, 1.1504, 1.1504]) / 0.24) ** 2).mean()
    np.testing.assert_allclose(psi[3], far + 0.12, rtol=1e-4)
    assert (psi[4:] < 1e-3).all()
    angle = np.deg2rad(-20)
    peak = 0.78 * 2.3 * np.array([[np.cos(angle), np.sin(angle)]])
    expected = 1 + 0.45 / (1 + np.exp(-1.75 * 0.78))
    np.testing.assert_allclose(study.evaluate(study.psi_skew, peak, 1), expected, rtol=1e-12)


def test_the_scales_have_converged():
    """In the width and in the spacing; and E|s|² = -E[∇·s]."""
    forms = [study.gram(*a) for a in ((8.0, 300), (8.0, 400), (10.0, 400))]
    for form in forms:
        np.testing.assert_allclose(np.sqrt(form.diagonal()), SCALE, rtol=1e-4)
    points = study.centres(8.0, 300)
    slope = jax.vmap(jax.jacfwd(lambda z: study.score(z[None])[0]))
    traces = np.trace(study.evaluate(slope, points), axis1=-2, axis2=-1)
    mass = np.exp(study.evaluate(study.log_density, points)) * (16 / 300) ** 2
    assert mass.sum() == pytest.approx(1, abs=1e-10)
    assert -(mass * traces).sum() == pytest.approx(SCALE[0] ** 2, rel=1e-8)


def wave(x):
    return jnp.sin(x[:, 0]) * jnp.cos(0.5 * x[:, 1])


def known(x):
    """∇φ, and ∇φ + J∇χ / p, with φ a wave and χ = p times another: one gradient, [B, 2, 2]."""
    slope = lambda f: jax.grad(lambda z: jnp.sum(f(z)))(x)
    stream = lambda z: jnp.exp(study.log_density(z)) * jnp.cos(z[:, 0] + z[:, 1])
    turned = slope(stream) @ study.TURN.T * jnp.exp(-study.log_density(x))[:, None]
    return jnp.stack([slope(wave), slope(wave) + turned], axis=1)


def test_the_reference_finds_the_gradient_part():
    """At second order, on fields whose gradient part is known; of the score it is the score."""
    points, step = study.centres(8.0, 400), 16 / 400
    p, u = np.exp(study.evaluate(study.log_density, points)), study.evaluate(known, points)
    exact = (p * (u[..., 0, :] ** 2).sum(-1)).sum() * step**2
    assert (p * (u[..., 1, :] ** 2).sum(-1)).sum() * step**2 > 1.5 * exact
    errors = [np.abs(study.projected(known, 8.0, n)[0] / exact - 1) for n in (40, 80)]
    assert errors[0][0, 0] < 1e-5 and errors[1].max() < 1e-3
    assert np.log2(errors[0][0, 1] / errors[1][0, 1]) == pytest.approx(2, abs=0.1)
    found = study.projected(num=100)[0] / np.outer(SCALE, SCALE)
    assert found[0, 0] == pytest.approx(1, abs=1e-5)


def test_the_truncated_reference():
    """∫_0^T E[r(x_0) r(x_t)] dt is T E[r²] at first and J at last."""
    form, soon, late = study.projected(known, 6.0, 60, (1e-4, 200.0), 300)
    points = study.centres(6.0, 60)
    p = np.exp(study.evaluate(study.log_density, points)) * (12 / 60) ** 2
    residual = study.evaluate(lambda x: study.stein(known, x), points)[..., 0]
    assert soon[0, 0] == pytest.approx(1e-4 * (p * residual**2).sum(), rel=0.02)
    np.testing.assert_allclose(late, form, rtol=1e-3)


def test_the_mixing_speed():
    """Even in θ, and least at the score: antisymmetric parts only quicken."""
    thetas = np.array([[0, 0, 0], [2.5, 0, -2.5], [-2.5, 0, 2.5], [0, 8, 0], [0.1, 0.1, 0.1]])
    speeds = study.mixing_speed(SCALE, thetas)
    assert speeds[1] == pytest.approx(speeds[2], rel=1e-9)
    assert (speeds[1:] > speeds[0]).all()
    assert speeds[0] == pytest.approx(0.0665, rel=0.01)  # on grids of 49, 97 and 145


def test_the_metrics():
    metrics, theta = study.Metrics(SCALE), study.SWEEP
    mirrored = metrics.score_matching(theta * [1, -1, 1], "violating")
    np.testing.assert_allclose(metrics.score_matching(theta, "preserving"), mirrored, rtol=1e-12)
    axes = np.diag([1.0, 3.0, 1.0])
    assert metrics.triangle(axes)[1] == pytest.approx(1)
    assert metrics.triangle(np.zeros((1, 3))) == 0
    # The rotation's curl is that of J s: minus the divergence of s.
    points = study.GRID.reshape(-1, 2)
    w = np.exp(study.evaluate(study.log_density, points))
    slope = jax.vmap(jax.jacfwd(lambda z: study.score(z[None])[0]))
    traces = np.trace(study.evaluate(slope, points), axis1=-2, axis2=-1) / SCALE[0]
    expected = 0.5 * (w * traces**2).sum() / w.sum()
    assert metrics.skewness(axes)[0] == pytest.approx(expected, rel=1e-10)


def test_the_loss_of_a_preserving_field_is_zero():
    """To 1e-8 and far below, minibatch by minibatch, with either estimator."""
    mix = study.mixed([2.5, -2.5, 2.5], "preserving", SCALE)
    for estimator in ("pathwise", "cross_chain"):
        loss = study.flux(jax.random.key(0), mix, estimator, num=4)
        assert loss.dtype == jnp.float64
        assert np.abs(loss).max() < 1e-8


def test_the_loss_is_a_quadratic_form():
    run = lambda theta: float(
        study.flux(jax.random.key(1), study.mixed(theta, "violating", SCALE), num=4).mean()
    )
    theta = np.array([2.5, -2.5, 1.0])
    assert study.of(study.form_of(run), theta) == pytest.approx(run(theta), rel=1e-8)


def test_bins():
    x, y = np.array([0.0, 0.1, 1.0, 2.0]), np.array([1.0, 3.0, 5.0, 7.0])
    middle, mean, error = study.binned(x, y, 4)
    assert middle == pytest.approx([0.05, 1, 2])
    assert mean == pytest.approx([2, 5, 7])
    assert error == pytest.approx([1, 0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("estimator, sigma", [("pathwise", 0.25), ("cross_chain", study.STD)])
def test_the_loss_follows_the_projected_fisher_divergence(estimator, sigma):
    """Over the violating family, all fields on the same 1,024 minibatches."""
    form, cut = (f / np.outer(SCALE, SCALE) for f in study.projected(horizons=(4 * sigma**2,)))
    forms = []
    for i in range(16):
        run = lambda theta, i=i: float(
            study.flux(
                jax.random.key(i),
                study.mixed(theta, "violating", SCALE),
                estimator,
                sigma=sigma,
            ).mean()
        )
        forms.append(study.form_of(run))
    distances = study.of(form, study.SWEEP)
    losses = study.of(np.mean(forms, 0), study.SWEEP)
    assert study.correlation(losses, distances) > 0.85
    expected = study.slope(study.of(cut, study.SWEEP), distances)
    assert study.slope(losses, distances) == pytest.approx(expected, rel=0.35)
