"""Records what the program does, to the bit, and compares a later tree with that record.

    python tests/golden/freeze.py --write             # writes freeze.json
    python tests/golden/freeze.py                     # prints what differs; exit code 1 if any does
    python tests/golden/freeze.py --only=draws,losses # some sections only
    python tests/golden/freeze.py --only=losses --match=flow   # and of these some entries

Each section runs in a process of its own, on one CPU device, or on eight where the messages speak
of eight. Numbers are those of one machine and one set of packages: write and compare on the same.
"""

import argparse
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# ---- The adapter: all that is known of the program's internals ---------------------------------

INTERNALS = {  # name here: module and attribute
    "load_config": "genfield.program.config_io:load",
    "base": "genfield.program.defaults:base",
    "to_dict": "genfield.program.config_io:to_dict",
    "prepare": "genfield.program.experiment:prepare",
    "draw_batch": "genfield.program.experiment:draw_batch",
    "jit_train_step": "genfield.program.experiment:jit_train_step",
    "batches": "genfield.program.match_sets:batches",
    "batch_at": "genfield.program.train_step:batch_at",
    "draw_key": "genfield.rng:draw_key",
    "stream": "genfield.rng:stream",
    "make_generator": "genfield.program.generate:make_generator",
    "create_net": "genfield.nets:create",
    "load_parameters": "genfield.program.open_run:load_parameters",
    "run_program": "genfield.main:main",
}
MODES = ("genfield.program.modes", ("train", "evaluate", "sample", "pairs"))


@functools.cache
def of(name: str):
    """A function of the program by its name in `INTERNALS`."""
    module, _, attribute = INTERNALS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def prepare(config, folder: Path):
    """The experiment of a config."""
    return of("prepare")(config, Path(folder))


def step_data(exp, step: int) -> tuple:
    """The key of a training step, and the data that its draw is given."""
    import jax
    import numpy as np

    key = jax.random.fold_in(of("stream")(exp.config.seed, "train"), step)
    batch = next(of("batches")(exp, step))
    return key, of("batch_at")(key, batch, of("draw_batch")(exp)) | {"step": np.int32(step)}


def draw(exp, step: int):
    """What a training step draws: a tuple with names, or a dict, of arrays."""
    key, data = step_data(exp, step)
    return exp.objective.draw(of("draw_key")(key), data)


def train_steps(exp, count: int) -> tuple:
    """The state after some steps from the start, and the metrics of each."""
    import numpy as np

    step, state, rows = of("jit_train_step")(exp), exp.init(), []
    batches = of("batches")(exp, 0)
    for number in range(count):
        state, metrics = step(state, {"step": np.int32(number)} | next(batches))
        rows.append(metrics)
    return state, rows


def samples(exp, params, num: int, **options):
    """Samples 0 … num - 1 of sampling seed 1: a tuple with x, nfe, trace and info."""
    import numpy as np

    return of("make_generator")(exp, **options)(params, 1, np.arange(num))[0]


def block_modes() -> None:
    """From here on the program raises `Entered` where it would enter a mode."""

    def refuse(*args, **kwargs):
        raise Entered

    for name in MODES[1]:
        setattr(importlib.import_module(MODES[0]), name, refuse)


class Entered(Exception):
    """The program found nothing wrong and would run."""


# ---- Running sections, and comparing ------------------------------------------------------------

DEVICES = {"errors": 8, "ranges": 8}  # else one
SECTIONS = ("configs", "parameters", "draws", "losses", "samples", "errors", "ranges", "runs")


def sections() -> dict:
    """The function of each section: (folder, wanted) -> {name: entry}."""
    import freeze_errors
    import freeze_parts
    import freeze_runs

    parts = (freeze_parts, freeze_errors, freeze_runs)
    known = {name: getattr(p, name) for name in SECTIONS for p in parts if hasattr(p, name)}
    return known | {"samples": freeze_parts.samples_of}


def environment(section: str) -> dict:
    """Variables that make a section's numbers the same in each process."""
    count = DEVICES.get(section, 1)
    flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MPLBACKEND": "Agg",
        "PYTHONHASHSEED": "0",
    }


def compute(section: str, match: str) -> dict:
    """A section's entries, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, __file__, f"--section={section}", f"--out={out}"]
        command += [f"--match={match}"] if match else []
        done = subprocess.run(command, env=environment(section), cwd=folder, check=False)
        if done.returncode:
            sys.exit(f"section {section} ended with exit code {done.returncode}")
        return json.loads(out.read_text())


def child(section: str, out: Path, match: str) -> None:
    """Computes a section in this process and writes it as JSON."""
    with tempfile.TemporaryDirectory(prefix="freeze_") as folder:
        entries = sections()[section](Path(folder).resolve(), lambda name: match in name)
    out.write_text(json.dumps(entries))


def flat(value, prefix: str = "") -> dict:
    """Nested dicts as one, with dotted names."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    out = {}
    for key, part in value.items():
        out |= flat(part, f"{prefix}.{key}" if prefix else str(key))
    return out


def compare(old: dict, new: dict) -> list[str]:
    """A line for each entry that differs."""
    old, new, absent = flat(old), flat(new), "(absent)"
    lines = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name, absent), new.get(name, absent)
        if a != b:
            lines.append(f"{name}\n    old: {json.dumps(a)}\n    new: {json.dumps(b)}")
    return lines


def parse(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the record")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--match", default="", help="only entries whose names hold this")
    parser.add_argument("--file", type=Path, default=HERE / "freeze.json", help="the record")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.write and options.match:
        parser.error("--match is for comparing, not for --write")
    if unknown := set(options.only.split(",")) - set(SECTIONS):
        parser.error(f"unknown sections {sorted(unknown)}; known: {', '.join(SECTIONS)}")
    return options


def main(argv=None) -> int:
    options = parse(argv)
    if options.section:
        child(options.section, options.out, options.match)
        return 0
    record = json.loads(options.file.read_text()) if options.file.exists() else {}
    different = 0
    for section in options.only.split(","):
        start = time.monotonic()
        new, old = compute(section, options.match), record.get(section, {})
        old = {name: entry for name, entry in old.items() if options.match in name}
        lines = [] if options.write else compare({section: old}, {section: new})
        different += len(lines)
        print("\n".join([*lines, ""]) if lines else "", end="")
        seconds = time.monotonic() - start
        print(
            f"{section}: {len(new)} entries, {len(lines)} differences, {seconds:.0f} s", flush=True
        )
        record[section] = new if options.write else record.get(section, {})
        if options.write:
            text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
            options.file.write_text(text + "\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    from freeze import main as once  # the sections import this module by its name

    sys.exit(once())
