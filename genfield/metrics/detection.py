"""Telling two sets apart by a score: the area under the ROC curve, in float64 on the host."""

import numpy as np


def auroc(inside, outside) -> float:
    """P(a score of `outside` exceeds one of `inside`), ties counting one half: the AUROC.

    1: every outside score is the larger; 0.5: no better than chance. Exact, by ranks (the
    Mann-Whitney statistic over its largest value), in O((N + M) log N).

    Args:
      inside, outside: scores [N] and [M]; infinite ones are ranked.
    Raises:
      ValueError: an empty set, NaN, or other shapes.
    """
    inside, outside = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    for name, values in (("inside", inside), ("outside", outside)):
        if values.ndim != 1 or not len(values):
            raise ValueError(f"{name} must be scores of shape [N], N >= 1, got {values.shape}")
        if np.isnan(values).any():
            raise ValueError(f"{name} holds NaN in {int(np.isnan(values).sum())} of {len(values)}")
    ordered = np.sort(inside)
    below = np.searchsorted(ordered, outside, side="left")
    upto = np.searchsorted(ordered, outside, side="right")
    wins = int(below.sum(dtype=np.int64)) + int(upto.sum(dtype=np.int64))
    return wins / (2 * len(inside) * len(outside))
