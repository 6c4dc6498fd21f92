"""The cost of a Flux Matching step over that of stable-target denoising, time and memory.

    python benchmarks/flux.py [--size full] [--batch 32] [--rounds 6] [--json out.json] [--only …]

Same network, batch, optimiser and precision for all, in one run; the paper's figures (Table 1) are
2.9 to 4.1 times the time and 2.0 to 2.9 times the memory. "passes" counts one pass through the
network, forward or back, as one: 3 of a regression step, 7 of Flux Matching.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import side_by_side

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield import configuration, experiment  # noqa: E402
from genfield.errors import UserError  # noqa: E402
from genfield.losses import flux  # noqa: E402


def gradient_of_jvp(g, x, s, probes):
    """`flux._second_order` by reverse over forward mode: what most would write first."""

    def r(z, e):
        y, along = jax.jvp(g, (z,), (e,))
        return jnp.sum(e * along) + jnp.sum(y * s), y

    out, y = jax.grad(r, has_aux=True)(x, probes[0])
    return y, out


class Variant(NamedTuple):
    """A way to take the step."""

    passes: float
    loss: dict  # fields of config.loss
    net: dict = {}  # noqa: RUF012
    second_order: object = None  # in place of flux._second_order


def variants(batch: int) -> dict[str, Variant]:
    """By name; the first is what the others are compared with."""
    name = {"name": "flux_matching", "group_size": batch}
    half = {**name, "probed": 0.5}
    return {
        "DSM": Variant(3, {"name": "denoising", "stable_target": True, "group_size": batch}),
        "Flux": Variant(7, name),
        "Flux, gradient of jvp": Variant(7, name, second_order=gradient_of_jvp),
        "Flux, in four chunks": Variant(7, {**name, "chunk": batch // 4}),
        "Flux, half probed": Variant(5, half),
        "Flux, half probed, in four chunks": Variant(5, {**half, "chunk": batch // 8}),
        "Flux, quarter probed": Variant(4, {**name, "probed": 0.25}),
        "DSM, remat": Variant(4, {"name": "denoising", "stable_target": True}, {"remat": True}),
        "Flux, half probed, remat": Variant(6.5, half, {"remat": True}),
    }


def start(variant: Variant, args, data: Path, workdir: Path):
    """run(steps), and the bytes that the compiled step holds beside its arguments."""
    config = configuration.load(str(ROOT / "configs" / f"flux_matching_cifar10.py:{args.size}"))
    config = configuration.override(config, args.flags)
    config.batch_size, config.data.path = args.batch, str(data)
    config.loss = dict(variant.loss)
    config.net.update(dtype=args.dtype, **variant.net)
    kept = flux._second_order
    flux._second_order = variant.second_order or kept
    try:
        exp = experiment.prepare(config, workdir)
        batches = exp.data.train(0)
        batch = jax.device_put(next(batches))
        batches.close()
        state = exp.init()
        compiled = experiment.jit_train_step(exp).lower(state, batch).compile()
    finally:
        flux._second_order = kept
    memory = compiled.memory_analysis().temp_size_in_bytes

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        assert metrics["finite"], "the step that was timed changes nothing"

    begun = time.perf_counter()
    run(1)
    return run, memory, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("full", "medium", "small"), default="full")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=6, help="of all variants in turn")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the first in a round, about")
    parser.add_argument("--only", nargs="+", help="variants, the first to compare with")
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="further --config.…=… for all, after --")
    args = parser.parse_args()
    known = variants(args.batch)
    names = args.only or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown variant {unknown[0]!r}; known: {'; '.join(known)}")
    if args.batch % 8:
        parser.error("--batch must be a multiple of 8")
    where = side_by_side.machine()
    print(side_by_side.describe(where), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = side_by_side.write_images(Path(folder) / "images.npz", 2 * args.batch)
        ready = {}
        for name in names:
            ready[name] = start(known[name], args, data, Path(folder) / "run")
            _, memory, seconds = ready[name]
            print(
                f"{name}: {memory / 2**20:,.0f} MiB, {seconds:.2f} s", file=sys.stderr, flush=True
            )
        steps = max(1, round(args.seconds / ready[names[0]][2]))

        def timed(run):
            return lambda: side_by_side.timed(lambda: run(steps) or steps * args.batch)

        rates = side_by_side.interleave(
            {name: timed(run) for name, (run, *_) in ready.items()}, args.rounds
        )
    first, result = names[0], {}
    for name in names:
        result[name] = {
            "passes_over": known[name].passes / known[first].passes,
            "time_over": side_by_side.summary(rates[first] / rates[name]),
            "memory_over": ready[name][1] / ready[first][1],
            "memory": ready[name][1],
            "examples_per_second": side_by_side.summary(rates[name]),
        }
    rows = [
        [
            name,
            side_by_side.ratio(r["passes_over"]),
            side_by_side.spread(r["time_over"]["rounds"], side_by_side.ratio),
            side_by_side.ratio(r["memory_over"]),
            f"{r['memory'] / 2**20:,.0f}",
            side_by_side.number(r["examples_per_second"]["median"]),
        ]
        for name, r in result.items()
    ]
    head = ["step", "passes", f"time / {first}'s", f"memory / {first}'s", "MiB", "examples/s"]
    print(side_by_side.table(head, rows))
    if args.json:
        settings = {k: str(v) for k, v in vars(args).items()}
        content = {"machine": where, "settings": settings, "variants": result}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
