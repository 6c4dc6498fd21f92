"""Digests of arrays and of the records beside them; the leaves of a tree by their paths."""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def digest(x, numpy) -> Any:
    """Σ bits_i · m_i mod 2^32 with odd m_i: any change of a single element changes it.

    Integer sums do not depend on their order, so every mesh and numpy agree to the bit.
    """
    if x.dtype == bool:
        x = x.astype(np.uint8)
    bits = x.view(_UNSIGNED[x.dtype.itemsize]).astype(np.uint32)
    index = numpy.zeros(x.shape, np.uint32)
    for axis, size in enumerate(x.shape):
        position = numpy.arange(size, dtype=np.uint32).reshape((-1,) + (1,) * (x.ndim - axis - 1))
        index = index * np.uint32(size & 0xFFFFFFFF) + numpy.broadcast_to(position, x.shape)
    factor = (index * np.uint32(2654435761)) * np.uint32(2) + np.uint32(1)
    return numpy.sum(bits * factor, dtype=np.uint32)


@jax.jit
def _device_digests(tree):
    return jax.tree.map(lambda x: digest(x, jnp), tree)


def digests(tree) -> dict[str, int]:
    """A digest of each leaf, by its path in the tree; for jax or numpy arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if any(isinstance(leaf, jax.Array) for _, leaf in leaves):
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(_device_digests(tree)))
        return {named_path(path): int(leaf) for path, leaf in leaves}
    return {named_path(path): int(digest(np.asarray(leaf), np)) for path, leaf in leaves}


def of_record(meta: dict) -> int:
    """Of all that stands beside the arrays; checkpoints of earlier versions have none."""
    rest = {name: value for name, value in meta.items() if name != "digest"}
    return zlib.crc32(json.dumps(json.loads(json.dumps(rest)), sort_keys=True).encode())


def named_leaves(tree) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    return {named_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def named_path(path) -> str:
    """A path of JAX's, to a leaf, as a/b/c."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)
