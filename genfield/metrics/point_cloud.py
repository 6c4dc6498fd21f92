"""Distances between point clouds: Wasserstein-2, Hausdorff, Chamfer (DM Table 1).

Host-side numpy and SciPy in float64; clouds are [N, D] and [M, D].
"""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from genfield import registry
from genfield.metrics import needs

ASSIGNMENT_LIMIT = 3_000  # points up to which SciPy's cubic assignment takes seconds


def _nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance from each point of a to its nearest point of b, [N]."""
    return cKDTree(np.asarray(b, np.float64)).query(np.asarray(a, np.float64))[0]


def wasserstein2(a: np.ndarray, b: np.ndarray) -> float:
    """√(min over assignments of the mean squared distance), exact; clouds of equal size.

    Up to `ASSIGNMENT_LIMIT` points, and beyond it where POT is not installed, by SciPy's
    assignment (minutes at 10,000); otherwise by POT's network simplex (about 20 s at 10,000).
    Raises:
      ValueError: the clouds differ in size.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"wasserstein2 needs clouds of equal size, got {a.shape} and {b.shape}")
    cost = cdist(a, b, "sqeuclidean")
    if len(a) > ASSIGNMENT_LIMIT:
        try:
            import ot
        except ImportError:
            pass
        else:
            return float(np.sqrt(ot.emd2([], [], cost, numItermax=5_000_000)))
    rows, columns = linear_sum_assignment(cost)
    return float(np.sqrt(cost[rows, columns].mean()))


def hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    """Symmetric maximum of the nearest-neighbour distances."""
    return float(max(_nearest(a, b).max(), _nearest(b, a).max()))


def chamfer(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared nearest-neighbour distance from a to b plus from b to a."""
    return float(np.square(_nearest(a, b)).mean() + np.square(_nearest(b, a)).mean())


def distance_quantile(a: np.ndarray, b: np.ndarray, q: float = 0.999) -> float:
    """Quantile of the distances from points of a to their nearest of b: the stray points."""
    return float(np.quantile(_nearest(a, b), q))


def compare(generated: np.ndarray, target: np.ndarray, transport_points: int) -> dict[str, float]:
    """All of them: W2 on the first `transport_points` of each cloud, the others on all."""
    n = min(transport_points, len(generated), len(target))
    return {
        "w2": wasserstein2(generated[:n], target[:n]),
        "hausdorff": hausdorff(generated, target),
        "chamfer": chamfer(generated, target),
        "stray_999": distance_quantile(generated, target),
    }


def _compared(samples: np.ndarray, target: np.ndarray, section) -> dict[str, float]:
    flat = lambda a: np.asarray(a).reshape(len(a), -1)
    return compare(flat(samples), flat(target), section.transport_points)


METHOD = registry.Metric(
    name="point_cloud",
    reads="samples",
    against=needs.points,
    gaussians=(),
    features=(),
    of_reference=True,
    least=1,
    smaller=("chamfer", "hausdorff", "w2"),
    compute=_compared,
)
