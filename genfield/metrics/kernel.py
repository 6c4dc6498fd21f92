"""The kernel distance between two sets of features: unbiased squared MMD, cubic kernel.

Bińkowski et al. 2018, arXiv:1801.01401 section 4 ("KID"). In float64.
"""

import math

import numpy as np

from genfield import registry
from genfield.metrics import needs
from genfield.metrics.frechet import check_pair

BLOCK = 1024  # rows of the kernel matrix in memory at a time


def mmd(x, y) -> float:
    """Unbiased squared maximum mean discrepancy of features [N, D] and [M, D].

    With k(a, b) = (a·b / D + 1)³: the mean of k over pairs within x, plus that within y, no point
    with itself, minus twice the mean over pairs across. Can be negative.

    Raises:
      ValueError: other shapes and dtypes, NaN or infinity, fewer than two points.
    """
    return _mmd(*_check(x, y))


def kernel_distance(
    x, y, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of `mmd` over random subsets: the KID for Inception features.

    Each subset is drawn without replacement, of the same size from x and y: `subset_size`, cut to
    the smaller set. Where `subset_size` reaches both sizes there is one subset, the whole sets,
    and the deviation is NaN: one value tells none.

    Args:
      x, y: features [N, D] and [M, D].
      num_subsets: how many; the mean's standard error falls with its root.
      subset_size: points of each set in a subset.
      seed: of the draws.
    Returns:
      mean and standard deviation (over num_subsets, not num_subsets - 1).
    Raises:
      ValueError: other shapes and dtypes, NaN or infinity, fewer than two points or no subset.
    """
    x, y = _check(x, y)
    if num_subsets < 1 or subset_size < 2:
        raise ValueError(
            f"kernel_distance needs num_subsets >= 1 and subset_size >= 2, got {num_subsets} "
            f"and {subset_size}"
        )
    if subset_size >= max(len(x), len(y)):
        return _mmd(x, y), math.nan
    size = min(subset_size, len(x), len(y))
    rng = np.random.default_rng(seed)
    draw = lambda z: z[rng.choice(len(z), size, replace=False)]
    values = [_mmd(draw(x), draw(y)) for _ in range(num_subsets)]
    return float(np.mean(values)), float(np.std(values)) if num_subsets > 1 else math.nan


def _check(x, y) -> tuple[np.ndarray, np.ndarray]:
    x, y = check_pair(x, y, ("x", "y"))
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"an unbiased distance needs 2 points a set or more, got {len(x)} and {len(y)}"
        )
    return x, y


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m = len(x), len(y)
    within = _sum(x, x) / (n * (n - 1)) + _sum(y, y) / (m * (m - 1))
    return float(within - 2 * _sum(x, y) / (n * m))


def _sum(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of k over all pairs of a and b, or over those of different points where a is b."""
    total = 0.0
    for start in range(0, len(a), BLOCK):
        rows = a[start : start + BLOCK] @ b.T
        rows /= a.shape[1]
        rows += 1
        if a is b:
            np.fill_diagonal(rows[:, start:], 0.0)
        total += np.vdot(rows * rows, rows)
    return total


def _kid(generated, reference) -> dict[str, float]:
    mean, spread = kernel_distance(generated.features["pool"], reference.features["pool"])
    return {"kid": mean} | ({"kid_subset_std": spread} if math.isfinite(spread) else {})


METHOD = registry.Metric(
    name="kid",
    reads="features",
    against=needs.images,
    gaussians=(),
    features=("pool",),
    of_reference=True,
    least=2,
    smaller=("kid",),
    compute=_kid,
)
