"""What a 50,000-sample FID takes on 1, 8 and 256 devices like this one, for docs/scale.md.

    python benchmarks/scale.py [--networks unet_cifar10 sit_b2 inception_v3 …] [--batch 8]

Measures one device: evaluations a second and peak memory of each sampler's network and of the
feature networks, from the compiled program. The rest is arithmetic: nothing is exchanged between
devices while they sample, so that N devices take 1/N of the time, plus what the end costs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rounds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield import features, nets  # noqa: E402
from genfield.program import config_io  # noqa: E402

SAMPLERS = {  # config file, argument, shape of an example, classes, evaluations a sample
    "unet_cifar10": ("distance_marching_cifar10.py", (32, 32, 3), 0, 250),
    "sit_b2": ("equilibrium_matching_imagenet256.py:B/2", (32, 32, 4), 1000, 250),
    "sit_xl2": ("equilibrium_matching_imagenet256.py:XL/2", (32, 32, 4), 1000, 250),
}
FEATURES = ("inception_v3", "efficientnet_lite0")
SAMPLES, DEVICES = 50_000, (1, 8, 256)


def sampler_network(name: str, batch: int) -> tuple[Callable, tuple]:
    """One evaluation of a sampler's network, and its arguments."""
    file, shape, classes, _ = SAMPLERS[name]
    section = config_io.load(str(ROOT / "configs" / file)).net
    make = partial(nets.create, section, shape=shape, num_classes=classes)
    apply = make(None)[0]
    params = jax.jit(lambda key: make(key)[1])(jax.random.key(0))
    x = jnp.zeros((batch, *shape), jnp.float32)
    labels = jnp.zeros(batch, jnp.int32) if classes else None
    return lambda params, x: apply(params, x, None, labels), (params, x)


def feature_network(name: str, batch: int) -> tuple[Callable, tuple]:
    """One pass of a feature network with random weights."""
    network = features.create(name, seed=0)
    x = jnp.full((batch, network.size, network.size, 3), 128.0)
    return lambda params, x: network.apply(params, x)["pool"], (network.params, x)


def measure(name: str, batch: int, rounds: int) -> dict:
    """Evaluations a second (median of the rounds) and bytes, of one device."""
    make = sampler_network if name in SAMPLERS else feature_network
    function, arguments = make(name, batch)
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    rates = []
    for _ in range(rounds):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        rates.append(batch / (time.perf_counter() - begun))
    memory = compiled.memory_analysis()
    sizes = [memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes]
    return {"rate": float(np.median(rates)), "rates": rates, "bytes": sum(sizes)}


def hours(measured: dict, name: str, judge: str, devices: int) -> tuple[float, float]:
    """Hours of sampling and of features, without what the end costs."""
    sampling = SAMPLES * SAMPLERS[name][3] / measured[name]["rate"] / devices / 3600
    return sampling, SAMPLES / measured[judge]["rate"] / devices / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*SAMPLERS, *FEATURES]
    parser.add_argument("--networks", nargs="+", choices=known, default=known)
    parser.add_argument("--batch", type=int, default=8, help="a device")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    where = rounds.machine()
    print(rounds.describe(where) + "\n", flush=True)
    measured, rows = {}, []
    for name in args.networks:
        measured[name] = measure(name, args.batch, args.rounds)
        jax.clear_caches()
        rate, size = measured[name]["rates"], measured[name]["bytes"]
        rows.append([name, rounds.spread(rate), f"{size / 2**30:.2f} GiB"])
        print(name, rows[-1][1:], flush=True)
    print("\n" + rounds.table(["network", "evaluations/s", "memory"], rows))
    rows = []
    for name in SAMPLERS:
        for judge in FEATURES:
            if name in measured and judge in measured:
                row = [f"{s:.3g} + {f:.3g}" for s, f in
                       (hours(measured, name, judge, n) for n in DEVICES)]  # fmt: skip
                rows.append([name, judge, *row])
    header = ["sampler", "features", *(f"{n} device{'s' * (n > 1)}" for n in DEVICES)]
    print(rounds.table(header, rows))
    print("hours of sampling + hours of features, 50,000 samples")
    if args.json:
        content = {"machine": where, "batch": args.batch, "networks": measured}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
