"""Long runs in small: python -m tests.chaos.long_run --out=runs/long [--steps=10000]

Trains so many steps with an evaluation every 250 and a checkpoint every 100, draws 400 batches of
samples, and prepares 2,000 images, each in a process that is watched; judges whether anything
grows, and writes `long_run.json` and `long_run.png`. Exit code 1 where something does.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from .problems import CONFIG, ROOT

EVAL, SAVE, LOG = 250, 100, 50
WARM = 0.25  # of a run, that is not judged
EVERY = {"train": 0.25, "sample": 0.02, "prepare": 0.02}  # seconds between looks
# Bytes that may grow over the part that is judged, beyond twice the slope's standard error: of
# malloc what a run keeps by design (a line's step and split), of the RSS a few pages of the heap;
# and objects of Python's, of which TensorStore keeps a hundred a save (its specs as JSON).
ROOM = {"malloc": 2**20, "rss": 4 * 2**20, "blocks": 20_000}
# By so many the lowest, the median and the highest look of the second half may all be higher: a
# checkpoint opens files and threads for a moment, and what is left open raises all three.
COUNTED = {"arrays": 0, "programs": 0, "files": 0, "threads": 0, "maps": 8}
# TensorStore keeps compressors of so many bytes, as many as worked at once, and lets go of those
# that nothing used for a while: malloc goes up and down by whole ones.
COMPRESSOR = 3_658_105
# Of glibc's arenas each thread takes another in turn, eight for a processor, and each grows by a
# compressor: with one of them the resident memory tells what is held.
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}


def commands(out: Path, steps: int) -> dict[str, list[str]]:
    """The three commands, by name."""
    every = [f"train.eval_every={EVAL}", f"checkpoint.every={SAVE}", f"train.log_every={LOG}"]
    fields = [f"--config.{field}" for field in (f"train.steps={steps}", *every)]
    drawn = [f"--config.sample.{field}" for field in ("num=12800", "batch_size=32")]
    run = f"--workdir={out / 'run'}"
    small = ["--pixels", "--size=16", "--batch_size=8", "--shard_size=200"]
    return {
        "train": ["train", f"--config={CONFIG}", run, *fields],
        "sample": ["sample", run, *drawn, "--config.sample.shard_size=32"],
        "prepare": ["prepare", *small, f"--images={out / 'images.npz'}", f"--out={out / 'made'}"],
    }


def images(path: Path, count: int = 2000) -> None:
    """Images that `prepare` reads."""
    levels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    np.savez(path, train_images=levels, train_labels=np.arange(count) % 7)


def watched(name: str, command: list[str], out: Path) -> list[dict]:
    """Runs a command; what was seen of it."""
    seen = out / f"{name}.jsonl"
    watch = ["-m", "tests.chaos.watch", f"--out={seen}", f"--every={EVERY[name]}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | ONE_HEAP
    with open(out / f"{name}.log", "w") as log:
        code = subprocess.call(
            [sys.executable, *watch, *command], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    if code:
        raise RuntimeError(f"{name} ends with {code}: see {out / f'{name}.log'}")
    return [json.loads(line) for line in seen.read_text().splitlines()]


def working(rows: list[dict]) -> list[dict]:
    """The part of a run that is judged: steps, where there are some, else time; both without ends.

    The first WARM of it warms up, and the last look may meet the end's own work.
    """
    if "step" in rows[0]:
        last = max(row["step"] for row in rows)
        first = next(i for i, row in enumerate(rows) if row["step"] >= WARM * last)
        end = next(i for i, row in enumerate(rows) if row["step"] >= last)
        return rows[first:end]
    most = max(row.get("programs", 0) for row in rows)  # compiling ends when all of them are there
    rows = rows[next(i for i, row in enumerate(rows) if row.get("programs") == most) : -1]
    return rows[int(WARM * len(rows)) :]


def but_compressors(values: np.ndarray) -> np.ndarray:
    """The same without the steps of whole compressors between one look and the next."""
    steps = np.diff(values)
    return values[0] + np.append(0, np.cumsum(steps - COMPRESSOR * np.rint(steps / COMPRESSOR)))


def slope(rows: list[dict], name: str) -> tuple[float, float]:
    """What a figure grows by over the rows, by a fitted line, and its standard error."""
    x = np.linspace(0.0, 1.0, len(rows))
    y = np.array([row[name] for row in rows], float)
    if name == "malloc":
        y = but_compressors(y)
    design = np.stack([np.ones_like(x), x], 1)
    fitted, rest, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = float(rest[0]) / max(len(rows) - 2, 1) if len(rest) else 0.0
    return float(fitted[1]), float(np.sqrt(variance * np.linalg.inv(design.T @ design)[1, 1]))


def judge(rows: list[dict]) -> tuple[dict, list[str]]:
    """The figures of a run, and what grew."""
    part, figures, grew = working(rows), {}, []
    for name, room in ROOM.items():
        if name in part[0]:
            clean = [row for row in part if row.get("collected", True)]  # of what waits to be freed
            growth, error = slope(clean if len(clean) > 2 else part, name)
            figures[name] = {"growth": round(growth), "error": round(error), "last": part[-1][name]}
            if growth - 2 * error > room:
                grew.append(f"{name} grew by {growth:,.0f} ± {error:,.0f}")
    half = len(part) // 2
    for name, room in COUNTED.items():
        early, late = (
            [int(of([row[name] for row in rows])) for of in (min, np.median, max)]
            for rows in (part[:half], part[half:])
        )
        figures[name] = {"early": early, "late": late}
        if min(b - a for a, b in zip(early, late, strict=True)) > room:
            grew.append(f"{name} grew from {early} to {late} (lowest, median, highest)")
    return figures | {"looks": len(part)}, grew


def times(workdir: Path) -> list[float]:
    """Medians of a step's seconds over the quarters of a training; of the clock, not judged."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["step_seconds"] for row in rows if row["split"] == "train"]
    return [float(np.median(part)) for part in np.array_split(seconds, 4)]


def written(workdir: Path, steps: int) -> dict[str, float]:
    """Bytes of files by kind, and those that metrics.jsonl and events take a 1,000 steps."""
    size = lambda pattern: sum(p.stat().st_size for p in workdir.glob(pattern) if p.is_file())
    return {
        "metrics.jsonl a 1,000 steps": 1000 * size("metrics.jsonl") / steps,
        "events a 1,000 steps": 1000 * size("events.*") / steps,
        "checkpoints": size("checkpoints/**/*"),
        "checkpoints kept": len([p for p in (workdir / "checkpoints").iterdir() if p.is_dir()]),
        "pictures a 1,000 steps": 1000 * size("samples/*.png") / steps,
    }


def draw(path: Path, seen: dict[str, list[dict]], workdir: Path) -> None:
    """Memory and step time of the training, and memory of the other two."""
    import matplotlib.pyplot as plt

    from genfield.figures import style

    @style.styled
    def drawn():
        figure, axes = plt.subplots(1, 3, figsize=(11, 3), constrained_layout=True)
        rows = [row for row in seen["train"] if row["step"]]
        for name, label in (("rss", "resident"), ("malloc", "given out by malloc")):
            values = [row[name] / 2**20 for row in rows if name in row]
            axes[0].plot([row["step"] for row in rows if name in row], values, label=label)
        axes[0].axvline(WARM * rows[-1]["step"], color="#808080", lw=0.8, ls=":")
        axes[0].set(title="Training: memory", xlabel="step", ylabel="MiB", ylim=(0, None))
        axes[0].legend()
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        lines = [line for line in lines if line["split"] == "train"]
        values = [1000 * line["step_seconds"] for line in lines]
        axes[1].plot([line["step"] for line in lines], values, ".", ms=3)
        axes[1].set(title="Training: time of a step", xlabel="step", ylabel="ms")
        axes[1].set_ylim(0, 3 * float(np.median(values)))
        for name in ("sample", "prepare"):
            memory = [row["rss"] / 2**20 for row in seen[name] if "programs" in row]
            axes[2].plot(np.linspace(0, 1, len(memory)), memory, label=name)
        axes[2].set(title="Others: memory", xlabel="share of the run", ylim=(0, None))
        axes[2].legend()
        style.save(figure, path)

    drawn()


def run(out: Path, steps: int) -> tuple[dict, list[str]]:
    """All three; the report, and what grew."""
    out.mkdir(parents=True, exist_ok=True)
    images(out / "images.npz")
    report, grew, seen = {"steps": steps}, [], {}
    for name, command in commands(out, steps).items():
        seen[name] = watched(name, command, out)
        report[name], found = judge(seen[name])
        grew += [f"{name}: {line}" for line in found]
    report["step seconds by quarters"] = times(out / "run")
    report["bytes"] = written(out / "run", steps)
    report["log"] = (out / "train.log").stat().st_size
    (out / "long_run.json").write_text(json.dumps(report | {"grew": grew}, indent=2) + "\n")
    draw(out / "long_run.png", seen, out / "run")
    return report, grew


def main(argv: list[str] | None = None) -> int:
    """1 where something grew."""
    parser = argparse.ArgumentParser("python -m tests.chaos.long_run", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args(argv)
    report, grew = run(options.out.resolve(), options.steps)
    print(json.dumps(report, indent=2))
    print("\n".join(grew) or "nothing grows")
    return 1 if grew else 0


if __name__ == "__main__":
    sys.exit(main())
