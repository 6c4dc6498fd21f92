"""The section of freeze.py about two small runs of the program as it was, kept in runs/.

They hold what opening, resuming and sampling need; `python tests/golden/freeze_runs.py` made them,
with the old program, and does nothing where they are.
"""

import json
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNS = HERE / "runs"
KEPT = ("config.json", "checkpoints", "metrics.jsonl", "summary.json", "card.json")
VOLATILE = ("examples_per_second", "step_seconds", "data_seconds", "dispatch_seconds")
VOLATILE += ("device_seconds", "mfu")
MOONS = {
    "batch_size": 16,
    "net.width": 8,
    "net.depth": 2,
    "ema.rate": 0.9,
    "train.steps": 4,
    "train.log_every": 1,
    "train.eval_batches": 1,
    "checkpoint.every": 2,
    "checkpoint.keep": 1,
    "sample.batch_size": 64,
    "sample.num": 64,
    "evaluate.num_samples": 64,
    "evaluate.transport_points": 64,
    "evaluate.repeats": 1,
    "evaluate.figures": False,
}
DIGITS = {"checkpoint.keep": 1, "net.distance_head": "cifar_narrow"}  # a small one
MADE = {  # each run: its config file and what was set
    "moons": ("configs/distance_marching_two_moons.py", MOONS),
    "digits": ("tests/golden/freeze_digits.py", DIGITS),
}


def command(name: str, workdir: Path, *extra: str) -> list[str]:
    """The command line that made a run, with more at its end."""
    file, fields = MADE[name]
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    return [
        "genfield",
        f"--config={HERE.parent.parent / file}",
        f"--workdir={workdir}",
        *flags,
        *extra,
    ]


def call(argv: list[str]) -> None:
    """Runs the program; an error where it fails."""
    from freeze import of

    if code := of("run_program")(argv):
        raise RuntimeError(f"exit code {code} of {' '.join(argv)}")


def make(name: str, folder: Path) -> None:
    """A run, of which only what is needed is kept."""
    call(command(name, folder))
    for path in folder.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.rglob("commit_success.txt"):  # their being there counts
        path.write_text(path.read_text().replace(str(HERE), "."))


def lines_of(workdir: Path) -> dict:
    """The lines of metrics.jsonl, by step and split, without what depends on the clock."""
    out = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = {name: value for name, value in json.loads(line).items() if name not in VOLATILE}
        out[f"step {row.pop('step')} {row.pop('split')}"] = row
    return out


def arrays(path: Path) -> dict:
    """Digests of the arrays of an .npz file, or of the .npy files of a folder."""
    import numpy as np
    from freeze_parts import digests

    if path.is_dir():
        return digests({file.stem: np.load(file) for file in sorted(path.glob("*.npy"))})
    with np.load(path) as file:
        return digests({name: file[name] for name in sorted(file.files)})


def opened(folder: Path, name: str) -> dict:
    """The parameters that a run holds, raw and averaged, leaf by leaf."""
    from freeze import of
    from freeze_parts import digests

    return {
        item: digests(of("load_parameters")(folder / name, item=item)) for item in ("params", "ema")
    }


def sampled(folder: Path, name: str) -> dict:
    """Samples from the workdir alone."""
    call(["genfield", f"--workdir={folder / name}", "--mode=sample", "--config.sample.num=8"])
    return arrays(folder / name / "samples" / "step_4.npz")


def evaluated(folder: Path, name: str) -> dict:
    """The metrics of the checkpoint, measured again."""
    call(["genfield", f"--workdir={folder / name}", "--mode=evaluate"])
    return lines_of(folder / name)["step 4 sample"]


def paired(folder: Path, name: str) -> dict:
    """Pairs of noise and sample, by a deterministic sampler."""
    sampler = "--config.sampler={'name': 'sphere_tracing', 'num_steps': 2, 'step_size': 0.3}"
    flags = ["--mode=pairs", "--config.sample.num=8", sampler]
    call(["genfield", f"--workdir={folder / name}", *flags])
    return arrays(folder / name / "pairs" / "step_4")


def resumed(folder: Path, name: str) -> dict:
    """Two more steps with the config that made the run: their lines, and what came out."""
    from freeze import of
    from freeze_parts import whole

    call(command(name, folder / name, "--config.train.steps=6"))
    rows = {key: row for key, row in lines_of(folder / name).items() if key[5] in "56"}
    load = of("load_parameters")
    state = {item: whole(load(folder / name, item=item)) for item in ("params", "ema", "optimizer")}
    return {"lines": rows, "state": state}


def started(folder: Path, name: str) -> dict:
    """Two steps of a run of another seed that starts at this one's average."""
    workdir = folder / f"{name}_after"
    flags = [f"--config.initial_parameters={folder / name}", "--config.train.steps=2"]
    call(command(name, workdir, "--config.seed=5", *flags))
    return lines_of(workdir)


WAYS = (opened, sampled, evaluated, paired, resumed, started)


def runs(folder: Path, wanted) -> dict:
    """What copies of both runs give, and the config that each holds."""
    out = {}
    for name in MADE:
        for number, way in enumerate(WAYS):
            label = f"{name} {way.__name__}"
            if not wanted(label):
                continue
            place = folder / str(number)
            shutil.copytree(RUNS / name, place / name)
            try:
                out[label] = way(place, name)
            except Exception as error:
                out[label] = {"error": f"{type(error).__name__}: {error}"[:300]}
                print(f"{label}: {out[label]['error']}", flush=True)
    return out


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    from freeze import ROOT, environment

    sys.path.insert(0, str(ROOT))
    os.environ |= environment("runs")
    for run in MADE:
        if not (RUNS / run).exists():
            make(run, RUNS / run)
