"""Where arrays are put on a mesh."""

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from genfield.machine import sharding


def test_the_layer_axis_of_a_stack_is_never_split():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    state = {"blocks": jax.ShapeDtypeStruct((64, 16, 32), np.float32)}
    spec = lambda **stacks: sharding.state_shardings(mesh, state, **stacks)["blocks"].spec
    assert spec(stacks=("blocks",)) == PartitionSpec(None, None, "fsdp")
    assert spec() == PartitionSpec("fsdp", None, None)
