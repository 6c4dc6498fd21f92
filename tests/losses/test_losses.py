"""What every loss promises, in one table; and each loss by hand on a known field."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genfield import fields, losses, paths, registry
from genfield.fields import Prediction

METHODS = registry.Methods(registry.find("genfield.losses"))[registry.Loss]
BATCH = 16
SHAPES = [(2,), (3, 2, 2)]
DM = {"epsilon": 0.3, "c0": 0.7, "one_step_weight": 0.5, "eikonal_weight": 3.0}

GROUP = BATCH // 2  # the two groups draw the same noise, so that they can change places
FLUX = {
    "key": jnp.concatenate([jax.random.split(jax.random.key(3), GROUP)] * 2),
    "roles": METHODS["flux_matching"].roles.init(jax.random.key(4)),
    "group_size": GROUP,
}

# Fields linear in their parameters, whatever the shape of an example.


def vector(params):
    def field(x, t=None, cond=None):
        out = jnp.tanh(params["scale"]) * x + params["shift"]
        return out if t is None else out + params["time"] * fields.expand(t, x)

    return field


def potential(params):
    def energy(x, t=None, cond=None):
        terms = params["scale"] * x**2 + params["shift"] * x
        return 1.0 + fields.sum_features(terms)

    return fields.potential_field(energy)


def action(params):
    def energy(x, t=None, cond=None):
        terms = params["scale"] * x**2 + params["shift"] * x * fields.expand(t, x)
        return fields.sum_features(terms) + fields.mean_features(x * params["time"]) * t**2

    return fields.potential_field(energy)


def prediction(params):
    def field(x, t=None, cond=None):
        return Prediction(vector(params)(x), 1.0 + fields.mean_features(x * params["time"]))

    return field


class Case(NamedTuple):
    loss: str  # the package's name of it
    field: callable  # params -> field
    options: dict = {}  # noqa: RUF012
    terms: tuple = ()  # the names in the second result
    rounding: float = 1.0  # second derivatives and softmaxes lose more digits


CASES = {
    "action": Case("action_matching", action, {}, ("ends", "kinetic", "rate")),
    "flow": Case("flow_matching", vector),
    "flow_unconditional": Case("flow_matching", vector, {"time_input": False}),
    "flow_weighted": Case("flow_matching", vector, {"weight": losses.inverse_square(0.1)}),
    "equilibrium": Case("equilibrium_matching", vector),
    "equilibrium_time": Case("equilibrium_matching", vector, {"time_input": True}),
    "equilibrium_energy": Case("equilibrium_matching", potential),
    "denoising": Case("denoising", vector),
    "denoising_stable": Case(
        "denoising", vector, {"stable_target": True, "group_size": GROUP}, (), 50
    ),
    "lines": Case("lines_matching", vector),
    "flux": Case("flux_matching", vector, FLUX, ("flux", "horizon"), 50),
    "velocity_flux": Case("velocity_flux_matching", vector, FLUX, ("flux", "horizon"), 50),
    "distance": Case("distance_marching", prediction, DM, ("one_step", "eikonal")),
    "distance_potential": Case("distance_marching", potential, DM, ("one_step", "eikonal")),
}
table = pytest.mark.parametrize("name", CASES)


def test_every_loss_is_in_the_table():
    of_two_players = {"adversarial_lines_matching"}  # test_adversarial.py
    assert {case.loss for case in CASES.values()} == set(METHODS) - of_two_players


@functools.cache
def parameters(shape):
    keys = jax.random.split(jax.random.key(7), 3)
    return {
        name: 0.5 * jax.random.normal(key, (1, *shape))
        for name, key in zip(("scale", "shift", "time"), keys, strict=True)
    }


@functools.cache
def examples(shape, seed=0):
    k0, k1, kt = jax.random.split(jax.random.key(seed), 3)
    x0, x1 = jax.random.normal(k0, (BATCH, *shape)), jax.random.normal(k1, (BATCH, *shape))
    return paths.interpolate(paths.linear, x0, x1, jax.random.uniform(kt, (BATCH,)))


def evaluate(case, params, sample):
    if "group_size" in case.options:  # one time a group, away from where densities are narrow
        sample = sample._replace(t=jnp.repeat(0.25 + 0.25 * sample.t[::GROUP], GROUP))
    return METHODS[case.loss].function(case.field(params), sample, **case.options)


@functools.cache
def compiled(name):
    """loss, terms and gradient of the mean, jitted, and the number of times they were traced."""
    traced = []

    def run(params, sample):
        traced.append(name)

        def mean(params):
            loss, terms = evaluate(CASES[name], params, sample)
            return jnp.mean(loss), (loss, terms)

        gradient, (loss, terms) = jax.grad(mean, has_aux=True)(params)
        return loss, terms, gradient

    return jax.jit(run), traced


@table
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_finite_and_float32_for_each_example(name, shape):
    loss, terms, gradient = compiled(name)[0](parameters(shape), examples(shape))
    assert set(terms) == set(CASES[name].terms)
    for value in (loss, *terms.values()):
        chex.assert_shape(value, (BATCH,))
        chex.assert_type(value, jnp.float32)
    chex.assert_tree_all_finite((loss, terms, gradient))
    loss_name = CASES[name].loss
    signed = loss_name == "action_matching" or METHODS[loss_name].roles is not None
    assert np.all(loss != 0 if signed else loss > 0)  # no example is fitted by chance


@table
def test_jit_changes_nothing(name):
    params, sample = parameters(SHAPES[0]), examples(SHAPES[0])
    loss, terms = evaluate(CASES[name], params, sample)
    jitted, jitted_terms, _ = compiled(name)[0](params, sample)
    # Fused operations round differently: a few units in the last place of float32.
    scale = CASES[name].rounding
    largest = 1.0 if scale == 1 else float(jnp.max(jnp.abs(loss)))
    options = dict(rtol=2e-6 * scale, atol=1e-6 * scale * largest)
    chex.assert_trees_all_close((jitted, jitted_terms), (loss, terms), **options)


@table
def test_new_values_do_not_recompile(name):
    run, traced = compiled(name)
    run(parameters(SHAPES[0]), examples(SHAPES[0]))
    before = len(traced)
    assert before >= 1
    first = run(parameters(SHAPES[0]), examples(SHAPES[0], seed=1))[0]
    second = run(jax.tree.map(lambda a: a + 0.1, parameters(SHAPES[0])), examples(SHAPES[0]))[0]
    assert len(traced) == before
    assert not np.allclose(first, second)


@table
def test_one_device_is_eight_devices(name):
    shape = SHAPES[0]
    params, sample = parameters(shape), examples(shape)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(sample, NamedSharding(mesh, PartitionSpec("data")))
    same = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    assert len(split.x.sharding.device_set) == 8
    loss, terms, gradient = compiled(name)[0](same, split)
    assert len(loss.sharding.device_set) == 8
    one_loss, one_terms, one_gradient = compiled(name)[0](params, sample)
    rounding = CASES[name].rounding
    atol = 0.0 if rounding == 1 else 1e-6 * rounding * float(jnp.max(jnp.abs(one_loss)))
    options = dict(rtol=1e-6 * rounding, atol=atol)
    chex.assert_trees_all_close((loss, terms), (one_loss, one_terms), **options)
    # Sums over examples run in another order: relative to the largest entry of the gradient.
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(one_gradient))
    chex.assert_trees_all_close(gradient, one_gradient, rtol=0, atol=1e-6 * rounding * largest)


@table
def test_examples_do_not_interact(name):
    """Other companions, another place in the batch: the same loss."""
    params, sample = parameters(SHAPES[0]), examples(SHAPES[0])
    other = examples(SHAPES[0], seed=2)
    mixed = jax.tree.map(
        lambda a, b: jnp.concatenate([b[: BATCH // 2], a[: BATCH // 2]]), *[sample, other]
    )
    run = compiled(name)[0]
    loss, both = run(params, sample)[0], run(params, mixed)[0]
    rtol = 1e-6 * CASES[name].rounding
    np.testing.assert_allclose(both[BATCH // 2 :], loss[: BATCH // 2], rtol=rtol)
    assert not np.allclose(both[: BATCH // 2], loss[: BATCH // 2])


# By hand, in float64. The field is f(x) = A x + b, of dimension 2 so that sums are not means.

A = np.array([[0.5, -1.0], [2.0, 0.3]])
B = np.array([0.7, -0.2])
X0 = np.array([[1.0, -2.0], [0.5, 0.5], [-1.5, 0.2], [2.0, 1.0]])
X1 = np.array([[-1.0, 0.0], [2.0, -1.0], [0.3, 0.4], [1.0, -3.0]])
T = np.array([0.1, 0.5, 0.9, 0.98])
X = (1 - T)[:, None] * X0 + T[:, None] * X1
FX = X @ A.T + B
SAMPLE = paths.interpolate(paths.linear, *(jnp.asarray(a, jnp.float32) for a in (X0, X1, T)))


def affine(x, t=None, cond=None):
    out = x @ jnp.asarray(A, x.dtype).T + jnp.asarray(B, x.dtype)[None]
    out = out if t is None else out + 10 * t[:, None]
    return out if cond is None else out + cond[:, None]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_flow_matching_by_hand():
    without = np.mean((FX - (X1 - X0)) ** 2, axis=1)
    with_time = np.mean((FX + 10 * T[:, None] - (X1 - X0)) ** 2, axis=1)
    close(losses.flow_matching(affine, SAMPLE)[0], with_time)
    close(losses.flow_matching(affine, SAMPLE, time_input=False)[0], without)
    cond = np.array([1.0, -2.0, 0.5, 3.0])
    found = losses.flow_matching(affine, SAMPLE, jnp.asarray(cond, "f4"), time_input=False)[0]
    close(found, np.mean((FX + cond[:, None] - (X1 - X0)) ** 2, axis=1))


def quadratic(x, t, cond=None):
    """s = |x|² t²/2 + <b, x> t, whose ∇s = x t² + b t and ∂s/∂t = |x|² t + <b, x>."""
    return 0.5 * fields.squared_norm(x) * t**2 + (x @ jnp.asarray(B, x.dtype)) * t


def test_action_matching_by_hand():
    loss, terms = losses.action_matching(fields.potential_field(quadratic), SAMPLE)
    close(terms["ends"], 0 - (0.5 * (X1**2).sum(1) + X1 @ B))
    close(terms["kinetic"], 0.5 * ((X * T[:, None] ** 2 + B * T[:, None]) ** 2).sum(1))
    close(terms["rate"], (X**2).sum(1) * T + X @ B)
    close(loss, sum(terms.values()))
    with pytest.raises(TypeError, match=r"fields\.Prediction"):
        losses.action_matching(affine, SAMPLE)


def test_action_matching_finds_the_velocity_of_a_gaussian_path():
    """N(0, 1) to N(m, s²): ∇s = m + (a'/a) (x - t m), a² = (1-t)² + t² s², at its least value."""
    m, s, n = 1.5, 0.4, 200_000
    k0, k1, kt = jax.random.split(jax.random.key(3), 3)
    x0, x1 = jax.random.normal(k0, (n, 1)), m + s * jax.random.normal(k1, (n, 1))
    sample = paths.interpolate(paths.linear, x0, x1, jax.random.uniform(kt, (n,)))

    def field(scale, shift):  # the exact action, and directions away from it
        def action(x, t, cond=None):
            rate = (t * (1 + s**2) - 1) / ((1 - t) ** 2 + t**2 * s**2)
            exact = m * x[:, 0] + 0.5 * rate * (x[:, 0] - t * m) ** 2
            return scale * exact + shift * jnp.sin(2 * x[:, 0] + t)

        return fields.potential_field(action)

    each = lambda theta, sample: losses.action_matching(field(*theta), sample)[0]
    one = lambda theta, row: each(theta, jax.tree.map(lambda a: a[None], row))[0]
    theta = jnp.array([1.0, 0.0])
    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(one), (None, 0)))(theta, sample), np.float64)
    assert np.all(np.abs(slopes.mean(0)) < 4 * slopes.std(0) / np.sqrt(n))
    off = np.asarray(jax.jit(jax.vmap(jax.grad(one), (None, 0)))(theta * 1.1, sample), np.float64)
    assert abs(off.mean(0)[0]) > 8 * off.std(0)[0] / np.sqrt(n)  # the check can fail
    values = np.asarray(jax.jit(each)(theta, sample), np.float64)
    velocity = np.asarray(jax.jit(field(1.0, 0.0))(sample.x, sample.t).direction, np.float64)
    gap = values + 0.5 * (velocity**2).sum(1)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(n)


def test_reweighted_flow_matching_by_hand():
    weight = losses.inverse_square(0.05)
    expected = np.array([1 / 0.9**2, 4.0, 100.0, 400.0])  # t = 0.98 is within the cut-off
    close(weight(SAMPLE.t), expected)
    found = losses.flow_matching(affine, SAMPLE, time_input=False, weight=weight)[0]
    close(found, expected * np.mean((FX - (X1 - X0)) ** 2, axis=1))


@pytest.mark.parametrize("cutoff", [0.0, -0.1, 1.5])
def test_inverse_square_needs_a_cutoff(cutoff):
    with pytest.raises(ValueError, match="inverse_square needs"):
        losses.inverse_square(cutoff)


DECAYED = {  # decay, and c at t = 0, 0.25, 0.5, 0.75, 1 by eq. 4-6
    "linear": (losses.decays.linear(), [1, 0.75, 0.5, 0.25, 0]),
    "linear_2": (losses.decays.linear(2.0), [2, 1.5, 1, 0.5, 0]),
    "truncated": (losses.decays.truncated(0.5, 1.0), [1, 1, 1, 0.5, 0]),
    "truncated_default": (losses.decays.truncated(), [4, 4, 4, 4, 0]),
    "truncated_0": (losses.decays.truncated(0.0, 1.0), [1, 0.75, 0.5, 0.25, 0]),
    "piecewise": (losses.decays.piecewise(0.5, 1.4), [1.4, 1.2, 1, 0.5, 0]),
    "piecewise_rising": (losses.decays.piecewise(0.5, 0.8, 3.0), [2.4, 2.7, 3, 1.5, 0]),
    "constant": (losses.decays.constant(), [1, 1, 1, 1, 1]),
    "constant_3": (losses.decays.constant(3.0), [3, 3, 3, 3, 3]),
}


@pytest.mark.parametrize("name", DECAYED)
def test_decays_at_chosen_times(name):
    decay, expected = DECAYED[name]
    t = jnp.array([0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(decay(t), expected, atol=1e-6)
    assert decay(t).dtype == jnp.float32


def test_the_default_decay_is_the_papers():
    """Truncated, a = 0.8, λ = 4 (EqM section 5.3): 4 (1-t)/0.2 beyond 0.8."""
    assert {name.split("_")[0] for name in DECAYED} == set(losses.decays.DECAYS)
    decay = np.array([4.0, 4.0, 2.0, 0.4])
    expected = np.mean((FX - (X0 - X1) * decay[:, None]) ** 2, axis=1)
    close(losses.equilibrium_matching(affine, SAMPLE)[0], expected)


def test_equilibrium_matching_by_hand():
    decay = losses.decays.linear(3.0)
    target = (X0 - X1) * 3 * (1 - T)[:, None]
    close(
        losses.equilibrium_matching(affine, SAMPLE, decay=decay)[0],
        np.mean((FX - target) ** 2, axis=1),
    )
    with_time = losses.equilibrium_matching(affine, SAMPLE, decay=decay, time_input=True)[0]
    close(with_time, np.mean((FX + 10 * T[:, None] - target) ** 2, axis=1))
    # A Prediction counts by its direction.
    both = lambda x, t=None, cond=None: Prediction(affine(x, t, cond), jnp.ones(len(x)))
    close(
        losses.equilibrium_matching(both, SAMPLE, decay=decay)[0],
        np.mean((FX - target) ** 2, axis=1),
    )


def test_constant_decay_is_the_negative_of_flow_matching():
    found = losses.equilibrium_matching(affine, SAMPLE, decay=losses.decays.constant())[0]
    negative = fields.negate(affine)
    close(found, losses.flow_matching(negative, SAMPLE, time_input=False)[0])


def test_explicit_energy_matches_the_gradient():
    """EqM-E (eq. 7) with g = x·f(x), f = A x + b: ∇g = (A + Aᵀ) x + b."""
    dot = lambda x, t, cond: fields.sum_features(x * affine(x))
    found = losses.equilibrium_matching(
        fields.gradient_field(dot), SAMPLE, decay=losses.decays.linear()
    )[0]
    target = (X0 - X1) * (1 - T)[:, None]
    close(found, np.mean((X @ (A + A.T).T + B - target) ** 2, axis=1))


@pytest.mark.parametrize("a", [-0.1, 1.0, 1.5])
def test_decays_refuse_other_ranges(a):
    for decay in (losses.decays.truncated, losses.decays.piecewise):
        with pytest.raises(ValueError, match="a decay starts at"):
            decay(a)


def test_piecewise_needs_a_first_piece():
    with pytest.raises(ValueError, match="piecewise needs a > 0"):
        losses.decays.piecewise(0.0)


U = np.array([0.5, 1.5, 2.5, -1.0])


def distance_field(x, t=None, cond=None):
    assert t is None, "distance marching gives its field no time"
    return Prediction(affine(x, None, cond), jnp.asarray(U, x.dtype))


def distance_by_hand(direction):
    r2 = np.sum((X - X1) ** 2, axis=1)
    one_step = np.sum((X - U[:, None] * direction - X1) ** 2, axis=1) / (r2 + DM["epsilon"])
    target = (X - X1) / np.sqrt(r2 + DM["c0"])[:, None]
    return one_step, np.sum((direction - target) ** 2, axis=1)


def test_distance_marching_by_hand():
    one_step, eikonal = distance_by_hand(FX)
    loss, terms = losses.distance_marching(distance_field, SAMPLE, **DM)
    close(terms["one_step"], one_step)
    close(terms["eikonal"], eikonal)
    close(loss, 0.5 * one_step + 3 * eikonal)
    plain = losses.distance_marching(distance_field, SAMPLE, epsilon=0.3, c0=0.7)[0]
    close(plain, one_step + eikonal)
    bare = losses.distance_marching(distance_field, SAMPLE, epsilon=0.3, c0=0.7, normalize=False)
    r2 = np.sum((X - X1) ** 2, axis=1)
    close(bare[1]["one_step"], one_step * (r2 + DM["epsilon"]))
    zero = losses.distance_marching(distance_field, SAMPLE, epsilon=0.0, c0=0.0)[1]
    close(zero["one_step"], one_step * (r2 + DM["epsilon"]) / r2)
    cond = np.array([1.0, -2.0, 0.5, 3.0])
    loss = losses.distance_marching(distance_field, SAMPLE, jnp.asarray(cond, "f4"), **DM)[0]
    one_step, eikonal = distance_by_hand(FX + cond[:, None])
    close(loss, 0.5 * one_step + 3 * eikonal)


def test_distance_marching_of_the_true_distance():
    """u = √(|x-x1|² + c0) and v = ∇u solve both terms for one target (eq. 4-5)."""
    target, c0 = jnp.array([[0.3, -1.0]]), 0.7
    sample = paths.interpolate(
        paths.linear, SAMPLE.x0, jnp.broadcast_to(target, SAMPLE.x0.shape), SAMPLE.t
    )
    distance = lambda x, t, cond: jnp.sqrt(fields.squared_norm(x - target) + c0)
    loss, _ = losses.distance_marching(fields.potential_field(distance), sample, **DM)
    np.testing.assert_allclose(loss, np.zeros(len(T)), atol=1e-10)


def test_distance_marching_is_finite_on_the_data():
    x1 = SAMPLE.x1
    sample = paths.interpolate(paths.linear, SAMPLE.x0, x1, jnp.ones(len(x1)))
    loss, gradient = jax.value_and_grad(
        lambda a: jnp.sum(
            losses.distance_marching(
                lambda x, t, c: Prediction(a * x, jnp.ones(len(x))), sample, **DM
            )[0]
        )
    )(0.5)
    chex.assert_tree_all_finite((loss, gradient))
    # x = x1: the one-step term is |u v|²/ε and the eikonal target is 0.
    squares = 0.25 * np.sum(X1**2)
    close(loss, DM["one_step_weight"] * squares / DM["epsilon"] + 3 * squares)


def test_distance_marching_needs_a_prediction():
    with pytest.raises(TypeError, match=r"fields\.Prediction"):
        losses.distance_marching(affine, SAMPLE, **DM)


def test_l2_has_a_gradient_of_zero_where_both_are_equal():
    a = jnp.ones((3, 4))
    np.testing.assert_array_equal(jax.grad(lambda x: losses.l2(x, a).sum())(a), 0)
    np.testing.assert_allclose(losses.l2(a + 2, a), 4.0)
