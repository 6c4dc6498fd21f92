"""Entropic optimal transport, by ott-jax's Sinkhorn iterations."""

import jax
from jax import Array

from genfield import registry
from genfield.couplings.assignment import optimal_columns
from genfield.couplings.groups import check_pair, costs, grouped
from genfield.registry import NotNegative, Positive, PositiveInt


def sinkhorn(
    x0: Array,
    x1: Array,
    *,
    regularization: Positive,
    key: Array | None = None,
    label: Array | None = None,
    within_classes: bool = False,
    class_penalty: NotNegative = 0.0,
    group_size: PositiveInt | None = None,
    rounding: str = "sample",
    max_iterations: PositiveInt = 2000,
) -> Array:
    """Entropic optimal transport: an x0 for each x1, by ott-jax's Sinkhorn iterations.

    The plan π minimises Σ π ‖x0 - x1‖² - ε H(π).

    Args:
      x0, x1: [B, *D]; x1 never moves.
      regularization: ε > 0, in squared units of x.
      key: for rounding="sample".
      label, within_classes, class_penalty: as for `greedy`.
      group_size: examples matched among themselves; None is the whole batch.
      rounding: "sample": each x1 draws its x0 from its row of π, so that an x0 may be used twice,
        or not at all (SB-CFM's entropic coupling at ε = 2 σ², arXiv:2302.00482, section 3.2.5).
        "permutation": the one of the largest Σ π; each x0 is used once.
    Raises:
      ValueError: shapes differ, no labels, no key, group_size does not divide B, unknown rounding.
      ImportError: ott-jax is missing.
    """
    check_pair(x0, x1, label, within_classes, class_penalty)
    if rounding not in ("permutation", "sample"):
        raise ValueError(f"sinkhorn rounding {rounding!r}: known are 'permutation', 'sample'")
    if rounding == "sample" and key is None:
        raise ValueError("sinkhorn draws with a key: pass one, or rounding='permutation'")
    try:
        from ott.geometry import geometry
        from ott.solvers import linear
    except ImportError as error:
        raise ImportError("sinkhorn needs ott-jax: pip install 'genfield[transport]'") from error

    def match(sources, targets, labels, keys):
        cost = costs(targets, sources, (labels, labels), within_classes, class_penalty)
        problem = geometry.Geometry(cost_matrix=cost, epsilon=regularization)
        with jax.numpy_rank_promotion("allow"):  # ott relies on it
            out = linear.solve(problem, max_iterations=max_iterations)
        log_plan = (out.f[:, None] + out.g[None] - cost) / regularization
        if rounding == "permutation":
            return sources[optimal_columns(-jax.nn.softmax(log_plan, axis=1))]
        return sources[jax.vmap(jax.random.categorical)(keys, log_plan)]

    keys = jax.random.split(key, len(x1)) if rounding == "sample" else None
    return grouped(match, group_size, x0, x1, label, keys)


METHOD = registry.Coupling(name="sinkhorn", function=sinkhorn, extras=("key", "label"), groups=True)
