"""What the reproductions share: runs of the program, their samples by any sampler, tables."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from genfield import guidance
from genfield.program import experiment, generate
from genfield.program.open_run import open_run

ROOT = Path(__file__).resolve().parent.parent


def folder(workdir: Path, title: str, seed: int) -> Path:
    """The workdir of one run."""
    return workdir / f"{title.lower().replace(',', '').replace(' ', '_')}_seed{seed}"


def train(target: Path, title: str, seed: int, config: str, flags: list[str]) -> dict:
    """Trains a run by the program, unless it is done; its final metrics."""
    if not (target / "summary.json").exists():
        print(f"{title}, seed {seed}", flush=True)
        command = [sys.executable, "-m", "genfield.main", f"--config={ROOT / 'configs' / config}"]
        command += [f"--workdir={target}", f"--config.seed={seed}", *flags]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((target / "summary.json").read_text())["metrics"]


class Run:
    """A finished run: its field, and its samples by any sampler and step size."""

    def __init__(self, target: Path):
        self.exp, self.params, _ = open_run(target)
        self.config, self.target = self.exp.config, target
        self.field = jax.jit(self.exp.objective.field(self.params))
        self._drawers = functools.cache(self._drawer)

    def by(self, section: dict | None):
        """The experiment with another sampler, and a field of "factor" times its length."""
        exp, config = self.exp, self.config.copy_and_resolve_references()
        if section is not None:
            config.sampler = ConfigDict(section)
            exp = experiment.prepare(config, self.target)
        field = self.exp.objective.field
        longer = lambda held: guidance.scaled(field(held["params"]), held["factor"])
        return exp._replace(objective=exp.objective._replace(field=longer))

    def _drawer(self, section: str, trace: int | None):
        return generate.make_drawer(self.by(json.loads(section)), trace=trace)

    def draw(self, section: dict | None, num: int, *, factor: float = 1.0, trace=None):
        """Samples 0 … num - 1 of the seed that evaluation draws first, by `factor` its step."""
        held = {"params": self.params, "factor": np.float32(factor)}
        return self._drawers(json.dumps(section), trace)(held, num, self.config.seed + 1)


def shown(values) -> str:
    """Median (smallest to largest)."""
    low, middle, high = (f"{f(values):.3g}" for f in (min, np.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
