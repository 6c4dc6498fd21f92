"""How fast noises are matched to samples, side by side in one run.

    python benchmarks/couplings.py [--sizes=100,1000,10000] [--data=cifar10_jpeg.tar.xz]

Greedy matching (sequential and parallel) against SciPy's Hungarian algorithm for n pairs of
dimension 3,072, with and without the matrix of distances, which all need; then a match set's share
of the training time that it feeds, with the small CIFAR-10 U-Net (--net=medium or full on a GPU).
Uniform images stand in for CIFAR-10 unless --data names it; what matching and the Hungarian
algorithm take depends on the data, so quote real ones. Writes couplings.json.
"""

import argparse
import functools
import importlib
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rounds
from scipy.optimize import linear_sum_assignment

from genfield import couplings, data
from genfield.distances import squared_distances
from genfield.program import config_io, experiment, match_sets

GREEDY = importlib.import_module("genfield.couplings.greedy")
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "flow_matching_cifar10.py"


def samples(path: str | None, cache: str | None, n: int) -> np.ndarray:
    """Images as flat float32 [n, 3072] in [-1, 1]."""
    if path is None:
        levels = np.random.default_rng(0).integers(0, 256, (n, 3072), np.uint8)
    else:
        section = {"name": "images", "path": path, "cache": cache}
        examples = data.create(section, batch_size=1, seed=0).examples["train"]
        levels = examples.gather(np.arange(n))["x1"].reshape(n, -1)
    return data.to_unit(levels)


def candidates(x0, x1, hungarian: bool) -> dict:
    """By name, what to time: the matrix alone, and each way of matching from it."""
    distances = jax.jit(squared_distances)
    cost = jax.block_until_ready(distances(x1, x0))
    host = np.asarray(cost)
    ready = lambda run, *args: (
        lambda: rounds.timed(lambda: (jax.block_until_ready(run(*args)), len(x1))[1])
    )
    counts, taken = jnp.ones(len(x1), bool), jnp.zeros(len(x1), bool)
    in_turns, in_rounds = jax.jit(GREEDY._take_turns), jax.jit(GREEDY._take_rounds)
    whole = {m: jax.jit(functools.partial(couplings.greedy, method=m)) for m in METHODS}
    out = {
        "distances": ready(distances, x1, x0),
        "turns, beyond the distances": ready(in_turns, cost, taken, counts),
        "rounds, beyond the distances": ready(in_rounds, cost, taken, counts),
        **{f"greedy, {m}, in all": ready(run, x0, x1) for m, run in whole.items()},
    }
    if hungarian:
        solve = lambda: (linear_sum_assignment(host), len(x1))[1]
        out["Hungarian, beyond the distances"] = lambda: rounds.timed(solve)
    for name in out:  # compile
        if "Hungarian" not in name:
            out[name]()
    return out


METHODS = ("sequential", "parallel")


def compare(n: int, path, cache, count: int, hungarian: bool) -> dict:
    """Seconds of each candidate at one size, medians over rounds, and ratios within a round."""
    x0 = jax.random.normal(jax.random.key(0), (n, 3072))
    x1 = jnp.asarray(samples(path, cache, n))
    found = rounds.interleave(candidates(x0, x1, hungarian), count)
    seconds = {name: n / rates for name, rates in found.items()}
    report = {"seconds": {name: rounds.summary(s) for name, s in seconds.items()}}
    if hungarian:
        base = seconds["Hungarian, beyond the distances"]
        ways = [name for name in seconds if name.startswith(("turns", "rounds"))]
        report["times faster than the Hungarian"] = {
            name: rounds.summary(base / seconds[name]) for name in ways
        }
    return report


def share_of_training(net: str, match_size: int, batch_size: int, steps: int) -> dict:
    """Seconds of a match set, matching and distances, and of the training that it feeds."""
    config = config_io.load(f"{CONFIG}:{net}")
    config.batch_size, config.match_size = batch_size, match_size
    config.coupling.name = "greedy"
    config.evaluate.metrics, config.checkpoint.best_metric = ("heldout_loss",), "loss"
    with tempfile.TemporaryDirectory() as folder:
        config.data.path = str(
            rounds.write_images(Path(folder) / "images.npz", max(match_size, batch_size))
        )
        exp = experiment.prepare(config, Path(folder) / "run")
        match = match_sets.make_matcher(exp)
        size = match_size // batch_size
        source = match_sets._source(exp, 0)
        parts = [next(source) for _ in range(size)]
        jax.block_until_ready(match(np.int32(0), parts))
        matched, _ = rounds.timed(lambda: (jax.block_until_ready(match(np.int32(0), parts)), 0)[1])
        step, state = experiment.jit_train_step(exp), exp.init()
        set_of = match(np.int32(0), parts)

        def train(num: int) -> None:
            nonlocal state
            for i in range(num):
                batch = {"step": np.int32(state.step)} | match_sets._step_of(set_of, i % size)
                state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))

        train(2)
        trained, _ = rounds.timed(lambda: (train(steps), 0)[1])
    a_set = trained / steps * size
    return dict(
        net=net,
        match_size=match_size,
        batch_size=batch_size,
        matching=matched,
        training=a_set,
        share=matched / (matched + a_set),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="100,1000,10000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hungarian_up_to", type=int, default=10_000)
    parser.add_argument("--data", help="CIFAR-10: a folder, an archive or an .npz")
    parser.add_argument("--cache", help="a folder for its decoded images")
    parser.add_argument("--net", default="small", choices=("small", "medium", "full"))
    parser.add_argument("--match_size", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("couplings.json"))
    args = parser.parse_args()
    report = {"machine": rounds.machine(), "data": args.data or "uniform images"}
    print(rounds.describe(report["machine"]), flush=True)
    for n in map(int, args.sizes.split(",")):
        count = args.rounds if n < 10_000 else 1
        report[str(n)] = compare(n, args.data, args.cache, count, n <= args.hungarian_up_to)
        rows = [[name, f"{s['median']:.4g}"] for name, s in report[str(n)]["seconds"].items()]
        for name, s in report[str(n)].get("times faster than the Hungarian", {}).items():
            rows.append([f"Hungarian / {name}", rounds.spread(s["rounds"])])
        print(rounds.table([f"n = {n:,}", "seconds"], rows), flush=True)
        args.out.write_text(json.dumps(report, indent=2))
    share = share_of_training(args.net, args.match_size, args.batch_size, args.steps)
    report["share of training"] = share
    args.out.write_text(json.dumps(report, indent=2))
    print(
        rounds.table(
            list(share), [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in share.values()]]
        )
    )


if __name__ == "__main__":
    main()
