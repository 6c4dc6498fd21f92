"""Keys as functions of (seed, purpose, index): nothing random is carried from step to step."""

import zlib
from collections.abc import Callable

import jax
from jax import Array


def stream(seed: int, purpose: str) -> Array:
    """An independent key for each purpose ("train", "init", "sample", …) of a seed."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def per_index(key: Array, index: Array, draw: Callable[[Array], Array]) -> Array:
    """draw(fold_in(key, i)) for each i: sample i is the same in any batch and on any mesh."""
    return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(index)
