"""Minibatch optimal transport by an exact assignment (Tong et al., arXiv:2302.00482)."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from scipy.optimize import linear_sum_assignment

from genfield import registry
from genfield.couplings.groups import check_pair, costs, grouped
from genfield.registry import NotNegative, PositiveInt

# SciPy is called back from XLA's threads. On one core XLA has a single one, which would wait for
# itself when it works ahead; JAX reads this when its first array is made.
if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1:
    os.environ.setdefault("NPROC", "2")
MAX_PIVOTS = 10_000_000  # POT's own limit stops short of the optimum at 2,000 pairs


BACKENDS = ("host", "pot", "device")


def optimal_columns(cost: Array, backend: str = "host") -> Array:
    """For each row of a square cost [N, N] its column in the cheapest assignment: [N], int32.

    backend: "host" (SciPy) or "pot" (POT's network simplex), through a callback, in one process
      only; or "device" (optax).
    """
    if backend == "device":
        rows, columns = optax.assignment.hungarian_algorithm(cost)
        return columns[jnp.argsort(rows)]
    solve = _by_simplex if backend == "pot" else _by_scipy
    return jax.pure_callback(solve, jax.ShapeDtypeStruct(cost.shape[:1], jnp.int32), cost)


def _by_scipy(cost) -> np.ndarray:
    return linear_sum_assignment(np.asarray(cost))[1].astype(np.int32)


def _by_simplex(cost) -> np.ndarray:
    """POT's; SciPy's where pairs are forbidden, or the simplex stops at no permutation."""
    import ot

    cost = np.asarray(cost, np.float64)
    if not np.isfinite(cost).all():
        return _by_scipy(cost)
    plan, log = ot.emd([], [], cost, numItermax=MAX_PIVOTS, log=True, check_marginals=False)
    columns = plan.argmax(axis=1).astype(np.int32)
    ended = log["warning"] is None and len(np.unique(columns)) == len(columns)
    return columns if ended else _by_scipy(cost)


def exact_assignment(
    x0: Array,
    x1: Array,
    *,
    label: Array | None = None,
    within_classes: bool = False,
    class_penalty: NotNegative = 0.0,
    group_size: PositiveInt | None = None,
    backend: str = "host",
) -> Array:
    """Minibatch optimal transport: x0 reordered to minimise Σ‖x0 - x1‖² (OT-CFM).

    Args:
      x0, x1: [B, *D]; each x0 is used once, x1 never moves.
      label, within_classes, class_penalty: as for `greedy`.
      group_size: examples matched among themselves; None is the whole batch.
      backend: "host" (SciPy) or "pot" (POT's network simplex: many times as fast in few
        dimensions), through a callback, in one process only; or "device" (optax).
    Raises:
      ImportError: POT is missing.
      ValueError: shapes differ, no labels, group_size does not divide B, backend is unknown or
        cannot match within classes.
    """
    check_pair(x0, x1, label, within_classes, class_penalty)
    if backend not in BACKENDS:
        known = ", ".join(map(repr, BACKENDS))
        raise ValueError(f"exact_assignment backend {backend!r}: known are {known}")
    if backend == "pot" and importlib.util.find_spec("ot") is None:
        raise ImportError("backend='pot' needs POT: pip install 'genfield[transport]'")
    if within_classes and backend == "device":
        raise ValueError("exact_assignment within classes needs backend='host'")

    def match(sources, targets, labels):
        cost = costs(targets, sources, (labels, labels), within_classes, class_penalty)
        return sources[optimal_columns(cost, backend)]

    return grouped(match, group_size, x0, x1, label)


METHOD = registry.Coupling(
    name="exact_assignment", function=exact_assignment, extras=("label",), groups=True
)
