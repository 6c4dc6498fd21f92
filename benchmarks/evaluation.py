"""Where the time of an evaluation goes: in the feature network, and outside it.

    python benchmarks/evaluation.py [--num 10000] [--reference 10000] [--network efficientnet_lite0]

Random images of CIFAR-10's size through every metric of `evaluate.metrics` that the network serves,
against a reference whose statistics are there; the images lie on disk as `--mode=sample` writes
them. A sampler's network, where there is one, only lowers the share of the rest.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import rounds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield import configuration  # noqa: E402
from genfield.data import sets  # noqa: E402
from genfield.machine import sharding  # noqa: E402
from genfield.metrics import images, known  # noqa: E402

METRICS = {
    "efficientnet_lite0": ("frechet", "kid", "precision_recall"),
    "inception_v3": tuple(n for n, metric in known().items() if metric.reads == "features"),
}


def clock(judge: images.Judge) -> tuple[images.Judge, list[float]]:
    """The judge with an `extract` that waits, and the seconds it has taken so far."""
    spent = [0.0]

    def extract(block):
        begun = time.perf_counter()
        out = jax.block_until_ready(judge.extract(block))
        spent[0] += time.perf_counter() - begun
        return out

    return judge._replace(extract=extract), spent


def reference_of(judge: images.Judge, count: int) -> images.Statistics:
    """Statistics of as many features as asked for; their values do not matter to the time."""
    rng, network = np.random.default_rng(1), judge.network
    shape = jax.ShapeDtypeStruct((1, network.size, network.size, 3), np.float32)
    dims = {k: v.shape[1] for k, v in jax.eval_shape(network.apply, network.params, shape).items()
            if v.ndim == 2}  # fmt: skip
    wanted = images.outputs_of(judge.metrics, "gaussians", reference=True)
    normal = lambda dim, n: rng.standard_normal((n, dim), np.float32)
    gaussians = {
        o: (np.zeros(dims[o]), np.cov(normal(dims[o], 3000), rowvar=False)) for o in wanted
    }
    kept = {"pool": normal(dims["pool"], count)}
    return images.Statistics(count, gaussians, kept)


def measure(args) -> dict:
    """Seconds of each part of one evaluation."""
    section = configuration.base().evaluate
    section.update(features=args.network, features_seed=0, batch_size=args.batch)
    mesh = sharding.make_mesh(configuration.base().mesh)
    judge, spent = clock(
        images.create_judge(section, mesh, [known()[n] for n in METRICS[args.network]])
    )
    reference = reference_of(judge, args.reference)
    levels = np.random.default_rng(0).integers(0, 256, (args.num, 32, 32, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.npz"
        np.savez(path, arr_0=levels)
        warm = images.blocks(sets.open_images(str(path)), mesh, args.batch)
        jax.block_until_ready(judge.extract(next(warm)[0]))  # compiled: it is not what is measured
        spent[0] = 0.0
        begun = time.perf_counter()
        of = sets.open_images(str(path))
        blocks = images.blocks(of, mesh, args.batch)
        statistics = images.statistics(judge, blocks)
        extracted = time.perf_counter()
        parts = {"network": spent[0], "reading and sums": extracted - begun - spent[0]}
        for metric in judge.metrics:
            start = time.perf_counter()
            images.compare(judge._replace(metrics=(metric,)), statistics, reference)
            parts[metric.name] = time.perf_counter() - start
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=METRICS, default="efficientnet_lite0")
    parser.add_argument("--num", type=int, default=10_000, help="images")
    parser.add_argument("--reference", type=int, default=10_000, help="features of the reference")
    parser.add_argument("--batch", type=int, default=64, help="images a device takes at once")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    where = rounds.machine()
    print(rounds.describe(where) + "\n", flush=True)
    parts = measure(args)
    total = sum(parts.values())
    rows = [[k, f"{v:.1f}", f"{100 * v / total:.1f}%"] for k, v in parts.items()]
    outside = 1 - parts["network"] / total
    rows.append(["all", f"{total:.1f}", ""])
    print(rounds.table(["part", "seconds", "share"], rows))
    print(f"\noutside the network: {100 * outside:.1f}% of {args.num:,} images "
          f"({args.num / parts['network']:.1f} features/s)")  # fmt: skip
    if args.json:
        content = {"machine": where, "num": args.num, "network": args.network, "seconds": parts}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
