"""What trained fields can do, on scikit-learn's digits: FM, EqM, EqM-E and DM on five classes.

    python reproduce/digits.py --workdir=runs/digits --seeds=3 [--other=cifar10_jpeg.tar.xz]

EqM Fig. 10 (partially noised inputs), Tables 6 and DM 5 (out-of-distribution inputs: the other five
classes and, with --other, other images among them), NAG against gradient descent at few steps (EqM
Fig. 8), stopping (EqM section 3.3, DM Table 4) and composition (EqM Fig. 11). Finished runs are not
run again. Writes digits.{md,json}, denoise.png and stopping.png into the workdir; pictures of
scores and compositions into each run's studies/. About 40 minutes a seed on 2 CPU cores.

Samples are judged in pixel space, all classes equally often: the Fréchet distance of their 64
pixels to the 750 training images ("fd"), which no network's taste of 8x8 images enters, and the
mean distance to the nearest training image ("to_data").
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from common import ROOT, Run, folder, markdown, shown, train

from genfield import rng
from genfield.data import pixels
from genfield.distances import nearest
from genfield.figures import style
from genfield.metrics import frechet
from genfield.program.sampler import create_sampler
from genfield.study import measures

CLASSES = (0, 1, 2, 3, 4)  # trained on; the others are out of distribution
SMALL = [
    *("--config.net.channels=16", "--config.batch_size=64", "--config.train.steps=2000"),
    *("--config.ema.rate=0.99", "--config.train.eval_every=0", "--config.train.eval_samples=0"),
    f"--config.data.classes={CLASSES}",
]
ROWS = {  # title: (config, overrides)
    "FM": ("flow_matching_digits.py", []),
    "EqM": ("equilibrium_matching_digits.py", []),
    "EqM-E": ("equilibrium_matching_digits.py", ["--config.energy=dot"]),
    "DM": ("distance_marching_digits.py", []),
}
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
NUM = 750  # samples, as many as training images
STEPS = (5, 10, 25, 50, 100, 250)
LENGTH = 250 * 0.003  # step size times number of steps, as configured
GD = {"name": "gradient_descent", "num_steps": 250, "step_size": 0.003}
MARCH = {"name": "gradient_descent", "num_steps": 250, "step_size": 0.1}
THRESHOLDS = (0.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0)  # of EqM's |f|
PATIENCE = (250, 20, 10, 5, 3)  # rises of u in a row


class Judge:
    """Distances of digits to the training images."""

    def __init__(self, run: Run):
        examples = run.exp.data.examples
        unit = lambda part: pixels.to_unit(part.gather(np.arange(part.size))["x1"])
        self.train, self.heldout = unit(examples["train"]), unit(examples["test"])
        self.labels = examples["test"].gather(np.arange(examples["test"].size))["label"]
        self.moments = frechet.moments(self.train.reshape(len(self.train), -1))

    def __call__(self, x: np.ndarray) -> dict[str, float]:
        found = frechet.moments(np.asarray(x).reshape(len(x), -1))
        near = nearest(x, self.train).distance
        fd = frechet.frechet_distance(found, self.moments)
        return {"fd": float(fd), "to_data": float(near.mean())}


def partially_noised(run: Run, judge: Judge, repeats: int = 4) -> dict:
    """Samples from (1-t) x0 + t x1 of held-out x1, each with `repeats` noises (EqM Fig. 10)."""
    x1, labels = np.tile(judge.heldout, (repeats, 1, 1, 1)), np.tile(judge.labels, repeats)
    x0 = jax.random.normal(rng.stream(run.config.seed, "partially noised"), x1.shape)
    sampler = create_sampler(run.config, run.exp.data.num_classes, run.exp.objective.output)
    go = jax.jit(lambda key, x, cond: sampler(key, run.field, x, cond).x)
    found = {"data": judge(judge.heldout)}
    for t in TIMES:
        out = np.asarray(go(jax.random.key(0), measures.partially_noised(x0, x1, t), labels))
        found[t] = judge(out) | {"mse": float(np.mean((out - x1) ** 2))}
    return found


def few_steps(run: Run, judge: Judge) -> dict:
    """Gradient descent and NAG, the same way in fewer steps."""
    found = {}
    for n in STEPS:
        section = {"num_steps": n, "step_size": LENGTH / n}
        for name, rest in (("gradient_descent", {}), ("nesterov", {"momentum": 0.35})):
            out = run.draw({"name": name, **section, **rest}, NUM)
            found[f"{name} {n}"] = judge(out.x)
    return found


def stopped(run: Run, judge: Judge, section: dict, rules: list[dict]) -> dict:
    """Quality and evaluations of a sampler whose samples stop by each rule."""
    found = {}
    for rule in rules:
        out = run.draw({**section, "stop": rule}, NUM)
        label = f"{rule.get('threshold', rule.get('patience')):g}"
        found[label] = judge(out.x) | {"nfe": float(out.nfe.mean())}
    return found


def study(target: Path, name: str, *options: str) -> dict:
    """Runs `genfield.study`; its figures."""
    command = [sys.executable, "-m", "genfield.study", name, f"--workdir={target}", *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((target / "studies" / f"{name}.json").read_text())["figures"]


def measure(runs: dict[str, Run], other: str | None) -> dict:
    """Everything, of the runs of one seed."""
    judge = Judge(runs["EqM"])
    found = {"denoise": {t: partially_noised(runs[t], judge) for t in ("FM", "EqM", "DM")}}
    found["steps"] = few_steps(runs["EqM"], judge)
    norms = [{"name": "gradient_norm", "threshold": c} for c in THRESHOLDS]
    rises = [{"name": "rising_distance", "patience": n} for n in PATIENCE]
    found["stop"] = {
        "EqM, |f| below": stopped(runs["EqM"], judge, GD, norms),
        "DM, rises of u": stopped(runs["DM"], judge, MARCH, rises),
    }
    options = ["--num=750", *([f"--other={other}"] if other else [])]
    found["ood"] = {t: study(runs[t].target, "ood", *options)["auroc"] for t in ROWS if t != "FM"}
    for title in ("EqM", "DM"):
        study(runs[title].target, "compose", "--classes=0,2", "--num=64")
    return found


def over(seeds: list[dict], *keys) -> str:
    """The figure at `keys` over seeds, as text."""
    values = []
    for found in seeds:
        for key in keys:
            found = found[key]
        values.append(found)
    return shown(values)


def tables(seeds: list[dict]) -> str:
    """All tables: median (smallest to largest) over seeds."""
    first, parts = seeds[0], []
    rows = [
        [f"{title}, {name}", *(over(seeds, "denoise", title, t, name) for t in (*TIMES, "data"))]
        for title in first["denoise"]
        for name in ("fd", "to_data")
    ]
    parts.append(markdown(["partially noised, t =", *map(str, TIMES), "the data"], rows))
    rows = [
        [name, *(over(seeds, "steps", f"{name} {n}", "fd") for n in STEPS)]
        for name in ("gradient_descent", "nesterov")
    ]
    parts.append(markdown(["fd after steps", *map(str, STEPS)], rows))
    for title, rules in first["stop"].items():
        names = ("nfe", "fd", "to_data")
        rows = [[n, *(over(seeds, "stop", title, r, n) for r in rules)] for n in names]
        parts.append(markdown([title, *rules], rows))
    for title, sets in first["ood"].items():
        rows = []
        for i, row in enumerate(sets):
            scores = [name for name in row if name != "set"]
            rows.append([row["set"], *(over(seeds, "ood", title, i, s) for s in scores)])
        parts.append(markdown([f"AUROC, {title}", *scores], rows))
    return "\n".join(parts)


@style.styled
def draw_denoise(path: Path, seeds: list[dict]) -> Path:
    """Quality against how clean the start was (EqM Fig. 10)."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for ax, name in zip(axes, ("fd", "to_data"), strict=True):
        for title in seeds[0]["denoise"]:
            values = np.array([[s["denoise"][title][t][name] for t in TIMES] for s in seeds])
            [line] = ax.plot(TIMES, np.median(values, 0), "o-", markersize=3, label=title)
            ax.fill_between(TIMES, values.min(0), values.max(0), color=line.get_color(), alpha=0.2)
        ax.axhline(seeds[0]["denoise"]["EqM"]["data"][name], color="0.4", linestyle=":")
        ax.set(xlabel="t of the start", ylabel=name)
        ax.grid()
    axes[0].legend()
    return style.save(figure, path)


@style.styled
def draw_stopping(path: Path, seeds: list[dict]) -> Path:
    """Quality against evaluations used."""
    titles = seeds[0]["stop"]
    figure, axes = plt.subplots(1, len(titles), figsize=(10, 4))
    for ax, (title, rules) in zip(axes, titles.items(), strict=True):
        for i, found in enumerate(seeds):
            rows = [found["stop"][title][r] for r in rules]
            ax.plot([r["nfe"] for r in rows], [r["fd"] for r in rows], "o-", label=f"seed {i}")
        ax.set(title=title, xlabel="evaluations a sample", ylabel="fd")
        ax.grid()
    axes[0].legend()
    return style.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--other", help="images of another kind: a folder, .npz or tar archive")
    parser.add_argument("flags", nargs="*", help="further --config.…=… for every run, after --")
    args = parser.parse_args()
    workdir, seeds = args.workdir.resolve(), []
    workdir.mkdir(parents=True, exist_ok=True)
    other = args.other and str(Path(args.other).resolve())
    for seed in range(args.seeds):
        for title, (config, overrides) in ROWS.items():
            flags = [*SMALL, *overrides, *args.flags]
            train(folder(workdir, title, seed), title, seed, config, flags)
        runs = {title: Run(folder(workdir, title, seed)) for title in ROWS}
        seeds.append(measure(runs, other))
        (workdir / "digits.json").write_text(json.dumps(seeds, indent=2))
        (workdir / "digits.md").write_text(tables(seeds))
    print(tables(seeds))
    print(draw_denoise(workdir / "denoise.png", seeds))
    print(draw_stopping(workdir / "stopping.png", seeds))


if __name__ == "__main__":
    main()
