"""Fully sharded parameters, read from programs that are partitioned for eight devices.

With weights gathered for the forward and for the backward pass and gradients reduced once, a step
sends at most three times its parameters, and no device ever gets the global batch.
"""

import jax
import numpy as np
import pytest

from genfield.configuration import base
from genfield.machine import sharding
from genfield.plan import collectives, hlo, programs, shapes
from genfield.program import experiment
from genfield.program.methods import package

BATCH = 88  # a side of nothing else
STEPS = 2
NETS = {
    "sit": ((8, 8, 4), dict(width=64, depth=2, num_heads=4, patch_size=4)),
    "transformer": ((6, 4), dict(width=64, depth=2, num_heads=4, causal=True)),
}


def config_of(net: str, mesh: tuple[int, int], **fields):
    config, (shape, own) = base(), NETS[net]
    config.batch_size = BATCH
    config.data = dict(name="latents", path="nowhere", shape=shape, num_classes=10)
    config.net = dict(name=net, **own, **fields)
    config.label_dropout = 0.1
    config.loss = dict(name="equilibrium_matching")
    config.sampler = dict(name="nesterov", num_steps=2, step_size=0.1, momentum=0.3)
    config.ema.rate = 0.9
    config.mesh.update(data=mesh[0], fsdp=mesh[1])
    return config


def prepared(config, tmp_path):
    data = shapes.dataset(config, package())
    devices = jax.devices()[: config.mesh.data * config.mesh.fsdp]
    return experiment.prepare(config, tmp_path, dataset=data, devices=devices)


def sent(exp) -> list[collectives.Collective]:
    compiled = programs.train(exp).traced.lower().compile()
    return collectives.find(hlo.parse(compiled.as_text()), exp.mesh.size)


def check_bound(exp) -> None:
    found = sent(exp)
    bound = 3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(exp.abstract.params))
    assert 0 < sum(one.bytes * one.times for one in found) <= bound
    whole = [one for one in found if any(BATCH in array.dims for array in one.arrays)]
    assert not whole, [(one.kind, one.label) for one in whole]
    scanned = [one for one in found if one.kind == "all-gather" and "while" in one.label]
    assert scanned or not exp.config.net.get("scan", True)  # weights, in the loop over layers


@pytest.mark.parametrize("net", NETS)
def test_a_step_sends_three_times_its_parameters_at_most(net, tmp_path):
    check_bound(prepared(config_of(net, (1, 8)), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("net", NETS)
def test_the_bound_holds_with_recomputing_and_on_two_axes(net, remat, tmp_path):
    check_bound(prepared(config_of(net, (1, 8), remat=remat), tmp_path))
    check_bound(prepared(config_of(net, (2, 4), remat=remat, scan=False), tmp_path))


def trained(exp) -> np.ndarray:
    """[steps, 2]: losses and norms of gradients."""
    step, state, draw = experiment.jit_train_step(exp), exp.init(), np.random.default_rng(0)
    out = []
    for i in range(STEPS):
        batch = {
            "x1": draw.normal(size=(BATCH, *exp.data.shape)).astype(np.float32),
            "label": draw.integers(0, 10, BATCH).astype(np.int32),
        }
        state, metrics = step(state, {"step": np.int32(i)} | sharding.put_batch(batch, exp.mesh))
        out.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(out)


def test_it_trains_as_one_device_does(tmp_path):
    alone = trained(prepared(config_of("sit", (1, 1)), tmp_path))
    split = trained(prepared(config_of("sit", (1, 8)), tmp_path))
    np.testing.assert_allclose(split, alone, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full", True, False])
def test_recomputing_changes_nothing(remat, tmp_path):
    alone = trained(prepared(config_of("sit", (1, 1)), tmp_path))
    for net in NETS:
        plain = alone if net == "sit" else trained(prepared(config_of(net, (1, 1)), tmp_path))
        split = trained(prepared(config_of(net, (2, 4), remat=remat), tmp_path))
        np.testing.assert_allclose(split, plain, rtol=1e-5)


def test_one_device_is_told_nothing_of_meshes(tmp_path):
    """Its program has no constraint, no gather and no recomputation."""
    exp = prepared(config_of("sit", (1, 1)), tmp_path)
    text = str(programs.train(exp).traced.jaxpr)
    for name in ("sharding_constraint", "shard_map", "linear_call", "checkpoint", "remat"):
        assert name not in text
    text = str(programs.train(prepared(config_of("sit", (1, 8)), tmp_path)).traced.jaxpr)
    assert "shard_map" in text and "linear_call" in text
