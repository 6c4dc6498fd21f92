"""Couplings and rematching against brute force and SciPy, and on eight devices."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from genfield import couplings, paths

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
BACKENDS = ["host", "device"]
backends = pytest.mark.parametrize("backend", BACKENDS)


@functools.cache
def pair(n, *shape, seed=0):
    k0, k1 = jax.random.split(jax.random.key(seed))
    return jax.random.normal(k0, (n, *shape)), jax.random.normal(k1, (n, *shape))


@functools.cache
def exact(backend, group_size=None):
    return quick(
        functools.partial(couplings.exact_assignment, group_size=group_size, backend=backend)
    )


def order(found, x0):
    """The permutation that was applied: found = x0[order]; each x0 exactly once."""
    flat, source = (np.asarray(a).reshape(len(a), -1) for a in (found, x0))
    same = (flat[:, None] == source[None]).all(-1)
    np.testing.assert_array_equal(same.sum(0), np.ones(len(x0)))
    np.testing.assert_array_equal(same.sum(1), np.ones(len(x0)))
    return same.argmax(1)


def squared(a, b):
    a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
    return cdist(a, b, "sqeuclidean")


@backends
@pytest.mark.parametrize("n", [1, 6])
def test_exact_assignment_is_the_best_of_all_permutations(n, backend):
    x0, x1 = pair(n, 2)
    cost = squared(x1, x0)
    every = itertools.permutations(range(n))
    best = min(every, key=lambda p: cost[np.arange(n), list(p)].sum())
    np.testing.assert_array_equal(order(exact(backend)(x0, x1), x0), best)


@backends
@pytest.mark.parametrize("shape", [(2,), (3, 2, 1)])
def test_exact_assignment_is_scipys(backend, shape):
    x0, x1 = pair(128, *shape)
    expected = linear_sum_assignment(squared(x1, x0))[1]
    np.testing.assert_array_equal(order(exact(backend)(x0, x1), x0), expected)


@backends
def test_groups_are_matched_among_themselves(backend):
    x0, x1 = pair(24, 2)
    found = exact(backend, group_size=8)(x0, x1)
    cost = squared(x1, x0)
    parts = [linear_sum_assignment(cost[i : i + 8, i : i + 8])[1] + i for i in (0, 8, 16)]
    np.testing.assert_array_equal(order(found, x0), np.concatenate(parts))
    # One group of all is no groups.
    whole = order(exact(backend, group_size=24)(x0, x1), x0)
    np.testing.assert_array_equal(whole, linear_sum_assignment(cost)[1])
    assert np.any(whole != np.concatenate(parts))


def mesh_sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


@backends
@pytest.mark.parametrize("group_size", [None, 4])
def test_the_layout_over_devices_does_not_matter(backend, group_size):
    x0, x1 = pair(16, 2)
    split = jax.device_put((x0, x1), mesh_sharding())
    assert len(split[0].sharding.device_set) == 8
    found = exact(backend, group_size)(*split)
    np.testing.assert_array_equal(found, exact(backend, group_size)(x0, x1))


def test_independent_keeps_the_draw():
    x0, x1 = pair(5, 2)
    assert couplings.independent(x0, x1) is x0
    assert set(couplings.COUPLINGS) == {"independent", "exact_assignment", "sinkhorn"}
    x = couplings.keyed(couplings.independent)(jax.random.key(0), x0, x1)
    assert x is x0


def entropic_plan(cost, epsilon):
    """Sinkhorn's fixed point in float64: rows and columns of equal weight, [N, N]."""
    f = g = np.zeros(len(cost))
    level = -np.log(len(cost))
    for _ in range(5000):
        f = epsilon * (level - scipy.special.logsumexp((g[None] - cost) / epsilon, axis=1))
        g = epsilon * (level - scipy.special.logsumexp((f[:, None] - cost) / epsilon, axis=0))
    return np.exp((f[:, None] + g[None] - cost) / epsilon)


def test_sinkhorn_draws_from_the_plan():
    n, epsilon = 6, 0.7
    x0, x1 = pair(n, 2)
    plan = entropic_plan(squared(x1, x0), epsilon)
    np.testing.assert_allclose(plan.sum(0), 1 / n, rtol=1e-6)
    draw = couplings.keyed(functools.partial(couplings.sinkhorn, regularization=epsilon))
    many = jax.jit(jax.vmap(draw, (0, None, None)))(
        jax.random.split(jax.random.key(1), 4000), x0, x1
    )
    same = (np.asarray(many)[:, :, None] == np.asarray(x0)[None, None]).all(-1)
    assert (same.sum(-1) == 1).all()
    rows = plan * n
    # Five standard deviations of a share of 4,000 draws; ott stops at a marginal error of 1e-3.
    bound = 5 * np.sqrt(rows * (1 - rows) / 4000) + 3e-3
    assert (np.abs(same.mean(0) - rows) < bound).all()
    assert not np.array_equal(many[0], many[1])


def test_sinkhorn_without_a_key_is_a_permutation():
    x0, x1 = pair(64, 3, 2)
    run = quick(functools.partial(couplings.sinkhorn, regularization=0.02))
    np.testing.assert_array_equal(order(run(x0, x1), x0), order(exact("host")(x0, x1), x0))
    halves = quick(functools.partial(couplings.sinkhorn, regularization=0.02, group_size=32))
    found, grouped = halves(x0, x1), exact("host", group_size=32)(x0, x1)
    np.testing.assert_array_equal(found, grouped)
    with pytest.raises(ValueError, match="of one shape"):
        couplings.sinkhorn(x0, x1[:5], regularization=1.0)


def test_sinkhorn_on_eight_devices():
    x0, x1 = pair(64, 2)
    run = quick(functools.partial(couplings.sinkhorn, regularization=0.5, group_size=8))
    key = jax.random.key(4)
    split = [jax.device_put(x, mesh_sharding()) for x in (x0, x1)]
    np.testing.assert_array_equal(run(*split, key=key), run(x0, x1, key=key))


def test_exact_assignment_errors():
    x0, x1 = pair(6, 2)
    with pytest.raises(ValueError, match="of one shape"):
        couplings.exact_assignment(x0, x1[:5])
    with pytest.raises(ValueError, match="known are 'host', 'device'"):
        couplings.exact_assignment(x0, x1, backend="gpu")
    with pytest.raises(ValueError, match="group_size 4 does not divide the batch of 6"):
        couplings.exact_assignment(x0, x1, group_size=4)
    with pytest.raises(ValueError, match="group_size 4 does not divide the batch of 6"):
        sample = paths.interpolate(paths.linear, x0, x1, jnp.full(6, 0.5))
        couplings.nearest_target(paths.linear, sample, group_size=4)


nearest = quick(couplings.nearest_target, static_argnums=0, static_argnames="group_size")
CURVED = paths.Path(alpha=lambda t: t**2, sigma=lambda t: 1 - t)


@pytest.mark.parametrize("shape", [(2,), (3, 2, 1)])
@pytest.mark.parametrize("path", [paths.linear, CURVED], ids=["linear", "curved"])
def test_nearest_target_by_brute_force(path, shape):
    x0, x1 = pair(32, *shape)
    t = jnp.linspace(0.0, 1.0, 32)
    sample = paths.interpolate(path, x0, x1, t)
    found = nearest(path, sample)
    closest = squared(sample.x, x1).argmin(1)
    assert 1 < len(set(closest)) < 32 and np.any(closest != np.arange(32))
    np.testing.assert_array_equal(found.x1, np.asarray(x1)[closest])
    chex.assert_trees_all_equal((found.x, found.t, found.x0), (sample.x, sample.t, sample.x0))
    # The velocity of the new pairing: α' = 1 or 2t, σ' = -1.
    slope = np.ones(32) if path is paths.linear else 2 * np.asarray(t)
    slope = slope.reshape(-1, *[1] * len(shape))
    np.testing.assert_allclose(found.v, slope * found.x1 - found.x0, rtol=1e-5, atol=1e-5)
    # At t = 1 every x is its own target.
    np.testing.assert_array_equal(found.x1[-1], x1[-1])


def test_nearest_target_within_groups_and_on_eight_devices():
    x0, x1 = pair(16, 2)
    sample = paths.interpolate(paths.linear, x0, x1, jnp.linspace(0.0, 0.9, 16))
    found = nearest(paths.linear, sample, group_size=4)
    for i in range(0, 16, 4):
        part = nearest(paths.linear, jax.tree.map(lambda a, i=i: a[i : i + 4], sample))
        np.testing.assert_array_equal(found.x1[i : i + 4], part.x1)
    assert not np.array_equal(found.x1, nearest(paths.linear, sample).x1)
    split = jax.device_put(sample, mesh_sharding())
    for size in (None, 4):
        one, eight = (nearest(paths.linear, s, group_size=size) for s in (sample, split))
        chex.assert_trees_all_equal(one.x1, eight.x1)


def test_rematchings_by_name():
    x0, x1 = pair(4, 2)
    sample = paths.interpolate(paths.linear, x0, x1, jnp.full(4, 0.5))
    assert set(couplings.REMATCHINGS) == {"none", "nearest"}
    assert couplings.REMATCHINGS["none"](paths.linear, sample) is sample
    assert couplings.REMATCHINGS["nearest"] is couplings.nearest_target
