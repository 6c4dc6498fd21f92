"""What every sampler promises, in one table; then orders, closed forms and stationary laws."""

import functools
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from counting import called, calling_back, counting, executed
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genfield import fields, guidance, registry, sampling, scores
from genfield.fields import Prediction

BATCH, DIM, STEPS = 8, 2, 7
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def bowl(x, t=None, cond=None):
    """Half the squared distance to `cond` (or 0), of unequal curvatures, as a Prediction."""
    centre = 0.0 if cond is None else fields.expand(cond.astype(x.dtype), x)
    curvature = jnp.array([[1.0, 2.0]])
    energy = lambda z, t, cond: 0.5 * fields.sum_features(curvature * (z - centre) ** 2)
    return fields.potential_field(energy)(x)


def cone(x, t=None, cond=None):
    """A smoothed distance to 0, or to a place that `cond` shifts."""
    centre = 0.0 if cond is None else fields.expand(cond.astype(x.dtype), x)
    distance = lambda z, t, cond: jnp.sqrt(fields.squared_norm(z - centre) + 0.1)
    return fields.potential_field(distance)(x)


def stream(x, t=None, cond=None):
    """A velocity that turns, contracts and depends on time."""
    turned = jnp.stack([-x[:, 1], x[:, 0]], axis=1)
    shift = 0.0 if cond is None else 0.1 * fields.expand(cond.astype(x.dtype), x)
    return (turned - 0.5 * x) * fields.expand(1 + 2 * t, x) + shift


def score(x, t=None, cond=None):
    """Of N(0, 1), with noise of level t."""
    return -x / (1 + fields.expand(t, x) ** 2)


denoiser = fields.denoiser_field(score)


class Case(NamedTuple):
    sampler: sampling.Sampler
    field: callable
    calls: int  # field calls a step
    noisy: bool = False
    saved: int = 0  # calls that the last step does without


CASES = {
    "gradient_descent": Case(sampling.gradient_descent(0.1), bowl, 1),
    "gradient_descent_stop": Case(
        sampling.stopping(sampling.gradient_descent(0.1), sampling.gradient_norm(1e-6)), bowl, 1
    ),
    "nesterov_rising": Case(
        sampling.stopping(sampling.nesterov(0.1, 0.3), sampling.rising_distance(2)), bowl, 1
    ),
    "nesterov": Case(sampling.nesterov(0.1, 0.3), bowl, 1),
    "sphere_tracing": Case(sampling.sphere_tracing(0.3), cone, 1),
    "euler": Case(sampling.euler(), stream, 1),
    "heun": Case(sampling.heun(), stream, 2),
    "sde_euler": Case(sampling.sde_euler(), stream, 1, noisy=True),
    "sde_heun": Case(sampling.sde_heun(), stream, 2, noisy=True, saved=1),
    "langevin": Case(sampling.langevin(0.05), bowl, 1, noisy=True),
    "hamiltonian": Case(sampling.hamiltonian(), bowl, 6, noisy=True),
    "edm_heun": Case(sampling.edm_heun(0.1, 3.0), denoiser, 2, saved=1),
    "edm_euler": Case(sampling.edm_euler(0.1, 3.0, churn=1.0), denoiser, 1, noisy=True),
    "reverse_ve": Case(sampling.reverse_ve(0.1, 3.0), score, 1, noisy=True),
    "predictor_corrector": Case(
        sampling.predictor_corrector(0.1, 3.0), score, 2, noisy=True, saved=1
    ),
    "multistep": Case(
        sampling.multistep(tuple(range(STEPS)), STEPS, 0.1, 3.0), denoiser, 1, noisy=True
    ),
}
table = pytest.mark.parametrize("name", CASES)


def test_every_sampler_is_in_the_table():
    table = registry.Methods(registry.find("genfield.sampling"))[registry.Sampler]
    known = {name for name, record in table.items() if not record.adaptive}
    assert {n for n in known if any(c == n or c.startswith(n) for c in CASES)} == known


@functools.cache
def starts(seed=0):
    return jax.random.normal(jax.random.key(seed), (BATCH, DIM))


@functools.cache
def compiled(name):
    """The sampler jitted, with a trace of every step, and the number of times it was traced."""
    traced = []

    def run(key, x):
        traced.append(name)
        case = CASES[name]
        return sampling.sample(key, case.field, x, case.sampler, num_steps=STEPS, trace=1)

    return quick(run), traced


@table
def test_shapes_dtypes_and_finite_values(name):
    out = compiled(name)[0](jax.random.key(1), starts())
    chex.assert_shape(out.x, (BATCH, DIM))
    chex.assert_shape(out.nfe, (BATCH,))
    chex.assert_shape(out.trace, (1 + STEPS, BATCH, DIM))
    chex.assert_type([out.x, out.trace], jnp.float32)
    chex.assert_type(out.nfe, jnp.int32)
    chex.assert_tree_all_finite(out)
    for value in out.info.values():
        chex.assert_shape(value, (BATCH,))
    np.testing.assert_array_equal(out.trace[0], starts())
    np.testing.assert_array_equal(out.trace[-1], out.x)
    assert np.all(np.any(out.x != starts(), axis=1))


@table
def test_evaluations_are_counted_exactly_and_jit_changes_nothing(name):
    case, key = CASES[name], jax.random.key(1)
    field, rows = counting(case.field)
    run = lambda x: sampling.sample(key, field, x, case.sampler, num_steps=STEPS)
    out = executed(run, starts())
    assert rows == [BATCH] * (case.calls * STEPS - case.saved)
    np.testing.assert_array_equal(out.nfe, np.full(BATCH, len(rows)))
    assert out.trace is None
    jitted = compiled(name)[0](key, starts())
    chex.assert_trees_all_close(out, jitted._replace(trace=None), rtol=1e-5, atol=1e-6)


def test_hamiltonian_evaluations_follow_the_leapfrog_steps():
    field, rows = counting(bowl)
    sampler = sampling.hamiltonian(num_leapfrog=3)
    run = lambda x: sampling.sample(jax.random.key(1), field, x, sampler, num_steps=2)
    out = executed(run, starts())
    assert rows == [BATCH] * 8
    np.testing.assert_array_equal(out.nfe, np.full(BATCH, 8))


@pytest.mark.parametrize("name", ["gradient_descent", "heun", "hamiltonian"])
def test_guidance_doubles_the_evaluations(name):
    case = CASES[name]
    field, rows = counting(case.field)
    guided = guidance.classifier_free(field, 2.0, 0)
    run = lambda x, cond: sampling.sample(
        jax.random.key(1), guided, x, case.sampler, num_steps=2, cond=cond
    )
    out = executed(run, starts(), jnp.arange(BATCH))
    assert sum(rows) == 2 * BATCH * case.calls * 2
    np.testing.assert_array_equal(out.nfe, np.full(BATCH, 2 * case.calls * 2))


@table
def test_traces_of_every_few_steps(name):
    case, key = CASES[name], jax.random.key(1)
    every = compiled(name)[0](key, starts())
    # 7 steps: positions after 0, 3 and 6, and the end in x alone.
    coarse = quick(
        lambda x: sampling.sample(key, case.field, x, case.sampler, num_steps=STEPS, trace=3)
    )(starts())
    chex.assert_shape(coarse.trace, (3, BATCH, DIM))
    np.testing.assert_allclose(coarse.trace, every.trace[::3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(coarse.x, every.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(coarse.nfe, every.nfe)


@table
def test_the_key_alone_decides_and_nothing_recompiles(name):
    run, traced = compiled(name)
    first = run(jax.random.key(1), starts())
    before = len(traced)
    chex.assert_trees_all_equal(run(jax.random.key(1), starts()), first)
    other_key, other_start = run(jax.random.key(2), starts()), run(jax.random.key(1), starts(3))
    assert len(traced) == before
    assert np.array_equal(other_key.x, first.x) != CASES[name].noisy
    assert not np.array_equal(other_start.x, first.x)


@table
def test_one_device_is_eight_devices(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(starts(), NamedSharding(mesh, PartitionSpec("data")))
    out, one = (compiled(name)[0](jax.random.key(1), x) for x in (split, starts()))
    assert len(out.x.sharding.device_set) == 8
    chex.assert_trees_all_close(out, one, rtol=1e-6, atol=1e-7)


@table
def test_with_a_key_each_a_sample_does_not_depend_on_its_batch(name):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(BATCH))
    run, some = compiled(name)[0], np.array([5, 0, 3])
    out, few = run(keys, starts()), run(keys[some], starts()[some])
    chex.assert_trees_all_close(few.x, out.x[some], rtol=1e-6, atol=1e-7)
    alike = run(keys[jnp.zeros(BATCH, int)], jnp.broadcast_to(starts()[:1], starts().shape))
    chex.assert_trees_all_close(alike.x, jnp.broadcast_to(alike.x[:1], alike.x.shape), rtol=1e-6)
    together = run(jax.random.key(1), jnp.broadcast_to(starts()[:1], starts().shape))
    # One key for all draws noise for each.
    assert np.array_equal(together.x[0], together.x[1]) != CASES[name].noisy


def test_raw_keys_are_typed_keys():
    case = CASES["langevin"]
    run = lambda key: sampling.sample(key, case.field, starts(), case.sampler, num_steps=2)
    chex.assert_trees_all_equal(run(jax.random.PRNGKey(3)), run(jax.random.key(3)))
    with pytest.raises(ValueError, match=f"one key, or one a sample: {BATCH}"):
        run(jax.random.split(jax.random.key(0), BATCH + 1))


@pytest.mark.parametrize(("num_steps", "trace"), [(0, None), (-1, None), (4, 0)])
def test_step_counts_must_be_positive(num_steps, trace):
    with pytest.raises(ValueError, match="must be positive"):
        sampling.sample(
            jax.random.key(0), bowl, starts(), sampling.euler(), num_steps=num_steps, trace=trace
        )


def test_chains_add_evaluations_join_traces_and_keep_information():
    """DM's 2-D sampler (appendix C.1): one sphere-tracing step, 16 HMC proposals, 97 calls."""
    field, rows = calling_back(bowl)
    stages = [(sampling.sphere_tracing(), 1), (sampling.hamiltonian(), 16)]
    run = quick(lambda x: sampling.chain(jax.random.key(4), field, x, stages, trace=4))
    out = called(run(starts()))
    assert rows == [BATCH] * 97
    np.testing.assert_array_equal(out.nfe, np.full(BATCH, 97))
    chex.assert_shape(out.trace, (1 + 1 + 4, BATCH, DIM))
    np.testing.assert_array_equal(out.trace[0], starts())
    np.testing.assert_array_equal(out.trace[-1], out.x)
    step = bowl(starts())
    np.testing.assert_allclose(
        out.trace[1], starts() - step.distance[:, None] * step.direction, rtol=1e-5, atol=1e-6
    )
    assert set(out.info) == {"acceptance"}
    plain = sampling.chain(jax.random.key(4), bowl, starts(), stages[:1])
    assert plain.trace is None
    np.testing.assert_allclose(plain.x, out.trace[1], rtol=1e-5, atol=1e-6)


# Gradient samplers, in closed form.


def test_gradient_descent_on_a_quadratic_decays_geometrically():
    out = sampling.sample(
        jax.random.key(0), bowl, starts(), sampling.gradient_descent(0.1), num_steps=20
    )
    rate = 1 - 0.1 * np.array([1.0, 2.0])
    np.testing.assert_allclose(out.x, np.asarray(starts()) * rate**20, rtol=1e-5)


def test_gradient_descent_takes_a_vector_or_a_direction_not_a_displacement():
    vector = lambda x, t=None, cond=None: bowl(x).direction
    a, b = (
        sampling.sample(
            jax.random.key(0), field, starts(), sampling.gradient_descent(0.1), num_steps=3
        ).x
        for field in (vector, bowl)
    )
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_nesterov_is_equation_9():
    """Against the loop of EqM eq. 9, on a field that is not linear."""
    field = lambda x, t=None, cond=None: jnp.sin(x) + 0.3 * x
    out = sampling.sample(
        jax.random.key(0), field, starts(), sampling.nesterov(0.2, 0.35), num_steps=12
    )
    x = previous = np.asarray(starts(), np.float64)
    for _ in range(12):
        ahead = x + 0.35 * (x - previous)
        x, previous = x - 0.2 * (np.sin(ahead) + 0.3 * ahead), x
    np.testing.assert_allclose(out.x, x, rtol=1e-4, atol=1e-5)


def test_a_stopped_sample_stays_and_costs_nothing():
    """As EqM section 3.3: steps are taken until the gradient just used was below the threshold."""
    stop_norm, num_steps = 0.3, 25
    scales = np.array([0.1, 0.5, 1.0, 3.0, 10.0, 1e6])
    x = np.stack([scales, -scales], axis=1)
    out = quick(
        lambda x: sampling.sample(
            jax.random.key(0),
            bowl,
            x,
            sampling.stopping(sampling.gradient_descent(0.1), sampling.gradient_norm(stop_norm)),
            num_steps=num_steps,
            trace=1,
        )
    )(jnp.asarray(x, jnp.float32))
    curvature = np.array([1.0, 2.0])
    nfe = []
    for row in x:
        calls, norm = 0, np.inf
        while calls < num_steps and norm >= stop_norm:
            gradient = curvature * row
            row[:], norm, calls = row - 0.1 * gradient, np.linalg.norm(gradient), calls + 1
        nfe.append(calls)
    assert nfe[0] == 1 and 1 < nfe[2] < nfe[3] < num_steps and nfe[-1] == num_steps
    np.testing.assert_array_equal(out.nfe, nfe)
    np.testing.assert_allclose(out.x, x, rtol=1e-5)
    for i, calls in enumerate(nfe):
        moved = np.any(np.diff(out.trace[:, i], axis=0) != 0, axis=1)
        np.testing.assert_array_equal(moved, np.arange(num_steps) < calls)


@pytest.mark.parametrize("radius", [0.0, 0.4])
def test_sphere_tracing_with_the_exact_distance_lands_in_one_step(radius):
    centre = jnp.array([[0.5, -1.0, 2.0]])
    distance = lambda x, t, cond: jnp.sqrt(fields.squared_norm(x - centre)) - radius
    x = 3 * jax.random.normal(jax.random.key(5), (BATCH, 3))
    field = fields.potential_field(distance)
    run = lambda step_size, n: (
        sampling.sample(
            jax.random.key(0), field, x, sampling.sphere_tracing(step_size), num_steps=n
        ).x
    )
    left = np.linalg.norm(run(1.0, 1) - centre, axis=1)
    np.testing.assert_allclose(left, np.full(BATCH, radius), atol=2e-6)
    # Step size η leaves (1 - η)^k of the distance.
    start = np.linalg.norm(x - centre, axis=1) - radius
    left = np.linalg.norm(run(0.3, 4) - centre, axis=1) - radius
    np.testing.assert_allclose(left, 0.7**4 * start, rtol=1e-4)


# Ordinary differential equations: dx/dt = (1 + 2t)(J - 1/2) x, a turn by 2 and a decay by e^-1.


def stream_solution(x, t=1.0):
    x, growth = np.asarray(x, np.float64), t + t * t
    c, s = np.cos(growth), np.sin(growth)
    return np.exp(-0.5 * growth) * x @ np.array([[c, s], [-s, c]])


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_convergence_order(name, order):
    errors = []
    for n in (16, 32, 64):
        out = sampling.sample(jax.random.key(0), stream, starts(), CASES[name].sampler, num_steps=n)
        errors.append(np.abs(out.x - stream_solution(starts())).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    # h = 1/32 and 1/64: the next term of the error moves the slope by less than 0.15.
    np.testing.assert_allclose(orders, [order, order], atol=0.15)


def test_fixed_steps_are_their_formulas():
    """The clock of both solvers, against loops in float64: wrong times keep the order."""
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    v = lambda x, t: (x @ turn - 0.5 * x) * (1 + 2 * t)
    n, h = 5, 0.2
    euler = heun = np.asarray(starts(), np.float64)
    for k in range(n):
        euler = euler + h * v(euler, k * h)
        slope = v(heun, k * h)
        heun = heun + 0.5 * h * (slope + v(heun + h * slope, (k + 1) * h))
    for sampler, expected in ((sampling.euler(), euler), (sampling.heun(), heun)):
        out = sampling.sample(jax.random.key(0), stream, starts(), sampler, num_steps=n)
        np.testing.assert_allclose(out.x, expected, rtol=1e-4, atol=1e-5)


def edm_times(n):
    sigma = (80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    return np.append(1 / (1 + sigma), 1.0)


@pytest.mark.parametrize("step_size", [None, 0.05])
def test_fixed_steps_on_other_times(step_size):
    """EDM's grid, and steps of a size of their own, against loops in float64."""
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    v = lambda x, t: (x @ turn - 0.5 * x) * (1 + 2 * t)
    times = edm_times(5)
    euler = heun = np.asarray(starts(), np.float64)
    for t, after in itertools.pairwise(times):
        h = after - t if step_size is None else step_size
        euler = euler + h * v(euler, t)
        slope = v(heun, t)
        heun = heun + 0.5 * h * (slope + v(heun + h * slope, after))
    for make, expected in ((sampling.euler, euler), (sampling.heun, heun)):
        made = make(step_size=step_size, times="edm")
        out = sampling.sample(jax.random.key(0), stream, starts(), made, num_steps=5)
        np.testing.assert_allclose(out.x, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="unknown times"):
        sampling.euler(times="uniform")


@functools.cache
def solver(method, per_sample):
    return quick(
        lambda x, cond, t0, t1, tolerance: sampling.solve_ode(
            stream,
            x,
            cond=cond,
            method=method,
            rtol=tolerance,
            atol=tolerance,
            t0=t0,
            t1=t1,
            per_sample=per_sample,
        )
    )


def solve(x, method="dopri5", per_sample=True, cond=None, t0=0.0, t1=1.0, tolerance=1e-5):
    cond = jnp.zeros(len(x), jnp.int32) if cond is None else cond
    return solver(method, per_sample)(x, cond, t0, t1, tolerance)


@pytest.mark.parametrize("per_sample", [True, False])
def test_positions_of_an_adaptive_solver(per_sample):
    x = np.asarray(starts())
    options = dict(per_sample=per_sample, rtol=1e-6, atol=1e-6)
    out = quick(lambda x: sampling.solve_ode(stream, x, trace=4, **options))(x)
    assert out.trace.shape == (5, *x.shape)
    np.testing.assert_array_equal(out.trace[-1], out.x)
    for time, found in zip(np.linspace(0, 1, 5), out.trace, strict=True):
        np.testing.assert_allclose(found, stream_solution(x, time), rtol=1e-3, atol=1e-3)


def test_every_method_is_known():
    assert set(sampling.SOLVERS) == {"dopri5", "heun_adaptive"}
    with pytest.raises(ValueError, match="known: dopri5, heun_adaptive"):
        sampling.solve_ode(stream, starts(), method="rk45")


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("method", sampling.SOLVERS)
def test_adaptive_solution_is_the_closed_form(method, per_sample):
    out = solve(starts(), method, per_sample)
    chex.assert_type(out.nfe, jnp.int32)
    chex.assert_shape(out.nfe, (BATCH,))
    # An error of at most 1e-5 a step, over at most some hundreds of steps.
    np.testing.assert_allclose(out.x, stream_solution(starts()), atol=2e-4)
    assert out.trace is None
    assert (len(np.unique(out.nfe)) == 1) or per_sample
    half = solve(starts(), method, per_sample, t1=0.5)
    np.testing.assert_allclose(half.x, stream_solution(starts(), 0.5), atol=2e-4)


def test_tolerances_are_obeyed():
    loose, tight = (solve(starts(), tolerance=e) for e in (1e-2, 1e-5))
    error = lambda out: np.abs(out.x - stream_solution(starts())).max()
    assert error(tight) < 0.1 * error(loose)
    assert np.all(tight.nfe > loose.nfe)


@pytest.mark.parametrize("method", sampling.SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(method):
    x = jnp.concatenate([starts()[:4], 200 * starts()[4:]])  # the latter need smaller steps
    cond = jnp.arange(BATCH)
    together = solve(x, method, cond=cond)
    assert len(np.unique(together.nfe)) > 1
    for i in (1, 5):
        alone = solve(x[i : i + 1], method, cond=cond[i : i + 1])
        np.testing.assert_allclose(alone.x[0], together.x[i], rtol=1e-6)
        assert alone.nfe[0] == together.nfe[i]


def test_conditions_stay_with_their_samples():
    with_cond = [solve(starts(), per_sample=p, cond=jnp.arange(BATCH)).x for p in (True, False)]
    np.testing.assert_allclose(with_cond[0], with_cond[1], atol=2e-4)
    # The equation is linear: cond shifts the end by cond times one vector.
    shift = (with_cond[0] - solve(starts()).x)[1:] / jnp.arange(1, BATCH)[:, None]
    assert np.linalg.norm(shift[0]) > 0.02
    np.testing.assert_allclose(shift, jnp.broadcast_to(shift[-1:], shift.shape), atol=2e-4)


@pytest.mark.parametrize("per_sample", [True, False])
def test_reverse_integration_returns(per_sample):
    end = solve(starts(), per_sample=per_sample).x
    back = solve(end, per_sample=per_sample, t0=1.0, t1=0.0).x
    # Going back, the field expands by e: the errors of both ways add.
    np.testing.assert_allclose(back, starts(), atol=5e-4)


@pytest.mark.parametrize("method", sampling.SOLVERS)
@pytest.mark.parametrize("guided", [False, True])
def test_adaptive_evaluations_are_counted_exactly(method, guided):
    field, rows = calling_back(stream)
    cond = jnp.arange(BATCH) if guided else None
    if guided:
        field = guidance.classifier_free(field, 1.5, 0)
    run = quick(lambda x: sampling.solve_ode(field, x, cond=cond, method=method, per_sample=False))
    out = called(run(30 * starts()))
    np.testing.assert_array_equal(out.nfe, np.full(BATCH, sum(rows) // BATCH))


# Flows and stationary laws, over many chains. Statistics are held to 5 standard errors.

CHAINS = 4000


def assert_moments(x, mean, variance, kurtosis=3.0):
    """Mean and variance of [N, D] samples, against closed forms, by coordinate."""
    x, mean, variance = (np.asarray(a, np.float64) for a in (x, mean, variance))
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / len(x)))
    error = 5 * variance * np.sqrt((kurtosis - 1) / len(x))
    assert np.all(np.abs(np.mean((x - mean) ** 2, 0) - variance) < error)


@functools.cache
def many(seed=11, dim=DIM):
    return jax.random.normal(jax.random.key(seed), (CHAINS, dim))


def run_many(field, x, sampler, num_steps, seed=12, trace=None):
    return jax.jit(
        lambda key, x: sampling.sample(key, field, x, sampler, num_steps=num_steps, trace=trace)
    )(jax.random.key(seed), x)


def test_the_flow_of_a_gaussian_arrives_at_it():
    """E[x1 - x0 | x] for x1 ~ N(m, s²): the exact flow is x0 -> m + s x0."""
    m, s = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 1.5]])

    def velocity(x, t, cond=None):
        t = t[:, None]
        gain = (t * s**2 - (1 - t)) / ((1 - t) ** 2 + (t * s) ** 2)
        return m + gain * (x - t * m)

    # Euler's global error is of order h = 1/200, times the distances of up to 5 travelled.
    out = run_many(velocity, many(), sampling.euler(), 200)
    np.testing.assert_allclose(out.x, m + s * many(), atol=0.05)
    out = run_many(velocity, many(), sampling.heun(), 100)
    np.testing.assert_allclose(out.x, m + s * many(), atol=2e-3)
    assert_moments(out.x, m[0], s[0] ** 2)


def test_the_flow_of_a_mixture_arrives_at_it():
    """The closed-form velocity of two Gaussians, from the score of p_t (means t m, std ...)."""
    means, std = jnp.array([[1.0, 1.0], [-1.0, 0.5]]), jnp.array([0.4, 0.6])
    shares = jnp.array([0.3, 0.7])

    def velocity(x, t, cond=None):
        t0 = t[0]  # one clock for all
        spread = jnp.sqrt((1 - t0) ** 2 + (t0 * std) ** 2)
        score = scores.gaussian_mixture_score(x, t0 * means, spread, shares)
        # E[x0 | x] = -(1-t) score, and x = (1-t) E[x0 | x] + t E[x1 | x]; finite at t = 0 too.
        source = -(1 - t0) * score
        early = jnp.sum(shares[:, None] * means, axis=0)[None] - x
        return jnp.where(t0 > 0, (x - source) / jnp.maximum(t0, 1e-6), early)

    out = run_many(velocity, many(), sampling.heun(), 100)
    mean = shares @ means
    variance = shares @ (means**2 + std[:, None] ** 2) - mean**2
    assert_moments(out.x, mean, variance)
    right = np.mean(np.asarray(out.x)[:, 0] > 0)
    expected = float(shares @ scipy.stats.norm.cdf(means[:, 0] / std))
    assert abs(right - expected) < 5 * np.sqrt(expected * (1 - expected) / CHAINS)


@pytest.mark.parametrize(("step_size", "temperature"), [(0.5, 1.0), (0.8, 0.25)])
def test_langevin_has_the_variance_of_its_discretisation(step_size, temperature):
    """On E = |x|²/2, x <- (1-η) x + √(2ηT) ξ is stationary at T / (1 - η/2), not at T."""
    field = lambda x, t=None, cond=None: x
    out = run_many(field, 3 + many(), sampling.langevin(step_size, temperature), 25)
    assert_moments(out.x, 0, temperature / (1 - step_size / 2))


def test_langevin_noise_is_fresh_at_each_step():
    """With no force, the variance of a random walk grows by 2ηT a step."""
    field = lambda x, t=None, cond=None: jnp.zeros_like(x)
    out = run_many(field, jnp.zeros((CHAINS, DIM)), sampling.langevin(0.1), 9, trace=3)
    for k, x in enumerate(out.trace[1:], start=1):
        assert_moments(x, 0, 0.2 * 3 * k)


PLACE = np.array([[0.5, -1.0]], np.float32)
STIFF = np.array([[1.0, 3.0]], np.float32)  # no setting below turns by near half a circle


def off_centre(x, t=None, cond=None):
    energy = lambda x, t, cond: 0.5 * fields.sum_features(STIFF * (x - PLACE) ** 2)
    return fields.potential_field(energy)(x)


HMC = {  # options, at energy k |x - m|² / 2; the law is N(m, T/k) whatever the others
    "paper": {},  # steps of 0.2 are 1.4 of the smaller std
    "short": {"step_size": 0.1, "num_leapfrog": 3},
    "heavy": {"mass": 2.0, "step_size": 0.25, "temperature": 0.1, "num_leapfrog": 4},
    "warm": {"step_size": 0.5, "temperature": 1.0, "num_leapfrog": 5},
}


@pytest.mark.parametrize("name", HMC)
def test_hamiltonian_samples_a_gaussian(name):
    """Without rejection, leapfrog would inflate the variance by 1/(1 - (h/2s)²): up to 1.9."""
    temperature = HMC[name].get("temperature", 0.0625)
    sampler = sampling.hamiltonian(**HMC[name])
    out = run_many(off_centre, PLACE + 0.5 * many(), sampler, 40)
    assert_moments(out.x, PLACE[0], temperature / STIFF[0])
    assert 0.5 < out.info["acceptance"].mean() <= 1


def test_hamiltonian_keeps_its_law():
    """Started in the law, every step stays in it, though a quarter is rejected."""
    law = PLACE + many() * np.sqrt(0.0625 / STIFF)
    sampler = sampling.hamiltonian(step_size=0.21, num_leapfrog=3)
    out = run_many(off_centre, law, sampler, 6, trace=1)
    for x in out.trace[1:]:
        assert_moments(x, PLACE[0], 0.0625 / STIFF[0])
    assert 0.5 < out.info["acceptance"].mean() < 0.95
    moved = np.any(np.diff(out.trace, axis=0) != 0, axis=2)
    np.testing.assert_allclose(out.info["acceptance"], moved.mean(0), rtol=1e-6)


def test_hamiltonian_samples_a_mixture():
    """All chains start in the smaller mode; both shares come out right."""
    means, std = jnp.array([[1.0], [-1.0]]), jnp.array([0.4, 0.6])
    shares = jnp.array([0.3, 0.7])
    energy = lambda x, t, cond: -scores.gaussian_mixture_log_density(x, means, std, shares)
    sampler = sampling.hamiltonian(step_size=0.4, num_leapfrog=4, temperature=1.0)
    out = run_many(fields.potential_field(energy), 1 + 0.1 * many(dim=1), sampler, 40)
    mean = shares @ means
    assert_moments(out.x, mean, shares @ (means**2 + std[:, None] ** 2) - mean**2)
    right = np.mean(np.asarray(out.x) > 0)
    expected = float(shares @ scipy.stats.norm.cdf(means[:, 0] / std))
    assert abs(right - expected) < 5 * np.sqrt(expected * (1 - expected) / CHAINS)
    assert 0.5 < out.info["acceptance"].mean() <= 1


def test_hamiltonian_rejects_what_diverges():
    """An energy that is NaN outside |x| < 1 confines the chains; none becomes NaN."""
    energy = lambda x, t, cond: jnp.sum(jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.nan), -1)
    field = fields.potential_field(energy)
    x = 0.9 * jnp.tanh(many())
    out = run_many(field, x, sampling.hamiltonian(0.5, 3, temperature=1.0), 10)
    chex.assert_tree_all_finite(out)
    assert np.abs(out.x).max() < 1
    assert 0 < out.info["acceptance"].mean() < 1


def test_hamiltonian_needs_an_energy():
    with pytest.raises(TypeError, match=r"fields\.Prediction"):
        sampling.sample(
            jax.random.key(0), lambda x, t, c: x, starts(), sampling.hamiltonian(), num_steps=1
        )


def test_sphere_tracing_uses_the_distance():
    """Not the direction alone: a constant distance of 2 moves by 2 η v."""
    field = lambda x, t=None, cond=None: Prediction(jnp.ones_like(x), jnp.full(len(x), 2.0))
    out = sampling.sample(
        jax.random.key(0), field, starts(), sampling.sphere_tracing(0.25), num_steps=1
    )
    np.testing.assert_allclose(out.x, starts() - 0.5, rtol=1e-6)


def test_every_stage_of_a_chain_ends_in_its_trace():
    field = lambda x, t=None, cond=None: x
    stages = [(sampling.gradient_descent(0.1), 5), (sampling.gradient_descent(0.1), 4)]
    out = sampling.chain(jax.random.key(0), field, jnp.ones((1, 1)), stages, trace=4)
    np.testing.assert_allclose(out.trace[:, 0, 0], 0.9 ** np.array([0, 4, 5, 9]), rtol=1e-5)


# Adaptive compute


def wavy(x, t=None, cond=None):
    """A bowl with a ripple: the distance rises now and then before it is at its least."""
    shift = 0.0 if cond is None else 0.1 * fields.expand(cond.astype(x.dtype), x)
    energy = lambda z, t, cond: fields.sum_features(0.5 * (z - shift) ** 2 + 0.2 * jnp.cos(4 * z))
    return fields.potential_field(energy)(x)


RULE_CASES = {
    "norm": (sampling.gradient_descent(0.1), sampling.gradient_norm(0.4)),
    "rising": (sampling.nesterov(0.35, 0.6), sampling.rising_distance(2)),
    "noisy": (sampling.langevin(0.05, 0.05), sampling.gradient_norm(0.3)),
    "traced": (sampling.sphere_tracing(0.2), sampling.gradient_norm(0.4)),
}
stopped = pytest.mark.parametrize("name", RULE_CASES)


@stopped
def test_a_rule_ends_a_sample_where_a_loop_over_one_does(name):
    """Against one sample at a time in Python, the rule read off the paper."""
    sampler, rule = RULE_CASES[name]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(BATCH))
    x = 2.5 * starts(4)
    run = lambda s, n: quick(
        lambda keys, x: sampling.sample(keys, wavy, x, s, num_steps=n, trace=1)
    )(keys, x)
    out, free = run(sampling.stopping(sampler, rule), 40), run(sampler, 40)
    where = free.trace
    if name == "rising":  # what the field sees is ahead of x
        where = where + 0.6 * (where - jnp.concatenate([where[:1], where[:-1]]))
    seen = jax.vmap(wavy)(where)
    norms = np.linalg.norm(seen.direction, axis=-1)
    for i in range(BATCH):
        rises, steps = 0, 0
        for k in range(40):
            steps = k + 1
            rises = rises + 1 if k and seen.distance[k, i] > seen.distance[k - 1, i] else 0
            if rises >= 2 if name == "rising" else norms[k, i] < (0.3 if name == "noisy" else 0.4):
                break
        assert out.nfe[i] == steps
        np.testing.assert_allclose(out.x[i], free.trace[steps, i], rtol=1e-5, atol=1e-6)
    assert len(set(np.asarray(out.nfe))) > 2 and out.nfe.min() < 40


@stopped
@pytest.mark.parametrize("slots", [1, 3, 8, 50])
def test_refilling_gives_the_samples_of_the_masked_loop(name, slots):
    sampler = sampling.stopping(*RULE_CASES[name])
    x, cond = 2.5 * jax.random.normal(jax.random.key(5), (23, DIM)), jnp.arange(23) % 4
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(23))
    masked = quick(lambda k, x: sampling.sample(k, wavy, x, sampler, num_steps=30, cond=cond))(
        keys, x
    )
    refilled = quick(
        lambda k, x: sampling.refill(k, wavy, x, sampler, num_steps=30, slots=slots, cond=cond)
    )(jax.random.key(1), x)
    np.testing.assert_array_equal(refilled.nfe, masked.nfe)
    np.testing.assert_allclose(refilled.x, masked.x, rtol=1e-6, atol=1e-6)
    assert len(set(np.asarray(masked.nfe))) > 3


def batches_seen(execute):
    """How often the field is really called, by an execution of gradient descent on the bowl."""
    field, rows = calling_back(bowl)
    scales = jnp.geomspace(0.5, 1e4, 64)
    x = jnp.stack([scales, scales], axis=1)[jax.random.permutation(jax.random.key(0), 64)]
    sampler = sampling.stopping(sampling.gradient_descent(0.1), sampling.gradient_norm(0.3))
    out = called(jax.jit(lambda x: execute(field, x, sampler))(x))
    return len(rows), np.asarray(out.nfe)


def test_masked_execution_ends_with_its_last_sample():
    calls, nfe = batches_seen(
        lambda f, x, s: sampling.sample(jax.random.key(0), f, x, s, num_steps=500)
    )
    assert calls == nfe.max() < 500


def test_refilling_takes_the_steps_that_are_needed_and_few_more():
    slots = 8
    calls, nfe = batches_seen(
        lambda f, x, s: sampling.refill(jax.random.key(0), f, x, s, num_steps=500, slots=slots)
    )
    needed = nfe.sum() / slots
    assert needed <= calls <= needed + nfe.max()
    assert calls < 0.75 * nfe.max() * len(nfe) / slots


def test_what_cannot_be_refilled_or_stopped_is_said():
    x, key = starts(), jax.random.key(0)
    with pytest.raises(ValueError, match="a sampler without a clock"):
        sampling.refill(key, stream, x, sampling.euler(), num_steps=3, slots=2)
    with pytest.raises(ValueError, match="slots and num_steps must be positive"):
        sampling.refill(key, bowl, x, sampling.gradient_descent(0.1), num_steps=3, slots=0)
    with pytest.raises(ValueError, match="patience must be positive"):
        sampling.rising_distance(0)
    rising = sampling.stopping(sampling.gradient_descent(0.1), sampling.rising_distance())
    with pytest.raises(TypeError, match="rising_distance needs a field"):
        sampling.sample(key, lambda x, t=None, cond=None: x, x, rising, num_steps=3)
