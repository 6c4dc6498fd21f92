"""Fully sharded parameters of U-Nets and MLPs, read from programs partitioned for eight devices.

A step sends at most three times its parameters, whatever the loss, no device ever gets the global
batch, and what is computed is what one device computes.
"""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from programs import ROOT

from genfield import nets, registry
from genfield.configuration import base
from genfield.machine import sharding
from genfield.plan import collectives, hlo, programs, shapes
from genfield.program import experiment
from genfield.program.methods import package

BATCH = 88  # a side of nothing else
SHAPE, CLASSES = (8, 8, 3), 5
# Two resolutions of which one attends; most kernels are large enough to be split.
SMALL = dict(channels=64, channel_multipliers=(1, 1), num_res_blocks=0, dropout=0.1)
HO = dict(resampling="conv", adaptive_scale=False)  # as Ho et al. have it
NETS = {
    "unet": dict(name="unet", **SMALL, attention_levels=(2,)),
    "ho": dict(name="unet", **SMALL, attention_levels=(2,), **HO),
    "adm": dict(name="adm", **SMALL, attention_levels=(2,), head_channels=16),
    "ddpmpp": dict(name="ddpmpp", **SMALL, attention_resolutions=(4,), augmentation_size=9),
    "ncsnpp": dict(name="ncsnpp", **SMALL, attention_resolutions=(4,)),
    "mlp": dict(name="mlp", width=256, depth=3),
}
EQUILIBRIUM = dict(loss=dict(name="equilibrium_matching"))
EQUILIBRIUM |= dict(sampler=dict(name="nesterov", num_steps=2, step_size=0.1, momentum=0.3))
DENOISING = dict(path="variance_exploding", preconditioning="edm", time=dict(name="log_normal"))
DENOISING |= dict(sampler=dict(name="edm_heun", num_steps=2))
DISTANCE = dict(loss=dict(name="distance_marching", epsilon=4.0, c0=4.0))
DISTANCE |= dict(sampler=dict(name="sphere_tracing", num_steps=2, step_size=0.1))
DISCRIMINATOR = dict(name="projected", size=32, random_features=0, width=8)
PAIRS = dict(loss=dict(name="adversarial_lines_matching", adversary=DISCRIMINATOR))
PAIRS |= dict(time=dict(name="schedule", schedule_steps=18))
PAIRS |= dict(data=dict(name="pairs", path="nowhere"))
LOSSES = {
    "flow": dict(loss=dict(name="flow_matching")),
    "equilibrium": EQUILIBRIUM,
    "energy": EQUILIBRIUM | dict(energy="dot"),
    "distance": DISTANCE,
    "edm": DENOISING | dict(loss=dict(name="denoising")),
    "flux": DENOISING | dict(loss=dict(name="flux_matching", group_size=11)),
    "adversarial": DENOISING | PAIRS,
}


def config_of(net: str, loss: str, mesh, gather="auto", **fields) -> ConfigDict:
    config = base()
    config.batch_size = BATCH
    config.data = dict(name="latents", path="nowhere", shape=SHAPE, num_classes=CLASSES)
    config.net = dict(NETS[net], **fields)
    for name, value in LOSSES[loss].items():
        config[name] = value
    config.ema.rate = 0.9
    config.mesh.update(data=mesh[0], fsdp=mesh[1], gather=gather)
    if loss == "distance":
        config.net.update(dict(output="scalar") if net == "mlp" else dict(distance_head="cifar"))
    if loss == "edm" and "augmentation_size" in NETS[net]:
        config.augmentation = 0.1
    if loss == "adversarial":
        config.data.real = dict(name="images", path="nowhere", size=SHAPE[0], labels=True)
    return config


def prepared(config, tmp_path, methods=None) -> experiment.Experiment:
    shape = config.data.get("shape", SHAPE)  # pairs are of what their folder holds
    data = shapes.dataset(config, package(), shape, CLASSES)
    devices = jax.devices()[: config.mesh.data * config.mesh.fsdp]
    return experiment.prepare(config, tmp_path, methods, dataset=data, devices=devices)


def compiled(exp):
    return programs.train(exp).traced.lower().compile()


def check_bound(exp, program) -> None:
    found = collectives.find(hlo.parse(program.as_text()), exp.mesh.size)
    bound = 3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(exp.abstract.params))
    numbers = 4 * 16  # the loss, its terms, norms
    assert bound / 3 < sum(one.bytes * one.times for one in found) <= bound + numbers
    whole = [one for one in found if any(BATCH in array.dims for array in one.arrays)]
    assert not whole, [(one.kind, one.label) for one in whole]


def trained(exp, step) -> np.ndarray:
    """[2, 2]: the losses and the norms of gradients of two steps."""
    state, draw, out = exp.init(), np.random.default_rng(0), []
    ends = {np.dtype(np.int32): CLASSES, np.dtype(np.uint8): 256}
    for i in range(2):
        batch = {
            name: draw.normal(size=a.shape).astype(a.dtype)
            if a.dtype == np.float32
            else draw.integers(0, ends[a.dtype], a.shape, a.dtype)
            for name, a in shapes.batch(exp).items()
            if name != "step"
        }
        place = jax.device_put(np.int32(i), sharding.replicated(exp.mesh))
        state, metrics = step(state, {"step": place} | sharding.put_batch(batch, exp.mesh))
        out.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(out)


def check(net: str, loss: str, mesh: tuple[int, int], tmp_path, **fields) -> None:
    """The bound, and one device's losses and norms of gradients."""
    exp = prepared(config_of(net, loss, mesh, **fields), tmp_path)
    program = compiled(exp)
    check_bound(exp, program)
    alone = prepared(config_of(net, loss, (1, 1), **fields), tmp_path)
    np.testing.assert_allclose(trained(exp, program), trained(alone, compiled(alone)), rtol=1e-5)


@pytest.mark.parametrize(
    ("net", "loss", "mesh"),
    [("unet", "flow", (1, 8)), ("mlp", "flux", (1, 8)), ("mlp", "distance", (2, 4))],
)
def test_a_step_sends_little_and_computes_what_one_device_does(net, loss, mesh, tmp_path):
    check(net, loss, mesh, tmp_path)


FIRST = [
    ("ho", "equilibrium", (1, 8)),
    ("adm", "flow", (2, 4)),
    ("ddpmpp", "edm", (1, 8)),
    ("ncsnpp", "edm", (2, 4)),
    ("unet", "distance", (2, 4)),
    ("ddpmpp", "adversarial", (1, 8)),
]
MACHINES = [("v5e:4x4", "libtpu", 16), ("h100:8", "jax_cuda12_plugin", 8)]
SECOND = [("unet", "energy"), ("ddpmpp", "energy"), ("adm", "flux"), ("ho", "flux")]


@pytest.mark.slow
@pytest.mark.parametrize(("net", "loss", "mesh"), FIRST)
def test_every_network_and_loss_sends_little(net, loss, mesh, tmp_path):
    check(net, loss, mesh, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 8), (2, 4)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("net", "loss"), SECOND)
def test_losses_with_second_derivatives_gather_once(net, loss, dropout, mesh, tmp_path):
    check(net, loss, mesh, tmp_path, dropout=dropout)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_gather_as_they_run_where_asked(remat, dtype, tmp_path):
    """Once forward and once backward."""
    fields = dict(gather="layer", remat=remat, dtype=dtype)
    exp = prepared(config_of("ncsnpp", "flow", (1, 8), **fields), tmp_path)
    program = compiled(exp)
    check_bound(exp, program)
    found = collectives.find(hlo.parse(program.as_text()), exp.mesh.size)
    gathers = [a.dims for one in found if one.kind == "all-gather" for a in one.arrays]
    params = exp.abstract.params["field"]
    kernel = params["middle1"]["block"]["conv1"]["kernel"].shape
    assert gathers.count(kernel) == 2 * sum(a.shape == kernel for a in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "compiler", "fsdp"),
    [("v5e:4x4", "libtpu", 16), ("h100:8", "jax_cuda12_plugin", 8)],
)
@pytest.mark.parametrize("loss", ["flow_matching", "equilibrium_matching"])
def test_it_holds_on_accelerators(topology, compiler, fsdp, loss, tmp_path):
    """CIFAR-10's U-Net with a block where it has several, as their own compilers partition it."""
    pytest.importorskip(compiler)
    flags = [f"--config={ROOT / 'configs' / loss}_cifar10.py", f"--topology={topology}"]
    flags += ["--shape=32,32,3", "--config.net.num_res_blocks=0", f"--config.mesh.fsdp={fsdp}"]
    flags += ["--config.energy=dot"] if loss == "equilibrium_matching" else []
    command = [sys.executable, "-m", "genfield.plan", *flags, f"--out={tmp_path}"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    sent = sum(kind["bytes"] for kind in found["train"]["collectives"].values())
    assert 4 * found["parameters"] < sent <= 3 * 4 * found["parameters"]
    assert not any("global batch" in line for line in found["train"]["warnings"])


@pytest.mark.parametrize("net", ["adm", "ncsnpp"])
def test_blocks_are_subtrees_of_the_parameters(net):
    config = NETS[net] | dict(num_res_blocks=1)  # none would leave "down" empty
    _, params = nets.create(config, None, shape=SHAPE)
    blocks = {*nets.known()[net].blocks}
    assert blocks <= {*params}
    rest = sum(leaf.size for name in {*params} - blocks for leaf in jax.tree.leaves(params[name]))
    assert rest < 0.2 * nets.count_parameters(params)


class Wide(nnx.Module):
    """An ordinary module of one's own, that knows of no mesh."""

    def __init__(self, *, shape, num_classes, rngs):
        size = math.prod(shape)
        self.first, self.last = nnx.Linear(size, 256, rngs=rngs), nnx.Linear(256, size, rngs=rngs)

    def __call__(self, x, t, cond):
        return self.last(jax.nn.silu(self.first(x.reshape(len(x), -1)))).reshape(x.shape)


def pair():
    """A network without Flax: x A."""
    init = lambda key, shape, num_classes: {"A": jnp.eye(math.prod(shape)) / 2}
    apply = lambda params, x, t, cond, *, key, train: (x.reshape(len(x), -1) @ params["A"]).reshape(
        x.shape
    )
    return init, apply


@pytest.mark.parametrize("make", [Wide, pair])
def test_networks_of_ones_own_are_gathered_too(make, tmp_path):
    facts = dict(second_order=lambda bound: None, last_layer=None, stack=(), augmented=False)
    methods = package().with_own([registry.Network(name="own", make=make, **facts)])
    config = config_of("mlp", "flow", (1, 8))
    config.net = dict(name="own")
    exp = prepared(config, tmp_path, methods)
    check_bound(exp, compiled(exp))
