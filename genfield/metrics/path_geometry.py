"""Straight paths from noise to data: how long and how far apart; how straight samplers go.

DANSM (ICLR 2025), sections 3.1 and 3.2, eq. 4-5, Table 2 and 3. In eq. 4 time runs from the data:
t* = 0 is the sample and t* = 1 the noise. genfield's time of the same point is t = 1 - t*.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield.distances import ROUNDING, squared_distances

BLOCK = 1024  # paths a side
PARTS = 1000  # t* of all pairs is counted to the nearest thousandth
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
PARALLEL = 1e-12  # the same in float64, of inputs in float32
EXACT = 1000  # pairs at a time in float64


class Distances(NamedTuple):
    """How far each of n paths is from the n - 1 others; t* of eq. 4 (1 - t in genfield's time)."""

    mean: np.ndarray  # float64 [n], to the others on average
    nearest: np.ndarray  # float64 [n], to the nearest one
    nearest_index: np.ndarray  # int [n], which that is
    nearest_t_star: np.ndarray  # float64 [n], where on the two paths
    t_star_mean: float  # over all pairs
    t_star_counts: np.ndarray  # int [PARTS + 1], pairs whose t* rounds to i / PARTS


def lengths(x0, x1) -> np.ndarray:
    """‖x1 - x0‖ of paths [n, *D], added up in float64: [n]."""
    x0, x1 = _flat(x0), _flat(x1)
    parts = [slice(i, i + EXACT) for i in range(0, len(x0), EXACT)]
    gaps = (x1[p].astype(np.float64) - x0[p] for p in parts)
    return np.concatenate([np.linalg.norm(gap, axis=1) for gap in gaps])


def pair_distance(x0, x1, other_x0, other_x1) -> tuple[np.ndarray, np.ndarray]:
    """The distance of two paths (eq. 5) and t* (eq. 4), in float64 from differences.

    With V = x1' - x1 and U = x0' - x0, at time t* from the data the paths differ by
    (1-t*) V + t* U; t* = V·(V-U) / ‖V-U‖² is cut to [0, 1]. Paths that run parallel are equally far
    apart everywhere: t* = 0.

    Args:
      x0, x1, other_x0, other_x1: noises and samples, [n, *D] each.
    Returns:
      Distances and t* (in genfield's time t = 1 - t*), [n] each.
    """
    x0, x1, other_x0, other_x1 = (
        np.reshape(a, (len(a), -1)).astype(np.float64) for a in (x0, x1, other_x0, other_x1)
    )
    v, u = other_x1 - x1, other_x0 - x0
    squared = np.sum((v - u) ** 2, axis=1)
    product = np.sum(v * (v - u), axis=1)
    turned = squared > PARALLEL * np.sum(v * v + u * u, axis=1)
    t = np.clip(np.divide(product, squared, out=np.zeros_like(product), where=turned), 0, 1)
    return np.linalg.norm((1 - t)[:, None] * v + t[:, None] * u, axis=1), t


def distances(
    x0,
    x1,
    *,
    block: int = BLOCK,
    on_block: Callable[[int], None] = lambda done: None,
) -> Distances:
    """Distances (eq. 5) of all n(n-1)/2 pairs of the paths (x0_i, x1_i).

    On JAX's default device in float32, `block` paths against `block`, each pair once; sums over
    blocks in float64. The nearest path of each is found so, and its distance computed anew by
    `pair_distance`; of two that are equally far but for rounding, either may be called the nearest.

    Args:
      x0, x1: noises and samples, float32 [n, *D] each, n >= 2.
      block: paths a side; no array is larger than [block, block] or [block, D], but for x0 and x1.
      on_block: told how many pairs are done.
    Raises:
      ValueError: shapes differ, fewer than two paths, a block that is not positive.
    """
    if np.shape(x0) != np.shape(x1) or len(x0) < 2 or block < 1:
        raise ValueError(
            "distances needs x0 and x1 of one shape [n >= 2, *D] and block >= 1, got "
            f"{np.shape(x0)}, {np.shape(x1)} and block={block}"
        )
    x0, x1 = _flat(x0), _flat(x1)
    n, block = len(x0), min(block, len(x0))
    sums, best = np.zeros(n), np.full(n, np.inf)
    index, counts = np.zeros(n, np.int64), np.zeros(PARTS + 1, np.int64)
    t_sum, done = 0.0, 0
    for i, j, rows, columns in _block_pairs(x0, x1, block):
        found = jax.device_get(_compare(rows, columns, i, j, n))
        for start, other, side in ((i, j, found.of_rows), (j, i, found.of_columns)):
            stop = min(start + block, n)
            total, nearest, place = (a[: stop - start] for a in side)
            sums[start:stop] += total
            better = nearest < best[start:stop]
            best[start:stop] = np.where(better, nearest, best[start:stop])
            index[start:stop] = np.where(better, other + place, index[start:stop])
        counts += found.counts
        t_sum += float(np.sum(found.t_sums, dtype=np.float64))
        done += int(found.counts.sum())
        on_block(done)
    nearest, t_star = _exactly(x0, x1, index)
    return Distances(sums / (n - 1), nearest, index, t_star, t_sum / done, counts)


def _flat(x) -> np.ndarray:
    """float32 [n, D]."""
    return np.asarray(x, np.float32).reshape(len(x), -1)


def _block_pairs(x0: np.ndarray, x1: np.ndarray, block: int) -> Iterator[tuple]:
    """(i, j, block at i, block at j) for i <= j; a block is (samples, noises, noises - samples).

    Both are centred, which no distance feels but rounding does. The last block is filled up.
    """
    n = len(x0)
    centres = [a.mean(axis=0, dtype=np.float64).astype(np.float32) for a in (x1, x0)]

    def at(start):
        parts = [a[start : start + block] - c for a, c in zip((x1, x0), centres, strict=True)]
        parts = [np.pad(a, [(0, block - len(a)), (0, 0)]) for a in parts]
        return jax.device_put((*parts, parts[1] - parts[0]))

    for i in range(0, n, block):
        rows = at(i)
        for j in range(i, n, block):
            yield i, j, rows, rows if i == j else at(j)


class _Found(NamedTuple):
    """What a block tells of its pairs i < j; a side is (sum of distances, nearest², its place)."""

    of_rows: tuple[Array, Array, Array]
    of_columns: tuple[Array, Array, Array]
    t_sums: Array
    counts: Array


@jax.jit
def _compare(rows, columns, first_row, first_column, n) -> _Found:
    """All pairs of two blocks of paths that start at `first_row` and `first_column`.

    V·(V-U) = (‖V‖² + ‖V-U‖² - ‖U‖²) / 2: a pair needs three squared distances, of its samples, of
    its noises and of what leads from one to the other.
    """
    v, u, w = (squared_distances(a, b, ROUNDING) for a, b in zip(rows, columns, strict=True))
    twice = v + w - u
    turned = w > ROUNDING * (v + u)  # else the paths run parallel
    t = jnp.where(turned, jnp.clip(twice / jnp.where(turned, 2 * w, 1.0), 0.0, 1.0), 0.0)
    squared = jnp.maximum(v - t * twice + t * t * w, 0.0)

    i, j = (first + jnp.arange(len(v)) for first in (first_row, first_column))
    counted = (i[:, None] < j[None]) & (j < n)[None]
    distance = jnp.where(counted, jnp.sqrt(squared), 0.0)
    squared = jnp.where(counted, squared, jnp.inf)
    side = lambda axis: (distance.sum(axis), squared.min(axis), squared.argmin(axis))
    bins = jnp.where(counted, jnp.round(PARTS * t).astype(jnp.int32), PARTS + 1)
    counts = jnp.zeros(PARTS + 1, jnp.int32).at[bins.reshape(-1)].add(1, mode="drop")
    return _Found(side(1), side(0), jnp.where(counted, t, 0.0).sum(1), counts)


def _exactly(x0: np.ndarray, x1: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`pair_distance` of each path and the path `index` [n] of it."""
    parts = []
    for start in range(0, len(x0), EXACT):
        own = slice(start, start + EXACT)
        parts.append(pair_distance(x0[own], x1[own], x0[index[own]], x1[index[own]]))
    distance, t = zip(*parts, strict=True)
    return np.concatenate(distance), np.concatenate(t)


def t_star_quantile(counts: np.ndarray, q: float) -> float:
    """The quantile of t* over all pairs, to a thousandth: the least i / PARTS that holds q."""
    cumulative = np.cumsum(counts)
    return float(np.searchsorted(cumulative, q * cumulative[-1])) / PARTS


def summary(found: Distances) -> dict:
    """Table 2 and 3: d_avg, d_min, t* on average and at the nearest path, and t*'s quantiles.

    All t* are in the paper's time, 0 at the data; `t_star_at_data` is the share of pairs that round
    to it.
    """
    counts = found.t_star_counts
    return {
        "paths": len(found.mean),
        "d_avg": float(found.mean.mean()),
        "d_min": float(found.nearest.mean()),
        "t_star_avg": found.t_star_mean,
        "t_star_min": float(found.nearest_t_star.mean()),
        "t_star_at_data": float(counts[0] / counts.sum()),
        "t_star_quantiles": {str(q): t_star_quantile(counts, q) for q in QUANTILES},
    }


class Straightness(NamedTuple):
    """Of trajectories, [B] each; 0 where one runs straight on at constant speed."""

    deviation: Array  # ∫ ‖dx/dt - (x1 - x0)‖ dt, in units of x
    relative: Array  # the same over ‖x1 - x0‖; NaN where a trajectory ends where it began


def straightness(trace: Array, times: Array | None = None) -> Straightness:
    """How far trajectories are from the straight line between their ends.

    The integrand of rectified flow's straightness (Liu et al., arXiv:2209.03003, section 2.2),
    here not squared, for trajectories that are polygons through `trace`.

    Args:
      trace: positions [K+1, B, *D], as `sampling.sample` gives them; in either direction of time.
      times: of the positions, [K+1] or [K+1, B], rising or falling; None: evenly spaced. They are
        brought to [0, 1].
    Raises:
      ValueError: fewer than two positions, times of another number.
    """
    given = None if times is None else np.shape(times)
    if len(trace) < 2 or given not in (None, trace.shape[:1], trace.shape[:2]):
        raise ValueError(
            f"straightness needs a trace [K+1 >= 2, B, *D] and times [K+1] or [K+1, B], got "
            f"{trace.shape} and {given}"
        )
    trace = trace.reshape(*trace.shape[:2], -1)
    times = jnp.linspace(0.0, 1.0, len(trace)) if times is None else jnp.asarray(times)
    shares = jnp.diff(times, axis=0) / (times[-1:] - times[:1])
    whole = trace[-1] - trace[0]
    gaps = jnp.diff(trace, axis=0) - shares.reshape(len(shares), -1, 1) * whole[None]
    deviation = jnp.sum(jnp.linalg.norm(gaps, axis=-1), axis=0)
    return Straightness(deviation, deviation / jnp.linalg.norm(whole, axis=-1))


def on_linear_path(trace: Array, sigma: Array, alpha: Array | float = 1.0) -> tuple[Array, Array]:
    """A trajectory of x = α x1 + σ x0 as one of the linear path z = (1-t) x0 + t x1.

    z = x / (α + σ) at t = α / (α + σ): what `straightness` compares between samplers down noise
    levels and those of a velocity (Lines Matching Models, Table 1). Flows keep their trajectories
    in it: dx/dσ = (x - D(x, σ)) / σ of an exact denoiser is the exact velocity E[x1 - x0 | z].

    Args:
      trace: positions [K+1, B, *D]. Samplers that scale the noise they are given trace it as given:
        scale the first position by the first noise level.
      sigma: σ of the positions, [K+1]. alpha: α of them, [K+1], or one for all; 1 is the
        variance-exploding process.
    Returns:
      z [K+1, B, *D] and t [K+1], for `straightness`.
    Raises:
      ValueError: noise levels of another number.
    """
    sigma = jnp.asarray(sigma)
    if sigma.shape != (len(trace),) or np.shape(alpha) not in ((), sigma.shape):
        raise ValueError(
            f"on_linear_path needs a trace [K+1, B, *D] and noise levels [K+1], got {trace.shape}, "
            f"{sigma.shape} and alpha {np.shape(alpha)}"
        )
    alpha = jnp.broadcast_to(jnp.asarray(alpha, sigma.dtype), sigma.shape)
    total = alpha + sigma
    return trace / total.reshape(-1, *(1,) * (trace.ndim - 1)), alpha / total
