"""A small SiT compiled for TPUs and GPUs that are not there: which attention is in the program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genfield.machine import chips
from genfield.plan import environment

ROOT = Path(__file__).parent.parent.parent
KERNELS = {"v5e:2x2": "splash_mha", "h100:2": "__cudnn$fmha"}
COMPILE = """
import json, sys
from pathlib import Path
from genfield.machine import chips
from genfield.plan import collectives, devices, hlo, programs, shapes
from genfield.program import config_io, experiment
from genfield.program.methods import package

topology, config, *changes = sys.argv[1:]
config, methods = config_io.read(config)
config = config_io.override(config, changes)
data = shapes.dataset(config, methods or package())
exp = experiment.prepare(
    config, Path("nowhere"), dataset=data, devices=devices.of(chips.parse(topology))
)
text = programs.train(exp).traced.lower().compile().as_text()
found = collectives.find(hlo.parse(text), exp.mesh.size)
kernels = [name for name in ("splash_mha", "__cudnn$fmha") if name in text]
batch = [one.label for one in found if any(64 in array.dims for array in one.arrays)]
print(json.dumps({"kernels": kernels, "batch": batch, "collectives": len(found)}))
"""


def compiled(topology: str, *changes: str) -> dict:
    config = ROOT / "configs" / "equilibrium_matching_imagenet256.py:S/2"
    more = ["--config.net.depth=2", "--config.batch_size=64", *changes]
    command = [sys.executable, "-c", COMPILE, topology, str(config), *more]
    environ = {**os.environ, **environment.of(chips.parse(topology))}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    if "does not find" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("topology", KERNELS)
def test_the_machine_and_the_loss_choose_the_attention(topology):
    """A kernel on each device's own examples where the loss takes one derivative, else none."""
    pytest.importorskip({"v": "libtpu", "h": "jax_cuda12_plugin"}[topology[0]])
    found = compiled(topology)
    assert found["kernels"] == [KERNELS[topology]]
    assert found["collectives"] and not found["batch"]
    found = compiled(topology, "--config.energy=dot")
    assert not found["kernels"] and not found["batch"]
