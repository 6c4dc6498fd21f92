"""The energies of Equilibrium Matching, Energy Matching and Distance Marching in the plane.

    python reproduce/energy_landscape.py --workdir=runs/table1 --seeds=3

DM appendix C.1 (Table 8, Fig. 18 to 21): what samplers make of EqM's energy, how well an energy
knows the distance to the data, and EqM's sensitivity to step size and rematching. Trains the runs
that reproduce/two_moons.py has not left in the workdir, then writes energy_landscape.{md,json},
landscapes.png, energy_samplers.png and sensitivity.png there.
"""

import argparse
import json
import math
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import two_moons
from common import Run, folder, markdown, shown
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from genfield import rng
from genfield.errors import UserError
from genfield.figures import run as figures
from genfield.figures import style
from genfield.metrics import point_cloud

ENERGIES = ("Distance Marching", "Energy Matching, first stage", "EqM", "EqM without rematching")
GD = {"name": "gradient_descent", "num_steps": 100, "step_size": 0.0025}
# The paper gives no settings of Table 8: HMC is Distance Marching's, and a shorter step whose
# proposals this steeper energy accepts; Langevin goes on with EqM's own step at HMC's temperature.
HMC = {"name": "hamiltonian", "num_steps": 16, "step_size": 0.2, "num_leapfrog": 5}
ULA = {"name": "langevin", "num_steps": 100, "step_size": 0.0025, "temperature": 0.0625}
SAMPLERS = {  # title: (section, the paper's W2 / HD / CD)
    "GD": (GD, (1.433, 2.034, 0.260)),
    "GD + ULA": ({**GD, "then": ULA}, (1.757, 1.982, 0.317)),
    "GD + HMC": ({**GD, "then": HMC}, (2.073, 1.680, 0.037)),
    "GD + HMC, step 0.05": ({**GD, "then": {**HMC, "step_size": 0.05}}, None),
}
SCALES = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)  # of EqM's step size, and of FM's 1/100
SWEPT = {"EqM": GD, "EqM without rematching": GD, "FM": {"name": "euler", "num_steps": 100}}
BOX = (-7.0, 7.0)
COLUMNS = ("w2", "hausdorff", "chamfer", "acceptance", "nfe")


def judge(run: Run, section: dict, num: int, factor: float = 1.0) -> dict[str, float]:
    """Distances of `num` samples to as many fresh target points; NaN where they diverge."""
    try:
        out = run.draw(section, num, factor=factor)
    except UserError:
        return dict.fromkeys(("w2", "hausdorff", "chamfer", "stray_999"), math.nan)
    target = points(run, rng.stream(run.config.seed + 1, "target"), num)
    found = point_cloud.compare(out.x, target, 2_000)
    accepted = {name: float(np.mean(v)) for name, v in out.info.items()}
    return found | accepted | {"nfe": float(out.nfe.mean())}


def points(run: Run, key, num: int) -> np.ndarray:
    """Points of the target."""
    return np.asarray(jax.jit(run.exp.data.draw, static_argnums=1)(key, num))


def knows_distance(run: Run, tree: cKDTree) -> dict[str, float]:
    """How far an energy is a function of the distance to the data, on a grid over BOX.

    `spearman`: rank correlation. `explained`: the share of the energy's variance between bins of
    equal distance (0.25 wide), 1 for a function of the distance alone. `lowest_at`: distance to
    the data of the 1% of grid points of least energy.
    """
    side = np.linspace(*BOX, 281)
    mesh = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    u, r = np.asarray(run.field(mesh).distance), tree.query(mesh)[0]
    bins = np.floor(r / 0.25).astype(int)
    counts = np.bincount(bins)
    means = np.bincount(bins, u) / np.maximum(counts, 1)
    low = u <= np.quantile(u, 0.01)
    return {
        "spearman": float(spearmanr(u, r).statistic),
        "explained": float(np.var(means[bins]) / np.var(u)),
        "lowest_at": float(r[low].mean()),
    }


def of_samplers(results: dict) -> str:
    """Table 8."""
    rows = []
    for title, (_, paper) in SAMPLERS.items():
        found = results[title]
        cells = [shown([f[c] for f in found]) if c in found[0] else "-" for c in COLUMNS]
        rows.append([title, *cells, " / ".join(map(str, paper)) if paper else "-"])
    return markdown(["EqM's samples by", *COLUMNS, "paper (W2 / HD / CD)"], rows)


def of_distance(results: dict) -> str:
    """What the energies know of the distance."""
    names = ("spearman", "explained", "lowest_at")
    rows = [
        [title, *(shown([f[name] for f in found]) for name in names)]
        for title, found in results.items()
    ]
    return markdown(["energy of", *names], rows)


def of_sensitivity(curves: dict) -> str:
    """W2 and Chamfer distance at each step size, medians over seeds."""
    rows = [
        [title, name, *(f"{np.median([f[name] for f in by_scale[s]]):.3g}" for s in SCALES)]
        for title, by_scale in curves.items()
        for name in ("w2", "chamfer")
    ]
    return markdown(["step, of the configured one", "", *map(str, SCALES)], rows)


@style.styled
def draw_landscapes(path: Path, runs: dict[str, Run], target: np.ndarray, tree: cKDTree) -> Path:
    """Level sets above; below, each grid point's energy against its distance to the data."""
    extent = (*BOX, *BOX)
    figure, axes = plt.subplots(2, len(runs), figsize=(4 * len(runs), 7.4))
    side = np.linspace(*BOX, 80)
    mesh = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    r = tree.query(mesh)[0]
    for (top, bottom), (title, run) in zip(axes.T, runs.items(), strict=True):
        figures.draw_field(top, run.field, extent, descend=True)
        top.scatter(*target[:2000].T, s=1, color=style.TARGET, alpha=0.6)
        top.set(title=title, xticks=[], yticks=[], aspect="equal")
        bottom.scatter(r, run.field(mesh).distance, s=1, color=style.END, alpha=0.5)
        bottom.set(xlabel="distance to the data")
    axes[1, 0].set(ylabel="energy")
    return style.save(figure, path)


@style.styled
def draw_samplers(path: Path, run: Run, target: np.ndarray) -> Path:
    """End points above, trajectories below (Fig. 20)."""
    figure, axes = plt.subplots(2, len(SAMPLERS), figsize=(4 * len(SAMPLERS), 8))
    for (top, bottom), (title, (section, _)) in zip(axes.T, SAMPLERS.items(), strict=True):
        trace = run.draw(section, 2_000, trace=1).trace
        top.scatter(*target[:2000].T, s=2, color=style.TARGET, alpha=0.5)
        top.scatter(*trace[-1].T, s=2, color=style.END, alpha=0.5)
        top.set(title=title, xlim=BOX, ylim=BOX, aspect="equal", xticks=[], yticks=[])
        figures.draw_trajectories(bottom, trace, (*BOX, *BOX), "")
    return style.save(figure, path)


@style.styled
def draw_sensitivity(path: Path, curves: dict[str, dict]) -> Path:
    """Median over seeds, with their range, against the step size of each method."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for ax, name in zip(axes, ("w2", "chamfer"), strict=True):
        for title, by_scale in curves.items():
            values = np.array([[f[name] for f in by_scale[s]] for s in SCALES])
            [line] = ax.plot(SCALES, np.median(values, 1), "o-", markersize=3, label=title)
            ax.fill_between(SCALES, values.min(1), values.max(1), color=line.get_color(), alpha=0.2)
        ax.set(xscale="log", yscale="log", xlabel="step size, of the configured one", ylabel=name)
        ax.grid()
    axes[0].legend()
    return style.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/table1"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num", type=int, default=10_000, help="points of each cloud")
    parser.add_argument("flags", nargs="*", help="further --config.…=… for every run, after --")
    args = parser.parse_args()
    workdir, seeds = args.workdir.resolve(), range(args.seeds)
    workdir.mkdir(parents=True, exist_ok=True)
    runs = {}
    for title in (*ENERGIES, "FM"):
        for seed in seeds:
            two_moons.run(workdir, title, seed, args.flags)
        runs[title] = [Run(folder(workdir, title, seed)) for seed in seeds]

    samplers = {}
    for title, (section, _) in SAMPLERS.items():
        samplers[title] = [judge(run, section, args.num) for run in runs["EqM"]]
        print(title, {c: [f.get(c) for f in samplers[title]] for c in COLUMNS}, flush=True)
    target = points(runs["EqM"][0], rng.stream(0, "landscape"), 20_000)
    tree = cKDTree(target)
    knowledge = {title: [knows_distance(run, tree) for run in runs[title]] for title in ENERGIES}
    curves = {}
    for title, section in SWEPT.items():
        judged = lambda scale, title=title, section=section: [
            judge(run, section, args.num, scale) for run in runs[title]
        ]
        curves[title] = {scale: judged(scale) for scale in SCALES}
        print(title, {s: [f["w2"] for f in curves[title][s]] for s in SCALES}, flush=True)

    text = "\n".join([of_samplers(samplers), of_distance(knowledge), of_sensitivity(curves)])
    (workdir / "energy_landscape.md").write_text(text)
    found = {"samplers": samplers, "distance": knowledge, "sensitivity": curves}
    (workdir / "energy_landscape.json").write_text(json.dumps(found, indent=2))
    first = {title: runs[title][0] for title in ENERGIES}
    print(text)
    print(draw_landscapes(workdir / "landscapes.png", first, target, tree))
    print(draw_samplers(workdir / "energy_samplers.png", runs["EqM"][0], target))
    print(draw_sensitivity(workdir / "sensitivity.png", curves))


if __name__ == "__main__":
    main()
