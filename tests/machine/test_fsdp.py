"""Fully sharded parameters, read from programs that are partitioned for eight devices.

With weights gathered for the forward and for the backward pass and gradients reduced once, a step
sends at most three times its parameters, and no device ever gets the global batch.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.random import threefry2x32_p
from ml_collections import ConfigDict
from test_fsdp_unets import LOSSES, check_bound, compiled, trained
from test_fsdp_unets import config_of as config_of_loss
from test_fsdp_unets import prepared as prepared_of

from genfield import placement, rng
from genfield.configuration import base
from genfield.errors import UserError
from genfield.machine import sharding
from genfield.nets import attention, layers, sit
from genfield.plan import collectives, hlo, programs, shapes
from genfield.program import config_io, objective
from genfield.program.methods import package

SHAPES = {"sit": (8, 8, 3), "transformer": (6, 4)}
NETS = {
    "sit": dict(name="sit", width=64, depth=2, num_heads=4, patch_size=4),
    "transformer": dict(name="transformer", width=64, depth=2, num_heads=4, causal=True),
}
ODD = dict(width=132)  # of two axes that eight does not divide, four divides one and two the other


def prepared(tmp_path, mesh, net="sit", loss="equilibrium", **fields):
    """On a mesh; of fields those with a dot are the config's, the others the network's."""
    config = config_of_loss("unet", loss, mesh)
    own = {name: value for name, value in fields.items() if "." not in name}
    config.net, config.data.shape = dict(NETS[net], **own), SHAPES[net]
    if loss == "distance":
        config.net.distance_head = "cifar"
    flags = [f"--config.{name}={value}" for name, value in fields.items() if "." in name]
    config = config_io.override(config, flags)
    return prepared_of(config, tmp_path)


def check_layers(exp, program) -> None:
    """Weights are gathered in the loop over layers."""
    found = collectives.find(hlo.parse(program.as_text()), exp.mesh.size)
    assert any(one.kind == "all-gather" and "while" in one.label for one in found)


@pytest.mark.parametrize("net", NETS)
def test_a_step_sends_three_times_its_parameters_at_most(net, tmp_path):
    exp = prepared(tmp_path, (1, 8), net)
    program = compiled(exp)
    check_bound(exp, program)
    check_layers(exp, program)


@pytest.mark.parametrize(
    ("loss", "mesh", "fields"), [("equilibrium", (1, 8), ODD), ("energy", (2, 4), {})]
)
def test_it_trains_as_one_device_does(loss, mesh, fields, tmp_path):
    check(tmp_path, mesh, loss=loss, **fields)


def check(tmp_path, mesh, **fields) -> None:
    """The bound, and one device's losses and norms of gradients."""
    exp = prepared(tmp_path, mesh, **fields)
    program = compiled(exp)
    check_bound(exp, program)
    alone = prepared(tmp_path, (1, 1), **fields)
    found, wanted = trained(exp, program), trained(alone, compiled(alone))
    # RAdam's and Adam's first steps turn rounding of a discriminator's gradients near 0 into steps.
    steps = 1 if fields.get("loss") == "adversarial" else len(wanted)
    np.testing.assert_allclose(found[:steps], wanted[:steps], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_on_a_transformer_of_images(loss, tmp_path):
    check(tmp_path, (1, 8), loss=loss)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["flow", "edm", "flux"])
def test_losses_on_a_transformer_of_sequences(loss, tmp_path):
    check(tmp_path, (2, 4), net="transformer", loss=loss)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full", True, False])
@pytest.mark.parametrize("net", NETS)
def test_the_bound_holds_with_recomputing_and_on_two_axes(net, remat, tmp_path):
    check(tmp_path, (1, 8), net=net, remat=remat)
    check(tmp_path, (2, 4), net=net, remat=remat, scan=False)


@pytest.mark.slow
def test_dropout_and_microbatches(tmp_path):
    """Noise is that of the global batch; each microbatch gathers and scatters anew."""
    exp = prepared(tmp_path, (2, 4), "transformer", dropout=0.1)
    alone = prepared(tmp_path, (1, 1), "transformer", dropout=0.1)
    program = compiled(exp)
    check_bound(exp, program)
    np.testing.assert_allclose(trained(exp, program), trained(alone, compiled(alone)), rtol=1e-5)
    parts = {"optimizer.accumulate": 11}
    exp, alone = (prepared(tmp_path, mesh, **parts) for mesh in ((1, 8), (1, 1)))
    program = compiled(exp)
    np.testing.assert_allclose(trained(exp, program), trained(alone, compiled(alone)), rtol=1e-5)
    sent = collectives.find(hlo.parse(program.as_text()), exp.mesh.size)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(exp.abstract.params))
    assert sum(one.bytes * one.times for one in sent) <= 11 * 3 * size


def sums(exp) -> set[str]:
    """The dtypes in which a step adds up arrays of several devices."""
    text = str(programs.train(exp).traced.jaxpr)
    found = re.findall(r":(\w+)\[\d+,[\d,]*\] = (?:reduce_scatter|psum\w*)\[", text)
    return set(found)


def test_gradients_are_summed_in_float32_where_asked(tmp_path):
    half, asked = dict(dtype="bfloat16"), {"mesh.reduce_dtype": "float32"}
    assert sums(prepared(tmp_path, (1, 8), **half)) == {"bf16", "f32"}  # f32: not in a block
    assert sums(prepared(tmp_path, (1, 8), **half, **asked)) == {"f32"}
    text = str(programs.train(prepared(tmp_path, (8, 1), **half)).traced.jaxpr)
    assert "shard_map" not in text
    assert sums(prepared(tmp_path, (8, 1), **half, **asked)) == {"f32"}
    assert sums(prepared(tmp_path, (8, 1), "transformer", dropout=0.1, **half, **asked)) == {"f32"}


def test_each_device_drops_what_one_device_drops(tmp_path):
    """To the bit, of any shape: the noise hangs on an example's place in the global batch."""
    drop, key = layers.Dropout(0.3), jax.random.key(5)
    call = lambda x: drop(x, rngs=key)
    mesh = sharding.make_mesh(ConfigDict(dict(data=2, fsdp=4)), jax.devices())
    split = placement.on(mesh, lambda x: placement.on_each(call)(x))
    for shape, dtype in [((16, 5, 3), jnp.float32), ((8, 7), jnp.bfloat16), ((24,), jnp.float32)]:
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
        wanted = jax.jit(lambda x: nnx.Dropout(0.3)(x, rngs=key))(x)
        assert 0 < (wanted == 0).sum() < x.size
        np.testing.assert_array_equal(jax.jit(split)(x), wanted)


def test_rows_of_noise_beyond_4_billion_numbers_are_those_of_the_whole():
    """The place of a number has 64 bits; JAX's own count of them is the oracle, row by row."""
    key, first, size = jax.random.key(1), 2**32 // 1000 - 1, 1000
    found = rng.uniform_rows(key, jnp.int32(first), (3, size), 2**23)
    place = (first * size + np.arange(3 * size)).astype(np.uint64)
    assert place[0] < 2**32 < place[-1]
    high, low = (part.astype(np.uint32) for part in (place >> 32, place & 0xFFFFFFFF))
    bits = threefry2x32_p.bind(*jax.random.key_data(key), jnp.asarray(high), jnp.asarray(low))
    bits = np.asarray(bits[0] ^ bits[1])
    np.testing.assert_array_equal(found.ravel(), (bits >> 9).astype(np.float32) / 2**23)


def test_dropout_of_another_kind_is_left_to_xla(tmp_path, monkeypatch):
    """Flax's own, in a network on the package's base class: one device's noise, and no float32."""
    monkeypatch.setattr(layers, "Dropout", nnx.Dropout)
    fields = dict(dropout=0.1, dtype="bfloat16")
    exp = prepared(tmp_path, (1, 8), "transformer", **fields)
    assert "shard_map" not in str(programs.train(exp).traced.jaxpr)
    exp = prepared(tmp_path, (8, 1), "transformer", **fields, **{"mesh.reduce_dtype": "float32"})
    with pytest.raises(UserError, match="reduce_dtype=float32 is not for networks with Flax's"):
        programs.train(exp)


@pytest.mark.parametrize(
    ("loss", "gather", "at_once"),
    [
        ("equilibrium", "auto", False),
        ("equilibrium", "call", True),
        ("energy", "auto", True),
        ("energy", "layer", False),
    ],
)
def test_weights_are_gathered_as_layers_run_or_at_once(loss, gather, at_once, tmp_path):
    """At once where a loss differentiates twice, or where it is said."""
    exp = prepared(tmp_path, (1, 8), loss=loss, **{"mesh.gather": gather})
    text = str(programs.train(exp).traced.jaxpr)
    found = {whole: f"{whole} = all_gather[" in text for whole in ("f32[64,192]", "f32[2,64,192]")}
    assert found == {"f32[64,192]": not at_once, "f32[2,64,192]": at_once}


@custom_partitioning
def _by_its_own_rules(x):
    """As attention of cuDNN is: a call that XLA partitions as it is told."""
    return x


_by_its_own_rules.def_partition(
    infer_sharding_from_operands=lambda mesh, arguments, result: arguments[0].sharding,
    partition=lambda mesh, arguments, result: (
        mesh,
        lambda x: x,
        result.sharding,
        (arguments[0].sharding,),
    ),
    sharding_rule="b s h d -> b s h d",
)


@pytest.mark.parametrize("width", [64, 132])
def test_a_kernel_with_rules_of_its_own_is_in_the_program(tmp_path, monkeypatch, width):
    """JAX takes it only where one mesh is named throughout, of arrays that fsdp divides or not."""

    def attend(query, *arguments):
        plain = attention.attend(query, *arguments)
        return plain + 0 * _by_its_own_rules(jax.lax.stop_gradient(query))

    monkeypatch.setattr(sit, "attend", attend)
    exp = prepared(tmp_path, (1, 8), width=width)
    traced = programs.train(exp).traced
    assert "custom_partitioning" in str(traced.jaxpr)
    traced.lower()


@pytest.mark.parametrize("fsdp", [16, 256, 1024])
def test_the_state_of_a_chip_falls_as_they_become_more(fsdp):
    """SiT-XL/2: 1152 and 3456 have no factor 256."""
    config = base()
    config.net = dict(name="sit", size="XL")
    config.data = dict(name="latents", path="nowhere", shape=(32, 32, 4), num_classes=1000)
    data = shapes.dataset(config, package())
    _, params = objective.create_net(config, data)
    sizes = dict(zip((placement.MAJOR, placement.MINOR), placement.factors(fsdp), strict=True))
    sizes |= {placement.FSDP: fsdp, None: 1}
    total = held = 0
    for name, places in placement.specs(params, fsdp, ("blocks",)).items():
        for leaf, spec in zip(*map(jax.tree.leaves, (params[name], places)), strict=True):
            cuts = [sizes[axis] for axis in spec]
            assert all(size % cut == 0 for size, cut in zip(leaf.shape, cuts, strict=False))
            total, held = total + leaf.size, held + leaf.size / math.prod(cuts)
            assert not spec or name != "blocks" or spec[0] is None
    assert held < 1.1 * total / fsdp


def test_one_device_is_told_nothing_of_meshes(tmp_path):
    """Its program has no constraint, no gather and no recomputation."""
    exp = prepared(tmp_path, (1, 1))
    text = str(programs.train(exp).traced.jaxpr)
    for name in ("sharding_constraint", "shard_map", "linear_call", "checkpoint", "remat"):
        assert name not in text
    text = str(programs.train(prepared(tmp_path, (1, 8))).traced.jaxpr)
    assert "shard_map" in text and "linear_call" in text
