"""Initial values of all parameters from few random draws.

XLA takes seconds to compile each draw, and a U-Net has hundreds of parameters. So modules only
declare how a parameter starts (`initial` in its NNX metadata) and `draw` fills them in: the small
ones are slices of one draw, large ones of equal shape are rows of one draw.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

SMALL = 2**16  # parameters of fewer elements share a draw; larger ones may be sharded


class Initial(NamedTuple):
    """How a parameter starts: "constant" scale, "uniform" in +-scale, "normal" of std scale.

    values: of one that is "given": shape -> its array. zero_row: whether the last row is zeros.
    """

    distribution: str
    scale: float
    values: Callable | None = None
    zero_row: bool = False


def constant(value: float) -> Initial:
    return Initial("constant", value)


def uniform(bound: float) -> Initial:
    return Initial("uniform", bound)


def normal(std: float) -> Initial:
    return Initial("normal", std)


def given(values: Callable) -> Initial:
    return Initial("given", 1.0, values)


def draw(key: jax.Array, leaves: Sequence, initials: Sequence[Initial]) -> list[jax.Array]:
    """Float32 arrays of the leaves' shapes, distributed as `initials` says, independent."""
    pools, positions = {}, []
    for leaf, initial in zip(leaves, initials, strict=True):
        if initial.distribution in ("constant", "given"):
            positions.append(None)
            continue
        pool, count = (None, leaf.size) if leaf.size < SMALL else (leaf.shape, 1)
        start = pools.get(pool, 0)
        pools[pool] = start + count
        positions.append((pool, start, start + count))
    lowest = jnp.nextafter(jnp.float32(-1), jnp.float32(0))  # erf_inv(-1) is infinite
    drawn = {
        pool: jax.random.uniform(jax.random.fold_in(key, i), (count, *(pool or ())), minval=lowest)
        for i, (pool, count) in enumerate(pools.items())
    }
    values = []
    for leaf, initial, position in zip(leaves, initials, positions, strict=True):
        if initial.distribution == "given":
            values.append(jnp.asarray(initial.values(leaf.shape), jnp.float32))
            continue
        if position is None:
            values.append(jnp.full(leaf.shape, initial.scale, jnp.float32))
            continue
        pool, start, stop = position
        value = drawn[pool][start:stop].reshape(leaf.shape)
        if initial.distribution == "normal":
            value = jnp.sqrt(2.0) * jax.lax.erf_inv(value)
        value = initial.scale * value
        values.append(value.at[-1].set(0.0) if initial.zero_row else value)
    return values
