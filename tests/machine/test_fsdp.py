"""Fully sharded parameters, read from programs that are partitioned for eight devices.

With weights gathered for the forward and for the backward pass and gradients reduced once, a step
sends at most three times its parameters, and no device ever gets the global batch.
"""

import math
import re

import jax
import numpy as np
import pytest
from test_fsdp_unets import LOSSES, check_bound, compiled, trained
from test_fsdp_unets import config_of as config_of_loss
from test_fsdp_unets import prepared as prepared_of

from genfield import placement
from genfield.configuration import base
from genfield.errors import UserError
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
    """Noise is drawn for the global batch; each microbatch gathers and scatters anew."""
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
    exp = prepared(tmp_path, (8, 1), "transformer", dropout=0.1, **half, **asked)
    with pytest.raises(UserError, match="reduce_dtype=float32 is for networks without dropout"):
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


@pytest.mark.parametrize("fsdp", [16, 256, 1024])
def test_the_state_of_a_chip_falls_as_they_become_more(fsdp):
    """SiT-XL/2: 1152 and 3456 have no factor 256."""
    config = base()
    config.net = dict(name="sit", size="XL")
    config.data = dict(name="latents", path="nowhere", shape=(32, 32, 4), num_classes=1000)
    data = shapes.dataset(config, package())
    _, params = objective.create_net(config, data)
    sizes = dict(zip((placement.MAJOR, placement.MINOR), placement.factors(fsdp), strict=True))
    sizes |= {"fsdp": fsdp, None: 1}
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
