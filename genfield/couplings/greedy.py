"""Distance-aware matching (DANSM, ICLR 2025): each sample takes the nearest noise that is left."""

import jax
import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.couplings.groups import check_pair, costs, grouped
from genfield.registry import NotNegative, PositiveInt


def greedy(
    x0: Array,
    x1: Array,
    *,
    label: Array | None = None,
    within_classes: bool = False,
    class_penalty: NotNegative = 0.0,
    group_size: PositiveInt | None = None,
    method: str = "auto",
    block: PositiveInt = 1024,
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
    check_pair(x0, x1, label, within_classes, class_penalty)
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
            cost = costs(x, sources, (own, labels), within_classes, class_penalty)
            if method == "auto":
                known = {"cpu": _take_turns, "default": _take_rounds}
                columns = jax.lax.platform_dependent(cost, taken, counts, **known)
            else:
                solve = _take_turns if method == "sequential" else _take_rounds
                columns = solve(cost, taken, counts)
            return taken.at[columns].set(True, mode="drop"), columns

        _, columns = jax.lax.scan(of_block, jnp.zeros(n, bool), parts)
        return sources[columns.reshape(-1)[:n]]

    return grouped(match, group_size, x0, x1, label)


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


METHOD = registry.Coupling(name="greedy", function=greedy, extras=("label",), groups=True)
