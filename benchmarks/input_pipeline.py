"""The input pipeline alone, beside what a train step of the small U-Net takes in.

    python benchmarks/input_pipeline.py [--path images.npz] [--rounds 6] [--json out.json]

Generated data unless --path names some; see benchmarks/README.md.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import rounds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield import data  # noqa: E402
from genfield.errors import UserError  # noqa: E402
from genfield.machine import sharding  # noqa: E402
from genfield.program import config_io, experiment  # noqa: E402

CONSUMER = "train step, small U-Net"
MAX_THREADS = 16  # of the pipeline, which prepares two batches a thread ahead


def open_feed(path: Path, batch_size: int, **options) -> Iterator[dict]:
    """The training batches of the images at a path, with flips."""
    section = {"name": "images", "path": str(path), "flip": True, **options}
    return data.create(section, batch_size=batch_size, seed=0).train(0)


def pull(batches: Iterator[dict], seconds: float) -> tuple[float, int]:
    """Takes batches for about that long, after those that were prepared while others ran."""
    for _ in range(2 * min(MAX_THREADS, os.cpu_count() or 1) + 1):
        next(batches)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        count += len(next(batches)["x1"])
    return time.perf_counter() - begun, count


def make_trainer(path: Path, workdir: Path, batch_size: int) -> Callable:
    """seconds -> (seconds, examples): steps of the small U-Net, all on one batch."""
    config = config_io.load(str(ROOT / "configs" / "flow_matching_cifar10.py:small"))
    config.data.path, config.batch_size = str(path), batch_size
    exp = experiment.prepare(config, workdir)
    batches = exp.data.train(0)
    batch = sharding.put_batch(next(batches), exp.mesh)
    batches.close()
    step, state = experiment.jit_train_step(exp), exp.init()

    def run(seconds: float) -> tuple[float, int]:
        nonlocal state
        count, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            count += batch_size
        return time.perf_counter() - begun, count

    run(1e-3)  # compiles
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, help="images of your own, measured as well")
    parser.add_argument("--size", type=int, help="side that those of --path are cropped to")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000, help="in the generated .npz")
    parser.add_argument("--jpegs", type=int, default=2_000, help="in each generated folder")
    parser.add_argument("--rounds", type=int, default=6, help="of all pipelines in turn")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one of them in a round")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if min(args.batch, args.rounds) < 1 or args.seconds <= 0:
        parser.error("--rounds and --batch must be at least 1, --seconds positive")
    if args.images < args.batch or args.jpegs * 0.9 < args.batch:
        parser.error("--images and 0.9 x --jpegs must be at least --batch")
    where = rounds.machine()
    print(rounds.describe(where) + "\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder, size = Path(folder), args.batch
        arrays = rounds.write_images(folder / "images.npz", args.images)
        sources = {f"in memory, {args.images:,} of 32x32": (arrays, {})}
        for side in (32, 256):
            name = f"JPEG on demand, {side}x{side}" + (" to 32x32" if side != 32 else "")
            jpegs = rounds.write_jpegs(folder / str(side), args.jpegs, side)
            sources[name] = (jpegs, {"in_memory": False, "size": 32})
        if args.path:
            sources[args.path.name] = (args.path, {"size": args.size} if args.size else {})
        feeds = {name: open_feed(p, size, **options) for name, (p, options) in sources.items()}
        train = make_trainer(arrays, folder, size)
        candidates = {name: lambda b=b: pull(b, args.seconds) for name, b in feeds.items()}
        candidates[CONSUMER] = lambda: train(args.seconds)
        rates = rounds.interleave(candidates, args.rounds)
        for batches in feeds.values():
            batches.close()
    ratios = {name: rate / rates[CONSUMER] for name, rate in rates.items()}
    rows = [
        [name, rounds.spread(rate), rounds.spread(ratios[name])] for name, rate in rates.items()
    ]
    rows[-1][-1] = "1"
    print(f"batch {size}\n")
    print(rounds.table(["source", "images/s", "over what the train step takes"], rows))
    if args.json:
        summary = rounds.summary
        cases = {
            name: dict(images_per_second=summary(rates[name]), ratio=summary(ratios[name]))
            for name in rates
        }
        content = {"machine": where, "batch": size, "cases": cases}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
