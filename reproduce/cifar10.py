"""Methods at equal images on CIFAR-10, by the medium configs; for one GPU, not timed yet.

    python reproduce/cifar10.py --data=cifar10.tar.xz --workdir=runs/cifar10 [--seeds=1] [-- flags]

Flow matching with and without time, Equilibrium Matching, and Distance Marching sampled by sphere
tracing and by gradient descent (one training); at each evaluation the Fréchet distance of 1,000
samples, at the end of 10,000, in whichever features are there (`evaluate.features`). DANSM's match
sizes with --dansm, sampled in ten Euler steps. Writes cifar10.md, cifar10.json and cifar10.png.
Further --config.…=… for every run go behind --, as --config.train.steps=2000.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from common import ROOT, folder, markdown, shown, train

from genfield.figures import style
from genfield.machine import logbook

TEN_STEPS = "--config.sampler={'name':'euler','num_steps':10}"
GREEDY = ["--config.coupling.name=greedy", TEN_STEPS]
METHODS = {  # title: (config, overrides)
    "FM": ("flow_matching_cifar10.py:medium", []),
    "FM without time": ("flow_matching_cifar10.py:medium_uncond", []),
    "EqM": ("equilibrium_matching_cifar10.py:medium", []),
    "DM, sphere tracing": ("distance_marching_cifar10.py:medium", []),
}
DANSM = {
    "FM, 10 steps": ("flow_matching_cifar10.py:medium", [TEN_STEPS]),
    "DANSM 1,024": ("flow_matching_cifar10.py:medium", [*GREEDY, "--config.match_size=1024"]),
    "DANSM 10,240": ("flow_matching_cifar10.py:medium", [*GREEDY, "--config.match_size=10240"]),
}
# DM's CIFAR-10 step of gradient descent (Table 6).
DESCENT = "--config.sampler={'name':'gradient_descent','num_steps':250,'step_size':0.46}"


def distance(row: dict) -> tuple[str, float] | None:
    """The Fréchet distance among the figures of a line, by its name."""
    for name, value in row.items():
        if name.startswith(("fid", "fd_")) and np.isscalar(value):
            return name, value
    return None


def curve(target: Path) -> list[tuple[float, float, float]]:
    """(step, examples/s, Fréchet distance) at each evaluation of a run."""
    rate, out = float("nan"), []
    for row in logbook.read_metrics(target):
        rate = row.get("examples_per_second", rate)
        if row["split"] != "train" and distance(row):
            out.append((row["step"], rate, distance(row)[1]))
    return out


def descend(target: Path, flags: list[str]) -> dict:
    """The final metrics of a Distance Marching run by gradient descent."""
    command = [sys.executable, "-m", "genfield.main", "--mode=evaluate", f"--workdir={target}"]
    subprocess.run([*command, DESCENT, *flags], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return logbook.read_metrics(target)[-1]


@style.styled
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder, an archive or an .npz")
    parser.add_argument("--workdir", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--dansm", action="store_true", help="match sizes in place of methods")
    parser.add_argument("flags", nargs="*", help="further --config.…=… for every run, after --")
    args = parser.parse_args()
    workdir = args.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    flags = [f"--config.data.path={Path(args.data).resolve()}", *args.flags]
    final, curves = {}, {}
    for title, (config, overrides) in (DANSM if args.dansm else METHODS).items():
        final[title], curves[title] = [], []
        for seed in range(args.seeds):
            target = folder(workdir, title, seed)
            final[title].append(train(target, title, seed, config, [*overrides, *flags]))
            curves[title].append(curve(target))
            if title.startswith("DM"):
                other = final.setdefault("DM, gradient descent", [])
                other.append(descend(target, args.flags))
    (workdir / "cifar10.json").write_text(json.dumps({"final": final, "curves": curves}, indent=2))
    rows = []
    for title, runs in final.items():
        found = [distance(run) for run in runs]
        values = [f[1] for f in found if f]
        rows.append([title, found[0][0] if values else "-", shown(values) if values else "-"])
    text = markdown(["method", "figure", "at the end"], rows)
    (workdir / "cifar10.md").write_text(text)
    print(text)
    figure, axes = plt.subplots(figsize=(6, 4))
    for title, runs in curves.items():
        points = np.array(min(runs, key=len))
        if len(points):
            axes.plot(points[:, 0], points[:, 2], "o-", markersize=3, label=title)
    axes.set(xlabel="step", ylabel="Fréchet distance, 1,000 samples", yscale="log")
    axes.grid()
    axes.legend()
    print(style.save(figure, workdir / "cifar10.png"))


if __name__ == "__main__":
    main()
