"""What devices send each other, read from the text of compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genfield.plan import collectives, hlo

LAYERS, WIDTH, BATCH = 6, 128, 64


@pytest.fixture(scope="module")
def text() -> str:
    """A scan over layers whose weights lie split over eight devices, and its gradient."""
    mesh = jax.make_mesh((1, 8), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))

    def loss(w, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0].sum()

    shape = lambda shape, *spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place(*spec))
    arguments = (
        shape((LAYERS, WIDTH, WIDTH), None, None, "fsdp"),
        shape((BATCH, WIDTH), ("data", "fsdp")),
    )
    return jax.jit(jax.value_and_grad(loss)).trace(*arguments).lower().compile().as_text()


def test_collectives_in_loops_count_as_often_as_they_run(text):
    found = collectives.totals(collectives.find(hlo.parse(text), 8))
    weights = 4 * LAYERS * WIDTH * WIDTH
    assert found["all-gather"] == {"count": 2 * LAYERS, "bytes": 2 * weights}
    assert found["all-reduce"] == {"count": LAYERS + 1, "bytes": weights + 4}


def test_trips_are_read_from_a_loops_condition_too(text):
    hidden = text.replace("known_trip_count", "hidden")
    assert hidden != text
    times = [region.times for region in hlo.regions(hlo.parse(hidden))]
    assert times == [region.times for region in hlo.regions(hlo.parse(text))] == [1, 6, 6]


STACK = """
%one (s: f32[6,16], i: s32[], h: f32[16], out: f32[6,16]) -> f32[6,16] {
  %s = f32[6,16]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %h = f32[16]{0} parameter(2)
  %out = f32[6,16]{1,0} parameter(3)
  %row = f32[1,16]{1,0} dynamic-slice(%s, %i), dynamic_slice_sizes={1,16}
  %flat = f32[1,16]{1,0} bitcast(%h)
  %sum = f32[1,16]{1,0} add(%row, %flat)
  ROOT %put = f32[6,16]{1,0} dynamic-update-slice(%out, %sum, %i)
}

ENTRY %main (p: f32[6,16], q: f32[16], n: s32[], o: f32[6,16]) -> f32[6,16] {
  %p = f32[6,16]{1,0} parameter(0)
  %q = f32[16]{0} parameter(1)
  %n = s32[] parameter(2)
  %o = f32[6,16]{1,0} parameter(3)
  ROOT %f = f32[6,16]{1,0} fusion(%p, %n, %q, %o), kind=kLoop, calls=%one
}
"""


def test_traffic_counts_the_slices_of_stacks():
    """A row is read of one stack and written into another: with h, and the index."""
    assert hlo.traffic(hlo.parse(STACK)) == 3 * 4 * 16 + 4


NESTED = STACK.replace(
    "ENTRY %main",
    """%outer (a: f32[6,16], b: s32[], c: f32[16], d: f32[6,16]) -> f32[6,16] {
  %a = f32[6,16]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[16]{0} parameter(2)
  %d = f32[6,16]{1,0} parameter(3)
  ROOT %in = f32[6,16]{1,0} fusion(%a, %b, %c, %d), kind=kLoop, calls=%one
}

ENTRY %main""",
).replace(
    "fusion(%p, %n, %q, %o), kind=kLoop, calls=%one",
    "fusion(%p, %n, %q, %o), kind=kLoop, calls=%outer",
)


def test_traffic_counts_the_slices_of_fusions_within_fusions():
    """As TPUs' compiler makes them of products whose weights are a row of a stack."""
    assert NESTED != STACK and hlo.traffic(hlo.parse(NESTED)) == hlo.traffic(hlo.parse(STACK))


GROUPS = {
    "replica_groups={{0,1},{2,3}}": [[0, 1], [2, 3]],
    "replica_groups=[2,2]<=[4]": [[0, 1], [2, 3]],
    "replica_groups=[2,2]<=[2,2]T(1,0)": [[0, 2], [1, 3]],
    "replica_groups=mesh['a'=2,'b'=2] {'b'}": [[0, 1], [2, 3]],
    "replica_groups=mesh['a'=2,'b'=2] {'a'}": [[0, 2], [1, 3]],
    "replica_groups=mesh['a'=2,'b'=2] {'a','b'}": [[0, 1, 2, 3]],
    "replica_groups=mesh['a'=4] {'a':(1)2}": [[0, 2], [1, 3]],
    "replica_groups=mesh['a'=4] {'a':(2)2}": [[0, 1], [2, 3]],
}


@pytest.mark.parametrize("notation", GROUPS)
def test_groups_in_all_notations(notation):
    line = f"""ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %all-reduce.1 = f32[8]{{0}} all-reduce(%p), channel_id=1, {notation}, to_apply=%add
}}
"""
    (found,) = collectives.find(hlo.parse(line), 4)
    np.testing.assert_array_equal(found.groups, GROUPS[notation])
    n = found.groups.shape[1]
    assert found.bytes == 32 and found.sent() == 2 * 32 * (n - 1) / n
    assert found.crosses(2) == any(a // 2 != row[0] // 2 for row in GROUPS[notation] for a in row)


STAGES = """
%begin (a: bf16[4,8]) -> (bf16[4,8], bf16[4,32]) {
  %a = bf16[4,8]{1,0} parameter(0)
  %all-gather.1 = bf16[4,32]{1,0} all-gather(%a), channel_id=8, replica_groups=[1,4]<=[4], \
dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[4,8]{1,0}, bf16[4,32]{1,0}) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%end (b: bf16[4,8], s: u32[]) -> bf16[4,32] {
  %b = bf16[4,8]{1,0} parameter(0)
  %s = u32[] parameter(1)
  %all-gather.2 = bf16[4,32]{1,0} all-gather(%b), channel_id=8, replica_groups=[1,4]<=[4], \
dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %d = bf16[4,32]{1,0} custom-call(%all-gather.2, %s), \
custom_call_target="AsyncCollectiveDone"
}

%scattered (f: f32[32], i: s32[]) -> f32[8] {
  %f = f32[32]{0} parameter(0)
  %i = s32[] parameter(1)
  %all-reduce.3 = f32[32]{0} all-reduce(%f), channel_id=9, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %cut = f32[8]{0} dynamic-slice(%all-reduce.3, %i), dynamic_slice_sizes={8}
}

ENTRY %main (p: bf16[4,8], q: f32[32], i: s32[]) -> (bf16[4,32], f32[8]) {
  %p = bf16[4,8]{1,0:T(8,128)S(1)} parameter(0)
  %q = f32[32]{0} parameter(1)
  %n = s32[] parameter(2)
  %first = (bf16[4,8]{1,0}, bf16[4,32]{1,0}) fusion(%p), kind=kCustom, calls=%begin
  %held = bf16[4,8]{1,0} get-tuple-element(%first), index=0
  %last = bf16[4,32]{1,0} fusion(%held, %n), kind=kCustom, calls=%end
  %part = f32[8]{0} fusion(%q, %n), kind=kCustom, calls=%scattered
  ROOT %out = (bf16[4,32]{1,0}, f32[8]{0}) tuple(%last, %part)
}
"""


def test_stages_of_one_collective_count_once_and_sliced_sums_are_scatters():
    found = collectives.totals(collectives.find(hlo.parse(STAGES), 4))
    assert found == {
        "all-gather": {"count": 1, "bytes": 2 * 4 * 32},
        "reduce-scatter": {"count": 1, "bytes": 4 * 32},
    }


def test_arrays_near_a_core_are_no_traffic():
    near = STAGES.replace("f32[32]{0} parameter(1)", "f32[32]{0:T(128)S(1)} parameter(1)")
    both = [hlo.traffic(hlo.parse(part)) for part in (STAGES, near)]
    assert both[0] - both[1] == 4 * 32
