"""The cost of a train step by flow, equilibrium and distance methods, side by side.

    python benchmarks/train_step.py [--nets mlp unet sit] [--rounds 12] [--json out.json]

Same trunk, batch, optimiser and precision for all methods of a table; see benchmarks/README.md.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import rounds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield.errors import UserError  # noqa: E402
from genfield.machine import sharding  # noqa: E402
from genfield.program import config_io, experiment  # noqa: E402

FM, EQM, DM = "FM", "EqM", "DM"
FILES = {FM: "flow_matching", EQM: "equilibrium_matching", DM: "distance_marching"}
# What the methods of a table share, whatever their configs say; the first method's is taken.
SHARED = ("time", "coupling", "rematching", "label_dropout", "optimizer", "ema")


class Case(NamedTuple):
    """One table: the first method is what the others are compared with."""

    net: str  # what --nets calls it
    title: str
    methods: tuple[str, ...]
    problem: str  # the config, after the method's name
    batch: int
    data: str | None  # the generated data it reads
    flags: tuple[str, ...] = ()


CASES = (
    Case(
        *("mlp", "MLP 3x64, vector output", (FM, EQM), "two_moons.py", 256, None),
        ("--config.net.output=vector", "--config.net.time_input=True"),
    ),
    Case(
        *("mlp", "MLP 3x64, scalar output (its gradient by autodiff)", (EQM, DM)),
        *("two_moons.py", 256, None, ("--config.rematching.name=none",)),
    ),
    Case("unet", "U-Net (small)", (FM, EQM, DM), "cifar10.py:small", 64, "images"),
    Case("unet_full", "U-Net (paper)", (FM, EQM, DM), "cifar10.py", 64, "images"),
    Case("sit", "SiT-S/2", (FM, EQM, DM), "imagenet256.py:S/2", 4, "latents"),
)


class Method(NamedTuple):
    """A method ready to run: its compiled step, advanced by `run(steps)`, and what that took."""

    run: Callable[[int], None]
    first: dict  # seconds of each part of the time to the first step
    flops: float


def make_config(case: Case, method: str, batch: int, path: Path | None, flags: list[str]):
    """The method's config of this problem, with what is shared taken from the first method."""
    load = lambda name: config_io.override(
        config_io.load(str(ROOT / "configs" / f"{FILES[name]}_{case.problem}")),
        [*case.flags, *flags],
    )
    config, first = load(method), load(case.methods[0])
    trunk = lambda c: {k: v for k, v in c.net.items() if k != "distance_head"}
    assert trunk(config) == trunk(first), f"{method} and {case.methods[0]} differ in their trunks"
    for name in SHARED:
        config[name] = first[name]
    config.batch_size = batch
    if path is not None:
        config.data.path = str(path)
    return config


def draw_batch(exp: experiment.Experiment) -> dict:
    """A batch of the training data on the device; empty where the step draws its own."""
    if exp.data.train is None:
        return {}
    batches = exp.data.train(0)
    batch = sharding.put_batch(next(batches), exp.mesh)
    batches.close()
    return batch


def count_flops(config, workdir: Path) -> float:
    """Floating point operations of a train step as it is traced, before XLA rewrites it.

    Layers are unrolled, because XLA counts the body of a loop once.
    """
    if config.net.name == "sit":
        config = config.copy_and_resolve_references()
        config.net.scan = False
    exp = experiment.prepare(config, workdir)
    traced = experiment.jit_train_step(exp).lower(exp.abstract, draw_batch(exp))
    return float(traced.cost_analysis()["flops"])


def start(config, workdir: Path) -> Method:
    """Builds, initialises and compiles a method from cold caches, and takes its first step."""
    jax.clear_caches()
    first, last = {}, time.perf_counter()

    def lap(name, value):
        nonlocal last
        jax.block_until_ready(value)
        now = time.perf_counter()
        first[name], last = now - last, now
        return value

    exp = lap("build", experiment.prepare(config, workdir))
    batch = lap("data", draw_batch(exp))
    state = lap("init", exp.init())
    lowered = lap("trace", experiment.jit_train_step(exp).lower(state, batch))
    step = lap("compile", lowered.compile())
    state, _ = lap("run", step(state, batch))

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        assert metrics["finite"], "the loss is not finite: the step that was timed changes nothing"

    run(2)
    return Method(run, first, count_flops(config, workdir))


def steps_a_round(method: Method, seconds: float) -> int:
    """How many steps fill a round of about that length."""
    steps, spent = 1, 0.0
    while spent < seconds / 4 and steps < 2**16:
        steps *= 2
        spent, _ = rounds.timed(lambda: method.run(steps))  # noqa: B023
    return max(1, round(steps * seconds / spent))


def measure(case: Case, args, workdir: Path) -> dict:
    """One table, as numbers."""
    batch = args.batch or case.batch
    path = None
    if case.data == "images":
        path = rounds.write_images(workdir / f"{case.net}.npz", 2 * batch)
    elif case.data == "latents":
        path = rounds.write_latents(workdir / case.net, 2 * batch)
    configs = {m: make_config(case, m, batch, path, args.flags) for m in case.methods}
    reference = case.methods[0]
    out = {"title": case.title, "batch": batch, "reference": reference, "methods": {}}
    if args.flops_only:
        flops = {m: count_flops(config, workdir) for m, config in configs.items()}
        for m in case.methods:
            out["methods"][m] = dict(flops=flops[m], flops_over=flops[m] / flops[reference])
        return out

    methods = {}
    for m, config in configs.items():
        print(f"{case.title}: {m} …", file=sys.stderr, flush=True)
        methods[m] = start(config, workdir)
    steps = steps_a_round(methods[reference], args.seconds)

    def work(method):
        method.run(steps)
        return steps * batch

    rates = rounds.interleave(
        {m: lambda x=x: rounds.timed(lambda: work(x)) for m, x in methods.items()},
        args.rounds,
    )
    out["steps_a_round"] = steps
    for m, method in methods.items():
        out["methods"][m] = dict(
            first_step=sum(method.first.values()),
            first_step_parts=method.first,
            examples_per_second=rounds.summary(rates[m]),
            time_over=rounds.summary(rates[reference] / rates[m]),
            flops=method.flops,
            flops_over=method.flops / methods[reference].flops,
        )
    return out


def show(result: dict) -> str:
    """One table, in markdown."""
    reference, rows = result["reference"], []
    for name, m in result["methods"].items():
        flops = [rounds.number(m["flops"] / result["batch"] / 1e6)]
        flops += [rounds.ratio(m["flops_over"])]
        times = ["-"] * 3
        if "first_step" in m:
            speed, over = (m[k]["rounds"] for k in ("examples_per_second", "time_over"))
            times = [f"{m['first_step']:.1f} s", rounds.spread(speed)]
            times += ["1" if name == reference else rounds.spread(over, rounds.ratio)]
        rows.append([name, *times, *flops])
    header = ["method", "time to first step", "examples/s", f"time / {reference}'s"]
    header += ["MFLOP an example", f"FLOP / {reference}'s"]
    note = f"batch {result['batch']}"
    if "steps_a_round" in result:
        note += f", {result['steps_a_round']} steps a round"
    return f"### {result['title']}\n\n{note}\n\n{rounds.table(header, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    nets = list(dict.fromkeys(case.net for case in CASES))
    parser.add_argument("--nets", nargs="+", choices=nets, default=["mlp", "unet", "sit"])
    parser.add_argument("--rounds", type=int, default=12, help="of all methods in turn")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a method in a round, about")
    parser.add_argument("--batch", type=int, help="examples a step; default: by network")
    parser.add_argument("--flops-only", action="store_true", help="trace only, measure no time")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("flags", nargs="*", help="further --config.…=… for all methods, after --")
    args = parser.parse_args()
    if args.rounds < 1 or args.seconds <= 0 or (args.batch is not None and args.batch < 1):
        parser.error("--rounds and --batch must be at least 1, --seconds positive")
    jax.config.update("jax_enable_compilation_cache", False)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.float32(0)))  # the backend starts here
    where = rounds.machine()
    print(rounds.describe(where) + "\n", flush=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if case.net in args.nets:
                results.append(measure(case, args, Path(folder)))
                print(show(results[-1]), flush=True)
    if args.json:
        after = rounds.machine()["load"]
        content = {"machine": where, "load_after": after, "flags": args.flags, "cases": results}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
