"""Numbers that are not finite: a flag for a whole tree, and where they stand in it.

Scalars of an optimiser are judged by NaN alone: one may remember a least loss, which begins at
infinity.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield import placement

NAN, INFINITE = 1, 2  # bits of `flags`
MOMENTS = "optimizer"  # the item of a state whose scalars may be infinite
ROWS = 8  # rows of a batch that a place names


def flags(x: Array) -> Array:
    """Bits, uint32: whether an array holds NaN, and whether infinity; traced or not."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.uint32(0)
    nan, infinite = (jnp.any(of(x)).astype(jnp.uint32) for of in (jnp.isnan, jnp.isinf))
    return nan * NAN + infinite * INFINITE


def judged(item: str, ndim: int) -> int:
    """The bits of `flags` that are wrong in an array of an item: params, ema or optimizer."""
    return NAN if item == MOMENTS and ndim == 0 else NAN | INFINITE


def everywhere(items: dict[str, Any]) -> Array:
    """Whether a state, as trees by their items, is finite; one pass over it, in a step.

    Arrays that no mesh splits go together: many small reductions take longer than what they read.
    """
    small, found = [], []
    for item, tree in items.items():
        for leaf in jax.tree.leaves(tree):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                continue
            if judged(item, leaf.ndim) == NAN:
                found.append(~jnp.isnan(leaf))
            elif leaf.size < placement.SMALLEST_SHARDED:
                small.append(leaf.astype(jnp.float32).reshape(-1))
            else:
                found.append(jnp.all(jnp.isfinite(leaf)))
    if small:
        found.append(jnp.all(jnp.isfinite(jnp.concatenate(small))))
    return jnp.stack(found).all() if found else jnp.bool_(True)


class Place(NamedTuple):
    """An array that is not finite.

    Attributes:
      leaf: its name. count: of its entries that are not finite, of `size`. value: "nan", "inf" or
        "-inf", of the first of them, and index, where that is. rows: of a batch, those that are
        not finite, the first ROWS; else (). digest: of all its bits.
    """

    leaf: str
    count: int
    size: int
    value: str
    index: tuple[int, ...]
    rows: tuple[int, ...]
    digest: int

    def __str__(self) -> str:
        where = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        more = f" ({self.count:,} of {self.size:,} entries are bad)" if self.count > 1 else ""
        return f"{self.leaf}{where} is {self.value}{more}"


def looked_at(x: Array, digest, batch: int = 0, wrong: int = NAN | INFINITE) -> dict[str, Array]:
    """What a `Place` is made of, to be traced: an array becomes a few numbers.

    Args:
      digest: of an array. batch: where an array's first axis has this size, its rows are named.
    """
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return {}
    bad = jnp.isnan(x) if wrong == NAN else ~jnp.isfinite(x)
    flat = bad.reshape(-1)
    first = jnp.argmax(flat)
    out = {"count": jnp.sum(flat), "first": first, "digest": digest(x)}
    out["value"] = x.reshape(-1)[first].astype(jnp.float32)
    if batch and x.ndim and x.shape[0] == batch:
        out["rows"] = bad.reshape(batch, -1).any(1)
    return out


def place(leaf: str, shape: tuple[int, ...], seen: dict) -> Place | None:
    """The place of what `looked_at` saw, on the host; None where all of it is finite."""
    if not seen or not int(seen["count"]):
        return None
    index = tuple(int(i) for i in np.unravel_index(int(seen["first"]), shape)) if shape else ()
    rows = np.flatnonzero(seen["rows"])[:ROWS] if "rows" in seen else ()
    return Place(
        leaf=leaf,
        count=int(seen["count"]),
        size=math.prod(shape),
        value=str(float(seen["value"])),
        index=index,
        rows=tuple(int(row) for row in rows),
        digest=int(seen["digest"]),
    )
