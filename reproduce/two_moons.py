"""Distance Marching's Table 1, its ablations and a picture of four methods side by side.

    python reproduce/two_moons.py --workdir=runs/table1 --seeds=3

Runs the program once for each row and seed (finished runs are not run again), then writes
table.md and side_by_side.png into the workdir. More than an hour on 2 CPU cores, of which the
assignments and Sinkhorn iterations take most; `--only` chooses rows.
"""

import argparse
from pathlib import Path

import numpy as np
from common import Run, folder, train

from genfield import rng
from genfield.figures import run as figures

ROWS = {  # title: (config, overrides, the paper's W2 / HD / CD)
    "Distance Marching": ("distance_marching_two_moons.py", [], (1.435, 0.605, 0.005)),
    "FM": ("flow_matching_two_moons.py", [], (0.577, 1.337, 0.026)),
    "OT-CFM": ("flow_matching_two_moons.py:ot", [], (0.218, 1.233, 0.019)),
    "SB-CFM": ("flow_matching_two_moons.py:sb", [], (0.218, 1.807, 0.028)),
    "Action Matching": ("action_matching_two_moons.py", [], (0.581, 2.154, 0.140)),
    "Action Matching, Swish": ("action_matching_two_moons.py:swish", [], (0.442, 1.719, 0.033)),
    "Energy Matching, first stage": (
        "equilibrium_matching_two_moons.py:energy_matching",
        [],
        (0.523, 1.279, 0.031),
    ),
    "EqM": ("equilibrium_matching_two_moons.py", [], (1.433, 2.034, 0.260)),
    "EqM without rematching": (
        "equilibrium_matching_two_moons.py",
        ["--config.rematching.name=none"],
        None,
    ),
    "DM without the eikonal loss": (
        "distance_marching_two_moons.py",
        ["--config.loss.eikonal_weight=0.0"],
        None,
    ),
    "DM without rematching": (
        "distance_marching_two_moons.py",
        ["--config.rematching.name=none"],
        None,
    ),
}
SHOWN = ("FM", "OT-CFM", "EqM", "Distance Marching")
COLUMNS = ("w2", "hausdorff", "chamfer", "stray_999", "acceptance", "nfe")


def run(workdir: Path, title: str, seed: int, flags: list[str]) -> dict:
    """Trains one row with one seed, unless it is done; its metrics."""
    config, overrides, _ = ROWS[title]
    return train(folder(workdir, title, seed), title, seed, config, [*overrides, *flags])


def table(results: dict[str, list[dict]]) -> str:
    """Markdown: each figure as median over seeds (smallest to largest)."""
    lines = ["| method | seeds | " + " | ".join(COLUMNS) + " | paper (W2 / HD / CD) |"]
    lines.append("|" + " --- |" * (len(COLUMNS) + 3))
    for title, runs in results.items():
        cells = []
        for name in COLUMNS:
            values = [r[name] for r in runs if name in r]
            if not values:
                cells.append("-")
            elif min(values) == max(values):
                cells.append(f"{values[0]:.4g}")
            else:
                middle = np.median(values)
                cells.append(f"{middle:.3g} ({min(values):.3g} to {max(values):.3g})")
        paper = ROWS[title][2]
        shown = " / ".join(f"{v:g}" for v in paper) if paper else "-"
        lines.append(f"| {title} | {len(runs)} | " + " | ".join(cells) + f" | {shown} |")
    return "\n".join(lines) + "\n"


def column(run: Run) -> dict:
    """The field and the trajectories of a finished run, for the picture."""
    clock = 0.5 if run.exp.objective.clock else None
    descend = run.exp.objective.method.teaches == "gradient"
    trace = run.draw(None, 2_000, trace=1).trace
    return dict(field=run.field, descend=descend, t=clock, trace=trace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/table1"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("flags", nargs="*", help="further --config.…=… for every run, after --")
    args = parser.parse_args()
    workdir = args.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    results = {}
    for title in args.only:
        results[title] = [run(workdir, title, seed, args.flags) for seed in range(args.seeds)]
        (workdir / "table.md").write_text(table(results))
    print(table(results))
    if set(SHOWN) <= set(args.only):
        runs = {title: Run(folder(workdir, title, 0)) for title in SHOWN}
        columns = {title: column(run) for title, run in runs.items()}
        target = np.asarray(runs["FM"].exp.data.draw(rng.stream(1, "target"), 4_000))
        print(figures.side_by_side(workdir / "side_by_side.png", columns, target))


if __name__ == "__main__":
    main()
