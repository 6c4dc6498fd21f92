"""The mesh, and what lies on it; the rules are in `placement`."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from genfield.errors import UserError
from genfield.placement import BATCH, split


def make_mesh(section, devices=None) -> Mesh:
    """A (data, fsdp) mesh over all devices; of several TPU slices, data goes across them.

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
    shape, axes = tuple(sizes.values()), dict(axis_types=(AxisType.Auto,) * 2)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1 or devices[0].platform != "tpu":
        return jax.make_mesh(shape, tuple(sizes), **axes, devices=devices)
    if shape[0] % slices:
        raise UserError(
            f"config.mesh data={shape[0]}, fsdp={shape[1]}: data goes across the {slices} slices "
            f"and fsdp within them, so data must be a multiple of {slices}"
        )
    within, across = (shape[0] // slices, shape[1]), (slices, 1)
    placed = mesh_utils.create_hybrid_device_mesh(within, across, devices=devices)
    return Mesh(placed, tuple(sizes), **axes)


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


def put_batch(batch, mesh: Mesh):
    """Host-local numpy arrays [local_B, ...] -> global arrays [B, ...], split over the mesh."""
    sharding = batch_sharding(mesh)
    put = lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a))
    return jax.tree.map(put, batch)


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
