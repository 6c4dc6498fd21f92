"""Distance Marching: does it help that the direction sees the distance? Three readings, by seeds.

    python reproduce/distance_input.py --workdir=runs/distance_input --seeds=3 [--cifar=FILE]

Tables 6 and 7 of the paper (arXiv:2602.02928) list a "distance input rescaling" under the network
of the direction. Read so, u(x) stands where the time stood (`net.distance_time_scale`); whether the
direction's losses train u on that way is not said. The readings: the direction does not see u, it
sees u without its gradient, and with it. On scikit-learn's digits, and with --cifar on CIFAR-10 at
16x16. Finished runs are not run again; one seed of all readings comes before the next. Writes
distance_input.{md,json} into the workdir. A digits run takes about two minutes of processor time,
one of CIFAR-10 some ten.

"error of u" is the median of |u / sqrt(r² + c0) - 1| over pairs of noise and held-out data at all
times, as `python -m genfield.study diagnose` measures it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from common import ROOT, folder, markdown, shown, train
from zoo import of_pixels

READINGS = {
    "not seen": ["--config.net.distance_time_scale=None"],
    "seen": ["--config.net.distance_time_scale=1.0"],
    "seen, trained through": [
        "--config.net.distance_time_scale=1.0",
        "--config.net.distance_time_gradient=True",
    ],
}
# 250 steps of 0.031, in a fifth of the evaluations.
FEWER_STEPS = ["--config.sampler.num_steps=50", "--config.sampler.step_size=0.146"]
DIGITS = [
    *("--config.net.channels=16", "--config.batch_size=64", "--config.train.steps=1000"),
    *("--config.ema.rate=0.99", "--config.train.eval_every=0", "--config.train.eval_samples=0"),
    *FEWER_STEPS,
]
CIFAR = [
    *("--config.data.size=16", "--config.train.steps=1000", "--config.train.eval_every=0"),
    *("--config.evaluate.metrics=('heldout_loss','frechet')", "--config.evaluate.num_samples=1000"),
    *FEWER_STEPS,
]
CONFIGS = {
    "digits": ("distance_marching_digits.py", DIGITS),
    "cifar": ("distance_marching_cifar10.py:small", CIFAR),
}
FIGURES = {
    "digits": ("frechet_pixels", "right_class", "loss", "error of u"),
    "cifar": ("frechet", "loss", "error of u"),
}


def error_of_u(target: Path) -> float:
    """The study's figure of a run, which is made once."""
    path = target / "studies" / "diagnose.json"
    if not path.exists():
        command = [sys.executable, "-m", "genfield.study", "diagnose", f"--workdir={target}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads(path.read_text())["figures"]["rows"][0]["distance_median"]


def measure(workdir: Path, data: str, reading: str, seed: int, more: list[str]) -> dict:
    """All figures of one run."""
    config, flags = CONFIGS[data]
    target = folder(workdir, f"{data} {reading}", seed)
    metrics = train(target, f"{data}, {reading}", seed, config, [*flags, *READINGS[reading], *more])
    found = {name: value for name, value in metrics.items() if name in FIGURES[data]}
    if data == "digits":
        found |= {name: values["value"] for name, values in _judged(target).items()}
    return found | {"error of u": error_of_u(target)}


def _judged(target: Path) -> dict:
    """Of a digits run's samples, once."""
    path = target / "judged.json"
    if not path.exists():
        path.write_text(json.dumps(of_pixels(target)))
    return json.loads(path.read_text())


def tables(figures: dict[str, list[dict]]) -> str:
    """Markdown of each kind of data: median over seeds (smallest to largest)."""
    parts = []
    for data in CONFIGS:
        rows = {reading: figures.get(f"{data}, {reading}", []) for reading in READINGS}
        if all(rows.values()):
            names = [name for name in FIGURES[data] if name in rows["seen"][0]]
            cells = [
                [r, *(shown([run[n] for run in runs]) for n in names)] for r, runs in rows.items()
            ]
            parts.append(f"{data}\n\n" + markdown(["the direction", *names], cells))
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cifar", help="an archive or folder of CIFAR-10")
    args = parser.parse_args()
    workdir = args.workdir.resolve()
    kinds = {"digits": []}
    if args.cifar:
        kinds["cifar"] = [f"--config.data.path={Path(args.cifar).resolve()}"]
    figures = {}
    for data, more in kinds.items():
        for seed in range(args.seeds):
            for reading in READINGS:
                runs = figures.setdefault(f"{data}, {reading}", [])
                runs.append(measure(workdir, data, reading, seed, more))
            (workdir / "distance_input.json").write_text(json.dumps(figures, indent=1))
            (workdir / "distance_input.md").write_text(tables(figures))
    print(tables(figures))


if __name__ == "__main__":
    main()
