"""Figures of merit of RNA velocities: consistency, cross-boundary correctness, truth.

Host-side numpy in float64. Velocities are [N, G], a row a cell; `neighbours` [N, K] holds the
indices of each cell's neighbours.
"""

from collections.abc import Hashable, Sequence

import numpy as np


def _unit(a: np.ndarray) -> np.ndarray:
    """Rows of length one; rows of zeros stay."""
    length = np.linalg.norm(a, axis=-1, keepdims=True)
    return np.divide(a, length, out=np.zeros_like(a), where=length > 0)


def _centred(a: np.ndarray) -> np.ndarray:
    """Rows of mean zero; equal entries give exact zeros."""
    constant = np.ptp(a, axis=-1, keepdims=True) == 0
    return np.where(constant, 0.0, a - a.mean(-1, keepdims=True))


def _checked(name: str, a, shape: tuple[int, ...] | None = None) -> np.ndarray:
    a = np.asarray(a, np.float64)
    if a.ndim != 2 or (shape is not None and a.shape != shape):
        wanted = "[N, G]" if shape is None else list(shape)
        raise ValueError(f"{name} must be {wanted}, not {list(a.shape)}")
    if not np.isfinite(a).all():
        raise ValueError(f"{name} must be finite: leave out the genes that were not fitted")
    return a


def consistency(velocities: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Mean correlation over genes of a cell's velocity with its neighbours', negative means as 0.

    What scVelo calls the velocity confidence (Bergen et al., 2020). A velocity that is the same
    in all cells scores 1, whichever it is.

    Returns:
      [N], in [0, 1].
    Raises:
      ValueError: wrong shapes, entries that are not finite.
    """
    unit = _unit(_centred(_checked("velocities", velocities)))
    return np.clip(np.einsum("ng,nkg->nk", unit, unit[np.asarray(neighbours)]).mean(1), 0, None)


def boundary_scores(
    positions: np.ndarray,
    velocities: np.ndarray,
    neighbours: np.ndarray,
    labels: Sequence[Hashable],
    transitions: Sequence[tuple[Hashable, Hashable]],
) -> dict[tuple[Hashable, Hashable], np.ndarray]:
    """How well velocities at the border of one cluster point into the next (Qiao & Huang, 2021).

    A boundary cell of (A, B) is a cell of A with neighbours in B; its score is the mean cosine of
    its velocity and the displacements to these.

    Args:
      positions, velocities: [N, D], in gene space or in an embedding.
      labels: [N], the cluster of each cell. transitions: pairs (A, B) known to happen.
    Returns:
      The scores of the boundary cells [n] of each transition; n may be 0.
    Raises:
      ValueError: wrong shapes, entries that are not finite.
    """
    positions = _checked("positions", positions)
    unit = _unit(_checked("velocities", velocities, positions.shape))
    labels, neighbours = np.asarray(labels), np.asarray(neighbours)
    scores = {}
    for source, target in transitions:
        found = []
        for cell in np.flatnonzero(labels == source):
            ahead = neighbours[cell][labels[neighbours[cell]] == target]
            if len(ahead):
                found.append(np.mean(_unit(positions[ahead] - positions[cell]) @ unit[cell]))
        scores[source, target] = np.array(found)
    return scores


def cross_boundary_correctness(scores: dict[tuple, np.ndarray]) -> float:
    """CBC: the mean over transitions of the mean over boundary cells; NaN where there are none."""
    means = [values.mean() for values in scores.values() if len(values)]
    return float(np.mean(means)) if means else float("nan")


def agreement(velocities: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How velocities agree with known ones, both [N, G], whatever their scales.

    Returns:
      "gene_pearson": correlation over cells, mean over genes; "cell_pearson": correlation over
      genes, mean over cells; "cell_cosine": the same without centring. A gene or a cell counts 0
      where the velocities do not vary, and is left out where the truth does not.
    Raises:
      ValueError: shapes that differ, entries that are not finite.
    """
    truth = _checked("truth", truth)
    velocities = _checked("velocities", velocities, truth.shape)

    def cosines(a, b):
        known = b.any(-1)
        return float(np.sum(_unit(a[known]) * _unit(b[known]), axis=-1).mean())

    return {
        "gene_pearson": cosines(_centred(velocities.T), _centred(truth.T)),
        "cell_pearson": cosines(_centred(velocities), _centred(truth)),
        "cell_cosine": cosines(velocities, truth),
    }
