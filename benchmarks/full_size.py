"""Train steps of the published sizes in bfloat16 on one accelerator: rate, memory, share of peak.

    python benchmarks/full_size.py [--configs distance_marching_imagenet256.py:B/2 …] [--batch 64]

Latents are drawn, nothing is read. The memory is what the compiled program needs (arguments and
temporaries), floating-point operations are XLA's count of the step, and the share is of the chip's
published dense bfloat16 peak. Writes full_size.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import side_by_side

from genfield.machine import chips
from genfield.program import config_io, experiment

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = [
    f"{method}_imagenet256.py:{size}"
    for size in ("B/2", "XL/2")
    for method in ("equilibrium_matching", "distance_marching")
]


def peak() -> float | None:
    """Operations a second of this device, None where its figures are not known."""
    name = chips.of_device(jax.devices()[0].device_kind)
    return None if name is None else chips.CHIPS[name].flops["bfloat16"]


def measure(name: str, batch: int, steps: int, remat: bool) -> dict:
    """One config's step."""
    config = config_io.load(str(ROOT / "configs" / name))
    config.batch_size, config.net.dtype, config.net.remat = batch, "bfloat16", remat
    config.mesh.data, config.mesh.fsdp = -1, 1
    with tempfile.TemporaryDirectory() as folder:
        size = batch + 16
        shape = (size, *config.data.shape)
        latents = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
        np.save(Path(folder) / "latents.npy", latents)
        np.save(Path(folder) / "labels.npy", np.arange(size) % config.data.num_classes)
        config.data.path = folder
        exp = experiment.prepare(config, Path(folder) / "run")
        data = {k: jax.device_put(v) for k, v in next(exp.data.train(0)).items()}
    batch_at = lambda i: {"step": np.int32(i)} | data
    compiled = experiment.jit_train_step(exp).lower(exp.abstract, batch_at(0)).compile()
    need, state = compiled.memory_analysis(), exp.init()
    for i in range(2):
        state, metrics = compiled(state, batch_at(i))
    jax.block_until_ready(state)
    begun = time.perf_counter()
    for i in range(2, 2 + steps):
        state, metrics = compiled(state, batch_at(i))
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - begun) / steps
    flops = float(compiled.cost_analysis()["flops"])
    return {
        "config": name,
        "batch": batch,
        "remat": remat,
        "examples/s": batch / seconds,
        "GiB": (need.argument_size_in_bytes + need.temp_size_in_bytes) / 2**30,
        "TFLOP a step": flops / 1e12,
        "share of peak": flops / seconds / peak() if peak() else float("nan"),
        "finite": bool(metrics["finite"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="*", default=CONFIGS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--remat", action="store_true", help="recompute activations")
    parser.add_argument("--out", type=Path, default=Path("full_size.json"))
    args = parser.parse_args()
    where = side_by_side.machine()
    print(side_by_side.describe(where), flush=True)
    rows = []
    for name in args.configs:
        rows.append(measure(name, args.batch, args.steps, args.remat))
        print(rows[-1], flush=True)
        args.out.write_text(json.dumps({"machine": where, "rows": rows}, indent=2))
    cell = lambda v: side_by_side.number(v) if isinstance(v, float) else str(v)
    print(side_by_side.table(list(rows[0]), [[cell(v) for v in row.values()] for row in rows]))


if __name__ == "__main__":
    main()
