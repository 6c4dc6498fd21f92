"""Where parameters and activations lie on a mesh, for the code that runs inside a step.

`data` splits the batch, `fsdp` splits the batch and the parameters too. Meshes have fsdp as two
axes, its factors: an array that it does not divide is split by those, and kernels for GPUs ask for
one mesh throughout a program. With fully sharded parameters each layer gathers its own weights when
it needs them and lets go of them, and its gradients go back to the shards (ZeRO, arXiv:1910.02054,
stage 3). Losses that go through the network more often than forward and back have them gathered
once a call, and kept. XLA, left alone, splits features and gathers the global batch. On one device
nothing here does anything.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genfield.errors import UserError

MAJOR, MINOR = FSDP = "fsdp_major", "fsdp_minor"
AXES = ("data", MAJOR, MINOR)
BATCH = PartitionSpec(AXES)
SMALLEST_SHARDED = 2**14  # elements; smaller arrays cost more to gather than to keep


class Place(NamedTuple):
    """What the code inside a step finds here.

    Attributes:
      reduce_dtype: in which gradients are summed over devices; None: in the one they come in.
      once: whether all weights are gathered before the network runs, and kept.
      stacks: stacks of layers that are still split, by their names: how each array of a layer is.
    """

    mesh: Mesh
    reduce_dtype: Any = None
    once: bool = False
    stacks: Mapping[str, Any] = {}


class Rows(NamedTuple):
    """Rows of a global batch, one after another: the first of them, and how many all are."""

    start: jax.Array
    total: int


_PLACE: contextvars.ContextVar[Place | None] = contextvars.ContextVar("place", default=None)
_ONCE: contextvars.ContextVar[bool] = contextvars.ContextVar("once", default=False)


def on(mesh: Mesh, function: Callable, reduce_dtype=None) -> Callable:
    """`function`, which finds the mesh here while it runs or is traced."""

    @functools.wraps(function)
    def call(*arguments, **keywords):
        with _told(_PLACE, Place(mesh, reduce_dtype, _ONCE.get())):
            return function(*arguments, **keywords)

    return call


@contextlib.contextmanager
def _told(variable: contextvars.ContextVar, value) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def platform() -> str:
    """Of the devices that the step is for: "cpu", "gpu", "tpu"."""
    place = _PLACE.get()
    return jax.default_backend() if place is None else place.mesh.devices.flat[0].platform


def _by_hand() -> bool:
    """Whether the code runs on each device by itself."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def rows(size: int) -> Rows | None:
    """Which of the global batch a device's `size` examples are, where each runs by itself."""
    if not _by_hand():
        return None
    mesh = jax.sharding.get_abstract_mesh()
    names = tuple(name for name in mesh.axis_names if name in mesh.manual_axes)
    return Rows(size * jax.lax.axis_index(names), size * jax.lax.axis_size(names))


def _mesh() -> Mesh | None:
    """The mesh, where it has several devices and they are not programmed one by one."""
    place = _PLACE.get()
    return None if place is None or place.mesh.size == 1 or _by_hand() else place.mesh


def sizes(mesh: Mesh) -> dict[str, int]:
    """How many devices each axis of the config has."""
    return {"data": mesh.shape["data"], "fsdp": mesh.shape[MAJOR] * mesh.shape[MINOR]}


def shards_parameters() -> bool:
    """Whether layers have to gather their weights."""
    mesh, place = _mesh(), _PLACE.get()
    if place is None or place.once:
        return False
    return sizes(mesh)["fsdp"] > 1 if mesh is not None else bool(place.stacks)


def factors(fsdp: int) -> tuple[int, int]:
    """Two factors, as near to each other as can be, the larger first."""
    minor = next(n for n in range(math.isqrt(fsdp), 0, -1) if fsdp % n == 0)
    return fsdp // minor, minor


def spec(shape: tuple[int, ...], fsdp: int, stacked: bool) -> PartitionSpec:
    """Splits the largest axis that `fsdp` divides, but never a stack of layers, axis 0.

    Where it divides none, two axes are split by its factors, or one by one of them.
    """
    if fsdp == 1 or math.prod(shape) < SMALLEST_SHARDED:
        return PartitionSpec()
    free = range(1 if stacked else 0, len(shape))
    fits = lambda n: [i for i in free if shape[i] % n == 0]
    at = lambda names: PartitionSpec(*(names.get(i) for i in range(len(shape))))
    if axes := fits(fsdp):
        return at({max(axes, key=lambda i: shape[i]): FSDP})
    major, minor = factors(fsdp)
    if minor == 1:
        return PartitionSpec()
    pairs = [(i, j) for i in fits(major) for j in fits(minor) if i != j]
    if pairs:
        i, j = max(pairs, key=lambda pair: shape[pair[0]] * shape[pair[1]])
        return at({i: MAJOR, j: MINOR})
    for n, name in ((major, MAJOR), (minor, MINOR)):
        if axes := fits(n):
            return at({max(axes, key=lambda i: shape[i]): name})
    return PartitionSpec()


def split(mesh: Mesh, shape: tuple[int, ...], stacked: bool = False) -> NamedSharding:
    """Where an array of the state lies: as `spec` says."""
    return NamedSharding(mesh, spec(shape, sizes(mesh)["fsdp"], stacked))


def specs(tree, fsdp: int, stacks: tuple[str, ...]) -> dict[str, Any]:
    """`spec` of each of a network's parameters, named subtrees; those of stacks as such."""
    of = lambda name: lambda leaf: spec(leaf.shape, fsdp, name in stacks)
    return {name: jax.tree.map(of(name), part) for name, part in tree.items()}


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


def once(function: Callable) -> Callable:
    """`function`, in which networks gather all their weights before they run, and keep them.

    For losses that go through a network more than twice. Layers that gather for themselves would
    do so each time; the memory this takes is that of the weights and of their gradients.
    """

    @functools.wraps(function)
    def call(*arguments, **keywords):
        with _told(_ONCE, True):
            return function(*arguments, **keywords)

    return call


def gathered(tree, dtype=None, stack: str | None = None):
    """Weights whole on each device, from shards; their gradients go back to the shards.

    Args:
      dtype: what matrices are computed in, and so gathered in. stack: of which the tree is a layer;
        None: it is of no stack.
    """
    place = _PLACE.get()
    if not shards_parameters() or (_by_hand() and stack not in place.stacks):
        return tree  # they are whole
    leaves, structure = jax.tree.flatten(tree)
    fsdp = sizes(place.mesh)["fsdp"]
    if stack is None:
        places = [spec(leaf.shape, fsdp, False) for leaf in leaves]
    else:
        places = jax.tree.leaves(place.stacks[stack], is_leaf=_is_spec)
    whole = [_whole(*pair, dtype, place) for pair in zip(leaves, places, strict=True)]
    return structure.unflatten(whole)


def _is_spec(value) -> bool:
    return isinstance(value, PartitionSpec)


def _whole(
    weights: jax.Array, found: PartitionSpec, dtype, place: Place, stacked: bool = False
) -> jax.Array:
    """Cast and gathered; transposed, scattered and cast back. Vectors stay in their dtype.

    As a linear call it has derivatives of any order in either mode.
    """
    if not any(found):
        return weights
    own = weights.dtype
    vector = weights.ndim - stacked < 2
    dtype = jnp.dtype(own if dtype is None or vector else dtype)
    gather, scatter = _by_axes(found) if _by_hand() else _by_xla(found, place.mesh)
    summed = jnp.dtype(dtype if place.reduce_dtype is None else place.reduce_dtype)
    forward = lambda _, w: gather(w.astype(dtype))
    backward = lambda _, w: scatter(w.astype(summed)).astype(own)
    return linear_call(forward, backward, (), weights)


def _by_xla(found: PartitionSpec, mesh: Mesh) -> tuple[Callable, Callable]:
    """A gather that XLA puts in, and its transpose: a plain constraint would reduce everywhere."""
    shard = NamedSharding(mesh, found)
    whole = NamedSharding(mesh, PartitionSpec())
    put = jax.lax.with_sharding_constraint
    return lambda w: put(put(w, shard), whole), lambda w: put(w, shard)


def _by_axes(found: PartitionSpec) -> tuple[Callable, Callable]:
    """A gather by the names of axes, and its transpose: sums that are scattered."""
    ways = [(i, name) for i, name in enumerate(found) if name is not None]

    def gather(w):
        if len(ways) == 1:
            [(axis, names)] = ways
            return jax.lax.all_gather(w, names, axis=axis, tiled=True)
        # All shards at once, and then each to its place.
        (i, major), (j, minor) = sorted(ways, key=lambda way: way[1])
        parts = jax.lax.all_gather(w, (major, minor))
        parts = parts.reshape(jax.lax.axis_size(major), jax.lax.axis_size(minor), *w.shape)
        shape = list(w.shape)
        for axis, name in ways:
            shape[axis] *= jax.lax.axis_size(name)
        order = list(range(2, parts.ndim))
        order.insert(order.index(i + 2), 0)
        order.insert(order.index(j + 2), 1)
        return parts.transpose(order).reshape(shape)

    def scatter(w):
        shape = list(w.shape)
        for axis, names in ways:
            shape[axis] //= jax.lax.axis_size(names)
        [out] = jax.linear_transpose(gather, jax.ShapeDtypeStruct(shape, w.dtype))(w)
        return out

    return gather, scatter


def apart(
    network: Callable, stacks: tuple[str, ...], blocks: tuple[str, ...] = (), dtype=jnp.float32
) -> Callable:
    """`network(params, *examples)` run by each device on its own examples.

    Examples never interact in a network, so that no device needs another's. What is gathered and
    summed is then what stands here, and XLA adds nothing. Stacks of layers are left to `gathered`,
    unless all is gathered `once`; the rest is gathered first. What this gains nothing, or cannot be
    cut evenly, is run `together`.

    Args:
      network: of named subtrees of parameters, and of arrays [B, …], trees of them or None; what
        it draws at random for an example hangs on its place, `rows`.
      stacks: subtrees with a layer axis first. blocks: subtrees that call `gathered` as they run,
        stacks or not; of others than stacks they do where the network is run together.
      dtype: what matrices of blocks are computed in.
    """

    def call(params, *examples):
        mesh, place = _mesh(), _PLACE.get()
        rows = [len(leaf) for leaf in jax.tree.leaves(examples)]
        if mesh is None or any(n % mesh.size for n in rows) or not _gains(place, stacks, dtype):
            return together(network, stacks, blocks, dtype)(params, *examples)
        found = specs(params, sizes(mesh)["fsdp"], stacks)
        held = {} if place.once else _of_layers(found, {*stacks} & {*blocks})
        whole = _gathering(found, stacks, blocks, dtype, place)

        def local(params, *examples):
            with _told(_PLACE, place._replace(stacks=held)):
                return network(whole(params, held), *examples)

        run = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(found, *(BATCH for _ in examples)),
            out_specs=BATCH,
            check_vma=False,
        )
        return run(params, *examples)

    return call


def _gains(place: Place, stacks: tuple[str, ...], dtype) -> bool:
    """Whether a network is better run by each device by itself."""
    if place.reduce_dtype is not None and jnp.dtype(dtype) != place.reduce_dtype:
        return True
    return sizes(place.mesh)["fsdp"] > 1 and bool(stacks or place.once)


def together(
    network: Callable,
    stacks: tuple[str, ...] = (),
    blocks: tuple[str, ...] = (),
    dtype=jnp.float32,
) -> Callable:
    """`network(params, *examples)` of the global batch, which XLA cuts; arguments as of `apart`."""

    def call(params, *examples):
        mesh, place = _mesh(), _PLACE.get()
        if mesh is None:
            return network(params, *examples)
        found = specs(params, sizes(mesh)["fsdp"], stacks)
        held = {} if place.once else _of_layers(found, {*stacks} & {*blocks})
        still = () if place.once else blocks
        whole = _gathering(found, stacks, blocks, dtype, place)
        with _told(_PLACE, place._replace(stacks=held)):
            return network(whole(params, still), by_batch(examples[0]), *examples[1:])

    return call


def _gathering(found, stacks, blocks, dtype, place: Place) -> Callable:
    """(params, those that stay split) -> params, gathered; matrices of `blocks` in `dtype`."""

    def part_of(name, part):
        to = dtype if name in blocks else None
        one = lambda w, found: _whole(w, found, to, place, name in stacks)
        return jax.tree.map(one, part, found[name])

    return lambda params, still: {
        name: part if name in still else part_of(name, part) for name, part in params.items()
    }


def check_summed(dtype) -> None:
    """Raises UserError where gradients are to be summed in another dtype than XLA sums them in."""
    mesh, place = _mesh(), _PLACE.get()
    if mesh is not None and place.reduce_dtype is not None and dtype != place.reduce_dtype:
        raise UserError(
            f"config.mesh.reduce_dtype={place.reduce_dtype.name} is not for networks with Flax's "
            "dropout, whose noise is drawn for the global batch at once: take genfield.nets.layers."
            f"Dropout, config.net.dtype={place.reduce_dtype.name} or "
            "config.mesh.reduce_dtype=compute"
        )


def _of_layers(found: dict[str, Any], stacks: Iterable[str]) -> dict[str, Any]:
    """How a layer's arrays are split, of those of stacks."""
    row = lambda found: PartitionSpec(*found[1:])
    return {name: jax.tree.map(row, found[name], is_leaf=_is_spec) for name in stacks}


def keeps_all_but_gathered(primitive, *arguments, **parameters) -> bool:
    """A policy of `jax.checkpoint`: the backward pass gathers weights anew, and keeps all else."""
    return primitive.name != "linear_call"
