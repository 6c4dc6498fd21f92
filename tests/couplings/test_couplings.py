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

from genfield import couplings, data, paths, registry
from genfield.distances import squared_distances

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
BACKENDS = ["host", "pot", "device"]
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


def in_turn(cost):
    """Algorithm 1 in numpy: each row in turn takes its cheapest column that is left."""
    taken, out = np.zeros(cost.shape[1], bool), []
    for row in np.asarray(cost):
        out.append(np.where(taken, np.inf, row).argmin())
        taken[out[-1]] = True
    return np.array(out)


def gaussians(rng, n):
    return rng.normal(size=(n, 8)), 0.3 * rng.normal(size=(n, 8)) + 1


def duplicates(rng, n):
    few = rng.normal(size=(2, max(1, n // 7), 3))
    return few[0][rng.integers(len(few[0]), size=n)], few[1][rng.integers(len(few[1]), size=n)]


def ties(rng, n):  # small whole numbers: distances are exact, and many are equal
    return rng.integers(-2, 3, size=(2, n, 3)).astype(float)


@functools.cache
def greedy(method, block=1024, **options):
    return jax.jit(functools.partial(couplings.greedy, method=method, block=block, **options))


# Sizes and seeds: 204 problems of three kinds in all.
SIZES = {1: 10, 2: 10, 5: 10, 33: 12, 128: 12, 700: 6, 2000: 4, 4096: 4}
LARGE = [pytest.param(n, marks=pytest.mark.slow) for n in (2000, 4096)]


@pytest.mark.parametrize("n", [n for n in SIZES if n < 2000] + LARGE)
def test_parallel_greedy_is_sequential_greedy_is_algorithm_1(n):
    block = min(n, 512)  # several blocks, the last one not full, from 700 on
    for make, seed in itertools.product((gaussians, duplicates, ties), range(SIZES[n])):
        x0, x1 = (v.astype(np.float32) for v in make(np.random.default_rng([n, seed]), n))
        turns, rounds = (greedy(m, block)(x0, x1) for m in ("sequential", "parallel"))
        np.testing.assert_array_equal(rounds, turns)
        if n <= 700:
            cost = squared_distances(jnp.asarray(x1), jnp.asarray(x0))
            np.testing.assert_array_equal(turns, x0[in_turn(cost)])


@pytest.mark.slow
def test_parallel_greedy_is_sequential_greedy_on_real_images(real_data):
    fields = dict(path=str(real_data / "cifar10_jpeg.tar.xz"), max_images=4096, flip=False)
    images = data.create({"name": "images", **fields}, batch_size=1, seed=0).examples["train"]
    for n, seed in ((1, 0), (100, 1), (100, 2), (1000, 3), (1000, 4), (4096, 5)):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(images.size)[:n]
        x1 = data.to_unit(images.gather(rows)["x1"])
        x0 = rng.normal(size=x1.shape).astype(np.float32)
        turns, rounds = (greedy(m)(x0, x1) for m in ("sequential", "parallel"))
        np.testing.assert_array_equal(rounds, turns)
        used = np.sort(np.asarray(rounds).reshape(n, -1)[:, 0])
        np.testing.assert_array_equal(used, np.sort(x0.reshape(n, -1)[:, 0]))


def test_greedy_uses_each_noise_once():
    x0, x1 = pair(200, 3, 2)
    for method in ("auto", "sequential", "parallel"):
        found = order(greedy(method, 64)(x0, x1), x0)
        np.testing.assert_array_equal(found, in_turn(squared(x1, x0)))
    lengths = lambda x: np.sqrt(((np.asarray(x) - np.asarray(x1)) ** 2).sum((1, 2))).mean()
    assert lengths(x0) > lengths(greedy("auto", 64)(x0, x1)) > lengths(exact("host")(x0, x1))


@pytest.mark.parametrize("method", ["sequential", "parallel"])
def test_greedy_in_groups_and_on_eight_devices(method):
    x0, x1 = pair(64, 5)
    run = greedy(method, 16, group_size=16)
    whole = run(x0, x1)
    expected = [i + in_turn(squared(x1[i : i + 16], x0[i : i + 16])) for i in range(0, 64, 16)]
    np.testing.assert_array_equal(order(whole, x0), np.concatenate(expected))
    np.testing.assert_array_equal(
        run(*(jax.device_put(x, mesh_sharding()) for x in (x0, x1))), whole
    )


def test_parallel_greedy_needs_few_rounds_of_few_proposals():
    n = 2000
    x0, x1 = pair(n, 64)
    cost = np.asarray(squared_distances(x1, x0))
    holder, rounds, proposals = np.full(n, n), 0, 0
    while (waiting := np.setdiff1d(np.arange(n), holder)).size:
        best = np.where(holder[None] > waiting[:, None], cost[waiting], np.inf).argmin(1)
        np.minimum.at(holder, best, waiting)
        rounds, proposals = rounds + 1, proposals + waiting.size
    columns = np.empty(n, int)
    columns[holder] = np.arange(n)
    np.testing.assert_array_equal(columns, in_turn(cost))
    assert rounds < 80 and proposals < 12 * n  # "a few dozen rounds", "about 8 a sample"


MATCHED_BY_CLASS = {
    "greedy": couplings.greedy,
    "exact_assignment": couplings.exact_assignment,
    "sinkhorn": functools.partial(couplings.sinkhorn, regularization=0.05, rounding="permutation"),
}


@pytest.mark.parametrize("name", MATCHED_BY_CLASS)
def test_matching_within_classes(name):
    x0, x1 = pair(48, 2, seed=3)
    label = jnp.asarray(np.random.default_rng(0).integers(0, 3, 48), jnp.int32)
    couple = MATCHED_BY_CLASS[name]
    found = order(quick(functools.partial(couple, within_classes=True))(x0, x1, label=label), x0)
    np.testing.assert_array_equal(label[found], label)
    for c in range(3):  # as if each class were matched alone
        rows = np.flatnonzero(np.asarray(label) == c)
        alone = order(quick(couple)(x0[rows], x1[rows]), x0[rows])
        np.testing.assert_array_equal(found[rows], rows[alone])
    blind = order(quick(couple)(x0, x1, label=label), x0)
    assert (np.asarray(label)[blind] != np.asarray(label)).any()


@pytest.mark.parametrize("name", ["greedy", "exact_assignment"])
def test_a_class_penalty_lies_between(name):
    x0, x1 = pair(48, 2, seed=3)
    label = jnp.asarray(np.random.default_rng(0).integers(0, 3, 48), jnp.int32)
    run = quick(
        lambda penalty: MATCHED_BY_CLASS[name](x0, x1, label=label, class_penalty=penalty),
        static_argnums=0,
    )
    crossing = [
        (np.asarray(label)[order(run(p), x0)] != np.asarray(label)).sum() for p in (0.0, 1.0, 1e4)
    ]
    assert crossing[0] > crossing[1] > crossing[2] == 0


def test_nearest_source_repeats_noises():
    x0, x1 = pair(40, 3)
    found = couplings.nearest_source(x0, x1)
    np.testing.assert_array_equal(found, np.asarray(x0)[squared(x1, x0).argmin(1)])
    assert len(np.unique(found, axis=0)) < 40


def test_coupling_errors():
    x0, x1 = pair(6, 2)
    for couple in (couplings.greedy, couplings.exact_assignment):
        with pytest.raises(ValueError, match="of one shape"):
            couple(x0, x1[:5])
        with pytest.raises(ValueError, match="need labels"):
            couple(x0, x1, within_classes=True)
        with pytest.raises(ValueError, match="must not be negative"):
            couple(x0, x1, label=jnp.zeros(6, int), class_penalty=-1.0)
    with pytest.raises(ValueError, match="known are 'auto', 'parallel', 'sequential'"):
        couplings.greedy(x0, x1, method="fast")
    with pytest.raises(ValueError, match="backend='host'"):
        couplings.exact_assignment(
            x0, x1, label=jnp.zeros(6, int), within_classes=True, backend="device"
        )
    with pytest.raises(ValueError, match="draws with a key"):
        couplings.sinkhorn(x0, x1, regularization=1.0)
    with pytest.raises(ValueError, match="known are 'permutation', 'sample'"):
        couplings.sinkhorn(x0, x1, regularization=1.0, rounding="best")


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
    draw = lambda key, *pair: couplings.sinkhorn(*pair, regularization=epsilon, key=key)
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


def test_sinkhorn_rounded_to_a_permutation():
    x0, x1 = pair(64, 3, 2)
    permute = functools.partial(couplings.sinkhorn, regularization=0.02, rounding="permutation")
    run = quick(permute)
    np.testing.assert_array_equal(order(run(x0, x1), x0), order(exact("host")(x0, x1), x0))
    halves = quick(functools.partial(permute, group_size=32))
    found, grouped = halves(x0, x1), exact("host", group_size=32)(x0, x1)
    np.testing.assert_array_equal(found, grouped)
    with pytest.raises(ValueError, match="of one shape"):
        couplings.sinkhorn(x0, x1[:5], regularization=1.0)


def test_a_plan_that_has_not_converged_is_rounded_to_the_largest_sum_too():
    x0, x1 = pair(64, 3)
    x1 = 3 * x1 + 2
    cost = cdist(x1, x0, "sqeuclidean")
    f, epsilon, level = np.zeros(64), 0.5, -np.log(64)
    for _ in range(10):  # ends with the rows, those of x1: their sums are 1/64, the columns' not
        g = epsilon * (level - scipy.special.logsumexp((f[:, None] - cost) / epsilon, axis=0))
        f = epsilon * (level - scipy.special.logsumexp((g[None] - cost) / epsilon, axis=1))
    plan = np.exp((f[:, None] + g[None] - cost) / epsilon)
    assert plan.sum(0).max() > 2 / 64
    options = dict(regularization=epsilon, rounding="permutation", max_iterations=10)
    found = order(quick(functools.partial(couplings.sinkhorn, **options))(x0, x1), x0)
    best = linear_sum_assignment(-plan)
    np.testing.assert_allclose(plan[np.arange(64), found].sum(), plan[best].sum(), rtol=1e-5)


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
    with pytest.raises(ValueError, match="known are 'host', 'pot', 'device'"):
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
    known = registry.Methods(registry.find("genfield.couplings"))[registry.Rematching]
    assert {name: record.moves for name, record in known.items()} == {
        "none": False,
        "nearest": True,
    }
    assert known["none"].function(paths.linear, sample) is sample
    assert known["nearest"].function is couplings.nearest_target


def test_a_permutation_is_the_likeliest_of_the_plans_rows():
    """At a regularisation where rows and columns of the plan are not alike."""
    x0, x1 = (jax.random.normal(jax.random.key(k), (24, 2)) for k in (0, 1))
    epsilon = 1.5
    found = couplings.sinkhorn(x0, x1, regularization=epsilon, rounding="permutation")
    cost = np.square(np.asarray(x1)[:, None] - np.asarray(x0)[None]).sum(-1)
    plan = np.exp(-cost / epsilon)
    for _ in range(5_000):
        plan /= plan.sum(1, keepdims=True)
        plan /= plan.sum(0, keepdims=True)
    columns = linear_sum_assignment(-plan / plan.sum(1, keepdims=True))[1]
    np.testing.assert_array_equal(found, np.asarray(x0)[columns])


def test_simplex_goes_on_to_the_optimum_and_leaves_forbidden_pairs_to_scipy():
    """300 points of the plane, where the cost is SciPy's; and within classes."""
    x0, x1 = pair(300, 2)
    label = jnp.arange(300) % 3
    cost = squared(x1, x0)
    columns = order(exact("pot")(x0, x1), x0)
    rows, best = linear_sum_assignment(cost)
    np.testing.assert_allclose(cost[rows, columns].sum(), cost[rows, best].sum(), rtol=1e-6)
    within = functools.partial(couplings.exact_assignment, label=label, within_classes=True)
    np.testing.assert_array_equal(within(x0, x1, backend="pot"), within(x0, x1))
