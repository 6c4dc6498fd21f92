"""Where arrays are put on a mesh."""

from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from genfield import placement
from genfield.machine import sharding


def test_the_layer_axis_of_a_stack_is_never_split():
    mesh = sharding.make_mesh(ConfigDict({"data": 2, "fsdp": 4}), jax.devices())
    state = {"blocks": jax.ShapeDtypeStruct((64, 16, 32), np.float32)}
    spec = lambda **stacks: sharding.state_shardings(mesh, state, **stacks)["blocks"].spec
    assert spec(stacks=("blocks",)) == PartitionSpec(None, None, placement.FSDP)
    assert spec() == PartitionSpec(placement.FSDP, None, None)


@dataclass(frozen=True)
class Gpu:
    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "H100"


def test_nodes_that_count_as_slices_make_one_mesh():
    """JAX gives each node of GPUs a slice's number, and jax.make_mesh refuses several."""
    devices = [Gpu(i, i // 4) for i in range(8)]
    mesh = sharding.make_mesh(ConfigDict({"data": 2, "fsdp": -1}), devices)
    assert placement.sizes(mesh) == {"data": 2, "fsdp": 4}
    assert [device.slice_index for device in mesh.devices[1].flat] == [1] * 4
