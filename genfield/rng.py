"""Keys as functions of (seed, purpose, index): nothing random is carried from step to step.

The key of a training step is fold_in(stream(seed, "train"), step), and what the step draws hangs on
its parts, each named here by the number that is folded in.
"""

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.random import threefry_2x32

# Parts of a step's key, and below it of the key that draws.
DRAW, DROPOUT, DATA = 0, 1, 2
COUPLING, BRIDGE, EXAMPLES, AUGMENTATION = 3, 4, 5, 6


def stream(seed: int, purpose: str) -> Array:
    """An independent key for each purpose ("train", "init", "sample", …) of a seed."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def draw_key(key: Array) -> Array:
    """The part of a step's key that draws noise, times and label dropout."""
    return jax.random.fold_in(key, DRAW)


def dropout_key(key: Array) -> Array:
    """The part of a step's key that drives dropout inside the network."""
    return jax.random.fold_in(key, DROPOUT)


def data_key(key: Array) -> Array:
    """The part of a step's key that draws the data, where the device draws them."""
    return jax.random.fold_in(key, DATA)


def coupling_key(key: Array) -> Array:
    """The part of a draw key that a coupling draws from; apart from what else it draws."""
    return jax.random.fold_in(key, COUPLING)


def per_index(key: Array, index: Array, draw: Callable[[Array], Array]) -> Array:
    """draw(fold_in(key, i)) for each i: sample i is the same in any batch and on any mesh."""
    return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(index)


# Part of what one key draws


def uniform_rows(key: Array, first: Array, shape: tuple[int, ...], total: int) -> Array:
    """Rows `first`, first + 1, … of jax.random.uniform(key, (total, *shape[1:])), to the bit.

    JAX's own generator hashes the place of each number in the whole, 64 bits, so that no others are
    drawn for it; with another one, or in float64, all are. shape: of the rows.
    """
    usual = jax.random.key_impl(key) == "threefry2x32" and jax.config.jax_threefry_partitionable
    if not usual or jax.config.jax_enable_x64:
        whole = jax.random.uniform(key, (total, *shape[1:]))
        return jax.lax.dynamic_slice_in_dim(whole, first, shape[0])
    size = math.prod(shape[1:])
    row = jnp.uint32(first) + jnp.arange(shape[0], dtype=jnp.uint32)[:, None]
    begin = row * jnp.uint32(size)
    low = begin + jnp.arange(size, dtype=jnp.uint32)[None]
    high = _high(row, size) + (low < begin).astype(jnp.uint32)
    places = jnp.concatenate([high.ravel(), low.ravel()])
    of_high, of_low = jnp.split(threefry_2x32(tuple(jax.random.key_data(key)), places), 2)
    mantissas = ((of_high ^ of_low) >> 9) | jnp.uint32(0x3F800000)
    return (jax.lax.bitcast_convert_type(mantissas, jnp.float32) - 1).reshape(shape)


def _high(a: Array, b: int) -> Array:
    """The upper 32 bits of a product of uint32, by halves."""
    (a1, a0), (b1, b0) = (a >> 16, a & 0xFFFF), map(jnp.uint32, divmod(b, 2**16))
    middle = a1 * b0 + (a0 * b0 >> 16)
    return a1 * b1 + (middle >> 16) + (a0 * b1 + (middle & 0xFFFF) >> 16)


# One key, or one a sample


def typed(key: Array) -> Array:
    """Raw uint32 keys (jax.random.PRNGKey) as typed ones, whose shape tells how many they are."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def fold_in(key: Array, data) -> Array:
    """jax.random.fold_in, of each key where there is one a sample."""
    if key.ndim == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(jax.random.fold_in, (0, None))(key, data)


def split(key: Array) -> tuple[Array, Array]:
    """Two keys of a key, or of each sample's key."""
    return fold_in(key, 0), fold_in(key, 1)


def normal(key: Array, like: Array) -> Array:
    """Standard normal noise in the shape and dtype of `like` [B, *D]."""
    return _draw(jax.random.normal, key, like)


def uniform(key: Array, like: Array) -> Array:
    """Uniform numbers in [0, 1) in the shape and dtype of `like` [B, *D]."""
    return _draw(jax.random.uniform, key, like)


def _draw(draw, key, like):
    if key.ndim == 0:
        return draw(key, like.shape, like.dtype)
    return jax.vmap(lambda k: draw(k, like.shape[1:], like.dtype))(key)
