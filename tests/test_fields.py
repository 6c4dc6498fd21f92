"""Fields, scores, paths and guidance against closed forms."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from genfield import fields, guidance, paths, registry, scores
from genfield.fields import Prediction

BATCH = 5
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# Shapes and outputs.


def test_reductions_over_features():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(fields.sum_features(x), [15, 51])
    np.testing.assert_array_equal(fields.mean_features(x), [2.5, 8.5])
    np.testing.assert_array_equal(fields.squared_norm(x), [55, 451])
    chex.assert_shape(fields.expand(jnp.ones(2), x), (2, 1, 1))


def test_direction_and_displacement():
    v, u = normal(0, BATCH, 2, 3), jnp.arange(1.0, 1 + BATCH)
    prediction = Prediction(v, u)
    assert fields.direction(v) is v and fields.displacement(v) is v
    np.testing.assert_array_equal(fields.direction(prediction), v)
    np.testing.assert_allclose(
        fields.displacement(prediction), np.asarray(v) * np.asarray(u)[:, None, None], rtol=1e-6
    )


# Derivatives.


def quartic(x, t=None, cond=None):
    """x³ + a constant antisymmetric part; its divergence is 3 Σ x²."""
    flat = x.reshape(len(x), -1)
    turn = jnp.roll(flat, 1, axis=1) - jnp.roll(flat, -1, axis=1)
    return x**3 + turn.reshape(x.shape)


MATRIX = np.random.default_rng(0).normal(size=(4, 4))


def linear_field(x, t=None, cond=None):
    return x @ jnp.asarray(MATRIX, x.dtype).T


def test_exact_divergence_of_a_linear_field_is_its_trace():
    found = quick(lambda x: fields.divergence(linear_field, x))(normal(1, BATCH, 4))
    np.testing.assert_allclose(found, np.full(BATCH, np.trace(MATRIX)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1)])
def test_exact_divergence_of_a_nonlinear_field(shape):
    x = normal(2, BATCH, *shape)
    found = quick(lambda x: fields.divergence(quartic, x))(x)
    chex.assert_shape(found, (BATCH,))
    np.testing.assert_allclose(found, 3 * fields.squared_norm(x), rtol=1e-5)


def test_divergence_passes_time_and_condition():
    field = lambda x, t, cond: x * fields.expand(t * cond, x)
    t, cond = jnp.linspace(0.1, 0.9, BATCH), jnp.arange(1.0, 1 + BATCH)
    both = quick(
        lambda x, t, cond: (
            fields.divergence(field, x, t, cond),
            fields.hutchinson_divergence(jax.random.key(0), field, x, t, cond),
        )
    )
    for found in both(normal(3, BATCH, 2), t, cond):
        np.testing.assert_allclose(found, 2 * np.asarray(t) * np.asarray(cond), rtol=1e-5)


def test_one_rademacher_probe_is_exact_on_a_diagonal_jacobian():
    x = normal(4, BATCH, 3)
    field = lambda z, t=None, cond=None: jnp.sin(z)
    exact = np.cos(np.asarray(x)).sum(-1)
    found, gaussian = quick(
        lambda x: [
            fields.hutchinson_divergence(jax.random.key(1), field, x, probe=probe)
            for probe in ("rademacher", "normal")
        ]
    )(x)
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    assert np.abs(gaussian - exact).min() > 1e-3


@pytest.mark.parametrize("probe", ["rademacher", "normal"])
def test_hutchinson_is_unbiased_with_its_known_variance(probe):
    """Var[εᵀAε] = 2|S|² (normal) or 2(|S|² - Σ S_ii²) (Rademacher), S the symmetric part."""
    draws, probes, x = 2000, 4, jnp.zeros((1, 4))
    s = 0.5 * (MATRIX + MATRIX.T)
    variance = 2 * np.sum(s**2) - (2 * np.sum(np.diag(s) ** 2) if probe == "rademacher" else 0)
    estimate = lambda k: fields.hutchinson_divergence(
        k, linear_field, x, num_probes=probes, probe=probe
    )[0]
    found = quick(jax.vmap(estimate))(jax.random.split(jax.random.key(2), draws))
    assert abs(found.mean() - np.trace(MATRIX)) < 5 * np.sqrt(variance / probes / draws)
    # A kurtosis below 15 makes the variance's own standard error 8%: 5 of them.
    np.testing.assert_allclose(np.var(found), variance / probes, rtol=0.42)


def test_the_parts_of_a_jacobian_are_unbiased_and_a_gradient_has_one():
    parts = quick(
        lambda x: fields.jacobian_parts(jax.random.key(3), linear_field, x, num_probes=2000)
    )
    found = parts(jnp.zeros((1, 4)))
    exact = [np.sum((0.5 * (MATRIX + sign * MATRIX.T)) ** 2) for sign in (-1, 1)]
    # Five standard errors of 2,000 probes, each of a deviation no larger than |·|² √2.
    np.testing.assert_allclose(np.ravel(found), exact, rtol=5 * np.sqrt(2 / 2000))
    gradient = fields.potential_field(lambda x, t, cond: jnp.sum(jnp.sin(x) * x, -1) ** 2)
    of_gradient = quick(lambda x: fields.jacobian_parts(jax.random.key(4), gradient, x))
    none, whole = of_gradient(normal(12, BATCH, 3))
    assert (np.asarray(none) < 1e-9 * np.asarray(whole)).all() and (np.asarray(whole) > 0.1).all()


def test_potential_field_is_the_gradient_and_the_value():
    potential = lambda x, t, cond: jnp.sum(jnp.sin(x) * x, -1) * t + jnp.sum(x, -1) * cond
    x, t, cond = normal(5, BATCH, 3), jnp.linspace(0.1, 1.0, BATCH), jnp.arange(1.0, 1 + BATCH)
    out = quick(fields.potential_field(potential))(x, t, cond)
    one = lambda x, t, cond: potential(x[None], t[None], cond[None])[0]
    value, gradient = quick(jax.vmap(jax.value_and_grad(one)))(x, t, cond)
    chex.assert_trees_all_close(out, Prediction(gradient, value), rtol=1e-5)
    alone = quick(fields.gradient_field(potential))(x, t, cond)
    np.testing.assert_allclose(alone, out.direction, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in fields.ENERGIES if n != "negative_squared_norm"])
def test_every_energy_of_a_trained_field_starts_on_the_right_side(name):
    """The minimiser for one example at x1 is f = c (x - x1) (EqM eq. 3): ∇g points as it does.

    The dot product's ∇g = f + c x leans away from the origin: here x1 is the origin for it.
    """
    x, x1 = normal(9, BATCH, 3), normal(10, 1, 3) * (name != "dot")
    field = lambda x, t=None, cond=None: 4.0 * (x - x1)
    gradient = quick(fields.gradient_field(fields.ENERGIES[name](field)))(x)
    away = field(x)
    cosine = (gradient * away).sum(-1) / np.sqrt((gradient**2).sum(-1) * (away**2).sum(-1))
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)


def test_the_energy_of_older_runs_has_the_other_sign():
    x = normal(11, BATCH, 3)
    old, new = (fields.ENERGIES[n](quartic)(x) for n in ("negative_squared_norm", "squared_norm"))
    np.testing.assert_array_equal(old, -new)
    assert (np.asarray(new) > 0).all()


def test_negate_turns_a_gradient_into_a_velocity():
    x = normal(6, BATCH, 2)
    np.testing.assert_array_equal(fields.negate(quartic)(x), -quartic(x))
    of_prediction = fields.negate(fields.potential_field(lambda x, t, c: fields.squared_norm(x)))
    np.testing.assert_allclose(of_prediction(x), -2 * x, rtol=1e-6)
    guided = guidance.classifier_free(quartic, 2.0, 0)
    assert fields.evaluations(quartic) == 1
    assert fields.evaluations(fields.negate(guided)) == fields.evaluations(guided) == 2
    assert fields.evaluations(guidance.classifier_free(guided, 2.0, 0)) == 4


# Conversions, on a Gaussian target N(m, s²): x_t ~ N(t m, (1-t)² + t² s²).

MEAN, STD = 0.7, 0.4
TIMES = np.array([0.05, 0.3, 0.5, 0.8, 0.95])


def gaussian_closed_forms(x, t):
    """score of p_t, E[x1 - x0 | x] and E[x1 | x], by Gaussian conditioning in float64."""
    x, t = np.asarray(x, np.float64), np.asarray(t, np.float64)[:, None]
    variance = (1 - t) ** 2 + (t * STD) ** 2
    z = (x - t * MEAN) / variance
    source, target = (1 - t) * z, MEAN + t * STD**2 * z
    return -z, target - source, target


def test_conversions_of_a_gaussian():
    x, t = normal(7, BATCH, 3), jnp.asarray(TIMES, jnp.float32)
    score, velocity, denoised = (jnp.asarray(a, "f4") for a in gaussian_closed_forms(x, TIMES))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    close(fields.velocity_to_score(velocity, x, t), score)
    close(fields.score_to_velocity(score, x, t), velocity)
    close(fields.velocity_to_denoiser(velocity, x, t), denoised)
    close(fields.denoiser_to_velocity(denoised, x, t), velocity)


ROUND = paths.Path(alpha=lambda t: jnp.sin(jnp.pi * t / 2), sigma=lambda t: jnp.cos(jnp.pi * t / 2))
WAYS = {"linear": paths.linear, "round": ROUND}


@pytest.mark.parametrize("name", WAYS)
def test_score_and_velocity_of_any_path_are_those_of_a_gaussian(name):
    x, t = normal(7, BATCH, 3), jnp.asarray(TIMES, jnp.float32)
    at, half = TIMES[:, None], np.pi / 2
    alpha, sigma, rise, fall = at, 1 - at, 1.0, -1.0
    if name == "round":
        alpha, sigma = np.sin(half * at), np.cos(half * at)
        rise, fall = half * sigma, -half * alpha
    score = -(np.asarray(x, np.float64) - alpha * MEAN) / (sigma**2 + (alpha * STD) ** 2)
    velocity = rise * (MEAN - alpha * STD**2 * score) - fall * sigma * score
    score, velocity = jnp.asarray(score, jnp.float32), jnp.asarray(velocity, jnp.float32)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    close(paths.velocity_to_score(WAYS[name], velocity, x, t), score)
    close(paths.score_to_velocity(WAYS[name], score, x, t), velocity)


def test_a_bridge_tells_no_score_from_its_velocity():
    bridge, x, t = paths.brownian_bridge(paths.linear, 0.5), normal(1, 2, 3), jnp.full(2, 0.5)
    for convert in (paths.velocity_to_score, paths.score_to_velocity):
        with pytest.raises(ValueError, match="a bridge"):
            convert(bridge, x, x, t)


def test_conversions_round_trip():
    x, v, t = normal(8, BATCH, 2, 3), normal(9, BATCH, 2, 3), jnp.asarray(TIMES, jnp.float32)
    back = fields.score_to_velocity(fields.velocity_to_score(v, x, t), x, t)
    # t = 0.05 divides by t and 1 - t = 0.05 by 1 - t: float32 errors grow by 20.
    np.testing.assert_allclose(back, v, atol=1e-5)
    back = fields.denoiser_to_velocity(fields.velocity_to_denoiser(v, x, t), x, t)
    np.testing.assert_allclose(back, v, atol=1e-5)


# Scores.

MEANS = np.array([[-1.0, 0.5], [1.2, 0.0], [0.3, -2.0]])
STDS = np.array([0.5, 0.8, 1.1])
SHARES = np.array([0.2, 0.5, 0.3])


def mixture():
    return tuple(jnp.asarray(a, jnp.float32) for a in (MEANS, STDS, SHARES))


def test_gaussian_mixture_density_and_score_by_hand():
    x = 1.5 * normal(10, BATCH, 2)
    gap = np.asarray(x, np.float64)[:, None] - MEANS
    parts = SHARES * np.exp(-0.5 * np.sum(gap**2, -1) / STDS**2) / (2 * np.pi * STDS**2)
    density = parts.sum(-1)
    score = -np.sum(parts[..., None] * gap / STDS[:, None] ** 2, 1) / density[:, None]
    log_density = quick(scores.gaussian_mixture_log_density)(x, *mixture())
    np.testing.assert_allclose(log_density, np.log(density), rtol=1e-4, atol=1e-5)
    found = quick(scores.gaussian_mixture_score)(x, *mixture())
    np.testing.assert_allclose(found, score, rtol=1e-4, atol=1e-5)


def test_gaussian_mixture_density_integrates_to_one():
    axis = np.arange(-8, 8, 0.1)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    log_density = quick(scores.gaussian_mixture_log_density)(jnp.asarray(grid, "f4"), *mixture())
    # The trapezoidal rule is exact to rounding on a smooth density that vanishes at the border.
    np.testing.assert_allclose(np.exp(np.asarray(log_density, np.float64)).sum() * 0.01, 1, 1e-4)


@pytest.mark.parametrize("shape", [(2,), (2, 3, 1)])
def test_kde_score_is_the_softmax_form(shape):
    x, centres = normal(11, BATCH, *shape), normal(12, 7, *shape)
    noise = np.linspace(0.3, 1.5, BATCH)
    flat, points = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, centres))
    gap = points[None] - flat[:, None]
    logit = -0.5 * np.sum(gap**2, -1) / noise[:, None] ** 2
    weight = np.exp(logit) / np.exp(logit).sum(-1, keepdims=True)
    expected = np.einsum("bn,bnd->bd", weight, gap) / noise[:, None] ** 2
    found = quick(scores.kde_score)(x, centres, jnp.asarray(noise, jnp.float32))
    chex.assert_shape(found, x.shape)
    np.testing.assert_allclose(found.reshape(BATCH, -1), expected, rtol=1e-4, atol=1e-4)
    # A scalar noise level serves all.
    one = scores.kde_score(x, centres, float(noise[0]))
    np.testing.assert_allclose(one[0], found[0], rtol=1e-5)


def test_kde_score_is_that_of_an_equal_mixture():
    x, centres = normal(13, BATCH, 2), normal(14, 6, 2)
    std, weights = jnp.full(6, 0.6), jnp.full(6, 1 / 6)
    expected = quick(scores.gaussian_mixture_score)(x, centres, std, weights)
    np.testing.assert_allclose(scores.kde_score(x, centres, 0.6), expected, rtol=1e-4, atol=1e-4)


# Paths and times.

CURVED = paths.Path(alpha=lambda t: jnp.sin(0.5 * jnp.pi * t), sigma=lambda t: (1 - t) ** 2)


def test_linear_path_is_the_explicit_formula():
    x0, x1, t = normal(15, BATCH, 2, 3), normal(16, BATCH, 2, 3), jnp.asarray(TIMES, jnp.float32)
    s = paths.interpolate(paths.linear, x0, x1, t)
    a, b, c = (np.asarray(v, np.float64) for v in (x0, x1, t[:, None, None]))
    np.testing.assert_allclose(s.x, (1 - c) * a + c * b, atol=1e-6)
    np.testing.assert_allclose(s.v, b - a, atol=1e-6)
    chex.assert_trees_all_equal((s.x0, s.x1, s.t), (x0, x1, t))
    chex.assert_trees_all_equal_dtypes(s, jax.tree.map(jnp.float32, s))
    known = registry.Methods(registry.find("genfield.paths"))[registry.Path]
    assert known["linear"].path is paths.linear
    ends = [paths.interpolate(paths.linear, x0, x1, jnp.full(BATCH, e)).x for e in (0.0, 1.0)]
    chex.assert_trees_all_equal(ends, [x0, x1])


def test_brownian_bridge_has_the_velocity_of_sb_cfm():
    x0, x1, z = (normal(s, BATCH, 2, 3) for s in (15, 16, 21))
    t = jnp.asarray(np.clip(TIMES, 0.05, 0.95), jnp.float32)
    s = paths.interpolate(paths.brownian_bridge(paths.linear, 0.7), x0, x1, t, z)
    a, b, n, c = (np.asarray(v, np.float64) for v in (x0, x1, z, t[:, None, None]))
    mean = (1 - c) * a + c * b
    np.testing.assert_allclose(s.x, mean + 0.7 * np.sqrt(c * (1 - c)) * n, atol=1e-5)
    exact = (1 - 2 * c) / (2 * c * (1 - c)) * (np.asarray(s.x) - mean) + b - a
    np.testing.assert_allclose(s.v, exact, atol=1e-4)
    # At the ends the bridge is pinned, to the 1e-4 that keeps its velocity finite.
    for end, x in ((0.0, x0), (1.0, x1)):
        pinned = paths.interpolate(
            paths.brownian_bridge(paths.linear, 0.7), x0, x1, jnp.full(BATCH, end), z
        )
        np.testing.assert_allclose(pinned.x, x, atol=5e-4)
        assert np.isfinite(pinned.v).all()
    with pytest.raises(ValueError, match="a bridge takes noise z"):
        paths.interpolate(paths.linear, x0, x1, t, z)
    with pytest.raises(ValueError, match="a bridge takes noise z"):
        paths.interpolate(paths.brownian_bridge(paths.linear, 0.7), x0, x1, t)


def test_velocity_of_a_curved_path():
    x0, x1, t = normal(17, BATCH, 2), normal(18, BATCH, 2), jnp.asarray(TIMES, jnp.float32)
    s = paths.interpolate(CURVED, x0, x1, t)
    c = TIMES[:, None]
    exact = 0.5 * np.pi * np.cos(0.5 * np.pi * c) * np.asarray(x1) - 2 * (1 - c) * np.asarray(x0)
    np.testing.assert_allclose(s.v, exact, atol=1e-5)
    step = 1e-2
    ahead, behind = (paths.interpolate(CURVED, x0, x1, t + e).x for e in (step, -step))
    # Central differences: h²/6 |x'''| + 1e-7/h stays below 3e-4 here.
    np.testing.assert_allclose((ahead - behind) / (2 * step), s.v, atol=3e-4)


@pytest.mark.parametrize(
    ("x1_shape", "t_shape"), [((4, 3), (4,)), ((4, 2), (4, 1)), ((4, 2), (3,)), ((4, 2), ())]
)
def test_interpolate_refuses_other_shapes(x1_shape, t_shape):
    with pytest.raises(ValueError, match="interpolate needs"):
        paths.interpolate(paths.linear, jnp.zeros((4, 2)), jnp.zeros(x1_shape), jnp.zeros(t_shape))


def logit(q):
    return np.log(q) - np.log1p(-q)


TIME_SAMPLERS = {  # sampler, CDF, lowest and highest value it may return
    "uniform": (paths.uniform(), lambda q: q, 0.0, 1.0),
    "uniform_cut": (paths.uniform(0.2, 0.999), lambda q: (q - 0.2) / 0.799, 0.2, 0.999),
    "skewed": (paths.skewed(), lambda q: scipy.stats.norm.cdf((logit(q) - 1.2) / 1.2), 1e-4, 1.0),
    "logit_normal": (
        paths.logit_normal(0.4, 0.7),
        lambda q: scipy.stats.norm.cdf((logit(q) - 0.4) / 0.7),
        0.0,
        1.0,
    ),
}


LEVELS = {
    "log_normal": (
        paths.log_normal(-0.5, 0.8),
        lambda q: scipy.stats.norm.cdf((np.log(q) + 0.5) / 0.8),
        0.0,
        np.inf,
    ),
    "log_uniform": (
        paths.log_uniform(0.01, 10.0),
        lambda q: np.log(q / 0.01) / np.log(1000),
        0.01,
        10.0001,
    ),
    "variance_preserving": (  # σ² = exp(9.95 t² + 0.1 t) - 1, solved for t
        paths.variance_preserving(),
        lambda q: (np.sqrt(0.01 + 2 * 19.9 * np.log1p(q**2)) - 0.1) / 19.9,
        1e-3,
        153.0,
    ),
}
TIME_SAMPLERS |= LEVELS


def test_every_time_sampler_is_in_the_table():
    laws = registry.Methods(registry.find("genfield.paths"))[registry.TimeLaw].values()
    assert {law.name for law in laws if not law.noise_levels} <= set(TIME_SAMPLERS)
    assert {law.name for law in laws if law.noise_levels} == {*LEVELS, "fixed", "iddpm"}  # a table
    np.testing.assert_allclose(paths.fixed(0.3)(jax.random.key(0), 4), 0.3)


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_time_samplers_follow_their_distribution(name):
    draw, cdf, low, high = TIME_SAMPLERS[name]
    t = draw(jax.random.key(19), 4000)
    chex.assert_shape(t, (4000,))
    assert t.dtype == jnp.float32
    assert t.min() >= np.float32(low) and t.max() <= np.float32(high)
    # Kolmogorov-Smirnov at a fixed seed; a wrong sign or scale gives p < 1e-20.
    assert scipy.stats.kstest(np.asarray(t, np.float64), cdf).pvalue > 1e-3
    again = quick(draw, static_argnums=1)(jax.random.key(19), 4000)
    # exp multiplies a rounding, 1.2e-7, by its exponent: 10 of variance_preserving at the highest.
    np.testing.assert_allclose(again, t, rtol=2e-6)
    assert not np.array_equal(t, draw(jax.random.key(20), 4000))


def test_skewed_times_are_clipped_from_below():
    low, n = 0.6, 4000
    t = np.asarray(paths.skewed(low=low)(jax.random.key(21), n))
    cdf = lambda q: scipy.stats.norm.cdf((logit(q) - 1.2) / 1.2)
    clipped = np.mean(t == np.float32(low))
    share = cdf(low)
    assert abs(clipped - share) < 5 * np.sqrt(share * (1 - share) / n)
    above = np.sort(t[t > low])
    conditional = lambda q: (cdf(q) - share) / (1 - share)
    assert scipy.stats.kstest(above.astype(np.float64), conditional).pvalue > 1e-3


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.7, 0.2)])
def test_uniform_times_refuse_other_ranges(low, high):
    with pytest.raises(ValueError, match="uniform times need"):
        paths.uniform(low, high)


# Guidance.

NULL = 9


def labelled(x, t=None, cond=None):
    """x + (t) + a vector that depends on the label; the null label has its own."""
    shift = jnp.where(cond == NULL, -2.0, cond.astype(jnp.float32))
    return x + fields.expand(shift + (0.0 if t is None else t), x)


def labelled_prediction(x, t=None, cond=None):
    return Prediction(labelled(x, t, cond), jnp.where(cond == NULL, 5.0, 1.0 + cond))


def by_hand(x, t=None, null=False):
    """`labelled` and the distance beside it, for labels 0, 1, … or the null one, in numpy."""
    shift = np.full(BATCH, -2.0) if null else np.arange(BATCH)
    distance = np.full(BATCH, 5.0) if null else 1.0 + np.arange(BATCH)
    return np.asarray(x) + (shift + (0 if t is None else np.asarray(t)))[:, None], distance


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guided_vector_field(scale):
    x, t = normal(22, BATCH, 2), jnp.linspace(0.1, 0.9, BATCH)
    rows = []

    def field(*arguments):
        rows.append(len(arguments[0]))
        return labelled(*arguments)

    run = quick(guidance.classifier_free(field, scale, NULL))
    for time in (None, t):
        found = run(x, time, jnp.arange(BATCH))
        (c, _), (u, _) = by_hand(x, time), by_hand(x, time, null=True)
        close(found, {0.0: u, 1.0: c, 3.0: 3 * c - 2 * u}[scale])
    assert rows == [2 * BATCH] * 2  # one call on a doubled batch


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guided_prediction(scale):
    x = normal(23, BATCH, 2)
    (c, c_distance), (u, u_distance) = by_hand(x), by_hand(x, null=True)
    out = quick(guidance.classifier_free(labelled_prediction, scale, NULL))(
        x, None, jnp.arange(BATCH)
    )
    close(out.direction, u + scale * (c - u))
    close(out.distance, c_distance)

    out = quick(guidance.classifier_free(labelled_prediction, scale, NULL, on="displacement"))(
        x, None, jnp.arange(BATCH)
    )
    a, b = c_distance[:, None] * c, u_distance[:, None] * u
    expected = b + scale * (a - b)
    length = np.linalg.norm(expected, axis=1)
    close(out.distance, length)
    close(out.direction, expected / length[:, None])


def test_guidance_takes_a_tree_of_conditions():
    def field(x, t=None, cond=None):
        return x * fields.expand(cond["scale"], x) + cond["shift"]

    cond = {"scale": jnp.full(BATCH, 2.0), "shift": normal(24, BATCH, 2)}
    guided = guidance.classifier_free(field, 3.0, {"scale": 0.5, "shift": 0.0})
    x = normal(25, BATCH, 2)
    c, u = x * 2 + cond["shift"], x * 0.5
    np.testing.assert_allclose(guided(x, None, cond), u + 3 * (c - u), rtol=1e-5, atol=1e-5)


def test_guidance_of_no_displacement_is_finite():
    still = lambda x, t=None, cond=None: Prediction(0 * x, jnp.ones(len(x)))
    out = guidance.classifier_free(still, 2.0, NULL, on="displacement")(
        jnp.ones((2, 3)), None, jnp.arange(2)
    )
    chex.assert_trees_all_equal(out, Prediction(jnp.zeros((2, 3)), jnp.zeros(2)))


def test_guidance_errors():
    with pytest.raises(ValueError, match="known are 'direction', 'displacement'"):
        guidance.classifier_free(labelled, 1.0, NULL, on="score")
    with pytest.raises(ValueError, match="needs `cond`"):
        guidance.classifier_free(labelled, 1.0, NULL)(jnp.zeros((2, 2)))
