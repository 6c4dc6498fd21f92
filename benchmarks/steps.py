"""What benchmarks of train steps share: a compiled step with its memory, and their table."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import rounds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield.program import experiment  # noqa: E402


class Step(NamedTuple):
    """run(steps) takes them; `memory`: bytes that a step holds beside its arguments."""

    run: Callable[[int], None]
    memory: int
    seconds: float  # of the first one


def prepare(config, workdir: Path) -> Step:
    """The compiled train step of a config, on one batch of its data that lies on the device."""
    exp = experiment.prepare(config, workdir)
    batches = exp.data.train(0)
    batch = jax.device_put(next(batches))
    batches.close()
    state = exp.init()
    compiled = experiment.jit_train_step(exp).lower(state, batch).compile()

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        assert metrics["finite"], "the step that was timed changes nothing"

    begun = time.perf_counter()
    run(1)
    memory = compiled.memory_analysis().temp_size_in_bytes
    return Step(run, memory, time.perf_counter() - begun)


def compare(make: dict[str, Callable[[], Step]], batch: int, turns: int, seconds: float) -> dict:
    """Times all in interleaved rounds; by name, ratios to the first and absolute figures."""
    ready = {}
    for name, prepared in make.items():
        ready[name] = prepared()
        shown = f"{ready[name].memory / 2**20:,.0f} MiB, {ready[name].seconds:.2f} s"
        print(f"{name}: {shown}", file=sys.stderr, flush=True)
    first = next(iter(ready))
    steps = max(1, round(seconds / ready[first].seconds))

    def timed(run):
        return lambda: rounds.timed(lambda: run(steps) or steps * batch)

    rates = rounds.interleave({name: timed(s.run) for name, s in ready.items()}, turns)
    return {
        name: {
            "time_over": rounds.summary(rates[first] / rates[name]),
            "memory_over": step.memory / ready[first].memory,
            "memory": step.memory,
            "examples_per_second": rounds.summary(rates[name]),
        }
        for name, step in ready.items()
    }


def table(result: dict, passes: dict | None = None) -> str:
    """Markdown of `compare`'s figures, with `passes` over the first's where they are given."""
    first = next(iter(result))
    head = ["step", f"time / {first}'s", f"memory / {first}'s", "MiB", "examples/s"]
    rows = [
        [
            name,
            rounds.spread(r["time_over"]["rounds"], rounds.ratio),
            rounds.ratio(r["memory_over"]),
            f"{r['memory'] / 2**20:,.0f}",
            rounds.number(r["examples_per_second"]["median"]),
        ]
        for name, r in result.items()
    ]
    if passes:
        head.insert(1, "passes")
        for row in rows:
            row.insert(1, rounds.ratio(passes[row[0]] / passes[first]))
    return rounds.table(head, rows)


def write(path: Path | None, args, result: dict) -> None:
    """The figures with the machine and the settings, where a path is given."""
    if path:
        settings = {k: str(v) for k, v in vars(args).items()}
        content = {"machine": rounds.machine(), "settings": settings, "variants": result}
        path.write_text(json.dumps(content, indent=2) + "\n")
