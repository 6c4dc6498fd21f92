"""Flux Matching against closed forms: what each estimator estimates, and what it must not move."""

import functools

import chex
import flux_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genfield import fields, paths, registry, scores
from genfield.losses.flux import estimator as flux

T = flux.HORIZON
STEPS = flux.CHAIN_STEPS
MAX_Z = 4.0  # standard errors
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


# Linear fields on Gaussians. Each example has parameters of its own, passed as its condition: the
# gradient of the summed loss is then each example's gradient.


def linear_field(x, t=None, cond=None):
    return jnp.einsum("bij,bj->bi", cond["A"], x) + cond["b"]


def gaussian_score(mean, precision):
    return lambda x, t=None, cond=None: (mean - x) @ precision


@functools.cache
def _sampler(dim, num, options):
    options = dict(options)

    @quick
    def run(key, A, b, mean, root, precision, sigma, rate):
        k0, k1 = jax.random.split(key)
        x = mean[None] + jax.random.normal(k0, (num, dim)) @ root.T
        tiled = lambda a: jnp.broadcast_to(a, (num, *a.shape))

        def total(cond):
            score = gaussian_score(mean[None], precision)
            loss, _ = flux.flux_estimator(
                k1, linear_field, x, score, cond, sigma=sigma, rate=rate, **options
            )
            return jnp.sum(loss), loss

        gradient, loss = jax.grad(total, has_aux=True)({"A": tiled(A), "b": tiled(b)})
        groups = num // options["group_size"]
        mean_of = lambda a: a.reshape(groups, -1, *a.shape[1:]).mean(1)
        means = jax.tree.map(mean_of, (loss, gradient["A"], gradient["b"]))
        return [(a.mean(0), a.std(0) / np.sqrt(groups)) for a in means]

    return run


def monte_carlo(p, num, seed=0, rate=None, **options):
    """[(mean, standard error)] of the loss and of its gradients in A and b, float64."""
    run = _sampler(len(p.b), num, tuple(sorted(options.items())))
    single = lambda a: jnp.asarray(a, jnp.float32)
    root = np.linalg.cholesky(p.covariance)
    arrays = [single(a) for a in (p.A, p.b, p.mean, root, p.precision, p.sigma)]
    found = run(jax.random.key(seed), *arrays, None if rate is None else single(rate))
    return jax.tree.map(lambda a: np.asarray(a, np.float64), found)


def agrees(found, answer, slack=0.0):
    """Within MAX_Z standard errors, and `slack` times the largest of each kind; the z-scores."""
    scores = []
    for (mean, error), expected in zip(found, answer, strict=True):
        room = slack * np.max(np.abs(expected))
        z = np.maximum(np.abs(mean - expected) - room, 0) / (error + 1e-6 * np.max(np.abs(mean)))
        scores.append(np.ravel(z))
    scores = np.concatenate(scores)
    assert scores.max() < MAX_Z, (scores.max(), found[0], answer.value)
    return scores


def smallest(p):
    """The problem with the smallest variance as σ²: what smoothing by σ makes of any data."""
    return p._replace(sigma=float(np.sqrt(np.linalg.eigvalsh(p.covariance)[0])))


ISOTROPIC = [oracles.make_problem(0, d, 1.0, size) for d, size in [(1, 0.3), (2, 2.0), (3, 1.0)]]
ANISOTROPIC = [
    oracles.make_problem(1, 2, 2.0),
    oracles.make_problem(2, 2, 4.0),
    oracles.make_problem(3, 3, 3.0),
    oracles.make_problem(4, 3, 4.0, 0.25),
    oracles.make_problem(5, 5, 2.0),
    oracles.make_problem(6, 5, 4.0),
    oracles.make_problem(7, 8, 4.0, 3.0),
    smallest(oracles.make_problem(8, 2, 4.0)),
    smallest(oracles.make_problem(9, 3, 8.0)),
    smallest(oracles.make_problem(10, 5, 6.0)),
    smallest(oracles.make_problem(11, 8, 4.0)),
]
named = lambda p: f"{len(p.b)}d-{p.sigma:.2f}"
isotropic = pytest.mark.parametrize("p", ISOTROPIC, ids=named)
anisotropic = pytest.mark.parametrize("p", ANISOTROPIC, ids=named)
gaussians = pytest.mark.parametrize("p", ISOTROPIC + ANISOTROPIC, ids=named)


@gaussians
def test_the_oracles_agree_with_each_other(p):
    """Three forms of J, the gradient as half of J's, and the limits of the truncations."""
    J = oracles.projected_divergence(p)
    exact = oracles.untruncated(p)
    np.testing.assert_allclose(exact.value, J, rtol=1e-10)
    cut = oracles.truncated(p, T)
    np.testing.assert_allclose(oracles.autocorrelation(p, T), cut.value, rtol=1e-9)
    np.testing.assert_allclose(oracles.truncated(p, 500.0).in_A, exact.in_A, rtol=1e-8, atol=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(3):
        D, e, step = rng.normal(size=p.A.shape), rng.normal(size=p.b.shape), 1e-5
        at = lambda s, D=D, e=e: oracles.projected_divergence(
            p._replace(A=p.A + s * D, b=p.b + s * e)
        )
        slope = (at(step) - at(-step)) / (2 * step)
        half = np.sum(exact.in_A * D) + exact.in_b @ e
        np.testing.assert_allclose(2 * half, slope, rtol=1e-6, atol=1e-8 * J)
    gaps = [np.abs(oracles.chain(p, T, n).in_A - cut.in_A).max() for n in (64, 128)]
    if gaps[0] > 1e-10:
        assert 1.7 < gaps[0] / gaps[1] < 2.3  # first order in the step


@isotropic
def test_isotropic_chains_are_exact(p):
    for chain in (oracles.chain(p, T, STEPS), oracles.cross_chain(p, T, STEPS)):
        chex.assert_trees_all_close(chain, oracles.truncated(p, T), rtol=1e-10, atol=1e-12)


def test_what_truncation_and_few_steps_cost():
    """On smoothed data, whose smallest variance is σ²; none of it moves the minimiser."""
    for p in (smallest(oracles.make_problem(s, 3, 4.0)) for s in range(5)):
        exact = oracles.untruncated(p)
        cut, chain = oracles.truncated(p, T), oracles.chain(p, T, STEPS)
        values = np.linalg.eigvalsh(p.covariance)
        # The slowest mode loses e^{-2 T σ²/λ} of its quadratic part and the root of that of the
        # linear one; J is a sum over modes.
        left = np.exp(-T * p.sigma**2 / values.max())
        assert 1 - left < cut.value / exact.value < 1
        assert cut.value < chain.value < exact.value * 1.05
        # Where u keeps p, all are zero.
        keeping = np.array([[0, 1, 2], [-1, 0, 3], [-2, -3, 0]]) @ p.precision
        kept = p._replace(A=keeping - p.precision, b=(p.precision - keeping) @ p.mean)
        for answer in (
            oracles.truncated(kept, T),
            oracles.chain(kept, T, STEPS),
            oracles.cross_chain(kept, T, STEPS),
        ):
            assert np.abs(answer.in_A).max() < 1e-10 and abs(answer.value) < 1e-10


@gaussians
def test_pathwise_is_unbiased_for_the_chain_as_run(p):
    found = monte_carlo(p, 1 << 16, estimator="pathwise", group_size=1)
    agrees(found, oracles.chain(p, T, STEPS))


def test_pathwise_tends_to_the_exact_dynamics():
    """Many steps: equation 6 up to T; a long horizon too: the projected Fisher divergence."""
    p = ANISOTROPIC[2]
    many = monte_carlo(p, 1 << 16, estimator="pathwise", group_size=1, num_steps=32)
    agrees(many, oracles.chain(p, T, 32))
    agrees(many, oracles.truncated(p, T), slack=0.01)
    options = {"estimator": "pathwise", "group_size": 1, "num_steps": 64, "horizon": 16.0}
    slow = ANISOTROPIC[9]
    long = monte_carlo(slow, 1 << 16, rate=0.4, **options)
    agrees(long, oracles.untruncated(slow), slack=0.03)
    few = oracles.chain(slow, T, STEPS)
    off = np.abs(long[1][0] - few.in_A) / long[1][1]
    assert off.max() > 2 * MAX_Z  # the check can fail


@gaussians
def test_a_time_for_each_example_is_unbiased_in_a_group(p):
    """Rates of their own too: each example has the weight 1 / q of its own law."""
    rate = np.tile(np.geomspace(0.2, 1.5, 64), 1 << 10)
    found = monte_carlo(p, 1 << 16, rate=rate, estimator="pathwise", group_size=64)
    agrees(found, oracles.chain(p, T, STEPS))


@pytest.mark.parametrize("p", [ISOTROPIC[1], ANISOTROPIC[0], ANISOTROPIC[2]], ids=named)
def test_a_time_for_each_example_is_less_noisy_than_a_shared_one(p, monkeypatch):
    """The gradient of a group's mean: its times average out too."""
    draw = flux._draw_horizon
    shared = lambda key, batch, _, *options: draw(key, batch, 64, *options)
    variances = []
    for way in (draw, shared):
        monkeypatch.setattr(flux, "_draw_horizon", way)
        _sampler.cache_clear()
        found = monte_carlo(p, 1 << 15, estimator="pathwise", group_size=64)
        agrees(found, oracles.chain(p, T, STEPS))
        variances.append(np.sum(found[1][1] ** 2) + np.sum(found[2][1] ** 2))
    _sampler.cache_clear()
    own, together = variances
    assert own < 0.3 * together, own / together


@isotropic
@pytest.mark.parametrize("probed", [1.0, 0.5])
def test_cross_chain_is_unbiased_on_isotropic_gaussians(p, probed):
    """For any number of chains: given the starts and an end, the softmax is the start's law."""
    found = monte_carlo(p, 1 << 16, estimator="cross_chain", group_size=16, probed=probed)
    agrees(found, oracles.chain(p, T, STEPS))


def test_a_group_of_one_chain_is_its_own_mean():
    p = ISOTROPIC[1]
    options = {"estimator": "cross_chain", "group_size": 1}
    agrees(monte_carlo(p, 1 << 16, **options), oracles.chain(p, T, STEPS))


@pytest.mark.parametrize("p", [ANISOTROPIC[0], ANISOTROPIC[7], ANISOTROPIC[8]], ids=named)
@pytest.mark.parametrize("estimator", ["cross_chain", "cross_chain_normalized"])
def test_cross_chain_of_many_chains_on_anisotropic_gaussians(p, estimator):
    """Its own closed form, which is not the chain's: e^{-t} is not ∂x_t/∂x there."""
    answer = oracles.cross_chain(p, T, STEPS, estimator == "cross_chain_normalized")
    found = monte_carlo(p, 1 << 16, estimator=estimator, group_size=256)
    agrees(found, answer, slack=0.04)
    assert abs(answer.value / oracles.chain(p, T, STEPS).value - 1) > 0.06


@isotropic
def test_the_normalized_form_is_biased(p):
    """1.25 J, √2 ln(1 + √2), of the part of u linear in x - E x, and T J of its mean."""
    centred = p._replace(b=-p.A @ p.mean)
    ratio = oracles.cross_chain(centred, T, STEPS, True).value
    ratio /= oracles.projected_divergence(centred)
    np.testing.assert_allclose(ratio, np.sqrt(2) * np.log(1 + np.sqrt(2)), atol=0.02)
    shifted = p._replace(A=-p.precision)
    ratio = oracles.cross_chain(shifted, T, STEPS, True).value
    np.testing.assert_allclose(ratio / oracles.projected_divergence(shifted), T, rtol=1e-9)


# The horizon.


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.3, 1.0, 2.0, 8.0, 40.0])
def test_truncated_exponential(rate):
    v = np.linspace(0.0, 1.0, 41)
    # The spacing of float32 at 1 - v is what bounds the last quantiles of a high rate.
    v = v[v < 1] if rate * T > 10 else v
    t = np.asarray(flux.truncated_exponential(jnp.asarray(v, jnp.float32), rate, T), np.float64)
    mass = [oracles.truncated_exponential_mass(rate, T, s) for s in t]
    np.testing.assert_allclose(mass, v, atol=3e-6)
    assert np.all((t >= 0) & (t <= T))
    log_density = flux.truncated_exponential_log_density(jnp.asarray(t, jnp.float32), rate, T)
    expected = np.log(rate) - rate * t - np.log(-np.expm1(-rate * T))
    np.testing.assert_allclose(log_density, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 1e-30, 1e-9])
def test_a_rate_of_nothing_is_uniform(rate):
    v, rate = jnp.linspace(0.0, 1.0, 11), jnp.float32(rate)
    np.testing.assert_allclose(flux.truncated_exponential(v, rate, T), T * v, rtol=1e-6)
    density = lambda rate, t: flux.truncated_exponential_log_density(t, rate, T)
    np.testing.assert_allclose(density(rate, T * v), -np.log(T), rtol=1e-6)
    slope = jax.vmap(jax.grad(density), (None, 0))(rate, T * v)
    np.testing.assert_allclose(slope, T / 2 - T * v, atol=1e-5)
    p = ISOTROPIC[1]
    run = functools.partial(monte_carlo, p, 1 << 12, estimator="pathwise", group_size=1)
    chex.assert_trees_all_close(run(rate=rate), run(), rtol=1e-5)


@pytest.mark.parametrize("rate", [0.5, 4.0, 5.0, 20.0])
def test_the_last_quantile_is_finite(rate):
    """A uniform draw is 0 once in 2^23, and 1 - v is 1."""
    t = flux.truncated_exponential(jnp.float32(1.0), jnp.float32(rate), T)
    np.testing.assert_allclose(t, T, rtol=5e-3)
    assert t <= T and np.isfinite(flux.truncated_exponential_log_density(t, rate, T))


def test_the_rate_changes_the_variance_and_not_the_mean():
    p = smallest(oracles.make_problem(3, 3, 2.0))
    options = {"estimator": "pathwise", "group_size": 1}
    answer, errors = oracles.chain(p, T, STEPS), {}
    for rate in (None, 1e-4, 1.0):
        found = monte_carlo(p, 1 << 16, seed=1, rate=rate, **options)
        agrees(found, answer)
        errors[rate] = found[0][1]
    np.testing.assert_allclose(errors[1e-4], errors[None], rtol=0.05)  # a rate near 0 is U(0, T)
    assert errors[1.0] < 0.9 * errors[None]


@pytest.mark.parametrize("estimator", flux.ESTIMATORS)
def test_a_group_shares_its_time_where_chains_are_weighted_against_each_other(estimator):
    x, keys = jax.random.normal(jax.random.key(0), (24, 2)), jax.random.split(jax.random.key(1), 24)
    score, options = lambda x, t=None, cond=None: -x, {"group_size": 4, "estimator": estimator}
    run = quick(
        lambda key, rate: flux.flux_estimator(
            key, lambda x, t, c: -2 * x, x, score, sigma=1.0, rate=rate, **options
        )[1]["horizon"]
    )
    for key in (jax.random.key(2), keys):
        for rate in (None, jnp.float32(1.3)):
            t = np.asarray(run(key, rate)).reshape(6, 4)
            assert np.all((t > 0) & (t <= T))
            if estimator == "pathwise":
                assert len(np.unique(t)) == 24
            else:
                assert np.all(t == t[:, :1]) and len(np.unique(t)) == 6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64], ids=jnp.dtype)
@pytest.mark.parametrize("estimator", ["cross_chain", "pathwise"])
def test_times_and_levels_are_float32_whatever_x_is(estimator, dtype):
    """A time in bfloat16 has 129 values in [0.5, 1]."""
    seen = set()

    def field(x, t=None, cond=None):
        seen.add(t.dtype)
        return (-2 * x * fields.expand(t, x)).astype(x.dtype)

    with jax.enable_x64(dtype == jnp.float64):
        x = jax.random.normal(jax.random.key(0), (512, 2)).astype(dtype)
        options = {"sigma": 0.7, "group_size": 2, "estimator": estimator}
        run = quick(
            lambda x: flux.flux_estimator(jax.random.key(1), field, x, field, rate=0.5, **options)
        )
        loss, terms = run(x)
    assert seen == {jnp.dtype(jnp.float32)} and terms["horizon"].dtype == jnp.float32
    assert loss.dtype == jnp.promote_types(dtype, jnp.float32) and np.all(np.isfinite(loss))
    assert len(np.unique(terms["horizon"])) == (512 if estimator == "pathwise" else 256)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [None, 0.7, 3.0])
def test_the_law_of_the_horizon(rate):
    x = jnp.zeros((100_000, 1))
    zero = lambda x, t=None, cond=None: -x
    _, aux = flux.flux_estimator(
        jax.random.key(0), zero, x, zero, sigma=1.0, group_size=1, rate=rate, estimator="pathwise"
    )
    law = scipy.stats.uniform(0, T)
    law = law if rate is None else scipy.stats.truncexpon(T * rate, scale=1 / rate)
    assert scipy.stats.kstest(np.asarray(aux["horizon"], np.float64), law.cdf).pvalue > 1e-3


# The chain.


@pytest.mark.parametrize("num_steps", [1, 4])
def test_chain_has_its_moments(num_steps):
    p, t, n = oracles.make_problem(2, 3, 4.0), 1.7, 1 << 17
    start = np.array([0.5, -2.0, 1.0]) + p.mean
    M, noise = oracles.transition(p, t, num_steps)
    score = gaussian_score(jnp.asarray(p.mean, jnp.float32)[None], jnp.asarray(p.precision, "f4"))
    x = jnp.broadcast_to(jnp.asarray(start, jnp.float32), (n, 3))
    full = lambda a: jnp.full(n, a, jnp.float32)
    run = quick(
        lambda x: flux.langevin_chain(
            jax.random.key(0), score, x, full(p.sigma), None, full(t), num_steps
        )
    )
    ends = np.asarray(run(x), np.float64)
    expected = p.mean + M @ (start - p.mean)
    assert np.all(np.abs(ends.mean(0) - expected) < MAX_Z * np.sqrt(np.diag(noise) / n))
    spread = np.sqrt(np.outer(np.diag(noise), np.diag(noise)) + noise**2) / np.sqrt(n)
    assert np.all(np.abs(np.cov(ends.T) - noise) < MAX_Z * spread)


@pytest.mark.parametrize(("variance", "stable"), [(0.30, False), (0.33, True)])
def test_chains_blow_up_where_the_law_is_much_narrower_than_sigma(variance, stable):
    """A step of the longest chain multiplies by 1 - σ² (1 - e^{-1}) / λ: below -1 for 0.316 σ²."""
    score = lambda x, t=None, cond=None: -x / variance
    chain = lambda x: flux.langevin_chain(
        jax.random.key(0), score, x[None], jnp.ones(1), None, jnp.full(1, T), STEPS
    )[0, 0]
    growth = jax.grad(chain)(jnp.ones(1))[0]
    expected = np.linalg.matrix_power(np.array([[1 + np.expm1(-T / STEPS) / variance]]), STEPS)
    np.testing.assert_allclose(growth, expected[0, 0], rtol=1e-4)
    assert (abs(growth) < 1) == stable


@pytest.mark.parametrize("sigma2", [0.25, 1.0, 4.0])
def test_time_is_in_units_of_the_variance(sigma2):
    """On N(m, 1): (1 - e^{-8σ²}) J. Without the factor σ² it would be that over σ²."""
    A = np.array([[-0.4, 0.9], [0.9, -2.0]])
    mean = np.array([1.0, -0.5])
    p = oracles.Problem(A, -A @ mean, mean, np.eye(2), np.sqrt(sigma2))
    J = oracles.projected_divergence(p)
    np.testing.assert_allclose(oracles.truncated(p, T).value, -np.expm1(-8 * sigma2) * J)
    (value, error), *_ = found = monte_carlo(
        p, 1 << 16, estimator="pathwise", group_size=1, num_steps=32
    )
    answer = oracles.chain(p, T, 32)
    agrees(found, answer)
    np.testing.assert_allclose(answer.value, -np.expm1(-8 * sigma2) * J, rtol=0.3)
    if sigma2 != 1:
        wrong = -np.expm1(-8 * sigma2) / sigma2 * J
        assert abs(value - wrong) > 20 * error and not 0.6 < wrong / value < 1.7


@pytest.mark.parametrize("estimator", ["cross_chain", "pathwise"])
def test_units_of_length_do_not_matter(estimator):
    """x -> c x, σ -> c σ, and fields over c: the same loss over c², noise for noise."""
    x, c = jax.random.normal(jax.random.key(0), (16, 2)), 7.0
    field = lambda x, t=None, cond=None: jnp.sin(x) - x[:, ::-1] * fields.expand(t, x)
    score = lambda x, t=None, cond=None: -x / 2 + jnp.cos(x)
    scaled = lambda f: lambda x, t=None, cond=None: f(x / c, t / c, cond) / c
    run = lambda f, x, s, sigma: flux.flux_estimator(
        jax.random.key(1), f, x, s, sigma=sigma, group_size=8, estimator=estimator
    )[0]
    one = quick(lambda: run(field, x, score, 0.8))()
    other = quick(lambda: run(scaled(field), c * x, scaled(score), c * 0.8))()
    np.testing.assert_allclose(c**2 * other, one, rtol=2e-4, atol=2e-4 * np.abs(one).max())


# Estimators by hand, for given ends of the chains.

TURN = np.array([[0.6, -0.3], [0.2, 0.8]])


def bent_chain(key, score, x, sigma, cond, t, num_steps):
    """Stands in for the chain: ∂x_t/∂x = TURN."""
    return x @ jnp.asarray(TURN, x.dtype).T + 0.3 * jnp.sin(3.0 * jnp.arange(x.size)).reshape(
        x.shape
    ).astype(x.dtype)


def cubic(x, t=None, cond=None):
    turned = jnp.stack([-x[:, 1], x[:, 0] * x[:, 1]], -1)
    return 0.3 * x**3 + turned


def cubic_score(x, t=None, cond=None):
    return -x - 0.2 * x**3


def cubic_slope(x):
    """∇r of u = cubic - cubic_score and s = cubic_score, by hand."""
    x1, x2 = x.T
    s1, s2 = -x1 - 0.2 * x1**3, -x2 - 0.2 * x2**3
    u1, u2 = 0.5 * x1**3 + x1 - x2, 0.5 * x2**3 + x2 + x1 * x2
    # r = 1.5 (x1² + x2²) + 2 + x1 + u·s
    d1 = 3 * x1 + 1 + (1.5 * x1**2 + 1) * s1 + u1 * (-1 - 0.6 * x1**2) + x2 * s2
    d2 = 3 * x2 - s1 + (1.5 * x2**2 + 1 + x1) * s2 + u2 * (-1 - 0.6 * x2**2)
    return np.stack([d1, d2], -1), np.stack([u1, u2], -1), np.stack([s1, s2], -1)


BY_HAND = {
    "cross_chain": {"estimator": "cross_chain"},
    "probed": {"estimator": "cross_chain", "probed": 0.5},
    "normalized": {"estimator": "cross_chain_normalized"},
    "pathwise": {"estimator": "pathwise"},
    "classes": {"estimator": "cross_chain"},
    "classes_normalized": {"estimator": "cross_chain_normalized"},
    "exponential": {"estimator": "cross_chain", "rate": 0.9},
    "pathwise_exponential": {"estimator": "pathwise", "rate": 0.9},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_estimators_by_hand(name, monkeypatch):
    monkeypatch.setattr(flux, "langevin_chain", bent_chain)
    options, n = BY_HAND[name], 6
    x = jax.random.normal(jax.random.key(3), (18, 2))
    sigma = jnp.repeat(jnp.array([0.7, 1.0, 2.0]), n)
    label = jnp.arange(18) % 2 if "classes" in name else None
    run = quick(
        lambda x: flux.flux_estimator(
            jax.random.key(0),
            cubic,
            x,
            cubic_score,
            label,
            sigma=sigma,
            group_size=n,
            divergence="exact",
            **options,
        )
    )
    loss, aux = run(x)
    t = np.asarray(aux["horizon"], np.float64)
    x, kept = np.asarray(x, np.float64), round(options.get("probed", 1) * n)
    starts = x.reshape(3, n, 2)[:, :kept].reshape(-1, 2)
    ends = np.asarray(bent_chain(None, None, jnp.asarray(starts), None, None, None, 4), np.float64)
    slope = cubic_slope(ends)[0]
    _, u, s = cubic_slope(x)
    for g in range(3):
        at, of = slice(g * n, (g + 1) * n), slice(g * kept, (g + 1) * kept)
        if options["estimator"] == "pathwise":
            second = slope[of] @ TURN
        else:
            labels = None if label is None else (np.arange(n) % 2,) * 2
            second = oracles.pulled(
                x[at], ends[of], slope[of], s[at], float(sigma[g * n]), t[g * n],
                options["estimator"], *(labels or ())
            )  # fmt: skip
        rate = options.get("rate")
        density = 1 / T
        if rate:
            density = rate * np.exp(-rate * t[at]) / (1 - np.exp(-rate * T))
        expected = -(float(sigma[g * n]) ** 2) / density * (u[at] * second).sum(-1)
        room = 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(loss[at], expected, rtol=3e-4, atol=room)


# Nonlinear fields.

MEANS = np.array([[-1.2, -0.6], [1.0, 0.2], [0.2, 1.5]])
STDS = np.array([0.7, 0.9, 0.8])
WEIGHTS = np.array([0.4, 0.35, 0.25])


def mixture_score(dtype=jnp.float32):
    arrays = [jnp.asarray(a, dtype) for a in (MEANS, STDS, WEIGHTS)]
    return lambda x, t=None, cond=None: scores.gaussian_mixture_score(x, *arrays)


def network(seed, dim=2, width=8):
    """Of x and σ."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "in": jax.random.normal(keys[0], (dim + 1, width)) / np.sqrt(dim),
        "bias": 0.3 * jax.random.normal(keys[1], (width,)),
        "out": jax.random.normal(keys[2], (width, dim)) / np.sqrt(width),
    }

    def field(params):
        def at(x, t=None, cond=None):
            inner = jnp.concatenate([x, t[:, None]], -1) @ params["in"] + params["bias"][None]
            return jnp.tanh(inner) @ params["out"]

        return at

    return field, params


def scalar_r(field, score, target, x, sigma, probes=None):
    """r at one x [d], written naively; probes [K, d] or None for the trace."""
    at = lambda g, z: g(z[None], sigma[None], None)[0]
    u = lambda z: at(field, z) - at(target, z)
    jacobian = jax.jacfwd(u)(x)
    trace = jnp.trace(jacobian) if probes is None else jnp.mean(
        jnp.einsum("ki,ij,kj->k", probes, jacobian, probes)
    )  # fmt: skip
    return trace + u(x) @ at(score, x)


@pytest.mark.parametrize(
    ("divergence", "own_target"), [("exact", False), ("hutchinson", False), ("hutchinson", True)]
)
def test_stein_gradient_is_the_gradient_of_r(divergence, own_target):
    make, params = network(0)
    field, score = make(params), mixture_score()
    target = make(network(1)[1]) if own_target else score
    x, sigma = jax.random.normal(jax.random.key(2), (12, 2)), jnp.linspace(0.5, 1.5, 12)
    size, probes = (2, None) if divergence == "exact" else (3, None)
    probes = flux._probes(jax.random.key(4), x, divergence, size, "normal")
    given = None if divergence == "exact" else jnp.swapaxes(probes, 0, 1)
    naive = jax.vmap(
        jax.grad(lambda z, s, e: scalar_r(field, score, target, z, s, e)),
        (0, 0, None if given is None else 0),
    )
    expected = quick(naive)(x, sigma, given)
    for chunk in (None, 4):
        run = quick(
            lambda x, sigma, chunk=chunk: flux.stein_gradient(
                field, score, target, x, sigma, None, probes, chunk
            )
        )
        np.testing.assert_allclose(run(x, sigma), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("probe", ["rademacher", "normal"])
def test_probes_have_the_identity_as_second_moment(probe):
    like = jnp.zeros((4000, 2, 3))
    for key in (jax.random.key(0), jax.random.split(jax.random.key(0), 4000)):
        probes = np.asarray(flux._probes(key, like, "hutchinson", 2, probe)).reshape(8000, 6)
        np.testing.assert_allclose(probes.T @ probes / 8000, np.eye(6), atol=0.08)
        assert abs((probes[:4000] * probes[4000:]).mean()) < 0.03  # independent of each other
        if probe == "rademacher":
            assert np.all(np.abs(probes) == 1)
    exact = np.asarray(flux._probes(jax.random.key(0), like[:3], "exact", 1, probe))
    flat = exact.reshape(6, 3, 6)
    for b in range(3):
        np.testing.assert_allclose(flat[:, b].T @ flat[:, b] / 6, np.eye(6), atol=1e-6)


@pytest.mark.parametrize("estimator", ["cross_chain", "pathwise"])
def test_probes_are_independent_of_the_chain(estimator):
    """Probe for probe around the exact divergence, on chains of the same noise."""
    score = lambda x, t=None, cond=None: -x
    # Signs of the chain's first noise as the probe would correlate with ∂(x1² x2²)/∂x2.
    field = lambda x, t=None, cond=None: jnp.stack([(x[:, 0] * x[:, 1]) ** 2, -x[:, 1]], -1)
    x = jax.random.normal(jax.random.key(7), (1 << 15, 2))
    options = {"sigma": 1.0, "group_size": 8, "estimator": estimator, "num_steps": 1}
    run = quick(
        lambda x, divergence: flux.flux_estimator(
            jax.random.key(1), field, x, score, divergence=divergence, **options
        )[0],
        static_argnums=1,
    )
    one, exact = (np.asarray(run(x, way), np.float64) for way in ("hutchinson", "exact"))
    gap = (one - exact).reshape(-1, 8).mean(1)
    assert abs(gap.mean()) < MAX_Z * gap.std() / np.sqrt(len(gap))
    assert gap.std() > 0.05 * exact.std()


def test_pathwise_is_the_derivative_through_the_chain():
    make, params = network(0)
    field, score, key = make(params), mixture_score(), jax.random.key(5)
    x, sigma = jax.random.normal(jax.random.key(2), (8, 2)), jnp.full(8, 0.8)
    loss, aux = quick(
        lambda x: flux.flux_estimator(
            key, field, x, score, sigma=sigma, estimator="pathwise", divergence="exact"
        )
    )(x)
    t = aux["horizon"]

    def end_r(x):
        # The chain's key is its own business; any other noise would fail the comparison.
        ends = flux.langevin_chain(
            jax.random.fold_in(key, 1), score, x, sigma, None, t, flux.CHAIN_STEPS
        )
        return jnp.sum(jax.vmap(functools.partial(scalar_r, field, score, score))(ends, sigma))

    pulled = quick(jax.grad(end_r))(x)
    u = field(x, sigma) - score(x)
    expected = -T * sigma**2 * jnp.sum(u * pulled, -1)
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_one_dimension_is_the_fisher_divergence():
    """There every field is a gradient: the loss is E|f - s|² and its gradient E[(f - s) ∂f]."""
    means, std, weights = np.array([[-0.6], [0.7]]), np.array([0.8, 0.7]), np.array([0.45, 0.55])
    arrays = [jnp.asarray(a, jnp.float32) for a in (means, std, weights)]
    score = lambda x, t=None, cond=None: scores.gaussian_mixture_score(x, *arrays)
    field = lambda x, t=None, cond=None: (
        cond["theta"][:, :1] * jnp.sin(x) + cond["theta"][:, 1:] * x
    )
    n, theta = 1 << 16, np.array([1.5, 0.7])
    options = {"sigma": 1.0, "horizon": 5.0, "num_steps": 48, "rate": 1.0, "group_size": 1}
    options |= {"estimator": "pathwise", "divergence": "exact"}

    def total(theta, x):
        cond = {"theta": theta}
        loss, _ = flux.flux_estimator(jax.random.key(1), field, x, score, cond, **options)
        return jnp.sum(loss), loss

    x = oracles.draw_mixture(np.random.default_rng(0), n, means, std, weights)
    tiled = jnp.broadcast_to(jnp.asarray(theta, jnp.float32), (n, 2))
    gradient, loss = quick(jax.grad(total, has_aux=True))(tiled, jnp.asarray(x, jnp.float32))
    grid = np.linspace(-6, 6, 4001)[:, None]
    density, s = oracles.mixture(grid, means, std, weights)
    measure = density * (grid[1, 0] - grid[0, 0])
    basis = np.concatenate([np.sin(grid), grid], 1)
    u = basis @ theta - s[:, 0]
    J, slope = measure @ u**2, (measure * u) @ basis
    for found, expected in [(loss, J), *zip(np.asarray(gradient).T, slope, strict=True)]:
        found = np.asarray(found, np.float64)
        error = found.std() / np.sqrt(n)
        assert error < 0.012 * expected
        assert abs(found.mean() - expected) < MAX_Z * error + 0.01 * expected


# Fields that keep the density.


def skewed(K, score):
    return lambda x, t=None, cond=None: score(x) + score(x) @ K.T


def curl(score, log_density):
    """s + J ∇ψ / p, ψ = sin(x1) cos(2 x2)."""

    def field(x, t=None, cond=None):
        x1, x2 = x.T
        slope = jnp.stack([jnp.cos(x1) * jnp.cos(2 * x2), -2 * jnp.sin(x1) * jnp.sin(2 * x2)], -1)
        turned = jnp.stack([-slope[:, 1], slope[:, 0]], -1)
        return score(x) + 0.05 * turned * jnp.exp(-log_density(x))[:, None]

    return field


KEEPING = ["rotation", "curl", "high_order_3", "high_order_4"]


def keeping_problem(name, dtype, num=64, batch_seed=0):
    """x, f and s of a field that keeps a mixture."""
    rng = np.random.default_rng(7)
    if name.startswith("high_order"):
        d = int(name[-1])
        means = rng.normal(size=(3, d))
    else:
        d, means = 2, MEANS
    arrays = [jnp.asarray(a, dtype) for a in (means, STDS, WEIGHTS)]
    score = lambda x, t=None, cond=None: scores.gaussian_mixture_score(x, *arrays)
    log_density = lambda x: scores.gaussian_mixture_log_density(x, *arrays)
    K = rng.normal(size=(d, d))
    K = jnp.asarray(K - K.T if d > 2 else [[0.0, -1.5], [1.5, 0.0]], dtype)
    field = curl(score, log_density) if name == "curl" else skewed(K, score)
    x = oracles.draw_mixture(np.random.default_rng(batch_seed), num, means, STDS, WEIGHTS)
    return jnp.asarray(x, dtype), field, score


@pytest.mark.parametrize(
    ("name", "estimator"),
    [(name, "cross_chain") for name in KEEPING] + [("curl", "pathwise")],
)
def test_zero_on_fields_that_keep_the_density(name, estimator):
    options = {"sigma": 0.7, "group_size": 16, "estimator": estimator, "divergence": "exact"}
    with jax.enable_x64(True):
        x, field, score = keeping_problem(name, jnp.float64)

        @quick
        def run(factor):
            longer = lambda x, t=None, cond=None: factor * field(x)
            return flux.flux_estimator(jax.random.key(0), longer, x, score, **options)[0]

        loss = np.asarray(run(1.0))
        assert loss.dtype == np.float64
        assert np.abs(loss).max() < 1e-8
        assert np.abs(np.asarray(run(1.1))).max() > 1e-2


@pytest.mark.parametrize("name", ["curl", "high_order_4"])
def test_one_probe_keeps_a_zero_mean(name):
    """Per example the noise of a probe is left; its mean is small beside its spread."""
    x, field, score = keeping_problem(name, jnp.float32, 8192)
    run = quick(
        lambda key, x: flux.flux_estimator(key, field, x, score, sigma=0.7, group_size=64)[0]
    )
    loss = np.asarray(run(jax.random.key(0), x), np.float64)
    of_groups = loss.reshape(-1, 64).mean(1)
    assert abs(of_groups.mean()) < MAX_Z * of_groups.std() / np.sqrt(len(of_groups))
    assert abs(loss.mean()) < 0.15 * loss.std()


def test_augmenting_is_the_loss_of_score_plus_correction():
    make, params = network(3)
    v, score = make(params), mixture_score()
    both = lambda x, t=None, cond=None: score(x) + v(x, t, cond)
    x = jax.random.normal(jax.random.key(0), (16, 2))
    options = {"sigma": 0.8, "group_size": 8}
    one = quick(lambda x: flux.flux_augment(jax.random.key(1), v, x, score, **options)[0])(x)
    other = quick(lambda x: flux.flux_estimator(jax.random.key(1), both, x, score, **options)[0])(x)
    assert np.abs(one).min() > 0
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


def test_velocity_target():
    """Zero where f = v + w with ∇·(p w) = 0, for any v (eq. 54-56)."""
    with jax.enable_x64(True):
        x, keeps, score = keeping_problem("rotation", jnp.float64)
        velocity = lambda x, t=None, cond=None: jnp.sin(2 * x) + x[:, ::-1] ** 2
        options = {"sigma": 0.7, "group_size": 16, "divergence": "exact", "target": velocity}

        @quick
        def run(factor):
            field = lambda x, t=None, cond=None: factor * velocity(x) + keeps(x) - score(x)
            return flux.flux_estimator(jax.random.key(0), field, x, score, **options)[0]

        assert np.abs(run(1.0)).max() < 1e-8
        assert np.abs(run(1.1)).max() > 1e-2


@pytest.mark.slow
def test_loss_of_a_gradient_and_a_rotation_is_the_gradients():
    """u = ∇φ + v, ∇·(p v) = 0, on a 2-D mixture: J = E|∇φ|²."""
    n, score = 1 << 16, mixture_score()
    x = oracles.draw_mixture(np.random.default_rng(1), n, MEANS, STDS, WEIGHTS)

    def field(x, t=None, cond=None):
        s = score(x)
        slope = jnp.stack([3 * jnp.cos(x[:, 0]), 1.5 * x[:, 1]], -1)
        return s + slope + 0.5 * jnp.stack([-s[:, 1], s[:, 0]], -1)

    options = {"sigma": 1.0, "horizon": 8.0, "num_steps": 48, "rate": 0.3, "group_size": 1}
    options |= {"estimator": "pathwise", "divergence": "exact"}
    run = quick(lambda x: flux.flux_estimator(jax.random.key(1), field, x, score, **options)[0])
    loss = np.asarray(run(jnp.asarray(x, jnp.float32)), np.float64)
    many = oracles.draw_mixture(np.random.default_rng(2), 1 << 18, MEANS, STDS, WEIGHTS)
    J = (9 * np.cos(many[:, 0]) ** 2 + 2.25 * many[:, 1] ** 2).mean()
    error = loss.std() / np.sqrt(n)
    assert error < 0.04 * J
    assert abs(loss.mean() - J) < MAX_Z * error + 0.02 * J


# Groups, classes, devices.


def batch_problem(num=32):
    make, params = network(6)
    x = jax.random.normal(jax.random.key(8), (num, 2))
    sigma = jnp.repeat(jnp.linspace(0.8, 1.2, num // 8), 8)
    return make, params, x, sigma, jax.random.split(jax.random.key(9), num)


LAYOUTS = {
    "cross_chain": {},
    "pathwise": {"estimator": "pathwise", "num_probes": 2, "probe": "normal"},
    "few_chains": {"probed": 0.5, "chunk": 4, "rate": 0.7},
}


@functools.cache
def _value_and_gradient(name):
    make = batch_problem()[0]

    def run(keys, params, centres, x, sigma, label):
        def total(params):
            score = scores.kde_field(centres, 8, label)
            loss, _ = flux.flux_estimator(
                keys, make(params), x, score, label, sigma=sigma, group_size=8, **LAYOUTS[name]
            )
            return jnp.mean(loss), loss

        gradient, loss = jax.grad(total, has_aux=True)(params)
        return loss, gradient

    return quick(run)


@pytest.mark.parametrize("name", LAYOUTS)
def test_groups_do_not_meet(name):
    """A batch's loss is that of its groups, in any order, alone or together."""
    _, params, x, sigma, keys = batch_problem()
    run, centres, label = _value_and_gradient(name), x + 0.3, jnp.arange(32) % 2
    loss, _ = run(keys, params, centres, x, sigma, label)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    order = np.arange(32).reshape(4, 8)[[2, 0, 3, 1]].ravel()
    moved = run(keys[order], params, *(a[order] for a in (centres, x, sigma, label)))[0]
    close(moved, loss[order])
    if name == "cross_chain":
        for g in range(4):
            part = slice(8 * g, 8 * g + 8)
            alone = run(keys[part], params, *(a[part] for a in (centres, x, sigma, label)))[0]
            close(alone, loss[part])


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_device_is_eight_devices(name):
    """Groups of 8 over devices of 4 examples."""
    _, params, x, sigma, keys = batch_problem()
    run, label = _value_and_gradient(name), jnp.arange(32) % 2
    one_loss, one_gradient = run(keys, params, x + 0.3, x, sigma, label)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, same = (NamedSharding(mesh, PartitionSpec(*a)) for a in (("data",), ()))
    keys, centres, x, sigma, label = jax.device_put((keys, x + 0.3, x, sigma, label), rows)
    loss, gradient = run(keys, jax.device_put(params, same), centres, x, sigma, label)
    assert len(loss.sharding.device_set) == 8
    np.testing.assert_allclose(loss, one_loss, rtol=1e-6, atol=1e-6 * np.abs(one_loss).max())
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(one_gradient))
    chex.assert_trees_all_close(gradient, one_gradient, rtol=0, atol=1e-6 * largest)


def test_chunks_change_nothing():
    make, params, x, sigma, keys = batch_problem()
    run = lambda chunk=None: flux.flux_estimator(
        keys,
        make(params),
        x,
        mixture_score(),
        sigma=sigma,
        group_size=8,
        probed=0.5,
        chunk=chunk,
    )[0]
    whole = quick(run)()
    assert whole.shape == (32,) and whole.dtype == jnp.float32
    other = quick(lambda: run(4))()
    np.testing.assert_allclose(other, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


def test_classes_are_apart():
    """A group of two classes, chain for chain the groups of each class alone."""
    make, params = network(6)
    x = jax.random.normal(jax.random.key(8), (12, 2))
    label = jnp.asarray([0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0])
    keys = jax.random.split(jax.random.key(9), 12)
    keys = keys.at[1].set(keys[0])  # the first of each class, which give the time

    def plain(keys, x, label):
        score = scores.kde_field(x + 0.2, None, label)
        loss, aux = flux.flux_estimator(keys, make(params), x, score, label, sigma=0.8)
        return loss, aux["horizon"]

    run = quick(plain)
    whole, t = run(keys, x, label)
    for c in (0, 1):
        pick = np.flatnonzero(np.asarray(label) == c)
        alone, its_t = run(keys[pick], x[pick], label[pick])
        np.testing.assert_array_equal(its_t, t[pick])
        np.testing.assert_allclose(whole[pick], alone, rtol=1e-4, atol=1e-5)
    unlabelled, _ = run(keys, x, jnp.zeros(12, int))
    assert not np.allclose(unlabelled, whole, rtol=1e-2)
    # Labels as numpy holds them are labels too.
    host = np.asarray(label)
    np.testing.assert_allclose(
        quick(lambda: plain(keys, x, host)[0])(), whole, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("estimator", ["cross_chain", "cross_chain_normalized"])
def test_numbers_that_are_no_integers_are_no_classes(estimator):
    """A condition [B] of floats goes with the chains, which mix."""
    field = lambda x, t=None, cond=None: jnp.sin(x) * (1 + 0 * cond[:, None])
    x, label = jax.random.normal(jax.random.key(8), (12, 2)), jnp.arange(12) % 2
    score = lambda x, t=None, cond=None: -x
    run = lambda cond: flux.flux_estimator(
        jax.random.key(9), field, x, score, cond, sigma=0.8, estimator=estimator
    )[0]
    mixing = run(jnp.zeros(12, int))
    np.testing.assert_allclose(run(label.astype(jnp.float32)), mixing, rtol=1e-6)
    assert not np.allclose(run(label), mixing, rtol=1e-2)


def test_a_condition_reaches_its_own_chain():
    """Conditions that are no classes go with the chains."""
    field = lambda x, t=None, cond=None: jnp.sin(x) * cond["scale"][:, None]
    score = lambda x, t=None, cond=None: -x * cond["scale"][:, None]
    x, scale = jax.random.normal(jax.random.key(8), (8, 2)), jnp.linspace(0.5, 1.5, 8)
    keys = jax.random.split(jax.random.key(9), 8)
    run = quick(
        lambda x, scale, keys: flux.flux_estimator(
            keys, field, x, score, {"scale": scale}, sigma=0.8, group_size=1, estimator="pathwise"
        )[0]
    )
    whole = run(x, scale, keys)
    for i in range(0, 8, 3):
        one = slice(i, i + 1)
        alone = run(x[one], scale[one], keys[one])
        np.testing.assert_allclose(alone, whole[one], rtol=1e-4, atol=1e-5)


BAD = {
    "estimator": ({"estimator": "best"}, "unknown estimator 'best'; known: cross_chain"),
    "divergence": ({"divergence": "none"}, "unknown divergence 'none'; known: exact"),
    "probe": ({"probe": "uniform"}, "unknown probe 'uniform'; known"),
    "group": ({"group_size": 5}, "group_size 5 does not divide the batch of 12"),
    "probed": ({"probed": 1.5}, r"probed must be in \(0, 1\]"),
    "no_chain": ({"group_size": 4, "probed": 0.05}, "leave a chain"),
    "pathwise": ({"estimator": "pathwise", "probed": 0.5}, "pathwise needs every chain"),
    "normalized": (
        {"estimator": "cross_chain_normalized", "probed": 0.5},
        "cross_chain_normalized needs every chain",
    ),
    "chunk": ({"chunk": 5}, "chunk 5 does not divide 12"),
    "no_chunk": ({"chunk": 0}, "chunk must be a whole number of at least 1, got 0"),
    "no_group": ({"group_size": 0}, "group_size must be a whole number of at least 1, got 0"),
    "negative_group": ({"group_size": -4}, "group_size must be a whole number .* got -4"),
    "broken_group": ({"group_size": 4.0}, "group_size must be a whole number .* got 4.0"),
    "no_probe": ({"num_probes": 0}, "num_probes must be a whole number of at least 1, got 0"),
    "no_step": ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
    "steps_unset": ({"num_steps": None}, "num_steps must be a whole number .* got None"),
    "no_time": ({"horizon": 0.0}, "horizon is T > 0 in units of σ².*, got 0"),
    "negative_time": ({"horizon": -4.0}, "horizon is T > 0"),
    "endless": ({"horizon": np.inf}, "horizon is T > 0"),
    "not_probed": ({"probed": 0.0}, r"probed must be in \(0, 1\]"),
    "probed_nan": ({"probed": np.nan}, r"probed must be in \(0, 1\]"),
    "rate": ({"rate": -0.5}, "rate must be finite and 0 .uniform. or more, got .-0.5"),
    "one_rate": ({"rate": np.arange(12.0) - 1}, "rate must be finite .* got .-1"),
    "rate_nan": ({"rate": jnp.full(12, jnp.nan)}, "rate must be finite .* got .nan"),
    "rates": ({"rate": jnp.ones(3)}, r"rate must be a number or \[12\], not \(3,\)"),
    "sigma": ({"sigma": 0.0}, "sigma must be finite and positive, got .0"),
    "sigma_inf": ({"sigma": np.inf}, "sigma must be finite and positive, got .inf"),
    "sigmas": ({"sigma": jnp.ones((12, 1))}, r"sigma must be a number or \[12\], not \(12, 1\)"),
    "keys": ({"key": jax.random.split(jax.random.key(0), 5)}, r"one an example: 12, not \(5,\)"),
    "grid": (
        {"key": jax.random.split(jax.random.key(0), (12, 2))},
        r"one an example: 12, not \(12, 2\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused(name):
    options, message = BAD[name]
    options = {"key": jax.random.key(0), "sigma": 1.0} | options
    field, x = lambda x, t=None, cond=None: -2 * x, jnp.ones((12, 2))
    with pytest.raises(ValueError, match=message) as caught:
        flux.flux_estimator(options.pop("key"), field, x, field, **options)
    assert "\n" not in str(caught.value)


# Gradients.


@pytest.mark.parametrize("estimator", ["cross_chain", "pathwise"])
def test_gradients_reach_the_field_alone(estimator):
    """-σ²/q <∂u/∂θ, pulled>, and nothing through the score, the target or the rate."""
    make, params = network(0)
    x, sigma = jax.random.normal(jax.random.key(2), (12, 2)), jnp.full(12, 0.8)
    weight = jnp.linspace(0.5, 2.0, 12)
    roles = {"field": params, "score": network(1)[1], "target": network(2)[1]}
    roles |= {"rate": jnp.float32(0.6), "shift": jnp.zeros((12, 2))}

    @quick
    @jax.value_and_grad
    def run(roles):
        def field(z, t=None, cond=None):
            return make(roles["field"])(z, t) + cond["shift"]

        loss, _ = flux.flux_estimator(
            jax.random.key(3),
            field,
            x,
            make(roles["score"]),
            {"shift": roles["shift"]},
            sigma=sigma,
            target=make(roles["target"]),
            rate=roles["rate"],
            group_size=6,
            estimator=estimator,
        )
        return jnp.sum(weight * loss)

    value, gradient = run(roles)
    for role in ("score", "target", "rate"):
        for g in jax.tree.leaves(gradient[role]):
            np.testing.assert_array_equal(g, np.zeros_like(g))
    # A shift of u at x alone has -σ²/q pulled as its gradient; the loss is linear in u beside it.
    pulled = gradient["shift"]
    by_hand = jax.vjp(lambda p: make(p)(x, sigma), params)[1](pulled)[0]
    chex.assert_trees_all_close(gradient["field"], by_hand, rtol=1e-4, atol=1e-6)
    u = make(params)(x, sigma) - make(roles["target"])(x, sigma)
    np.testing.assert_allclose(jnp.sum(pulled * u), value, rtol=1e-4)


# Scores of batches.


@pytest.mark.parametrize("labelled", [False, True])
def test_kde_field_is_a_loop(labelled):
    rng = np.random.default_rng(0)
    centres, x = rng.normal(size=(12, 3)), rng.normal(size=(8, 3))
    sigma = np.repeat([0.4, 0.9], 4)
    label, asked = rng.integers(0, 2, 12), np.array([0, 1, 2, 0, 1, 1, 2, 0])
    given = jnp.asarray(label) if labelled else None
    score = scores.kde_field(jnp.asarray(centres, jnp.float32), 6, given, 2)
    single = lambda a: jnp.asarray(a, jnp.float32)
    found = score(single(x), single(sigma), jnp.asarray(asked))
    for i in range(8):
        group = slice(0, 6) if i < 4 else slice(6, 12)
        points = centres[group]
        if labelled and asked[i] != 2:
            points = points[label[group] == asked[i]]
        expected = oracles.kde_score(x[i], points, sigma[i])
        np.testing.assert_allclose(found[i], expected, rtol=2e-5, atol=1e-5)


def test_kde_velocity_is_equation_60():
    rng = np.random.default_rng(1)
    data, x, a = rng.normal(size=(7, 2)), rng.normal(size=(4, 2)), 0.35
    single = lambda z: jnp.asarray(z, jnp.float32)
    velocity = scores.kde_velocity(scores.kde_field(single(a * data)))
    found = velocity(single(x), jnp.full(4, 1 - a))
    expected = np.stack([oracles.flow_velocity(z, data, a) for z in x])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Denoisers, preconditioning, rotated gradients, noise levels.


def test_denoisers_and_scores_round_trip():
    x, sigma = jax.random.normal(jax.random.key(0), (5, 2, 3)), jnp.linspace(0.1, 3.0, 5)
    score = jax.random.normal(jax.random.key(1), (5, 2, 3))
    denoised = fields.score_to_denoiser(score, x, sigma)
    np.testing.assert_allclose(
        fields.denoiser_to_score(denoised, x, sigma), score, rtol=1e-3, atol=1e-4
    )
    # Data N(0, v): the denoiser is v x / (v + σ²) and the score -x / (v + σ²).
    of_data = lambda x, t=None, cond=None: x * 0.7 / (0.7 + fields.expand(t, x) ** 2)
    exact = -np.asarray(x) / (0.7 + np.asarray(sigma)[:, None, None] ** 2)
    field = fields.score_field(of_data)
    np.testing.assert_allclose(field(x, sigma), exact, rtol=1e-3, atol=1e-5)
    back = fields.denoiser_field(field)
    np.testing.assert_allclose(back(x, sigma), of_data(x, sigma), rtol=1e-4, atol=1e-5)
    guided = lambda x, t=None, cond=None: x
    guided.evaluations = 2
    assert fields.score_field(guided).evaluations == 2
    assert fields.denoiser_field(guided).evaluations == 2


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_preconditioning_is_table_1_of_edm(sigma_data):
    x, sigma = jax.random.normal(jax.random.key(0), (5, 2)), np.array([0.002, 0.1, 0.5, 3.0, 80.0])
    inner = lambda x, t=None, cond=None: jnp.sin(x) + t[:, None] * cond[:, None]
    cond = jnp.arange(5.0)
    denoiser = fields.precondition(inner, sigma_data)
    found = denoiser(x, jnp.asarray(sigma, jnp.float32), cond)
    s, z = sigma[:, None], np.asarray(x, np.float64)
    total = s**2 + sigma_data**2
    inside = np.sin(z / np.sqrt(total)) + np.log(s) / 4 * np.arange(5.0)[:, None]
    expected = sigma_data**2 / total * z + s * sigma_data / np.sqrt(total) * inside
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # EDM's purpose: at unit-variance inputs and targets the network's are of unit variance.
    skip, out = sigma_data**2 / total, s * sigma_data / np.sqrt(total)
    target = ((1 - skip) ** 2 * sigma_data**2 + skip**2 * s**2) / out**2
    np.testing.assert_allclose(target, 1, rtol=1e-9)


def test_rotated_gradient_keeps_the_law():
    """∇·(p J ∇ log p) = 0: the flux's divergence of f = (I + γ J) ∇ log p is the score's."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        means = jnp.asarray(rng.normal(size=(3, 4)))
        std, weights = jnp.asarray(STDS), jnp.asarray(WEIGHTS)
        log_density = lambda x, t=None, cond=None: scores.gaussian_mixture_log_density(
            x, means, std, weights
        )
        field = fields.rotated_gradient(log_density, 1.5)
        x = jnp.asarray(rng.normal(size=(6, 4)))
        s = scores.gaussian_mixture_score(x, means, std, weights)
        v = np.asarray(field(x) - s)
        turned = np.stack([-s[:, 1], s[:, 0], -s[:, 3], s[:, 2]], -1)
        np.testing.assert_allclose(v, 1.5 * turned, rtol=1e-12)
        difference = lambda z, t=None, cond=None: field(z) - fields.gradient_field(log_density)(z)
        r = fields.divergence(difference, x) + jnp.sum(difference(x) * s, -1)
        assert np.abs(r).max() < 1e-11
        plain = fields.rotated_gradient(log_density, 0.0)
        np.testing.assert_allclose(plain(x), s, rtol=1e-12)


def test_variance_exploding_path():
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 4, 2, 2))
    sigma = jnp.array([0.0, 0.1, 2.0, 80.0])
    sample = paths.interpolate(paths.variance_exploding, x0, x1, sigma)
    np.testing.assert_allclose(sample.x, x1 + sigma[:, None, None] * x0, rtol=1e-6)
    np.testing.assert_array_equal(sample.v, x0)  # dx/dσ
    known = registry.Methods(registry.find("genfield.paths"))[registry.Path]
    assert known["variance_exploding"].path is paths.variance_exploding


def test_noise_levels_have_their_laws():
    n = 20_000
    draw = lambda sampler: np.asarray(sampler(jax.random.key(0), n), np.float64)
    logs = np.log(draw(paths.log_normal(-0.4, 0.9)))
    assert scipy.stats.kstest(logs, scipy.stats.norm(-0.4, 0.9).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(
        np.log(draw(paths.log_normal())), scipy.stats.norm(-1.2, 1.2).cdf
    ).pvalue > 1e-3  # fmt: skip
    levels = draw(paths.log_uniform())
    law = scipy.stats.uniform(np.log(0.002), np.log(80) - np.log(0.002))
    assert scipy.stats.kstest(np.log(levels), law.cdf).pvalue > 1e-3
    np.testing.assert_array_equal(draw(paths.fixed(0.3)), np.full(n, np.float32(0.3)))
    for sampler in (paths.log_normal(), paths.log_uniform(), paths.fixed(1.0)):
        chex.assert_type(sampler(jax.random.key(0), 3), jnp.float32)
    for low, high in ((0.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="log_uniform noise levels need"):
            paths.log_uniform(low, high)
    with pytest.raises(ValueError, match="must be positive"):
        paths.fixed(0.0)


@pytest.mark.parametrize("sigma", [0.002, 0.02, 0.2, 1.0, 3.0])
@pytest.mark.parametrize(("dim", "spread"), [(200, 2.8), (768, 0.5)])
def test_second_derivatives_of_a_density_of_few_keep_their_digits(sigma, dim, spread):
    """Jitted, in float32 against float64: ∇(εᵀ J ε) + Jᵀ s, in units of σ⁻³."""
    rng = np.random.default_rng(0)
    centres = spread * rng.normal(size=(8, dim))
    x = centres + sigma * rng.normal(size=centres.shape)
    probe = rng.choice([-1.0, 1.0], size=centres.shape)

    def run(x, centres, probe):
        at = lambda z: scores.kde_score(z, centres, sigma)
        return sigma**3 * flux._second_order(at, x, at(x), probe[None])[1]

    found = jax.jit(run)(*(jnp.asarray(a, jnp.float32) for a in (x, centres, probe)))
    with jax.enable_x64(True):
        expected = jax.jit(run)(*(jnp.asarray(a, jnp.float64) for a in (x, centres, probe)))
    error = np.sqrt(np.mean((np.asarray(found) - np.asarray(expected)) ** 2))
    assert error < 0.02, error
