"""Likelihoods against closed-form densities, by the exact divergence and by Hutchinson's."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from genfield import fields, guidance, scores
from genfield.data.pixels import to_uint8, to_unit
from genfield.metrics.likelihood import Gaussian, bits_per_dim, dequantize, log_prob

BATCH, DIM, SIGMA_MIN = 6, 3, 0.002
MEAN = np.array([0.5, -1.0, 0.2])
COVARIANCE = np.array([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.8]])
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def gaussian_score(x, sigma, cond=None):
    """Of N(MEAN + cond, COVARIANCE), smoothed; its Jacobian is not diagonal."""
    mean, values, basis = (jnp.asarray(a, x.dtype) for a in (MEAN, *np.linalg.eigh(COVARIANCE)))
    shift = 0.0 if cond is None else fields.expand(cond.astype(x.dtype), x)
    inside = (mean[None] + shift - x) @ basis
    return (inside / (values[None] + fields.expand(sigma, x) ** 2)) @ basis.T


def gaussian_velocity(x, t, cond=None):
    """E[x1 - x0 | x_t] for x1 ~ N(MEAN, COVARIANCE): its law at t = 1 is that Gaussian."""
    mean, values, basis = (jnp.asarray(a, x.dtype) for a in (MEAN, *np.linalg.eigh(COVARIANCE)))
    t = fields.expand(t, x)
    gain = (t * values[None] - (1 - t)) / ((1 - t) ** 2 + t**2 * values[None])
    return mean[None] + (((x - t * mean[None]) @ basis) * gain) @ basis.T


@functools.cache
def points(batch=BATCH):
    """Points of N(MEAN, COVARIANCE)."""
    z = np.random.default_rng(0).normal(size=(batch, DIM))
    return jnp.asarray(MEAN + z @ np.linalg.cholesky(COVARIANCE).T, jnp.float32)


def log_density(x, smoothing):
    covariance = COVARIANCE + smoothing**2 * np.eye(DIM)
    return scipy.stats.multivariate_normal(MEAN, covariance).logpdf(np.asarray(x, np.float64))


def prior(sigma_max=80.0):
    """The law at sigma_max, but for the covariances of about 0.1 / sigma_max²."""
    moments = MEAN, np.diag(COVARIANCE) + sigma_max**2
    return Gaussian(*(jnp.asarray(a, jnp.float32) for a in moments))


FIELDS = {"score": gaussian_score, "velocity": gaussian_velocity}


@functools.cache
def compiled(follows, divergence="exact", **options):
    if follows == "score":
        options = {"prior": prior()} | options
    return quick(
        lambda key, x: log_prob(
            key, FIELDS[follows], x, follows=follows, divergence=divergence, **options
        )
    )


def truth(follows, x):
    return log_density(x, SIGMA_MIN if follows == "score" else 0.0)


kinds = pytest.mark.parametrize("follows", FIELDS)


# Against closed forms.


@kinds
def test_the_log_density_of_a_gaussian(follows):
    out = compiled(follows)(None, points())
    np.testing.assert_allclose(out.value, truth(follows, points()), atol=1e-4)
    np.testing.assert_array_equal(out.standard_error, np.zeros(BATCH))
    chex.assert_type([out.value, out.standard_error], jnp.float32)
    chex.assert_type(out.nfe, jnp.int32)
    assert np.all(out.nfe > 20) and np.all(out.nfe < 130)


@kinds
def test_hutchinson_is_within_its_standard_error(follows):
    out = compiled(follows, "hutchinson", num_probes=32)(jax.random.key(1), points())
    off = (out.value - truth(follows, points())) / out.standard_error
    assert np.all(np.abs(off) < 4) and np.all(np.abs(off) > 1e-3)
    # A Rademacher probe's estimates differ by the covariances alone: |sum| <= 0.6 in all.
    assert np.all(out.standard_error > 0.005) and np.all(out.standard_error < 0.4)


def test_standard_errors_are_those_of_the_probes():
    """Over many keys, the deviations have the size that each states."""
    run = compiled("score", "hutchinson", num_probes=16, probe="normal")
    x = jnp.broadcast_to(points()[:1], (400, DIM))
    out = run(jax.random.key(2), x)
    off = np.asarray(out.value - truth("score", points())[0])
    np.testing.assert_allclose(np.mean(np.square(out.standard_error)), off.var(), rtol=0.3)
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(400)


def test_one_rademacher_probe_is_exact_on_a_diagonal_jacobian():
    """The default; it cannot tell how wrong it is elsewhere."""
    field = lambda x, s, cond=None: -x / (0.25 + fields.expand(s, x) ** 2)
    law = Gaussian(variance=0.25 + 80.0**2)
    run = quick(lambda key, x: log_prob(key, field, x, follows="score", prior=law))
    out = run(jax.random.key(0), points())
    exact = scipy.stats.norm(0, np.hypot(0.5, SIGMA_MIN))
    expected = exact.logpdf(np.asarray(points(), np.float64)).sum(1)
    np.testing.assert_allclose(out.value, expected, rtol=1e-4, atol=2e-4)
    assert np.all(np.isnan(out.standard_error))


CENTRES = jnp.array([[1.0, 1.0], [-1.0, 0.5], [0.0, -1.0]])
SHARES = jnp.array([0.3, 0.5, 0.2])


def mixture_score(x, sigma, cond=None):
    variance = fields.expand(0.3**2 + sigma**2, x)
    gap = CENTRES[None] - x[:, None]
    weight = jax.nn.softmax(jnp.log(SHARES)[None] - 0.5 * jnp.sum(gap**2, -1) / variance)
    return jnp.sum(weight[..., None] * gap, axis=1) / variance


def test_the_log_density_of_a_mixture():
    x = jnp.array([[1.0, 1.0], [0.0, 0.7], [-1.0, -0.2], [0.1, -1.3], [2.0, 1.5]])
    mean = SHARES @ CENTRES
    law = Gaussian(mean, 0.09 + SHARES @ (CENTRES - mean[None]) ** 2 + 80.0**2)
    run = quick(
        lambda x: log_prob(None, mixture_score, x, follows="score", divergence="exact", prior=law)
    )
    std = jnp.full(3, np.sqrt(0.09 + SIGMA_MIN**2))
    expected = scores.gaussian_mixture_log_density(x, CENTRES, std, SHARES)
    np.testing.assert_allclose(run(x).value, expected, atol=1e-3)


def test_densities_integrate_to_one():
    """Of a field that is no score and no closed form: along its own flow, p is still a density."""

    def swirl(x, sigma, cond=None):
        turned = jnp.stack([-x[:, 1], x[:, 0]], axis=1)
        bend = 1 + 0.5 * jnp.sin(x[:, ::-1])
        return -bend * (x - 0.7 * turned) / (0.25 + fields.expand(sigma, x) ** 2)

    grid = np.linspace(-4, 4, 65)
    x = jnp.asarray(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2), jnp.float32)
    run = quick(
        lambda x: log_prob(
            None,
            swirl,
            x,
            follows="score",
            divergence="exact",
            sigma_min=0.1,
            sigma_max=3.0,
            rtol=1e-4,
            atol=1e-4,
        )
    )
    total = np.exp(np.asarray(run(x).value, np.float64)).sum() * (grid[1] - grid[0]) ** 2
    np.testing.assert_allclose(total, 1, atol=0.02)


def assumed(x, sigma_min, sigma_max, variance, shift=0.0):
    """log p of N(MEAN + shift, COVARIANCE) if the law at sigma_max were N(0, variance).

    Each point ends where the flow brings it, and only there do the two laws differ.
    """
    x, mean = np.asarray(x, np.float64), MEAN + np.reshape(shift, (-1, 1))
    values, basis = np.linalg.eigh(COVARIANCE)
    growth = np.sqrt((values + sigma_max**2) / (values + sigma_min**2))
    gap = (x - mean) @ basis
    change = np.log(growth).sum()
    end = mean + (gap * growth) @ basis.T
    return scipy.stats.norm(0, np.sqrt(variance)).logpdf(end).sum(1) + change


def test_the_prior_and_the_noise_levels():
    run = compiled("score", sigma_min=0.3, sigma_max=10.0, prior=Gaussian(variance=90.0))
    expected = assumed(points(), 0.3, 10.0, 90.0)
    np.testing.assert_allclose(run(None, points()).value, expected, atol=2e-4)
    assert np.abs(expected - log_density(points(), 0.3)).max() > 0.01


# What is promised of every likelihood.


def test_conditions_stay_with_their_samples():
    """And the default prior is N(0, sigma_max²)."""
    cond = jnp.arange(BATCH)
    out = quick(
        lambda x: log_prob(None, gaussian_score, x, follows="score", cond=cond, divergence="exact")
    )(points() + cond[:, None])
    expected = assumed(points() + cond[:, None], SIGMA_MIN, 80.0, 80.0**2, np.arange(BATCH))
    np.testing.assert_allclose(out.value, expected, atol=3e-4)


@kinds
def test_with_a_key_each_a_likelihood_does_not_depend_on_its_batch(follows):
    run = compiled(follows, "hutchinson", num_probes=32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(BATCH))
    x = jnp.concatenate([points()[:3], 30 * points()[3:]])  # the latter need other steps
    others = np.array([4, 1, 4, 4, 1, 0])
    together, elsewhere = run(keys, x), run(keys[others], x[others])
    assert len(np.unique(together.nfe)) > 1
    for one, other in zip(together, elsewhere, strict=True):
        np.testing.assert_allclose(other, one[others], rtol=1e-5)
    assert not np.allclose(run(keys[::-1], x).value, together.value, rtol=1e-5)


def test_images_are_flattened_and_evaluations_counted():
    """[B, 2, 2, 1] and classifier-free guidance, on a field with a diagonal Jacobian."""
    rows = []

    def field(x, t, cond):
        jax.debug.callback(lambda: rows.append(len(x)))
        return 0.5 * x

    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 1))
    guided = guidance.classifier_free(field, 2.0, 0)
    out = quick(
        lambda x: log_prob(
            jax.random.key(1),
            guided,
            x,
            follows="velocity",
            cond=jnp.ones(1, jnp.int32),
            num_probes=3,
        )
    )(x)
    jax.block_until_ready(out)
    jax.effects_barrier()
    assert out.nfe[0] == sum(rows)
    end = np.asarray(x, np.float64) * np.exp(-0.5)
    np.testing.assert_allclose(out.value, scipy.stats.norm.logpdf(end).sum() - 0.5 * 4, rtol=1e-4)
    np.testing.assert_allclose(out.standard_error, [0.0], atol=1e-5)
    pull = lambda x, sigma, cond=None: -x / (1 + fields.expand(sigma, x) ** 2)
    run = lambda x: log_prob(jax.random.key(1), pull, x, follows="score")
    assert jax.eval_shape(run, jnp.ones((5, 2, 2, 1))).value.shape == (5,)


def test_what_is_wrong_is_said():
    run = functools.partial(log_prob, jax.random.key(0), gaussian_score, points())
    with pytest.raises(ValueError, match="unknown follows 'denoiser'; known: score, velocity"):
        run(follows="denoiser")
    with pytest.raises(ValueError, match="unknown divergence 'skilling'; known: hutchinson, exact"):
        run(follows="score", divergence="skilling")
    with pytest.raises(ValueError, match="unknown probe 'sparse'; known: rademacher, normal"):
        run(follows="score", probe="sparse")
    with pytest.raises(ValueError, match="num_probes must be positive"):
        run(follows="score", num_probes=0)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        run(follows="score", sigma_min=90.0)
    with pytest.raises(ValueError, match="known: dopri5, heun_adaptive"):
        run(follows="score", method="rk45")
    keys = jax.random.split(jax.random.key(0), BATCH + 1)
    with pytest.raises(ValueError, match=f"one key, or one a sample: {BATCH}"):
        log_prob(keys, gaussian_score, points(), follows="score")


# Bits a dimension.


def test_uniform_noise_costs_eight_bits():
    """The density of the dequantised noise, uniform on 256 cells, is known."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    x = dequantize(jax.random.key(0), pixels)
    num_dims = 8 * 8 * 3
    cell = scipy.stats.uniform(-1 - 1 / 255, 2 * 256 / 255)
    log_density = cell.logpdf(np.asarray(x, np.float64)).reshape(4, -1).sum(1)
    np.testing.assert_allclose(bits_per_dim(log_density, num_dims), np.full(4, 8.0), rtol=1e-6)
    assert bits_per_dim(jnp.zeros(1), 1, levels=2)[0] == -1.0  # cells of width 2
    with pytest.raises(ValueError, match="levels >= 2"):
        bits_per_dim(log_density, num_dims, levels=1)


def test_bits_bound_the_mass_of_a_cell():
    """-log2 of the cell's probability under N(0, 0.01²), narrower than a few levels: from above."""
    law = scipy.stats.norm(0.0, 0.01)
    pixels = np.full((20000, 1), 129, np.uint8)
    x = np.asarray(dequantize(jax.random.key(4), pixels), np.float64)
    centre = to_unit(pixels[0, 0])
    exact = -np.log2(np.diff(law.cdf([centre - 1 / 255, centre + 1 / 255]))[0])
    bits = np.asarray(bits_per_dim(law.logpdf(x[:, 0]), 1))
    assert exact < bits.mean() < exact + 0.1


def test_dequantised_pixels_fill_the_cells_of_to_unit():
    pixels = np.arange(256, dtype=np.uint8).repeat(40).reshape(-1, 8)
    x = np.asarray(dequantize(jax.random.key(5), pixels))
    off = (x - to_unit(pixels)) * 255
    assert off.min() >= -1.0001 and off.max() <= 1.0001
    assert abs(off.mean()) < 0.03 and abs(off.var() - 1 / 3) < 0.02
    assert np.mean(to_uint8(x) == pixels) > 0.9999
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(6), i))(jnp.arange(5))
    each = dequantize(keys, pixels[:5])
    np.testing.assert_array_equal(dequantize(keys[3:4], pixels[3:4])[0], each[3])
    with pytest.raises(TypeError, match="uint8"):
        dequantize(jax.random.key(0), jnp.zeros((1, 2)))
