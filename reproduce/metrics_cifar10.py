"""How Fréchet distance and KID answer to known damage, on real CIFAR-10: docs/metrics.md.

    python reproduce/metrics_cifar10.py --path=cifar10.tar.xz [--features=inception_v3] [--out=…]

Train half against train half is the floor; then test images, and test images with noise, blur, one
class only, grey. Features are kept in --out: a second start goes on where the first stopped.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from genfield import configuration, data
from genfield.data import sets
from genfield.machine import logbook, sharding
from genfield.metrics import frechet, images, kernel, known

NOISE = (0.02, 0.05, 0.1, 0.2)  # standard deviation, of pixels in [-1, 1]
BLUR = (0.5, 1.0, 2.0)  # standard deviation of a Gaussian, in pixels
SPLITS = 3  # of the images of a case, each measured by itself
SUBSETS = 30  # of the kernel distance


def noisy(scale: float) -> Callable:
    def damage(levels: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).standard_normal(levels.shape, np.float32)
        return data.to_uint8(data.to_unit(levels) + np.float32(scale) * noise)

    return damage


def blurred(scale: float) -> Callable:
    def damage(levels: np.ndarray) -> np.ndarray:
        smooth = ndimage.gaussian_filter(data.to_unit(levels), (0, scale, scale, 0), mode="nearest")
        return data.to_uint8(smooth)

    return damage


def faded(levels: np.ndarray) -> np.ndarray:
    return data.to_uint8(0.5 * data.to_unit(levels))


def cases(test: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> images whose features are needed."""
    damages = {f"noise {s}": noisy(s) for s in NOISE} | {f"blur {s}": blurred(s) for s in BLUR}
    damages |= {"faded": faded}
    return {name: damage(test) for name, damage in damages.items()}


def make_extract(judge: images.Judge, folder: Path) -> Callable:
    """extract(name, levels) -> pool features [N, D], from the folder where they are there."""

    def extract(name: str, levels: np.ndarray) -> np.ndarray:
        file = folder / f"{judge.network.name}_{judge.resize}_{name.replace(' ', '_')}.npy"
        if file.exists() and len(stored := np.load(file)) == len(levels):
            return stored
        of = sets.ImageSet(name, "", len(levels), levels.shape[1:], lambda rows: levels[rows])
        progress = logbook.Progress(name, len(levels), unit="images")
        blocks = images.blocks(of, judge.mesh, judge.batch_size)
        out = images.statistics(judge, blocks, on_block=progress.update).features["pool"]
        np.save(file, out)
        return out

    return extract


def distances(parts: list[np.ndarray], reference: np.ndarray, size: int) -> dict:
    """Both distances of each part from the reference: mean and standard deviation over parts."""
    of = frechet.moments(reference)
    rows = {"frechet": [], "kernel": []}
    for part in parts:
        rows["frechet"].append(frechet.frechet_distance(frechet.moments(part), of))
        rows["kernel"].append(
            kernel.kernel_distance(part, reference, num_subsets=SUBSETS, subset_size=size)[0]
        )
    return {name: (float(np.mean(v)), float(np.std(v, ddof=1))) for name, v in rows.items()} | {
        "count": len(parts[0])
    }


def measure(args) -> dict:
    """Every row of the table."""
    section = configuration.base().evaluate
    section.update(features=args.features, resize=args.resize, features_seed=args.features_seed)
    mesh = sharding.make_mesh(configuration.base().mesh)
    judge = images.create_judge(section, mesh, [known()["kid"]])
    fields = {"name": "images", "path": args.path, "labels": True, "cache": args.cache}
    dataset = data.create(fields, batch_size=1, seed=0, log=logbook.say)
    train, test = (dataset.examples[s].gather(np.arange(n)) for s, n in dataset.sizes.items())
    rng, folder = np.random.default_rng(0), Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    extract = make_extract(judge, folder)
    all_train = rng.permutation(len(train["x1"]))[: args.train]
    chosen = rng.permutation(len(test["x1"]))[: args.num]
    reference = extract("train", train["x1"][all_train])
    clean = extract("test", test["x1"][chosen])
    labels, size = test["label"][chosen], min(1000, args.num // SPLITS)
    split = lambda features: np.array_split(features, SPLITS)
    rows = {}
    halves = [rng.permutation(len(reference)) for _ in range(SPLITS)]
    cut = len(reference) // 2
    floors = [distances([reference[h[:cut]]] * 2, reference[h[cut:]], size) for h in halves]
    rows["train half / train half"] = {
        name: (float(np.mean(v)), float(np.std(v, ddof=1)))
        for name in ("frechet", "kernel")
        for v in [[floor[name][0] for floor in floors]]
    } | {"count": cut}
    rows["test"] = distances(split(clean), reference, size)
    for name, levels in cases(test["x1"][chosen]).items():
        rows[name] = distances(split(extract(name, levels)), reference, size)
    grey = extract("grey", np.full((64, *dataset.shape), 128, np.uint8))
    half = [np.where(np.arange(len(p))[:, None] % 2, p, grey[:1]) for p in split(clean)]
    rows["every other image grey"] = distances(half, reference, size)
    few = min(np.bincount(labels))
    same = [rng.permutation(len(clean))[:few] for _ in range(10)]
    rows[f"test, {few} images"] = distances([clean[s] for s in same], reference, size)
    classes = [clean[labels == c][:few] for c in range(10)]
    rows[f"one class, {few} images"] = distances(classes, reference, size)
    return {"features": judge.network.name, "hash": judge.network.hash, "resize": judge.resize} | {
        "label": images.label(judge.network), "reference": len(reference), "rows": rows
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="CIFAR-10: a folder or archive")
    parser.add_argument("--cache", help="folder of decoded images")
    parser.add_argument("--out", default="runs/metrics_cifar10")
    parser.add_argument("--features", default="efficientnet_lite0")
    parser.add_argument("--features_seed", type=int, help="random weights")
    parser.add_argument("--resize", default="tf1_bilinear")
    parser.add_argument("--num", type=int, default=6000, help="test images")
    parser.add_argument("--train", type=int, default=50_000, help="training images")
    args = parser.parse_args()
    result = measure(args)
    name = f"{result['features']}_{result['resize']}.json"
    (Path(args.out) / name).write_text(json.dumps(result, indent=2))
    figure = lambda pair, digits: f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"
    print("\n| images | N | Fréchet distance | kernel distance × 1000 |\n|---|---|---|---|")
    for name, row in result["rows"].items():
        kernel_1000 = tuple(1000 * v for v in row["kernel"])
        print(f"| {name} | {row['count']:,} | {figure(row['frechet'], 3)} | "
              f"{figure(kernel_1000, 2)} |")  # fmt: skip


if __name__ == "__main__":
    main()
