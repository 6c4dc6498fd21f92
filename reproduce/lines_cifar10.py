"""Lines Matching on CIFAR-10 in its stages (Table 3, reduced): teacher, pairs, lines, adversary.

    python reproduce/lines_cifar10.py --data=cifar10.tar.xz --workdir=runs/lines_cifar10 \\
        [--size=small|medium] [--seeds=1] [-- flags]

`small` is 16x16, for a CPU, hours; `medium` is for one GPU; neither was timed. The Fréchet distance
of 1,000 samples (`--num`) to 5,000 held-out images, over three sampling seeds, in one, two and
three evaluations, and the teacher's. What is finished is not run again. Writes
lines_cifar10.{md,json} and .png: the same noises through all of them. Further --config.…=… for
every run go behind --.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from common import ROOT, Run, folder, markdown, train

from genfield.data.pixels import to_uint8
from genfield.figures import run as figures
from genfield.program import config_io

# Title: (variant of lines_cifar10.py, what its parameters start from); the last two are controls,
# as many further steps without an adversary.
STAGES = {
    "L2": ("l2", "teacher"),
    "perceptual": ("perceptual", "teacher"),
    "adversarial": ("adversarial", "perceptual"),
    "adversarial, SOT": ("adversarial,sot", "perceptual"),
    "perceptual, longer": ("perceptual", "perceptual"),
    "perceptual, SOT": ("perceptual,sot", "perceptual"),
}
FEW = {"(0)": (0,), "(0, 1)": (0, 1), "(0, 3, 5)": (0, 3, 5)}
HELDOUT = 5_000
SHOWN = 12
PAIRS = {"small": 6_000, "medium": 50_000}


def program(target: Path, *flags: str) -> None:
    """Runs the program on a workdir."""
    command = [sys.executable, "-m", "genfield.main", f"--workdir={target}", *flags]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def reference(teacher: Path, path: Path) -> Path:
    """An .npz of held-out images, drawn at random."""
    if not path.exists():
        heldout = Run(teacher).exp.data.examples["test"]
        rows = np.random.default_rng(0).permutation(heldout.size)[:HELDOUT]
        np.savez(path, arr_0=heldout.gather(np.sort(rows))["x1"])
    return path


def measure(target: Path, name: str, against: Path, num: int, *flags: str) -> dict:
    """A Fréchet distance: its name, value, standard deviation over sampling seeds and NFE."""
    kept = target / f"card_{name}.json"
    if not kept.exists():
        metrics = [f"--config.evaluate.num_samples={num}", "--config.evaluate.repeats=3"]
        metrics += [f"--config.evaluate.reference={against}"]
        metrics += ["--config.evaluate.metrics=('frechet',)", "--config.evaluate.figures=False"]
        program(target, "--mode=evaluate", *metrics, *flags)
        (target / "card.json").replace(kept)
    found = json.loads(kept.read_text())["metrics"]
    [figure] = [key for key in found if key.startswith(("fid", "fd_"))]
    return {"figure": figure, **found[figure], "nfe": found["nfe"]["value"]}


def stages(workdir: Path, args, seed: int) -> dict:
    """Trains and measures everything of a seed: {title: {levels: figures}}."""
    size, num, flags = args.size, args.num, args.flags
    images = {"path": args.data.resolve()}
    if args.cache:
        images["cache"] = args.cache.resolve()
    at = lambda section: [f"--config.{section}.{name}={value}" for name, value in images.items()]
    runs = {"teacher": folder(workdir, "teacher", seed)}
    given = [*at("data"), *flags]
    train(runs["teacher"], "teacher", seed, f"edm_cifar10.py:{size}", given)
    pairs = runs["teacher"] / "pairs" / "all"
    if not (pairs / "manifest.json").exists():
        print(f"pairs, seed {seed}", flush=True)
        number = f"--config.sample.num={PAIRS[size]}"
        program(runs["teacher"], "--mode=pairs", "--config.sample.name=all", number, *flags)
    against = reference(runs["teacher"], workdir / "reference.npz")
    found = {"teacher": {"all": measure(runs["teacher"], "all", against, num, *flags)}}
    further = config_io.load(str(ROOT / f"configs/lines_cifar10.py:{size},adversarial"))
    for title, (variant, begin) in STAGES.items():
        runs[title] = folder(workdir, title, seed)
        given = [f"--config.data.path={pairs}", *at("data.real")]
        given += [f"--config.initial_parameters={runs[begin]}"]
        if begin != "teacher":
            given += [f"--config.train.steps={further.train.steps}"]
        train(runs[title], title, seed, f"lines_cifar10.py:{size},{variant}", [*given, *flags])
        found[title] = {}
        for name, indices in FEW.items():
            levels, tail = f"--config.sampler.indices={indices}", "_".join(map(str, indices))
            found[title][name] = measure(runs[title], tail, against, num, levels, *flags)
    if seed == 0:
        picture(workdir, runs)
    return found


def picture(workdir: Path, runs: dict[str, Path]) -> None:
    """The same noises through the teacher and, in one evaluation each, the students."""
    rows = []
    for target in runs.values():
        run = Run(target)
        section = run.config.sampler.to_dict()
        if section["name"] == "multistep":
            section["indices"] = (0,)
        noise = jax.random.normal(jax.random.key(0), (SHOWN, *run.exp.data.shape))
        exp = run.by(section)
        x = exp.sampler(jax.random.key(1), run.field, noise, None).x
        rows.append(to_uint8(np.asarray(x)))
    print(figures.image_grid(workdir / "lines_cifar10.png", np.concatenate(rows), columns=SHOWN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder, an archive or an .npz")
    parser.add_argument("--cache", type=Path, help="a folder that keeps the decoded images")
    parser.add_argument("--workdir", type=Path, default=Path("runs/lines_cifar10"))
    parser.add_argument("--size", choices=("medium", "small"), default="small")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--num", type=int, default=1_000, help="samples of a measurement")
    parser.add_argument("flags", nargs="*", help="further --config.…=… for every run, after --")
    args = parser.parse_args()
    workdir = args.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    found = [stages(workdir, args, seed) for seed in range(args.seeds)]
    (workdir / "lines_cifar10.json").write_text(json.dumps(found, indent=2))
    rows = []
    for title in found[0]:
        for levels in found[0][title]:
            runs = [seed[title][levels] for seed in found]
            values = ", ".join(f"{run['value']:.1f} ± {run['sd']:.1f}" for run in runs)
            rows.append([title, levels, f"{runs[0]['nfe']:g}", values])
    figure = found[0]["teacher"]["all"]["figure"]
    text = markdown(["stage", "levels", "NFE", f"{figure}, a seed each"], rows)
    (workdir / "lines_cifar10.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
