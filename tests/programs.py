"""Small runs of the program, for the tests that need one: overrides, and the lines they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

from meshes import devices

from genfield.main import main
from genfield.program import own_files

ROOT = Path(__file__).resolve().parent.parent
MOONS = ROOT / "configs" / "distance_marching_two_moons.py"
DIGITS = ROOT / "configs" / "distance_marching_digits.py"
TINY_DIGITS = ROOT / "tests" / "tiny_digits.py"

SMALL = {  # a run of seconds, whatever the config
    "batch_size": 16,
    "net.width": 16,
    "net.depth": 2,
    "train.steps": 20,
    "train.log_every": 1,
    "train.eval_batches": 1,
    "checkpoint.every": 10,
    "sample.batch_size": 64,
    "sample.num": 64,
    "evaluate.num_samples": 64,
    "evaluate.transport_points": 64,
    "evaluate.repeats": 1,
    "evaluate.figures": False,
}


OF_THE_CLOCK = ("examples_per_second", "step_seconds", "data_seconds", "dispatch_seconds")
OF_THE_CLOCK += ("device_seconds", "mfu")


def arguments(workdir, config=MOONS, *extra: str, small: dict = SMALL, **overrides) -> list[str]:
    """A command line; overrides are config fields with dots written as double underscores."""
    fields = small | {k.replace("__", "."): v for k, v in overrides.items()}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["genfield", f"--config={config}", f"--workdir={workdir}", *extra, *flags]


def run(workdir, config=MOONS, *extra: str, on: int = 1, **kwargs) -> int:
    """Runs the program in this process, on so many of the eight fake devices; its exit code."""
    with devices(on):
        return main(arguments(workdir, config, *extra, **kwargs))


def start(argv: list[str], devices: int = 1, **options) -> subprocess.Popen:
    """The program as a process of its own, its output as text."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "genfield.main", *argv[1:]]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=env, cwd=ROOT, **(pipes | options))


def smoke(config):
    """A config shrunk to two steps of a tiny network, by the function that the pages share."""
    with own_files.beside(ROOT / "configs"):
        import shared
    return shared.smoke(config)


def losses(workdir) -> dict[tuple[int, str], dict]:
    """The lines of metrics.jsonl by (step, split), without what depends on the clock."""
    rows = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        for name in OF_THE_CLOCK:
            row.pop(name, None)
    return {(row.pop("step"), row.pop("split")): row for row in rows}
