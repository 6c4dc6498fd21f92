"""Squared distances between sets of points, and exact nearest neighbours, in float32."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Squared distances below this share of |a|² + |b|² are float32's rounding: where they count as
# zero, copies of a point lie at distance 0.
ROUNDING = 4e-6
# Rows at a time on CPUs. In one piece XLA fuses the sums of squares into the matrix and takes them
# anew for its elements: 4 times the time of the product alone at 4,000 points of 3,072 numbers.
ROWS = 512


def squared_distances(a: Array, b: Array, rounding: float | None = None) -> Array:
    """[N, *D], [M, *D] -> [N, M], by products at full precision.

    rounding: distances below this share of |a|² + |b|² become 0; None leaves them, below 0 too.
    """
    a, b = (v.reshape(len(v), -1).astype(jnp.float32) for v in (a, b))
    of = functools.partial(_squared_distances, rounding=rounding)
    if len(a) <= ROWS:
        return of(a, b)
    return jax.lax.platform_dependent(a, b, cpu=functools.partial(_by_rows, of), default=of)


def _squared_distances(a: Array, b: Array, rounding: float | None) -> Array:
    """Of [N, D] and [M, D]."""
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None]
    squared = norms - 2 * products
    return squared if rounding is None else jnp.where(squared > rounding * norms, squared, 0.0)


def _by_rows(of: Callable, a: Array, b: Array) -> Array:
    """of(a, b), ROWS of its rows at a time."""
    whole = len(a) // ROWS * ROWS
    parts = jax.lax.map(lambda rows: of(rows, b), a[:whole].reshape(-1, ROWS, a.shape[1]))
    parts = parts.reshape(whole, len(b))
    return parts if whole == len(a) else jnp.concatenate([parts, of(a[whole:], b)])


SPARE = 8  # candidates beyond k whose distances are computed anew, without cancellation


class Neighbours(NamedTuple):
    """The k nearest points of each query, the nearest first."""

    distance: np.ndarray  # [N, k], Euclidean
    index: np.ndarray  # [N, k], counted through all points


@jax.jit
def _closest(queries, points, best, first):
    """The running k best (squared distance, index) of queries [N, D], after points [P, D]."""
    k = best[0].shape[1]
    origin = points.mean(axis=0)
    centred = points - origin[None]
    norms = jnp.sum(centred**2, axis=1)

    def candidates(query):  # [D]
        products = jnp.dot(centred, query - origin, precision=jax.lax.Precision.HIGHEST)
        near = jax.lax.top_k(2 * products - norms, min(k + SPARE, len(points)))[1]
        return jnp.sum((points[near] - query[None]) ** 2, axis=1), near

    squared, near = jax.lax.map(candidates, queries, batch_size=64)
    squared = jnp.concatenate([best[0], squared], axis=1)
    index = jnp.concatenate([best[1], first + near], axis=1)
    kept = jax.lax.top_k(-squared, k)[1]
    return jnp.take_along_axis(squared, kept, axis=1), jnp.take_along_axis(index, kept, axis=1)


def nearest(
    queries,
    points,
    k: int = 1,
    *,
    block: int = 4096,
    on_block: Callable[[int], None] = lambda done: None,
) -> Neighbours:
    """Exact nearest neighbours in Euclidean distance (EqM Fig. 5), in float32.

    In memory at a time: the queries, a block of points and 64 rows of their distances. Candidates
    are found by matrix products and their distances computed anew from differences, so a copy
    lies at exactly 0.

    Args:
      queries: [N, *D]. points: [M, *D], or an iterable of such arrays, as they come from disk.
      block: rows of points at a time.
      on_block: told how many points are done; may raise to stop.
    Raises:
      ValueError: fewer than k points, k below 1, or shapes that differ.
    """
    if k < 1:
        raise ValueError(f"k must be positive, got {k}")
    queries = np.asarray(queries, np.float32)
    shape, flat = queries.shape[1:], jnp.asarray(queries.reshape(len(queries), -1))
    best = jnp.full((len(queries), k), jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
    done = 0
    for part in _parts(points, block):
        if part.shape[1:] != shape:
            raise ValueError(f"queries are {list(shape)} each, points {list(part.shape[1:])}")
        best = _closest(flat, part.reshape(len(part), -1), best, done)
        done += len(part)
        on_block(done)
    if done < k:
        raise ValueError(f"{k} nearest neighbours need as many points, got {done}")
    return Neighbours(np.sqrt(np.asarray(best[0])), np.asarray(best[1]))


def _parts(points: Any, block: int) -> Iterable[np.ndarray]:
    whole = hasattr(points, "shape")
    for array in [points] if whole else points:
        for first in range(0, len(array), block):
            yield np.asarray(array[first : first + block], np.float32)
