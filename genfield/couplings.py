"""Which source goes with which sample: couplings reorder x0, rematching replaces targets.

A coupling is (x0, x1) -> x0 reordered; x1 and its labels never move. Conditional models are biased
by matching across classes, since x0 then depends on the label: couplings that take `label` give
each noise the label of the sample it was drawn with, and match within classes, or pay a penalty for
a pair of two (`within_classes`, `class_penalty`).
"""

import inspect
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from scipy.optimize import linear_sum_assignment

from genfield.paths import Path, PathSample, interpolate

# SciPy is called back from XLA's threads. On one core XLA has a single one, which would wait for
# itself when it works ahead; JAX reads this when its first array is made.
if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1:
    os.environ.setdefault("NPROC", "2")


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


def _check_pair(x0: Array, x1: Array, label=None, within_classes=False, class_penalty=0.0) -> None:
    if x0.shape != x1.shape:
        raise ValueError(f"a coupling needs x0 and x1 of one shape, got {x0.shape}, {x1.shape}")
    if label is None and (within_classes or class_penalty):
        raise ValueError("within_classes and class_penalty need labels")
    if class_penalty < 0:
        raise ValueError(f"class_penalty must not be negative, got {class_penalty}")


def _costs(targets, sources, labels, within_classes: bool, class_penalty: float) -> Array:
    """Squared distances, and what pairs of two classes pay; labels: of targets and of sources."""
    cost = _squared_distances(targets, sources)
    if not within_classes and not class_penalty:
        return cost
    other = labels[0][:, None] != labels[1][None]
    return jnp.where(other, jnp.inf if within_classes else cost + class_penalty, cost)


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


def nearest_source(x0: Array, x1: Array, *, group_size: int | None = None) -> Array:
    """The nearest x0 of each x1, with replacement: **biased**, for comparison only.

    Noises far from all data are never trained on, so the noise marginal is no longer that of x0
    (DANSM section 3.3).
    """
    _check_pair(x0, x1)

    def match(sources, targets):
        return sources[jnp.argmin(_squared_distances(targets, sources), axis=1)]

    return _grouped(match, group_size, x0, x1)


def greedy(
    x0: Array,
    x1: Array,
    *,
    label: Array | None = None,
    within_classes: bool = False,
    class_penalty: float = 0.0,
    group_size: int | None = None,
    method: str = "auto",
    block: int = 1024,
) -> Array:
    """DANSM (Algorithm 1): each sample in turn takes the nearest noise that is left.

    Among noises at equal distance the first is taken, as by a search from the start.

    Args:
      x0, x1: [B, *D]; each x0 is used once, x1 never moves.
      label: integers [B]; of each sample and of the noise drawn with it.
      within_classes: match noises and samples of one label only. class_penalty: added to the
        squared distance of a pair of two labels.
      group_size: examples matched among themselves (the paper's match size); None is the batch.
      method: "sequential" (a scan over samples), "parallel" (rounds of proposals; the same
        permutation), or "auto": sequential on CPUs, where scans are cheap.
      block: samples whose distances are held at a time, [block, B].
    Raises:
      ValueError: shapes differ, no labels, group_size does not divide B, unknown method.
    """
    _check_pair(x0, x1, label, within_classes, class_penalty)
    if method not in ("auto", "parallel", "sequential"):
        raise ValueError(f"greedy method {method!r}: known are 'auto', 'parallel', 'sequential'")

    def match(sources, targets, labels):
        n = len(targets)
        rows = min(block, n)
        pad = lambda a: jnp.pad(a, [(0, -n % rows)] + [(0, 0)] * (a.ndim - 1))
        cut = lambda a: pad(a).reshape(-1, rows, *a.shape[1:])
        parts = jax.tree.map(cut, (targets, labels, jnp.ones(n, bool)))

        def of_block(taken, part):
            x, own, counts = part
            cost = _costs(x, sources, (own, labels), within_classes, class_penalty)
            if method == "auto":
                known = {"cpu": _take_turns, "default": _take_rounds}
                columns = jax.lax.platform_dependent(cost, taken, counts, **known)
            else:
                solve = _take_turns if method == "sequential" else _take_rounds
                columns = solve(cost, taken, counts)
            return taken.at[columns].set(True, mode="drop"), columns

        _, columns = jax.lax.scan(of_block, jnp.zeros(n, bool), parts)
        return sources[columns.reshape(-1)[:n]]

    return _grouped(match, group_size, x0, x1, label)


def _take_turns(cost: Array, taken: Array, counts: Array) -> Array:
    """For each row of cost [R, N] in turn the cheapest column not taken [N]: [R], int32.

    Rows that do not count [R] take none, and get N.
    """

    def turn(taken, row):
        cost, counts = row
        column = jnp.argmin(jnp.where(taken, jnp.inf, cost)).astype(jnp.int32)
        column = jnp.where(counts, column, len(taken))
        return taken.at[column].set(True, mode="drop"), column

    return jax.lax.scan(turn, taken, (cost, counts))[1]


def _take_rounds(cost: Array, taken: Array, counts: Array) -> Array:
    """What `_take_turns` gives, in rounds: deferred acceptance, where columns prefer early rows.

    In each round all rows without a column propose to the cheapest that no earlier row holds; a
    column keeps its earliest proposer, and who is turned away proposes again. Turns are a serial
    dictatorship, whose one stable matching this finds. Rows without a column never grow in number,
    so they are gathered into ever smaller arrays.
    """
    num_rows, num_columns = cost.shape
    everyone = jnp.arange(num_rows, dtype=jnp.int32)

    def within(holder):  # -1 would wrap around to the last row
        return jnp.where(holder < 0, num_rows, holder)

    def free(holder):
        """Rows that hold no column."""
        return counts & ~jnp.zeros(num_rows, bool).at[within(holder)].set(True, mode="drop")

    def proposals(size):
        def one_round(holder):
            if size == num_rows:
                rows, offers = jnp.where(free(holder), everyone, num_rows), cost
            else:
                rows = jnp.nonzero(free(holder), size=size, fill_value=num_rows)[0]
                rows = rows.astype(jnp.int32)
                offers = cost[jnp.minimum(rows, num_rows - 1)]
            open_to = holder[None] > rows[:, None]
            best = jnp.argmin(jnp.where(open_to, offers, jnp.inf), axis=1)
            best = jnp.where(rows < num_rows, best, num_columns)
            return holder.at[best].min(rows, mode="drop")

        return one_round

    # A column taken before is held by row -1, whom nobody precedes; a free one by num_rows.
    holder = jnp.where(taken, -1, num_rows).astype(jnp.int32)
    sizes = [num_rows, *(s for s in (num_rows // 4, num_rows // 16) if s >= 8)]
    for size, smaller in zip(sizes, [*sizes[1:], 0], strict=True):
        left = lambda holder, smaller=smaller: jnp.sum(free(holder)) > smaller
        holder = jax.lax.while_loop(left, proposals(size), holder)
    columns = jnp.full(num_rows, num_columns, jnp.int32)
    return columns.at[within(holder)].set(jnp.arange(num_columns, dtype=jnp.int32), mode="drop")


def exact_assignment(
    x0: Array,
    x1: Array,
    *,
    label: Array | None = None,
    within_classes: bool = False,
    class_penalty: float = 0.0,
    group_size: int | None = None,
    backend: str = "host",
) -> Array:
    """Minibatch optimal transport: x0 reordered to minimise Σ‖x0 - x1‖² (OT-CFM).

    Args:
      x0, x1: [B, *D]; each x0 is used once, x1 never moves.
      label, within_classes, class_penalty: as for `greedy`.
      group_size: examples matched among themselves; None is the whole batch.
      backend: "host" (SciPy through a callback; one process only) or "device" (optax).
    Raises:
      ValueError: shapes differ, no labels, group_size does not divide B, backend is unknown or
        cannot match within classes.
    """
    _check_pair(x0, x1, label, within_classes, class_penalty)
    if backend not in ("host", "device"):
        raise ValueError(f"exact_assignment backend {backend!r}: known are 'host', 'device'")
    if within_classes and backend == "device":
        raise ValueError("exact_assignment within classes needs backend='host'")

    def match(sources, targets, labels):
        cost = _costs(targets, sources, (labels, labels), within_classes, class_penalty)
        return sources[optimal_columns(cost, backend)]

    return _grouped(match, group_size, x0, x1, label)


def sinkhorn(
    x0: Array,
    x1: Array,
    *,
    regularization: float,
    key: Array | None = None,
    label: Array | None = None,
    within_classes: bool = False,
    class_penalty: float = 0.0,
    group_size: int | None = None,
    rounding: str = "sample",
    max_iterations: int = 2000,
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
    _check_pair(x0, x1, label, within_classes, class_penalty)
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
        cost = _costs(targets, sources, (labels, labels), within_classes, class_penalty)
        problem = geometry.Geometry(cost_matrix=cost, epsilon=regularization)
        with jax.numpy_rank_promotion("allow"):  # ott relies on it
            out = linear.solve(problem, max_iterations=max_iterations)
        log_plan = (out.f[:, None] + out.g[None] - cost) / regularization
        if rounding == "permutation":
            return sources[optimal_columns(-jax.nn.softmax(log_plan, axis=1))]
        return sources[jax.vmap(jax.random.categorical)(keys, log_plan)]

    keys = jax.random.split(key, len(x1)) if rounding == "sample" else None
    return _grouped(match, group_size, x0, x1, label, keys)


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


OFFERED = ("key", "label")  # beside x0 and x1, to couplings that take them


def with_offers(couple: Callable) -> Callable:
    """(x0, x1, key, label) -> x0, of any coupling: it is given what its signature names."""
    taken = [name for name in OFFERED if name in inspect.signature(couple).parameters]

    def call(x0, x1, key, label):
        offers = {"key": key, "label": label}
        return couple(x0, x1, **{name: offers[name] for name in taken})

    return call


COUPLINGS = {
    "independent": independent,
    "greedy": greedy,
    "exact_assignment": exact_assignment,
    "sinkhorn": sinkhorn,
    "nearest_source": nearest_source,
}
REMATCHINGS = {"none": lambda path, sample: sample, "nearest": nearest_target}
