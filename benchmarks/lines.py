"""The cost of Lines Matching over that of its teacher, time and memory, and of drawing its pairs.

    python benchmarks/lines.py [--size small] [--batch 32] [--pixels 64] [--rounds 6]

The same network, batch and optimiser for all, in one run. Perceptual distance and discriminator
look at images of --pixels (0: as they are; the paper's are 64 at first, then 224) by
EfficientNet-Lite0; --vgg adds VGG-16, whose weights may be random: their values cost nothing.
"""

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import rounds
import steps
from steps import ROOT

from genfield.errors import UserError
from genfield.program import config_io, experiment, generate


def write_pairs(folder: Path, count: int, side: int) -> Path:
    """A folder as --mode=pairs leaves it, of normal numbers."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in ("x0", "x1"):
        np.save(folder / f"{name}.npy", rng.standard_normal((count, side, side, 3), np.float32))
    settings = {"num_classes": 0, "class_names": [], "pixels": True}
    (folder / "manifest.json").write_text(json.dumps({"num": count, "settings": settings}))
    return folder


def variants(args) -> dict[str, dict | None]:
    """By name, fields of config.loss on pairs; None: the teacher's own step."""
    size = args.pixels or None
    distance = {"name": "perceptual", "network": "efficientnet_lite0", "size": size}
    found = {
        "EDM": None,
        "LMM, L2": {"distance": {"name": "squared_l2"}},
        "LMM, perceptual": {"distance": distance},
        "LMM, perceptual, adversarial": {
            "name": "adversarial_lines_matching",
            "distance": distance,
            "adversary": {"name": "projected", "size": size},
        },
    }
    if args.vgg:
        vgg = {**distance, "network": "vgg16", "seed": 0}
        found["LMM, VGG-16 (random weights)"] = {"distance": vgg}
    return found


def start(loss: dict | None, args, folder: Path) -> steps.Step:
    """The compiled step of a variant."""
    config = config_io.load(str(ROOT / "configs" / f"edm_cifar10.py:{args.size}"))
    images = config.data.copy_and_resolve_references()
    images.path, images.labels = str(folder / "images.npz"), False
    config.data = images
    if loss is not None:
        config.loss = {"name": "lines_matching", **loss}
        config.time = {"name": "schedule"}
        config.data = {"name": "pairs", "path": str(folder / "pairs"), "labels": False}
        config.augmentation = 0.0
        if config.loss.name.startswith("adversarial"):
            config.data.real = images
    config.batch_size = args.batch
    return steps.prepare(config, folder / "run")


def pair_throughput(args, folder: Path) -> dict[str, float]:
    """Pairs a second of the teacher's sampler, and its evaluations of each."""
    config = config_io.load(str(ROOT / "configs" / f"edm_cifar10.py:{args.size}"))
    config.data.path, config.data.labels = str(folder / "images.npz"), False
    config.batch_size = config.sample.batch_size = args.batch
    exp = experiment.prepare(config, folder / "run")
    run = generate.make_generator(exp, levels=False, starts=True)
    params = jax.device_put(exp.init().params["field"])
    params = {"field": params}
    draw = lambda: jax.block_until_ready(run(params, 0, np.arange(args.batch)))
    out, _ = draw()
    seconds = [rounds.timed(lambda: draw() and args.batch)[0] for _ in range(args.rounds)]
    return {"pairs_per_second": args.batch / float(np.median(seconds)), "nfe": int(out.nfe[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("full", "medium", "small"), default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pixels", type=int, default=64, help="0: images as they are")
    parser.add_argument("--vgg", action="store_true")
    parser.add_argument("--rounds", type=int, default=6, help="of all variants in turn")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the first in a round, about")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(rounds.describe(rounds.machine()), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        side = 16 if args.size == "small" else 32
        rounds.write_images(folder / "images.npz", 2 * args.batch, side)
        write_pairs(folder / "pairs", 2 * args.batch, side)
        make = {
            variant: functools.partial(start, loss, args, folder)
            for variant, loss in variants(args).items()
        }
        result = steps.compare(make, args.batch, args.rounds, args.seconds)
        print(steps.table(result))
        pairs = pair_throughput(args, folder)
    print(f"pairs: {pairs['pairs_per_second']:.3g} a second, {pairs['nfe']} evaluations each")
    steps.write(args.json, args, result | {"pairs": pairs})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
