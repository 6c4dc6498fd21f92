"""genfield.metrics.path_geometry against dense search and quadrature in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from genfield import fields, sampling
from genfield.metrics import path_geometry

GRID = np.linspace(0, 1, 2001)  # of the time from the data


def draw(n: int, *shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noises and samples, with a centre far from the origin."""
    random = np.random.default_rng(seed)
    x0, x1 = random.normal(size=(2, n, *shape)).astype(np.float32)
    return x0 + np.float32(1), 0.5 * x1 - np.float32(2)


def brute_force(x0, x1) -> tuple[np.ndarray, np.ndarray]:
    """Distances and t* of all pairs, by the positions of both points: [n, n] each.

    A dense search along the paths, then a bounded minimiser between the neighbours of the best.
    """
    x0, x1 = (np.reshape(a, (len(a), -1)).astype(np.float64) for a in (x0, x1))
    n = len(x0)
    distance, t_star = np.zeros((n, n)), np.zeros((n, n))
    at = lambda i, s: (1 - s) * x1[i] + s * x0[i]
    for i in range(n):
        for j in range(i + 1, n):
            gap = lambda s, i=i, j=j: float(np.linalg.norm(at(i, s) - at(j, s)))
            best = int(np.argmin([gap(s) for s in GRID[::100]])) * 100
            bounds = GRID[max(best - 100, 0)], GRID[min(best + 100, 2000)]
            found = minimize_scalar(gap, bounds=bounds, method="bounded", options={"xatol": 1e-10})
            ends = {found.x: found.fun, 0.0: gap(0.0), 1.0: gap(1.0)}
            s = min(ends, key=ends.get)
            distance[i, j] = distance[j, i] = ends[s]
            t_star[i, j] = t_star[j, i] = s
    return distance, t_star


def check(found: path_geometry.Distances, distance, t_star, rtol=1e-5) -> None:
    n = len(distance)
    others = ~np.eye(n, dtype=bool)
    np.testing.assert_allclose(found.mean, distance.sum(1) / (n - 1), rtol=rtol)
    masked = np.where(others, distance, np.inf)
    np.testing.assert_allclose(found.nearest, masked.min(1), rtol=1e-6)
    np.testing.assert_array_equal(found.nearest_index, masked.argmin(1))
    at_nearest = t_star[np.arange(n), masked.argmin(1)]
    np.testing.assert_allclose(found.nearest_t_star, at_nearest, atol=1e-6)
    assert found.t_star_mean == pytest.approx(t_star[others].mean(), abs=1e-5)
    assert found.t_star_counts.sum() == n * (n - 1) // 2


@pytest.mark.parametrize("shape", [(2,), (3, 4, 2)])
def test_distances_are_those_of_a_search(shape):
    x0, x1 = draw(23, *shape)
    distance, t_star = brute_force(x0, x1)
    if shape == (2,):  # where some pairs are nearest at an end
        assert np.any(t_star[np.triu_indices(23, 1)] == 0) and np.any(t_star == 1)
    done = []
    check(path_geometry.distances(x0, x1, block=8, on_block=done.append), distance, t_star)
    assert done[-1] == 23 * 22 // 2 and sorted(done) == done
    pair = path_geometry.pair_distance(x0[:5], x1[:5], x0[5:10], x1[5:10])
    places = np.arange(5), np.arange(5, 10)
    np.testing.assert_allclose(pair[0], distance[places], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pair[1], t_star[places], atol=1e-7)


def test_hundreds_of_paths_of_many_dimensions():
    """Single precision and a mean far away, against differences in float64."""
    x0, x1 = draw(200, 768)
    contrast = np.random.default_rng(1).uniform(0.1, 1.5, (200, 1)).astype(np.float32)
    x1 = contrast * (x1 + 2) + np.float32(10)
    n = len(x0)
    to = lambda i: (np.broadcast_to(a[i : i + 1], a.shape) for a in (x0, x1))
    each = [path_geometry.pair_distance(*to(i), x0, x1) for i in range(n)]
    distance, t_star = (np.stack(parts) for parts in zip(*each, strict=True))
    check(path_geometry.distances(x0, x1, block=128), distance, t_star)


def test_block_sizes_do_not_matter():
    x0, x1 = draw(37, 5)
    one = path_geometry.distances(x0, x1, block=37)
    for block in (5, 36, 1000):
        other = path_geometry.distances(x0, x1, block=block)
        np.testing.assert_allclose(other.mean, one.mean, rtol=1e-6)
        np.testing.assert_array_equal(other.nearest, one.nearest)
        np.testing.assert_array_equal(other.nearest_index, one.nearest_index)
        np.testing.assert_array_equal(other.t_star_counts, one.t_star_counts)
        assert other.t_star_mean == pytest.approx(one.t_star_mean, abs=1e-6)


def test_distances_are_symmetric():
    """Neither the order of the paths nor the direction of time changes a distance."""
    x0, x1 = draw(20, 3)
    one = path_geometry.distances(x0, x1, block=8)
    order = np.random.default_rng(3).permutation(20)
    other = path_geometry.distances(x0[order], x1[order], block=8)
    np.testing.assert_allclose(other.mean, one.mean[order], rtol=1e-6)
    np.testing.assert_allclose(other.nearest, one.nearest[order], rtol=1e-12)
    np.testing.assert_array_equal(order[other.nearest_index], one.nearest_index[order])
    back = path_geometry.distances(x1, x0, block=8)
    np.testing.assert_allclose(back.mean, one.mean, rtol=1e-5)
    np.testing.assert_allclose(back.nearest_t_star, 1 - one.nearest_t_star, atol=1e-9)
    assert back.t_star_mean == pytest.approx(1 - one.t_star_mean, abs=1e-6)


def test_crossing_paths_meet_where_they_cross():
    """From samples (0, 0), (0, 4/3) to noises (4, 4), (4, 0): meeting at a quarter."""
    x1 = np.array([[0.0, 0.0], [0.0, 4 / 3]])
    x0 = np.array([[4.0, 4.0], [4.0, 0.0]])
    distance, t_star = path_geometry.pair_distance(x0[:1], x1[:1], x0[1:], x1[1:])
    assert t_star[0] == pytest.approx(0.25) and distance[0] == pytest.approx(0, abs=1e-12)
    found = path_geometry.distances(x0, x1)
    assert found.t_star_mean == pytest.approx(0.25, abs=1e-6)
    np.testing.assert_allclose(found.mean, 0, atol=1e-3)  # the root of float32's rounding
    np.testing.assert_allclose(found.nearest, 0, atol=1e-7)
    assert found.t_star_counts[250] == 1
    # In genfield's time the two are together at t = 1 - t*.
    at = lambda i, t: (1 - t) * x0[i] + t * x1[i]
    np.testing.assert_allclose(at(0, 0.75), at(1, 0.75))


def test_parallel_and_identical_paths():
    """Equal directions: the distance is that of the samples everywhere, and t* is 0."""
    x0, x1 = draw(1, 300)
    shifts = np.random.default_rng(2).normal(size=(9, 300)).astype(np.float32)
    found = path_geometry.distances(x0 + shifts, x1 + shifts, block=4)
    gaps = np.linalg.norm(shifts[:, None] - shifts[None], axis=-1)
    np.testing.assert_allclose(found.mean, gaps.sum(1) / 8, rtol=1e-5)
    assert found.t_star_counts[0] == 36 and found.t_star_mean == 0
    x0, x1 = draw(6, 300)
    twice = path_geometry.distances(np.tile(x0, (2, 1)), np.tile(x1, (2, 1)), block=5)
    np.testing.assert_array_equal(twice.nearest, 0)
    np.testing.assert_array_equal(twice.nearest_index, np.roll(np.arange(12), 6))
    assert np.all(np.isfinite(twice.mean)) and twice.t_star_counts[0] >= 6


def test_lengths_and_summary():
    x0, x1 = draw(50, 4, 4)
    expected = np.linalg.norm((x1 - x0).reshape(50, -1).astype(np.float64), axis=1)
    np.testing.assert_allclose(path_geometry.lengths(x0, x1), expected, rtol=1e-6)
    found = path_geometry.distances(x0, x1)
    row = path_geometry.summary(found)
    assert row["d_avg"] == found.mean.mean() and row["d_min"] == found.nearest.mean()
    assert row["paths"] == 50 and row["t_star_min"] == found.nearest_t_star.mean()
    assert list(row["t_star_quantiles"].values()) == sorted(row["t_star_quantiles"].values())
    counts = np.zeros(1001, int)
    counts[[100, 300, 1000]] = 5, 4, 1
    quantile = lambda q: path_geometry.t_star_quantile(counts, q)
    assert (quantile(0.0), quantile(0.5), quantile(0.51), quantile(0.95)) == (0, 0.1, 0.3, 1)


def test_shapes_that_do_not_fit():
    x0, x1 = draw(4, 3)
    with pytest.raises(ValueError, match="one shape"):
        path_geometry.distances(x0, x1[:, :2])
    with pytest.raises(ValueError, match="n >= 2"):
        path_geometry.distances(x0[:1], x1[:1])
    with pytest.raises(ValueError, match="block=0"):
        path_geometry.distances(x0, x1, block=0)
    with pytest.raises(ValueError, match="K\\+1 >= 2"):
        path_geometry.straightness(jnp.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match=r"times \[K\+1\]"):
        path_geometry.straightness(jnp.zeros((4, 2, 3)), jnp.zeros(3))


# ---------------------------------------------------------------- straightness


def arc(t):
    """A quarter of the unit circle at constant speed; [..., 2]."""
    return jnp.stack([jnp.cos(jnp.pi * t / 2), jnp.sin(jnp.pi * t / 2)], -1)


def test_straight_lines_are_straight():
    x0, x1 = map(jnp.asarray, draw(3, 2, 2))
    t = jnp.linspace(0, 1, 9)[:, None, None, None]
    found = path_geometry.straightness((1 - t) * x0[None] + t * x1[None])
    np.testing.assert_allclose(found.deviation, 0, atol=1e-5)
    np.testing.assert_allclose(found.relative, 0, atol=1e-5)
    # The same line at another pace is none, unless its times are told.
    line = (1 - t**2) * x0[None] + t**2 * x1[None]
    assert np.all(path_geometry.straightness(line).relative > 0.1)
    told = path_geometry.straightness(line, times=5 - 3 * jnp.linspace(0, 1, 9) ** 2)
    np.testing.assert_allclose(told.relative, 0, atol=1e-5)


def test_an_arc_by_quadrature():
    chord = np.array([-1.0, 1.0])
    velocity = lambda t: np.pi / 2 * np.array([-np.sin(np.pi * t / 2), np.cos(np.pi * t / 2)])
    expected = quad(lambda t: np.linalg.norm(velocity(t) - chord), 0, 1)[0]
    trace = 3 * arc(jnp.linspace(0, 1, 401))[:, None] + 7  # of three times the size
    found = path_geometry.straightness(trace)
    np.testing.assert_allclose(found.deviation, 3 * expected, rtol=1e-3)
    np.testing.assert_allclose(found.relative, expected / np.sqrt(2), rtol=1e-3)
    back = path_geometry.straightness(trace[::-1])
    np.testing.assert_allclose(back.deviation, found.deviation, rtol=1e-5)
    # At uneven times on the same arc.
    t = jnp.linspace(0, 1, 801) ** 2
    uneven = path_geometry.straightness(arc(t)[:, None], times=t)
    np.testing.assert_allclose(uneven.deviation, expected, rtol=1e-3)


def test_straightness_of_a_sampler():
    """A constant velocity is straight; a rotation is the arc."""
    x = jnp.asarray([[1.0, 0.0], [2.0, 0.0]])
    heun = dict(sampler=sampling.heun(), num_steps=200, trace=1)
    still = lambda x, t=None, cond=None: jnp.ones_like(x)
    out = sampling.sample(jax.random.key(0), still, x, **heun)
    np.testing.assert_allclose(path_geometry.straightness(out.trace).relative, 0, atol=1e-4)
    turn = lambda x, t=None, cond=None: jnp.pi / 2 * jnp.stack([-x[:, 1], x[:, 0]], -1)
    out = sampling.sample(jax.random.key(0), fields.negate(turn), x, **heun)
    found = path_geometry.straightness(out.trace)
    expected = path_geometry.straightness(arc(jnp.linspace(0, 1, 201))[:, None])
    np.testing.assert_allclose(found.relative, np.repeat(expected.relative, 2), rtol=1e-3)
    np.testing.assert_allclose(found.deviation[1], 2 * found.deviation[0], rtol=1e-4)


def vp(t):
    """α and σ of a variance-preserving process, noise at t = 0."""
    return jnp.sin(jnp.pi * t / 2), jnp.cos(jnp.pi * t / 2)


def test_lines_are_straight_on_the_linear_path():
    """Whatever the process and its clock; the ends and the times are those of the line."""
    x0, x1 = map(jnp.asarray, draw(3, 2, 2))
    wide = lambda a: a[:, None, None, None]
    sigma = jnp.asarray([80.0, 9.0, 1.0, 0.25, 0.0])
    z, t = path_geometry.on_linear_path(x1[None] + wide(sigma) * x0[None], sigma)
    np.testing.assert_allclose(t, [1 / 81, 0.1, 0.5, 0.8, 1], rtol=1e-6)
    np.testing.assert_allclose(z, (1 - wide(t)) * x0[None] + wide(t) * x1[None], atol=1e-5)
    np.testing.assert_allclose(path_geometry.straightness(z, t).deviation, 0, atol=1e-5)

    alpha, sigma = vp(jnp.linspace(0, 1, 9))
    trace = wide(alpha) * x1[None] + wide(sigma) * x0[None]
    assert np.all(path_geometry.straightness(trace).relative > 0.1)
    found = path_geometry.straightness(*path_geometry.on_linear_path(trace, sigma, alpha))
    np.testing.assert_allclose(found.deviation, 0, atol=1e-5)


def test_straightness_does_not_depend_on_the_process():
    """The exact flows of N(m, s²) data are one flow in z: denoiser, score of VP and velocity."""
    m, s, x0 = jnp.asarray([[2.0, -1.0]]), 0.3, jnp.asarray(draw(5, 2)[0])
    mean = lambda x, a, sigma: m + a * s**2 / (a**2 * s**2 + sigma**2) * (x - a * m)  # E[x1 | x]
    velocity = lambda x, t, cond=None: (
        (mean(x, t[:, None], 1 - t[:, None]) - x) / jnp.maximum(1 - t[:, None], 1e-6)
    )
    out = sampling.sample(
        jax.random.key(0), velocity, x0, sampling.euler(), num_steps=2000, trace=1
    )
    expected = path_geometry.straightness(out.trace)
    assert np.all(expected.deviation > 0.1)

    # Solutions of the probability flow are known: (x - α m) / √(α² s² + σ²) is x0 throughout.
    def solution(alpha, sigma):
        a, b = alpha[:, None, None], sigma[:, None, None]
        return a * m[None] + jnp.sqrt(a**2 * s**2 + b**2) * x0[None]

    grid = jnp.linspace(0, 1, 2001)
    for alpha, sigma in (vp(grid), (jnp.ones(2001), 1e3 * (1 - grid) ** 9)):
        z, t = path_geometry.on_linear_path(solution(alpha, sigma), sigma, alpha)
        found = path_geometry.straightness(z, t)
        np.testing.assert_allclose(found.deviation, expected.deviation, rtol=2e-2)


def test_noise_levels_of_another_number():
    for arguments in ((jnp.zeros(3),), (jnp.zeros(4), jnp.zeros(3))):
        with pytest.raises(ValueError, match="noise levels"):
            path_geometry.on_linear_path(jnp.zeros((4, 2, 3)), *arguments)
