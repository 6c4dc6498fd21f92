"""Noises matched with images set by set, and pictures of the paths (DANSM, Algorithm 1, Fig. 2)."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from genfield import couplings
from genfield.analyze.neighbours import draw_noise, draw_targets
from genfield.metrics import path_geometry

CHUNK = 1000  # pairs at a time, where match sets are smaller
PERPLEXITY = 30.0  # of t-SNE


class Pairs(NamedTuple):
    """Noises and the images that they were matched with."""

    lengths: np.ndarray  # float64 [N], of all pairs
    x0: np.ndarray  # float32 [P, D], of those kept
    x1: np.ndarray  # float32 [P, D]


def spans(size: int, match_size: int, chunk: int = CHUNK) -> Iterator[tuple[int, int, int]]:
    """(start, stop, group size) that cover 0 … size in match sets, many small ones at a time.

    Where `match_size` does not divide `size`, what is left is a smaller set of its own.
    """
    whole = size // match_size * match_size
    step = match_size * max(1, chunk // match_size)
    for start in range(0, whole, step):
        yield start, min(start + step, whole), match_size
    if whole < size:
        yield whole, size, size - whole


@functools.partial(jax.jit, static_argnames="group_size")
def _greedy(x0: Array, x1: Array, group_size: int) -> Array:
    return couplings.greedy(x0, x1, group_size=group_size)


def greedy_in_sets(x0: np.ndarray, x1: np.ndarray, match_size: int) -> np.ndarray:
    """x0 [N, *D] reordered by `couplings.greedy` within sets of `match_size`, the last smaller."""
    parts = spans(len(x0), match_size)
    return np.concatenate([_greedy(x0[a:b], x1[a:b], group_size=size) for a, b, size in parts])


def match_images(
    key: Array,
    images: Array,
    match_size: int,
    kept: np.ndarray,
    *,
    on_chunk: Callable[[int], None] = lambda done: None,
) -> Pairs:
    """All images in random order, each with a noise of its match set; noise is drawn once an image.

    The order and the noises are functions of the key alone: match sizes share them.

    Args:
      images: float32 [N, D].
      match_size: of `couplings.greedy`; 1 leaves the pairs random.
      kept: places in that order, rising, whose pairs are returned.
      on_chunk: told how many images are done.
    """
    noise, shuffle = jax.random.split(key)
    num, dimension = images.shape
    order, lengths, sources, targets = draw_targets(shuffle, num, num), [], [], []
    for start, stop, size in spans(num, match_size):
        x0 = draw_noise(noise, np.arange(start, stop), dimension=dimension)
        x1 = images[order[start:stop]]
        if size > 1:
            x0 = _greedy(x0, x1, group_size=size)
        lengths.append(path_geometry.lengths(x0, x1))
        here = kept[(start <= kept) & (kept < stop)] - start
        sources.append(np.asarray(x0)[here])
        targets.append(np.asarray(x1)[here])
        on_chunk(stop)
    return Pairs(*(np.concatenate(each) for each in (lengths, sources, targets)))


def embed(clouds: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Points [n, *D] of several clouds in one plane: name -> [n, 2].

    Points of two dimensions stay as they are. Others go through scikit-learn's t-SNE (van der
    Maaten and Hinton, 2008), all together, from their first two principal components; perplexity
    `PERPLEXITY`, or a quarter of the points where they are few.
    Raises:
      ImportError: scikit-learn is missing.
    """
    flat = np.concatenate([np.reshape(points, (len(points), -1)) for points in clouds.values()])
    if flat.shape[1] > 2:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits  # comes with scikit-learn

        perplexity = min(PERPLEXITY, len(flat) / 4)
        with threadpool_limits(1):  # its threads wait busily: on a shared machine, for minutes
            flat = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(flat)
    cuts = np.cumsum([len(points) for points in clouds.values()])[:-1]
    return dict(zip(clouds, np.split(flat, cuts), strict=True))


def crossing_share(start: np.ndarray, end: np.ndarray) -> float:
    """Share of the pairs of segments from start [n, 2] to end [n, 2] that cross in the plane."""
    start, end = (np.asarray(a, np.float64) for a in (start, end))
    along = end - start

    def side(points):  # [n, n]: on which side of segment i each point j lies
        gap = points[None] - start[:, None]
        return np.sign(along[:, None, 0] * gap[..., 1] - along[:, None, 1] * gap[..., 0])

    parted = side(start) * side(end) < 0  # segment i's line parts the ends of segment j
    pairs = np.triu_indices(len(start), 1)
    return float(np.mean((parted & parted.T)[pairs]))
