"""Which images are nearest to points between noise and data (DM, arXiv:2602.02928, section 4.1).

The points are x_t = (1-t) x0 + t x1, so the products of x0 and of x1 with all images give the
nearest image at every t: a whole curve over t costs two matrix products.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield import rng

BLOCK_PRODUCTS = 1 << 25  # entries of a block of products: 128 MiB, of which two are in memory


def uniform_bins(num: int) -> list[tuple[float, float]]:
    """[0, 1] in bins of one width."""
    return list(itertools.pairwise(np.linspace(0, 1, num + 1).tolist()))


@functools.partial(jax.jit, static_argnames="dimension")
def draw_noise(key: Array, indices: Array, dimension: int) -> Array:
    """x0 ~ N(0, I) of the points `indices` [P], the same in any block: float32 [P, dimension]."""
    return rng.per_index(key, indices, lambda k: jax.random.normal(k, (dimension,), jnp.float32))


def draw_targets(key: Array, num: int, num_images: int) -> np.ndarray:
    """The image that each of `num` points goes to, in random order: [num].

    Each image serves once before any serves twice: near the data, as many points as images cover
    all of them (DM Fig. 35), where independent draws would leave out a share of 1/e.
    """
    order = np.asarray(jax.random.permutation(key, num_images))
    return np.resize(order, num)


@jax.jit
def draw_times(key: Array, indices: Array, low: Array, high: Array) -> Array:
    """t uniform between low [K] and high [K] for each point: [K, P]."""
    parts = rng.per_index(key, indices, lambda k: jax.random.uniform(k, low.shape, jnp.float32))
    return low[:, None] + (high - low)[:, None] * parts.T


@jax.jit
def nearest_images(x0: Array, x1: Array, t: Array, images: Array, half_squares: Array) -> Array:
    """Rows of the images nearest to (1-t) x0 + t x1, in float32 at full precision.

    Args:
      x0, x1: [P, D]. t: [K, P]. images: [N, D]. half_squares: ‖images‖² / 2, [N].
    Returns:
      [K, P]. Images whose distances differ by rounding only may stand for each other.
    """
    to_noise, to_target = (
        jnp.matmul(x, images.T, precision=jax.lax.Precision.HIGHEST) for x in (x0, x1)
    )

    def nearest(at):  # the least ‖x - s‖² / 2, less what does not depend on s
        at = at[:, None]
        scores = half_squares[None, :] - (1 - at) * to_noise - at * to_target
        return jnp.argmin(scores, axis=1)

    return jax.lax.map(nearest, t)


def half_squares(images: Array) -> Array:
    """‖images‖² / 2 of [N, D], added up in float64: float32 [N]."""
    parts = np.array_split(np.arange(len(images)), max(1, len(images) // 1000))
    squares = [np.square(np.asarray(images[p[0] : p[-1] + 1], np.float64)).sum(1) for p in parts]
    return jnp.asarray(0.5 * np.concatenate(squares), jnp.float32)


def nearest_along_path(
    key: Array,
    images: Array,
    bins: Sequence[tuple[float, float]],
    num: int,
    *,
    block: int | None = None,
    on_block: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """The nearest image of `num` points in each bin of t: rows of `images`, [K, num].

    All bins share their pairs (x0, x1): within a bin the points are independent but for the order
    of the targets (`draw_targets`), between bins they are not.

    Args:
      images: float32 [N, D].
      bins: (low, high) of t; equal ends are that one t.
      block: points at a time; two arrays [block, N] are in memory. None: `BLOCK_PRODUCTS` / N.
      on_block: told how many points are done.
    """
    block = min(num, block or max(1, BLOCK_PRODUCTS // len(images)))
    points = sample_points(key, images, bins, num)
    squares = half_squares(images)
    out = np.empty((len(bins), num), np.int32)
    for start in range(0, num, block):
        # The last block is full as well, of points done before: one compilation.
        start = min(start, num - block)
        indices = np.arange(start, start + block)
        out[:, indices] = nearest_images(*points(indices), images, squares)
        on_block(int(indices[-1]) + 1)
    return out


def sample_points(key: Array, images: Array, bins, num: int) -> Callable:
    """indices [P] -> (x0 [P, D], x1 [P, D], t [K, P]), the same for a point in any block."""
    noise, order, times = jax.random.split(key, 3)
    targets = draw_targets(order, num, len(images))
    edges = [np.array(edge, np.float32) for edge in zip(*bins, strict=True)]

    def points(indices: np.ndarray) -> tuple[Array, Array, Array]:
        x0 = draw_noise(noise, indices, dimension=images.shape[1])
        return x0, images[targets[indices]], draw_times(times, indices, *edges)

    return points


def excess_distance(key: Array, images: Array, bins, found: np.ndarray, count: int) -> np.ndarray:
    """How much farther than the nearest the images in `found` are, in float64: [K, count].

    Args:
      key, images, bins, found: those of `nearest_along_path` and what it gave, [K, num].
      count: how many of its points to look at.
    Returns:
      Differences of distances, 0 where the image found is the nearest.
    """
    x0, x1, t = (
        np.asarray(a, np.float64)
        for a in sample_points(key, images, bins, found.shape[1])(np.arange(count))
    )
    x = (1 - t[..., None]) * x0 + t[..., None] * x1  # [K, count, D]
    squared = np.empty((len(bins), count, len(images)))
    for start in range(0, len(images), 1000):
        part = np.asarray(images[start : start + 1000], np.float64)
        squares = np.sum(x * x, -1)[..., None] + np.sum(part * part, -1)
        squared[..., start : start + 1000] = squares - 2 * x @ part.T
    chosen = np.take_along_axis(squared, found[:, :count, None].astype(np.int64), -1)[..., 0]
    return np.sqrt(np.maximum(chosen, 0)) - np.sqrt(np.maximum(squared.min(-1), 0))


def coverage(found: np.ndarray, num_images: int) -> float:
    """Share of the images that are nearest to at least one point; `found` [P] are their rows."""
    return len(np.unique(found)) / num_images


def most_frequent(found: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` images that are nearest most often: their rows, and their shares of the points.

    Of equally frequent images the first rows come first; fewer come where fewer were found.
    """
    rows, times = np.unique(found, return_counts=True)
    order = np.argsort(-times, kind="stable")[:count]
    return rows[order], times[order] / found.size
