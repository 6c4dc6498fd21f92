"""Which source goes with which sample: couplings reorder x0, rematching replaces targets."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from scipy.optimize import linear_sum_assignment

from genfield.paths import Path, PathSample, interpolate


def _squared_distances(a: Array, b: Array) -> Array:
    """[N, *D], [M, *D] -> [N, M], in float32 at full precision."""
    a, b = (v.reshape(len(v), -1).astype(jnp.float32) for v in (a, b))
    cross = jnp.matmul(a, b.T, precision="highest")
    return jnp.sum(a * a, -1)[:, None] + jnp.sum(b * b, -1)[None] - 2 * cross


def _grouped(function, group_size: int | None, *arrays: Array):
    """Applies `function` to consecutive groups of examples, so that no device layout matters."""
    n = len(arrays[0])
    size = group_size or n
    if n % size:
        raise ValueError(f"group_size {size} does not divide the batch of {n} examples")
    if size == n:
        return function(*arrays)
    split = jax.tree.map(lambda a: a.reshape(n // size, size, *a.shape[1:]), arrays)
    return jax.lax.map(lambda group: function(*group), split).reshape(arrays[0].shape)


def _check_pair(x0: Array, x1: Array) -> None:
    if x0.shape != x1.shape:
        raise ValueError(f"a coupling needs x0 and x1 of one shape, got {x0.shape}, {x1.shape}")


def optimal_columns(cost: Array, backend: str = "host") -> Array:
    """For each row of a square cost [N, N] its column in the cheapest assignment: [N], int32.

    backend: "host" (SciPy through a callback; one process only) or "device" (optax).
    """
    if backend == "device":
        rows, columns = optax.assignment.hungarian_algorithm(cost)
        return columns[jnp.argsort(rows)]
    solve = lambda c: linear_sum_assignment(np.asarray(c))[1].astype(np.int32)
    return jax.pure_callback(solve, jax.ShapeDtypeStruct(cost.shape[:1], jnp.int32), cost)


def independent(x0: Array, x1: Array) -> Array:
    """x0 as drawn: the product coupling."""
    del x1
    return x0


def exact_assignment(
    x0: Array, x1: Array, *, group_size: int | None = None, backend: str = "host"
) -> Array:
    """Minibatch optimal transport: x0 reordered to minimise Σ‖x0 - x1‖² (OT-CFM).

    Args:
      x0, x1: [B, *D]; each x0 is used once, x1 never moves.
      group_size: examples matched among themselves; None is the whole batch.
      backend: "host" (SciPy through a callback; one process only) or "device" (optax).
    Raises:
      ValueError: shapes differ, group_size does not divide B, or backend is unknown.
    """
    _check_pair(x0, x1)
    if backend not in ("host", "device"):
        raise ValueError(f"exact_assignment backend {backend!r}: known are 'host', 'device'")

    def match(sources, targets):
        return sources[optimal_columns(_squared_distances(targets, sources), backend)]

    return _grouped(match, group_size, x0, x1)


def sinkhorn(
    x0: Array,
    x1: Array,
    *,
    regularization: float,
    key: Array | None = None,
    group_size: int | None = None,
    max_iterations: int = 2000,
) -> Array:
    """Entropic optimal transport: an x0 for each x1, by ott-jax's Sinkhorn iterations.

    The plan π minimises Σ π ‖x0 - x1‖² - ε H(π). With a key each x1 draws its x0 from its row of
    π (the entropic coupling of SB-CFM at ε = 2 σ², arXiv:2302.00482 eq. 19; an x0 may be drawn
    twice, or not at all); without one the plan is rounded to the permutation of the largest Σ π.

    Args:
      x0, x1: [B, *D]; x1 never moves.
      regularization: ε > 0, in squared units of x.
      group_size: examples matched among themselves; None is the whole batch.
    Raises:
      ValueError: shapes differ, group_size does not divide B. ImportError: ott-jax is missing.
    """
    _check_pair(x0, x1)
    try:
        from ott.geometry import geometry
        from ott.solvers import linear
    except ImportError as error:
        raise ImportError("sinkhorn needs ott-jax: pip install 'genfield[transport]'") from error

    def match(sources, targets, keys):
        cost = _squared_distances(targets, sources)
        problem = geometry.Geometry(cost_matrix=cost, epsilon=regularization)
        with jax.numpy_rank_promotion("allow"):  # ott relies on it
            out = linear.solve(problem, max_iterations=max_iterations)
        log_plan = (out.f[:, None] + out.g[None] - cost) / regularization
        if keys is None:
            return sources[optimal_columns(-jax.nn.softmax(log_plan, axis=1))]
        return sources[jax.vmap(jax.random.categorical)(keys, log_plan)]

    keys = None if key is None else jax.random.split(key, len(x1))
    return _grouped(match, group_size, x0, x1, keys)


def nearest_target(path: Path, sample: PathSample, *, group_size: int | None = None) -> PathSample:
    """Replaces each target by the nearest x1 of the minibatch to x_t (DM section 3.3).

    With replacement, so labels no longer belong to their targets and images collapse onto few
    targets (DM sections 4.1, C.6): for low-dimensional, unconditional problems.

    Returns:
      The sample with x0, t and x kept; x1 and the velocity are those of the new pairing.
    """

    def nearest(x, targets):
        return targets[jnp.argmin(_squared_distances(x, targets), axis=1)]

    x1 = _grouped(nearest, group_size, sample.x, sample.x1)
    return interpolate(path, sample.x0, x1, sample.t)._replace(x=sample.x)


def keyed(couple: Callable) -> Callable:
    """(key, x0, x1) -> x0, of a coupling that draws with a key or needs none."""
    if "key" in inspect.signature(couple).parameters:
        return lambda key, x0, x1: couple(x0, x1, key=key)
    return lambda key, x0, x1: couple(x0, x1)


COUPLINGS = {
    "independent": independent,
    "exact_assignment": exact_assignment,
    "sinkhorn": sinkhorn,
}
REMATCHINGS = {"none": lambda path, sample: sample, "nearest": nearest_target}
