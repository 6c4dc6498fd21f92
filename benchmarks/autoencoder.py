"""What encoding and decoding take: time, and the memory that the compiled program needs.

    python benchmarks/autoencoder.py [--batch 1 4] [--tile 0 128] [--size 256] [--dtype float32]

Stable Diffusion's autoencoder at its published size with random weights. Each program is compiled
for the shapes at hand and run once, or not run with --memory. --tile 0 is whole images.
--topology v5e:2x2 compiles for a chip of a TPU that need not be there (with libtpu installed; with
JAX_PLATFORMS=cpu), and runs nothing. Writes autoencoder.json.
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import rounds
from jax.sharding import SingleDeviceSharding

from genfield.features import autoencoder_kl
from genfield.machine.tables import columns

CONFIG = autoencoder_kl.Config()


def programs(args, batch: int, tile: int, place) -> dict:
    """By name, the compiled functions and their inputs' shapes."""
    dtype = autoencoder_kl.DTYPES[args.dtype]
    shape = lambda *axes, dtype=jnp.float32: jax.ShapeDtypeStruct(axes, dtype, sharding=place)
    params = jax.tree.map(
        lambda a: shape(*a.shape, dtype=dtype),
        jax.eval_shape(lambda: jax.tree.map(jnp.asarray, autoencoder_kl.random(CONFIG, 0))),
    )
    side, options = args.size // CONFIG.factor, {"dtype": args.dtype, "tile": tile or None}
    functions = {
        "encode": (autoencoder_kl.encode, shape(batch, args.size, args.size, 3)),
        "decode": (autoencoder_kl.decode, shape(batch, side, side, CONFIG.latent_channels)),
    }
    lowered = lambda function, x: jax.jit(
        lambda params, x: function(params, x, CONFIG, **options)
    ).lower(params, x)
    return {
        name: (lowered(f, x).compile(), x)
        for name, (f, x) in functions.items()
        if name in args.only
    }


def measure(args, place, params) -> list[dict]:
    """A row for each batch, tile and direction."""
    rows = []
    for batch in args.batch:
        for tile in args.tile:
            for name, (compiled, x) in programs(args, batch, tile, place).items():
                memory = compiled.memory_analysis()
                row = {"what": name, "batch": batch, "tile": tile or "whole"}
                row["temporaries_mb"] = memory.temp_size_in_bytes / 1e6
                if params is not None:
                    inputs = jax.random.normal(jax.random.key(0), x.shape)
                    begun, cpu = time.monotonic(), time.process_time()
                    jax.block_until_ready(compiled(params, inputs))
                    row["seconds"] = time.monotonic() - begun
                    row["cpu_seconds"] = time.process_time() - cpu
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tile", type=int, nargs="+", default=[0, 128])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--dtype", choices=list(autoencoder_kl.DTYPES), default="float32")
    parser.add_argument(
        "--only", nargs="+", choices=("encode", "decode"), default=["encode", "decode"]
    )
    parser.add_argument("--memory", action="store_true", help="compile only")
    parser.add_argument("--topology", help="compile for this TPU, as v5e:2x2")
    parser.add_argument("--json", type=Path, default=Path("autoencoder.json"))
    args = parser.parse_args()
    where, params, place = rounds.machine(), None, None
    if args.topology:
        from jax.experimental import topologies

        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        chips = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
        place = SingleDeviceSharding(chips[0])
    elif not args.memory:
        dtype = autoencoder_kl.DTYPES[args.dtype]
        params = jax.tree.map(lambda a: jnp.asarray(a, dtype), autoencoder_kl.random(CONFIG, 0))
    print(rounds.describe(where), flush=True)
    rows = measure(args, place, params)
    shown = [tuple(rows[0])] + [
        tuple(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows
    ]
    print(columns(shown))
    args.json.write_text(
        json.dumps(
            {"machine": where, "options": vars(args) | {"json": str(args.json)}, "rows": rows},
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
