"""What benchmarks of real configs share: a train step from shapes alone, predicted and timed."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield.errors import UserError  # noqa: E402
from genfield.machine import chips  # noqa: E402
from genfield.plan import analyse, devices, plan, programs, shapes  # noqa: E402
from genfield.program import config_io  # noqa: E402
from genfield.program.experiment import Experiment  # noqa: E402
from genfield.program.methods import package  # noqa: E402


def target() -> analyse.Target:
    """The first device here, as a machine of one chip."""
    device = jax.devices()[0]
    name = chips.CPU if device.platform == "cpu" else chips.of_device(device.device_kind)
    if name is None:
        raise UserError(f"the figures of {device.device_kind} are not in genfield.machine.chips")
    axes = chips.CHIPS[name].axes if name in chips.CHIPS else 0
    machine = chips.parse(f"{name}:{'x'.join(['1'] * max(axes, 1))}")
    return analyse.Target(machine, devices.chip_of(machine), [device])


def prepare(
    file: str,
    overrides: list[str],
    on: analyse.Target,
    shape=None,
    classes: int | None = None,
    change: Callable = lambda config: None,
) -> Experiment:
    """A config on one device, its data by their shape; `change(config)` after the overrides."""
    config, methods = config_io.read(str(ROOT / "configs" / file))
    config = config_io.override(config, overrides)
    change(config)
    return build(config, methods or package(), on, shape, classes)


def build(config, methods, on: analyse.Target, shape=None, classes=None) -> Experiment:
    """The same of a config that was read."""
    config.mesh.update(data=1, fsdp=1)
    with tempfile.TemporaryDirectory() as folder:
        options = argparse.Namespace(config=f"{folder}/none.py", shape=shape, classes=classes)
        return plan.prepare(config, methods, on, options)


class Ready(NamedTuple):
    """run(steps) takes them; predicted: what `genfield.plan` has of the compiled step."""

    run: Callable[[int], None]
    predicted: dict
    batch: int
    compiling: float  # seconds


def train_step(exp: Experiment, on: analyse.Target) -> Ready:
    """The compiled train step, on one drawn batch that lies on the device."""
    begun = time.perf_counter()
    traced = programs.train(exp)
    predicted = analyse.program(exp, traced, on, None)
    compiled = traced.traced.lower().compile()
    compiling = time.perf_counter() - begun
    random = np.random.default_rng(0)

    def drawn(a):
        if a.dtype == np.float32:
            return random.normal(size=a.shape).astype(np.float32)
        return random.integers(0, 2, a.shape).astype(a.dtype)

    batch = {key: drawn(a) for key, a in shapes.batch(exp).items() if key != "step"}
    batch, state, step = jax.device_put(batch), exp.init(), 0

    def run(steps: int) -> None:
        nonlocal state, step
        for _ in range(steps):
            state, metrics = compiled(state, {"step": np.int32(step)} | batch)
            step += 1
        jax.block_until_ready(state)
        assert metrics["finite"], "the step that was timed changes nothing"

    return Ready(run, predicted, exp.config.batch_size, compiling)
