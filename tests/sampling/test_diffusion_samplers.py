"""Samplers down the noise levels, against closed forms, recursions and the papers' loops."""

import functools
import itertools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from counting import called, calling_back, counting, executed
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genfield import fields, guidance, rng, sampling
from genfield.sampling import diffusion, diffusion_flow

BATCH, DIM, STEPS, CHAINS = 8, 2, 5, 4000
MEAN, STD = np.array([0.5, -1.0]), np.array([0.3, 0.8])
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def gaussian_score(x, sigma, cond=None):
    """Of N(MEAN + cond, diag STD²), smoothed."""
    mean = jnp.asarray(MEAN, x.dtype)[None]
    mean = mean if cond is None else mean + fields.expand(cond.astype(x.dtype), x)
    variance = jnp.asarray(STD, x.dtype)[None] ** 2 + fields.expand(sigma, x) ** 2
    return (mean - x) / variance


CENTRES = np.array([[1.0, 1.0], [-1.0, 0.5], [0.0, -1.0]])
WIDTHS, SHARES = np.array([0.2, 0.4, 0.3]), np.array([0.3, 0.5, 0.2])


def mixture_score(x, sigma, cond=None, xp=jnp):
    """Of the mixture of N(CENTRES, WIDTHS²), smoothed; in the precision of x."""
    centres, widths, shares = (xp.asarray(a, x.dtype) for a in (CENTRES, WIDTHS, SHARES))
    variance = widths[None] ** 2 + sigma[:, None] ** 2
    gap = centres[None] - x[:, None]
    log_weight = -0.5 * (gap**2).sum(-1) / variance - xp.log(variance) + xp.log(shares)[None]
    weight = xp.exp(log_weight - log_weight.max(-1, keepdims=True))
    weight = weight / weight.sum(-1, keepdims=True)
    return ((weight / variance)[..., None] * gap).sum(1)


def denoiser_of(score):
    return lambda x, sigma, cond=None: fields.score_to_denoiser(score(x, sigma, cond), x, sigma)


class Case(NamedTuple):
    sampler: sampling.Sampler
    field: callable
    nfe: int  # in STEPS steps
    noisy: bool


GAUSSIAN = {"score": gaussian_score, "denoiser": denoiser_of(gaussian_score)}
MIXTURE = {"score": mixture_score, "denoiser": denoiser_of(mixture_score)}
CASES = {
    "edm_heun": Case(diffusion.edm_heun(), MIXTURE["denoiser"], 2 * STEPS - 1, False),
    "edm_heun_churn": Case(diffusion.edm_heun(churn=2), MIXTURE["denoiser"], 2 * STEPS - 1, True),
    "edm_euler": Case(diffusion.edm_euler(), MIXTURE["denoiser"], STEPS, False),
    "edm_euler_churn": Case(diffusion.edm_euler(churn=2), MIXTURE["denoiser"], STEPS, True),
    "reverse_ve": Case(diffusion.reverse_ve(), MIXTURE["score"], STEPS, True),
    "ancestral": Case(diffusion.reverse_ve(noise="ancestral"), MIXTURE["score"], STEPS, True),
    "predictor_corrector": Case(
        diffusion.predictor_corrector(), MIXTURE["score"], 2 * STEPS - 1, True
    ),
}
table = pytest.mark.parametrize("name", CASES)


@functools.cache
def starts(seed=0, batch=BATCH):
    return jax.random.normal(jax.random.key(seed), (batch, DIM))


@functools.cache
def compiled(name):
    case = CASES[name]
    return quick(
        lambda key, x: sampling.sample(key, case.field, x, case.sampler, num_steps=STEPS, trace=1)
    )


# Noise levels.


def test_noise_levels_are_equation_5():
    levels = diffusion.noise_levels(18)
    i = np.arange(18)
    root = lambda a: a ** (1 / 7)
    expected = (root(80.0) + i / 17 * (root(0.002) - root(80.0))) ** 7
    np.testing.assert_allclose(levels, np.append(expected, 0), rtol=1e-6)
    chex.assert_type(levels, jnp.float32)
    np.testing.assert_array_equal(diffusion.noise_levels(1, 0.1, 3.0), [3.0, 0.0])
    straight = diffusion.noise_levels(3, 1.0, 5.0, rho=1.0)
    np.testing.assert_allclose(straight, [5.0, 3.0, 1.0, 0.0], rtol=1e-6)


def test_logarithmic_noise_levels_have_one_ratio_and_exact_ends():
    levels = diffusion.log_noise_levels(12, 0.003, 70.0)
    assert levels[0] == np.float32(70.0) and levels[-1] == np.float32(0.003)
    np.testing.assert_allclose(
        levels[1:] / levels[:-1], np.full(12, (0.003 / 70) ** (1 / 12)), 1e-5
    )
    chex.assert_shape(diffusion.log_noise_levels(1), (2,))


@pytest.mark.parametrize(
    "make",
    [
        diffusion.noise_levels,
        diffusion.log_noise_levels,
        lambda n, *sigmas: diffusion.edm_heun(*sigmas),
        lambda n, *sigmas: diffusion.edm_euler(*sigmas),
        lambda n, *sigmas: diffusion.reverse_ve(*sigmas),
        lambda n, *sigmas: diffusion.predictor_corrector(*sigmas),
        lambda n, low, high: sampling_flow(starts(), sigma_min=low, sigma_max=high),
    ],
)
def test_noise_levels_must_descend(make):
    for low, high in ((0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (0.1, np.inf)):
        with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
            make(4, low, high)


def test_wrong_options_are_said():
    for grid in (diffusion.noise_levels, diffusion.log_noise_levels):
        with pytest.raises(ValueError, match="num_steps >= 1"):
            grid(0)
    with pytest.raises(ValueError, match="rho must be positive"):
        diffusion.edm_heun(rho=0.0)
    with pytest.raises(ValueError, match="churn and churn_noise"):
        diffusion.edm_euler(churn=-1.0)
    with pytest.raises(ValueError, match="known: ancestral, reverse_diffusion"):
        diffusion.reverse_ve(noise="white")
    with pytest.raises(ValueError, match="corrector_ratio must be positive"):
        diffusion.predictor_corrector(corrector_ratio=0.0)
    with pytest.raises(ValueError, match="known: dopri5, heun_adaptive"):
        diffusion_flow.probability_flow(gaussian_score, starts(), method="rk45")
    with pytest.raises(ValueError, match="sigma_data must not be negative"):
        diffusion_flow.probability_flow(gaussian_score, starts(), sigma_data=-1.0)


# What they all promise.


@table
def test_evaluations_are_counted_exactly(name):
    case = CASES[name]
    field, rows = counting(case.field)
    run = lambda x: sampling.sample(jax.random.key(1), field, x, case.sampler, num_steps=STEPS)
    out = executed(run, starts())
    assert rows == [BATCH] * case.nfe
    np.testing.assert_array_equal(out.nfe, np.full(BATCH, case.nfe))
    chex.assert_type(out.nfe, jnp.int32)


def test_edm_takes_35_evaluations_on_cifar_and_guidance_doubles_them():
    field, rows = counting(GAUSSIAN["denoiser"])
    guided = guidance.classifier_free(field, 1.5, 0)
    run = lambda x, cond: [
        sampling.sample(jax.random.key(0), f, x, diffusion.edm_heun(), num_steps=18, cond=cond).nfe
        for f in (field, guided)
    ]
    plain, doubled = executed(run, starts(), jnp.arange(BATCH))
    np.testing.assert_array_equal(plain, np.full(BATCH, 35))
    np.testing.assert_array_equal(doubled, np.full(BATCH, 70))
    assert sum(rows) == BATCH * (35 + 70)


@table
def test_the_start_is_scaled_and_the_result_finite(name):
    case, run = CASES[name], compiled(name)
    np.testing.assert_allclose(case.sampler.init(starts(), 3).x, 80 * starts(), rtol=1e-6)
    out = run(jax.random.key(1), starts())
    chex.assert_shape(out.trace, (1 + STEPS, BATCH, DIM))
    chex.assert_type(out.x, jnp.float32)
    chex.assert_tree_all_finite(out)
    other = run(jax.random.key(2), starts())
    assert np.array_equal(other.x, out.x) != case.noisy


@table
def test_with_a_key_each_a_sample_does_not_depend_on_its_batch(name):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(BATCH))
    run, others = compiled(name), np.array([5, 0, 3, 3, 7, 3, 3, 0])
    together, elsewhere = run(keys, starts()), run(keys[others], starts()[others])
    chex.assert_trees_all_close(elsewhere.x, together.x[others], rtol=1e-5, atol=1e-6)


@table
def test_one_device_is_eight_devices(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(starts(), NamedSharding(mesh, PartitionSpec("data")))
    out, one = (compiled(name)(jax.random.key(1), x) for x in (split, starts()))
    assert len(out.x.sharding.device_set) == 8
    chex.assert_trees_all_close(out, one, rtol=1e-5, atol=1e-6)


def test_images_keep_their_shape():
    field = lambda x, sigma, cond=None: -x / (1 + fields.expand(sigma, x) ** 2)
    images = jax.ShapeDtypeStruct((4, 3, 3, 2), jnp.float32)
    runs = [
        lambda x, s=case.sampler: sampling.sample(jax.random.key(0), field, x, s, num_steps=3)
        for case in CASES.values()
    ]
    for run in (*runs, lambda x: diffusion_flow.probability_flow(field, x)):
        assert jax.eval_shape(run, images).x == images


# EDM: recursions, orders, the last step.


def gaussian_flow(x, sigma):
    """Where the probability flow brings sigma_max x, for N(MEAN, STD²)."""
    x = 80 * np.asarray(x, np.float64)
    return MEAN + (x - MEAN) * np.sqrt((STD**2 + sigma**2) / (STD**2 + 80.0**2))


def edm_map(sigma, following, second):
    """The factor by which a step multiplies x - MEAN, for N(MEAN, STD²)."""
    slope = sigma / (STD**2 + sigma**2)  # of (x - D) / σ
    h = following - sigma
    if not second or following == 0:
        return 1 + h * slope
    return 1 + 0.5 * h * (slope + (1 + h * slope) * following / (STD**2 + following**2))


@functools.cache
def edm_end(name, num_steps):
    sampler = CASES[name].sampler
    run = quick(
        lambda x: sampling.sample(
            jax.random.key(0), GAUSSIAN["denoiser"], x, sampler, num_steps=num_steps
        )
    )
    return np.asarray(run(starts()).x, np.float64)


@pytest.mark.parametrize(("name", "second"), [("edm_euler", False), ("edm_heun", True)])
def test_edm_steps_are_algorithm_1(name, second):
    levels = np.asarray(diffusion.noise_levels(40), np.float64)
    factor = np.prod([edm_map(*pair, second) for pair in itertools.pairwise(levels)], axis=0)
    expected = MEAN + factor * (80 * np.asarray(starts(), np.float64) - MEAN)
    np.testing.assert_allclose(edm_end(name, 40), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "order"), [("edm_euler", 1), ("edm_heun", 2)])
def test_convergence_order(name, order):
    exact = gaussian_flow(starts(), 0.0)
    errors = np.array([np.abs(edm_end(name, n) - exact).max() for n in (40, 80, 160)])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.15)
    assert errors[-1] < {1: 0.05, 2: 1e-3}[order]


@pytest.mark.parametrize("make", [diffusion.edm_heun, diffusion.edm_euler])
def test_the_last_step_is_the_denoiser(make):
    out = sampling.sample(
        jax.random.key(0), MIXTURE["denoiser"], starts(), make(0.1, 3.0), num_steps=1
    )
    expected = MIXTURE["denoiser"](3 * starts(), jnp.full(BATCH, 3.0))
    np.testing.assert_allclose(out.x, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out.nfe, np.ones(BATCH))


def test_conditions_reach_every_evaluation():
    """cond moves the Gaussian, and with it all that the samplers do."""
    for name in ("edm_heun", "reverse_ve", "predictor_corrector"):
        field = GAUSSIAN["denoiser" if "edm" in name else "score"]
        run = lambda cond, f=field, s=CASES[name].sampler: sampling.sample(
            jax.random.key(0), f, starts(), s, num_steps=30, cond=cond
        )
        cond = jnp.arange(BATCH)
        moved = quick(run)(cond).x - cond[:, None]
        np.testing.assert_allclose(moved, quick(run)(0 * cond).x, atol=0.3)


# Laws of the stochastic samplers: exact recursions of mean and variance; 5 standard errors.


def run_many(name, sampler, num_steps):
    field = GAUSSIAN["denoiser" if "edm" in name else "score"]
    run = jax.jit(
        lambda x: sampling.sample(
            jax.random.key(3), field, x, sampler, num_steps=num_steps, trace=num_steps - 1
        )
    )
    out = run(starts(2, CHAINS))
    return np.asarray(out.trace[1], np.float64), np.asarray(out.x, np.float64)


def assert_moments(x, mean, variance):
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / len(x)))
    assert np.all(np.abs(((x - mean) ** 2).mean(0) / variance - 1) < 5 * np.sqrt(2 / len(x)))


@pytest.mark.parametrize("noise", ["reverse_diffusion", "ancestral"])
def test_reverse_ve_has_the_law_of_its_recursion(noise):
    """x - MEAN is multiplied by 1 - Δ / (STD² + σ²), and gets noise of a known variance."""
    levels = np.asarray(diffusion.log_noise_levels(12, 0.05, 80.0), np.float64)
    mean, variance, laws = -MEAN, np.full(2, 80.0**2), []
    for k, (sigma, following) in enumerate(itertools.pairwise(levels)):
        delta = sigma**2 - following**2
        factor = 1 - delta / (STD**2 + sigma**2)
        added = delta if noise == "reverse_diffusion" else following**2 * delta / sigma**2
        mean, variance = factor * mean, factor**2 * variance + added * (k < 11)
        laws.append((MEAN + mean, variance))
    before, end = run_many("reverse_ve", diffusion.reverse_ve(0.05, 80.0, noise), 12)
    assert_moments(before, *laws[-2])
    assert_moments(end, *laws[-1])


@pytest.mark.parametrize(
    ("name", "churn", "low", "high", "churn_noise"),
    [
        ("edm_euler", 3.0, 1.0, 5.0, 2.0),
        ("edm_heun", 100.0, 0.0, np.inf, 1.0),
        ("edm_heun", 3.0, 1.0, 5.0, 2.0),
    ],
)
def test_churn_has_the_law_of_algorithm_2(name, churn, low, high, churn_noise):
    num_steps = 10
    levels = np.asarray(diffusion.noise_levels(num_steps), np.float64)
    mean, variance, laws = -MEAN, np.full(2, 80.0**2), []
    for sigma, following in itertools.pairwise(levels):
        gamma = min(churn / num_steps, np.sqrt(2) - 1) if low <= sigma <= high else 0.0
        raised = sigma * (1 + gamma)
        variance = variance + churn_noise**2 * (raised**2 - sigma**2)
        factor = edm_map(raised, following, name == "edm_heun")
        mean, variance = factor * mean, factor**2 * variance
        laws.append((MEAN + mean, variance))
    sampler = getattr(diffusion, name)(0.002, 80.0, 7.0, churn, low, high, churn_noise)
    before, end = run_many(name, sampler, num_steps)
    assert_moments(before, *laws[-2])
    assert_moments(end, *laws[-1])


# Algorithm 3, transcribed, with the noises that the sampler draws.


@pytest.mark.parametrize("one_key", [True, False])
def test_predictor_corrector_is_algorithm_3(one_key):
    key, num_steps, ratio = jax.random.key(7), 6, 0.3
    if not one_key:
        key = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(BATCH))
    sampler = diffusion.predictor_corrector(0.05, 20.0, ratio)
    out = quick(
        lambda x: sampling.sample(key, mixture_score, x, sampler, num_steps=num_steps, trace=1)
    )(starts())
    levels = [20.0 * (0.05 / 20.0) ** (k / num_steps) for k in range(num_steps + 1)]
    f = lambda x, level: mixture_score(x, np.full(BATCH, level), xp=np)
    x = 20.0 * np.asarray(starts(), np.float64)
    for k in range(num_steps):
        keys = rng.split(rng.fold_in(key, k))
        z, z_corrector = (np.asarray(rng.normal(each, starts()), np.float64) for each in keys)
        delta = levels[k] ** 2 - levels[k + 1] ** 2
        if k < num_steps - 1:
            x = x + delta * f(x, levels[k]) + np.sqrt(delta) * z
            score = f(x, levels[k + 1])
            for i in range(BATCH):
                step = np.linalg.norm(z_corrector[i]) / np.linalg.norm(score[i])
                size = 2 * (ratio * step) ** 2
                x[i] += size * score[i] + np.sqrt(2 * size) * z_corrector[i]
        else:
            x = x + delta * f(x, levels[k])
        np.testing.assert_allclose(out.trace[k + 1], x, rtol=2e-4, atol=2e-4)


# The probability flow.


def sampling_flow(x, **options):
    return diffusion_flow.probability_flow(gaussian_score, x, **options)


@pytest.mark.parametrize(("method", "per_sample"), [("heun_adaptive", True), ("dopri5", False)])
def test_probability_flow_of_a_gaussian(method, per_sample):
    options = {"method": method, "rtol": 1e-4, "atol": 1e-4, "per_sample": per_sample}
    forward = quick(lambda x: sampling_flow(x, **options))
    backward = quick(lambda x: sampling_flow(x, reverse=True, **options))
    out = forward(starts())
    np.testing.assert_allclose(out.x, gaussian_flow(starts(), 0.002), atol=2e-3)
    assert out.trace is None
    chex.assert_shape(out.nfe, (BATCH,))
    exact = jnp.asarray(gaussian_flow(starts(), 0.002), jnp.float32)
    np.testing.assert_allclose(backward(exact).x, starts(), atol=4e-3)


def reference_flow(x):
    """From sigma_max x to sigma_min, over ln σ, by SciPy in float64."""
    drift = lambda s, y: -np.exp(2 * s) * mixture_score(y[None], np.exp([s]), xp=np)[0]
    ends = np.log([80.0, 0.002])
    solve = lambda row: scipy.integrate.solve_ivp(drift, ends, row, "DOP853", rtol=1e-8, atol=1e-8)
    return np.stack([solve(80.0 * row).y[:, -1] for row in np.asarray(x, np.float64)])


@functools.cache
def mixture_solver(sigma_data, reverse):
    return quick(
        lambda x, tolerance: diffusion_flow.probability_flow(
            mixture_score,
            x,
            method="dopri5",
            rtol=tolerance,
            atol=tolerance,
            sigma_data=sigma_data,
            reverse=reverse,
        )
    )


def mixture_flow(x, tolerance=1e-5, sigma_data=0.5, reverse=False):
    return mixture_solver(sigma_data, reverse)(x, tolerance)


def test_probability_flow_of_a_mixture():
    expected = reference_flow(starts())
    error = lambda out: np.abs(out.x - expected).max()
    tight, loose = mixture_flow(starts()), mixture_flow(starts(), 1e-2)
    assert error(tight) < 1e-3 and error(tight) < 0.1 * error(loose)
    assert np.all(tight.nfe > loose.nfe) and tight.nfe.max() < 130
    back = mixture_flow(jnp.asarray(expected, jnp.float32), reverse=True)
    np.testing.assert_allclose(back.x, starts(), atol=2e-3)


def test_the_scale_of_the_data_changes_the_cost_only():
    out, usual = mixture_flow(starts(), sigma_data=0.0), mixture_flow(starts())
    np.testing.assert_allclose(out.x, usual.x, atol=1e-3)


def test_probability_flow_of_a_sample_does_not_depend_on_its_batch():
    together = mixture_flow(starts())
    assert len(np.unique(together.nfe)) > 1
    others = np.array([3, 3, 0, 0, 5, 3, 3, 3])
    elsewhere = mixture_flow(starts()[others])
    np.testing.assert_allclose(elsewhere.x, together.x[others], rtol=1e-6)
    np.testing.assert_array_equal(elsewhere.nfe, together.nfe[others])


@pytest.mark.parametrize("reverse", [True, False])
def test_adaptive_evaluations_are_counted_exactly(reverse):
    field, rows = calling_back(gaussian_score)
    guided = guidance.classifier_free(field, 1.0, 0)
    run = quick(
        lambda x, cond: diffusion_flow.probability_flow(
            guided, x, cond=cond, rtol=1e-2, atol=1e-2, per_sample=False, reverse=reverse
        )
    )
    out = called(run(starts(), jnp.arange(BATCH)))
    np.testing.assert_array_equal(out.nfe, np.full(BATCH, sum(rows) // BATCH))


def test_edm_and_the_probability_flow_arrive_together():
    """One flow, followed by its denoiser and by its score."""
    run = quick(
        lambda x: sampling.sample(
            jax.random.key(0), MIXTURE["denoiser"], x, diffusion.edm_heun(), num_steps=160
        )
    )
    np.testing.assert_allclose(run(starts()).x, mixture_flow(starts()).x, atol=0.01)


@pytest.mark.parametrize("churn, num_steps", [(3.0, 10), (20.0, 4)])
def test_churn_raises_the_noise_by_its_share_of_the_steps(churn, num_steps):
    seen = []

    def denoiser(x, t=None, cond=None):
        seen.append(float(t[0]))
        return 0 * x

    sampler = sampling.edm_euler(churn=churn)
    run = lambda x: sampling.sample(jax.random.key(0), denoiser, x, sampler, num_steps=num_steps)
    executed(run, jnp.ones((2, 3)))
    factor = 1 + min(churn / num_steps, math.sqrt(2) - 1)
    levels = diffusion.noise_levels(num_steps)[:-1]
    np.testing.assert_allclose(seen, factor * levels, rtol=1e-5)
