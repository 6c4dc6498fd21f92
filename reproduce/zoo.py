"""Trains the models that come with the package, and writes their files, cards and pictures.

    python reproduce/zoo.py --workdir=runs/zoo [--only=digits/flow_matching,…]

Runs the program once for each model (finished runs are not run again), exports each into
genfield/pretrained/models/ with its card and its picture, and writes the table of docs/zoo.md.
About an hour and a half on two CPU cores. `--tables` writes the table alone.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import ROOT, markdown, train
from PIL import Image

from genfield import pretrained
from genfield.data import pixels
from genfield.distances import nearest
from genfield.features.weights import file_digest
from genfield.metrics import frechet
from genfield.pretrained import zoo
from genfield.program.open_run import open_run

SMALL = [  # half as wide as configs/shared.py has it, and as many examples in all
    *("--config.net.channels=16", "--config.batch_size=64", "--config.train.steps=3000"),
    *("--config.train.eval_every=0", "--config.checkpoint.every=1000"),
]
SHORT = ["--config.train.steps=8000"]
LINES = [*SHORT, "--config.evaluate.repeats=3"]
PAIRS = 40_000  # of noise and sample, which the lines join
SEEDS, SAMPLES = 3, 200  # of digits: sampling seeds, for the spread, and samples of each
COLORS, WIDTH = 128, 720  # of a picture
TABLE = "<!-- the table, by reproduce/zoo.py -->\n"


class Model(NamedTuple):
    """How a model is trained: config, overrides, and the model whose pairs it is shown."""

    config: str
    overrides: list[str]
    teacher: str | None = None


MODELS = {
    "digits/distance_marching": Model("distance_marching_digits.py", SMALL),
    "digits/equilibrium_matching": Model("equilibrium_matching_digits.py", SMALL),
    "digits/flow_matching": Model("flow_matching_digits.py", []),
    "two_moons/action_matching": Model("action_matching_two_moons.py:swish", SHORT),
    "two_moons/distance_marching": Model("distance_marching_two_moons.py", []),
    "two_moons/edm": Model("edm_two_moons.py", []),
    "two_moons/equilibrium_matching": Model("equilibrium_matching_two_moons.py", []),
    "two_moons/flow_matching": Model("flow_matching_two_moons.py", []),
    "two_moons/flux_matching": Model(
        "flux_matching_two_moons.py:smoothed", ["--config.train.steps=2500"]
    ),
    "two_moons/greedy_matching": Model(
        "flow_matching_two_moons.py", [*SHORT, "--config.coupling.name=greedy"]
    ),
    "two_moons/lines": Model("lines_two_moons.py", LINES, teacher="two_moons/edm"),
    "two_moons/rectified_flow": Model("lines_two_moons.py:flow", LINES, teacher="two_moons/edm"),
}


def made(workdir: Path, name: str) -> Path:
    """The workdir of a model's run, trained now if it is not."""
    model, target = MODELS[name], workdir / name
    flags = list(model.overrides)
    if model.teacher:
        flags.append(f"--config.data.path={pairs(workdir, model.teacher)}")
    train(target, name, 0, model.config, flags)
    return target


def pairs(workdir: Path, teacher: str) -> Path:
    """The folder with pairs of a teacher, drawn now if they are not."""
    run = made(workdir, teacher)
    if not list(run.glob("pairs/step_*/")):
        command = [sys.executable, "-m", "genfield.main", f"--workdir={run}", "--mode=pairs"]
        subprocess.run([*command, f"--config.sample.num={PAIRS}"], cwd=ROOT, check=True)
    return max(run.glob("pairs/step_*/"))


def of_pixels(folder: Path) -> dict[str, dict]:
    """What samples of images are worth, as a card holds it: the mean and deviation over seeds.

    "frechet_pixels" is the Fréchet distance of the pixels of SAMPLES to the training images;
    "right_class" the share whose nearest training image has the class that was asked for.
    The same of the held-out images, which are fewer, stands beside it.
    """
    run = open_run(folder)
    parts = {name: run.experiment.data.examples[name] for name in ("train", "test")}
    parts = {name: part.gather(np.arange(part.size)) for name, part in parts.items()}
    images, labels = pixels.to_unit(parts["train"]["x1"]), parts["train"]["label"]

    def judged(x: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
        moments = [frechet.moments(np.asarray(a).reshape(len(a), -1)) for a in (x, images)]
        near = np.asarray(nearest(x, images).index)[:, 0]
        return frechet.frechet_distance(*moments), float((labels[near] == classes).mean())

    draw = lambda seed: np.asarray(run.sample(SAMPLES, key=seed).x)
    asked = np.arange(SAMPLES) % run.experiment.data.num_classes
    found = np.array([judged(draw(seed), asked) for seed in range(1, SEEDS + 1)])
    rows = zip(("frechet_pixels", "right_class"), found.T, strict=True)
    out = {name: {"value": float(v.mean()), "sd": float(v.std(ddof=1))} for name, v in rows}
    held = judged(pixels.to_unit(parts["test"]["x1"]), parts["test"]["label"])
    return out | {f"{name}_heldout": {"value": v} for name, v in zip(out, held, strict=True)}


def picture(folder: Path, out: Path) -> None:
    """The run's samples, in few colours."""
    found = [*folder.glob("figures/level_sets.png"), *sorted(folder.glob("samples/step_*.png"))]
    with Image.open(found[-1]) as image:
        image = image.convert("RGB")
        if image.width > WIDTH:
            image = image.resize((WIDTH, round(image.height * WIDTH / image.width)))
        image.quantize(COLORS).save(out, optimize=True)


def keep(workdir: Path, name: str) -> None:
    """Writes the files of a model, of its finished run."""
    folder, file = made(workdir, name), zoo.MODELS / f"{name}{zoo.ENDING}"
    card = json.loads((folder / "card.json").read_text())
    model = MODELS[name]
    if model.teacher:
        card["config"]["data"]["path"] = f"pairs of {model.teacher}"
    if name.startswith("digits/"):
        card["metrics"] |= of_pixels(folder)
    file.unlink(missing_ok=True)
    pretrained.export(folder, file, kind="genfield")
    flags = " ".join(model.overrides)
    if model.teacher:
        drawn = pairs(workdir, model.teacher).relative_to(workdir)
        flags += f" --config.data.path=runs/zoo/{drawn}"
    head = {
        "name": name,
        "command": f"python -m genfield.main --config=configs/{model.config} {flags}".strip(),
        "sha256": file_digest(file),
        "bytes": file.stat().st_size,
        "parameters": pretrained.load(file).info.parameters,  # of the field alone
    }
    file.with_suffix(".json").write_text(json.dumps(head | card, indent=1) + "\n")
    picture(folder, file.with_suffix(".png"))


def table() -> str:
    """Markdown of all models."""
    rows = []
    for name in zoo.names():
        card = zoo.card(name)
        named = ("w2", "chamfer", "frechet_pixels", "right_class")
        shown = [_figure(key, card["metrics"][key]) for key in named if key in card["metrics"]]
        steps = _sampler(card["sampling"]["sampler"])
        count = f"{card['parameters']:,}"
        place = f"../genfield/pretrained/models/{name}.png"
        size, digest = f"{card['bytes'] / 1000:.0f} kB", f"`{card['sha256'][:16]}`"
        rows.append([f"[{name}]({place})", count, size, ", ".join(shown), steps, digest])
    head = ["model, picture", "parameters", "file", "metrics", "sampler, steps", "SHA-256"]
    return markdown(head, rows)


def _sampler(section: dict) -> str:
    """Its name and its steps, and those that follow it."""
    steps = len(section.get("indices", ())) or section["num_steps"]
    after = f", then {_sampler(section['then'])}" if section.get("then") else ""
    return f"{section['name']} {steps}{after}"


def _figure(name: str, found: dict) -> str:
    spread = f" ± {found['sd']:.2g}" if found.get("sd") is not None else ""
    return f"{name} {found['value']:.3g}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--only", default=",".join(MODELS), help="models, separated by commas")
    parser.add_argument("--tables", action="store_true", help="write the table alone")
    args = parser.parse_args()
    for name in () if args.tables else args.only.split(","):
        keep(args.workdir.resolve(), name)
        print(f"{name}: {zoo.place(name)}", flush=True)
    page = ROOT / "docs" / "zoo.md"
    before, after = page.read_text().split(TABLE)[::2]
    page.write_text(f"{before}{TABLE}{table()}{TABLE}{after}")


if __name__ == "__main__":
    main()
