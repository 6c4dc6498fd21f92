"""Precision and recall, density and coverage: whose features lie among whose nearest neighbours.

Kynkäänniemi et al. 2019, arXiv:1904.06991 eq. 1-2; Naeem et al. 2020, arXiv:2002.09797 eq. 4-5.
"""

import jax
import jax.numpy as jnp
import numpy as np

from genfield import registry
from genfield.distances import ROUNDING, squared_distances
from genfield.metrics import needs
from genfield.metrics.frechet import check_pair


def precision_recall(generated, reference, *, k: int = 3, block: int = 1024) -> dict[str, float]:
    """How much of each set of features lies among the other.

    A point's ball reaches to its k-th nearest neighbour in its own set, itself left out, and
    holds its boundary.
      precision: share of generated points in the ball of any reference point.
      recall: share of reference points in the ball of any generated point.
      density: number of reference balls that a generated point lies in, over k, on average.
      coverage: share of the reference balls that hold a generated point.

    On JAX's default device in float32, on features centred at the reference mean; `block` rows of
    a distance matrix are in memory at a time. Distances below 2e-3 of the points' own distance
    from the centre count as zero.

    Args:
      generated, reference: features [N, D] and [M, D], of any float dtype. The papers take 50,000
        and 10,000 of each: the figures depend on the counts.
      k: 3 in the first paper, 5 in the second.
      block: rows of generated features at a time.
    Raises:
      ValueError: other shapes and dtypes, NaN or infinity, k not below the size of both sets.
    """
    generated, reference = check_pair(generated, reference, ("generated", "reference"))
    smaller = min(len(generated), len(reference))
    if not 1 <= k < smaller or block < 1:
        raise ValueError(
            f"precision_recall needs 1 <= k < points of each set and block >= 1, got k={k}, "
            f"{smaller} points in the smaller set and block={block}"
        )
    centre = reference.mean(axis=0, dtype=np.float64)
    generated, reference = (
        jnp.asarray((x - centre[None, :]).astype(np.float32)) for x in (generated, reference)
    )
    counts, covered, recalled = _within(
        generated,
        reference,
        _squared_radii(generated, k, min(block, len(generated))),
        _squared_radii(reference, k, min(block, len(reference))),
        min(block, len(generated)),
    )
    counts, covered, recalled = np.asarray(counts), np.asarray(covered), np.asarray(recalled)
    return {
        "precision": float(np.mean(counts > 0)),
        "recall": float(recalled.mean()),
        "density": float(counts.mean() / k),
        "coverage": float(covered.mean()),
    }


def _blocks(rows, block: int, fill):
    """[N, ...] -> parts [block, ...], the last one filled up."""
    missing = -len(rows) % block
    padded = jnp.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1), constant_values=fill)
    return jnp.split(padded, len(padded) // block)


def _squared_radii(points, k: int, block: int):
    """Squared distance from each point to its k-th nearest other one, [N]."""
    parts = zip(_blocks(points, block, 0), _blocks(jnp.arange(len(points)), block, -1), strict=True)
    # top_k by itself: under a jit that reads only its last column, XLA's CPU sorts whole rows.
    nearest = [jax.lax.top_k(_to_others(rows, own, points), k)[0] for rows, own in parts]
    return -jnp.concatenate(nearest)[: len(points), -1]


@jax.jit
def _to_others(rows, own, points):
    itself = own[:, None] == jnp.arange(len(points))[None, :]
    return jnp.where(itself, -jnp.inf, -squared_distances(rows, points, ROUNDING))


def _within(generated, reference, generated_radii, reference_radii, block: int):
    """Reference balls around each generated point [N]; reference points covered, recalled [M]."""
    covered = recalled = jnp.zeros(len(reference), bool)
    counts = []
    parts = zip(_blocks(generated, block, 0), _blocks(generated_radii, block, -1), strict=True)
    for rows, radii in parts:
        count, here, there = _balls(rows, radii, reference, reference_radii)
        counts.append(count)
        covered, recalled = covered | here, recalled | there
    return jnp.concatenate(counts)[: len(generated)], covered, recalled


@jax.jit
def _balls(rows, radii, reference, reference_radii):
    squared = squared_distances(rows, reference, ROUNDING)  # a negative radius: filled up, no point
    inside = (squared <= reference_radii[None, :]) & (radii >= 0)[:, None]
    return inside.sum(axis=1), inside.any(axis=0), (squared <= radii[:, None]).any(axis=0)


def _shares(generated, reference) -> dict[str, float]:
    return precision_recall(generated.features["pool"], reference.features["pool"], k=3)


METHOD = registry.Metric(
    name="precision_recall",
    reads="features",
    against=needs.images,
    gaussians=(),
    features=("pool",),
    of_reference=True,
    least=4,
    smaller=(),
    compute=_shares,
    larger=("precision", "recall"),
)
