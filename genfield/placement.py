"""Where parameters and activations lie on a mesh, for the code that runs inside a step.

A mesh has two axes: `data` splits the batch, `fsdp` splits the batch and the parameters too. With
fully sharded parameters each layer gathers its own weights when it needs them and lets go of them,
and its gradients go back to the shards (ZeRO, arXiv:1910.02054, stage 3). XLA, left alone, splits
features instead and gathers the global batch. On one device nothing here does anything.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH = PartitionSpec(("data", "fsdp"))
SMALLEST_SHARDED = 2**14  # elements; smaller arrays cost more to gather than to keep

_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


def on(mesh: Mesh, function: Callable) -> Callable:
    """`function`, which finds the mesh here while it runs or is traced."""

    @functools.wraps(function)
    def call(*arguments, **keywords):
        with _inside(mesh):
            return function(*arguments, **keywords)

    return call


@contextlib.contextmanager
def _inside(mesh: Mesh) -> Iterator[None]:
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def platform() -> str:
    """Of the devices that the step is for: "cpu", "gpu", "tpu"."""
    mesh = _MESH.get()
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _mesh() -> Mesh | None:
    """The mesh, where it has several devices and they are not programmed one by one."""
    mesh = _MESH.get()
    by_hand = jax.sharding.get_abstract_mesh().manual_axes
    return None if mesh is None or mesh.size == 1 or by_hand else mesh


def shards_parameters() -> bool:
    """Whether layers have to gather their weights."""
    mesh = _mesh()
    return mesh is not None and mesh.shape["fsdp"] > 1


def spec(shape: tuple[int, ...], fsdp: int, stacked: bool) -> PartitionSpec:
    """Splits the largest axis that `fsdp` divides, but never a stack of layers, axis 0."""
    if fsdp == 1 or math.prod(shape) < SMALLEST_SHARDED:
        return PartitionSpec()
    axes = [i for i, size in enumerate(shape) if size % fsdp == 0 and not (stacked and i == 0)]
    if not axes:
        return PartitionSpec()
    best = max(axes, key=lambda i: shape[i])
    return PartitionSpec(*("fsdp" if i == best else None for i in range(len(shape))))


def by_batch(x: jax.Array) -> jax.Array:
    """Activations [B, …], the batch split over the mesh and nothing else."""
    mesh = _mesh()
    if mesh is None or not divides_batch(x.shape[0]):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, BATCH))


def divides_batch(size: int) -> bool:
    """Whether each device has as many of `size` examples as the others."""
    mesh = _mesh()
    return mesh is None or size % mesh.size == 0


def on_each(function: Callable) -> Callable:
    """`function` of arrays [B, …], which each device runs on its part of the batch, by itself.

    For what XLA cannot split, such as kernels written by hand.
    """
    mesh = _mesh()
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=BATCH, out_specs=BATCH, check_vma=False)


def gathered(tree, dtype=None, depth: int | None = None):
    """Weights whole on each device, from shards; their gradients go back to the shards.

    Args:
      dtype: what matrices are computed in, and so gathered in. depth: of the stack whose layer the
        tree is; None: it is of no stack.
    """
    if not shards_parameters():
        return tree
    mesh = _mesh()

    def one(weights: jax.Array) -> jax.Array:
        stack = () if depth is None else (depth,)
        found = spec((*stack, *weights.shape), mesh.shape["fsdp"], bool(stack))
        shard = PartitionSpec(*found[len(stack) :])
        if not any(shard):
            return weights
        target = weights.dtype if dtype is None or weights.ndim < 2 else dtype
        return _gather(weights, NamedSharding(mesh, shard), jnp.dtype(target))

    return jax.tree.map(one, tree)


def _gather(weights: jax.Array, shard: NamedSharding, dtype) -> jax.Array:
    """Cast and gathered; transposed, scattered and cast back.

    A plain constraint would reduce the gradients onto every device. As a linear call it has
    derivatives of any order in either mode.
    """
    own, whole = weights.dtype, NamedSharding(shard.mesh, PartitionSpec())
    put = jax.lax.with_sharding_constraint
    forward = lambda _, w: put(put(w.astype(dtype), shard), whole)
    backward = lambda _, w: put(w, shard).astype(own)
    return linear_call(forward, backward, (), weights)


def keeps_all_but_gathered(primitive, *arguments, **parameters) -> bool:
    """A policy of `jax.checkpoint`: the backward pass gathers weights anew, and keeps all else."""
    return primitive.name != "linear_call"
