"""The mesh, and what lies on it; the rules are in `placement`."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from genfield.errors import UserError
from genfield.placement import AXES, BATCH, factors, split


def make_mesh(section, devices=None) -> Mesh:
    """A mesh of all devices, (data, fsdp by its factors); data goes across several TPU slices.

    Args:
      section: has `data` and `fsdp`; one of them may be -1, for the devices that are left.
    Raises:
      UserError: the axes do not multiply to the number of devices, or fsdp goes across slices.
    """
    devices = jax.devices() if devices is None else devices
    n, sizes = len(devices), {"data": section.data, "fsdp": section.fsdp}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and fixed > 0 and n % fixed == 0:
        sizes[free[0]] = n // fixed
    if len(free) == 2 or min(sizes.values()) < 1 or math.prod(sizes.values()) != n:
        raise UserError(
            f"config.mesh data={section.data}, fsdp={section.fsdp} does not cover {n} devices: "
            "their product must be the device count, and at most one may be -1"
        )
    shape = tuple(sizes.values())
    if devices[0].platform != "tpu":  # whose nodes count as slices to jax.make_mesh
        placed = mesh_utils.create_device_mesh(shape, devices)
    elif (slices := len({getattr(device, "slice_index", 0) for device in devices})) == 1:
        placed = jax.make_mesh(shape, tuple(sizes), devices=devices).devices
    elif shape[0] % slices:
        raise UserError(
            f"config.mesh data={shape[0]}, fsdp={shape[1]}: data goes across the {slices} slices "
            f"and fsdp within them, so data must be a multiple of {slices}"
        )
    else:
        within, across = (shape[0] // slices, shape[1]), (slices, 1)
        placed = mesh_utils.create_hybrid_device_mesh(within, across, devices=devices)
    placed = placed.reshape(shape[0], *factors(shape[1]))
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, abstract_state, stacks: tuple[str, ...] = ()):
    """A NamedSharding for each leaf: parameters, EMA and moments of one shape go to one place.

    stacks: names of subtrees whose arrays carry the layer axis first; it is never split.
    """

    def place(path, leaf) -> NamedSharding:
        stacked = any(getattr(key, "key", None) in stacks for key in path)
        return split(mesh, leaf.shape, stacked)

    return jax.tree_util.tree_map_with_path(place, abstract_state)


def check_batch(name: str, size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises UserError unless `size` examples split evenly over devices (and microbatches)."""
    n = mesh.size * parts
    if size % n:
        each = f"{mesh.size} devices" + (f" x {parts} microbatches" if parts > 1 else "")
        raise UserError(
            f"{name} {size} does not split over {each}: use a multiple of {n}, e.g. "
            f"{max(n, round(size / n) * n)}"
        )


def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """The rows of a global batch of `size` that this process provides, as `put_batch` takes them.

    They are those that lie on its devices, wherever these stand in the mesh: in ascending order,
    perhaps not next to each other. Over all processes each row comes once.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.sort(np.concatenate([np.arange(0), *(np.arange(size)[index] for index in held)]))


def put_batch(batch, mesh: Mesh):
    """NumPy arrays of this process's rows, [local_B, ...] -> global arrays [B, ...], split.

    The rows are those of `local_rows(mesh, B)`, in that order.
    """
    sharding, share = batch_sharding(mesh), mesh.size // len(mesh.local_devices)

    def put(values):
        values = np.asarray(values)
        size = share * len(values)
        rows = local_rows(mesh, size)
        bounds = lambda index: np.searchsorted(rows, index[0].indices(size)[:2])
        own = lambda index: values[slice(*bounds(index))]
        return jax.make_array_from_callback((size, *values.shape[1:]), sharding, own)

    return jax.tree.map(put, batch)


def put_whole(batch, mesh: Mesh):
    """NumPy arrays [B, ...] that every process holds whole -> global arrays, split."""
    place = batch_sharding(mesh)
    put = lambda a: jax.make_array_from_callback(a.shape, place, lambda index: a[index])
    return jax.tree.map(put, batch)


def own_rows(array: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """This process's part of a global array [B, ...]: its rows [n], ascending, and values [n, ...].

    Over all processes each row comes once: of rows that several devices hold, one process has them.
    """
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    rows = [np.arange(len(array))[shard.index[0]] for shard in shards]
    none = np.empty((0, *array.shape[1:]), array.dtype)
    rows = np.concatenate([np.arange(0), *rows])
    values = np.concatenate([none, *(np.asarray(shard.data) for shard in shards)])
    order = np.argsort(rows)
    return rows[order], values[order]


def to_host(tree):
    """Global arrays -> numpy on every process, also where a part lives on other processes."""
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, jax.device_get(tree))
    return multihost_utils.process_allgather(tree, tiled=True)


def agreed(ok: bool) -> bool:
    """Whether it holds on every process."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def from_first(values: np.ndarray) -> np.ndarray:
    """The array of process 0, on every process; shapes may differ."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    length = multihost_utils.broadcast_one_to_all(np.int32(len(values)))
    padded = np.resize(values, int(length)).astype(np.int32) if length else values[:0]
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))


def from_all(values: np.ndarray) -> np.ndarray:
    """[n, ...] of each process, its own n -> [sum n, ...] on every process, in their order.

    On the way a device holds its share of what its process gets, and not all of it.
    """
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(values))))
    padded = np.zeros((lengths.max(), *values.shape[1:]), values.dtype)
    padded[: len(values)] = values
    own = _in_blocks(padded.reshape(-1).view(np.uint8), jax.local_device_count())
    found = _moved(own[None], ("process", "device"), (None, "device"))
    parts = found.reshape(len(lengths), -1)[:, : padded.nbytes].copy().view(values.dtype)
    parts = parts.reshape(len(lengths), *padded.shape)
    return np.concatenate([part[:n] for part, n in zip(parts, lengths, strict=True)])


def added(values: np.ndarray) -> np.ndarray:
    """The sum over all processes of float64 arrays of one shape, on every process.

    Each process adds up one part of the sum, in float64 on the host and in the order of the
    processes, and the parts are exchanged: JAX would make them float32. So what a process sends,
    gets and holds is of the size of the sum, however many there are.
    """
    count, devices = jax.process_count(), jax.local_device_count()
    if count == 1:
        return values
    own = _in_blocks(np.ravel(values), count * devices).reshape(1, count, devices, -1)
    apart = ("process", None, "device"), (None, "process", "device")
    mine = _moved(own.view(np.uint32), *apart).view(np.float64).sum(axis=0)
    whole = _moved(mine.view(np.uint32), ("process", "device"), (None, "device"))
    return whole.view(np.float64).ravel()[: values.size].reshape(values.shape)


def _in_blocks(flat: np.ndarray, count: int) -> np.ndarray:
    """[n] -> [count, ⌈n / count⌉], filled up with zeros."""
    return np.pad(flat, (0, -len(flat) % count)).reshape(count, -1)


def _moved(own: np.ndarray, before: tuple, after: tuple) -> np.ndarray:
    """From a process's part of a global array to its part under another split, as NumPy.

    Args:
      before, after: for each axis "process", "device" (of a process), or None where it is whole.
    """
    count = jax.process_count()
    grid = [[d for d in jax.devices() if d.process_index == p] for p in range(count)]
    mesh = Mesh(np.array(grid), ("process", "device"))
    place = lambda axes: NamedSharding(mesh, PartitionSpec(*axes))
    axis, device = before.index("process"), after.index("device")
    shape = (*own.shape[:axis], count, *own.shape[axis + 1 :])
    inside = lambda index: (*index[:axis], slice(None), *index[axis + 1 :])
    put = jax.make_array_from_callback(shape, place(before), lambda index: own[inside(index)])
    shards = jax.jit(_same, out_shardings=place(after))(put).addressable_shards
    shards = sorted(shards, key=lambda shard: shard.index[device].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards], axis=device)


def _same(x):
    return x
