"""What `python -m genfield.plan` predicts of a train step, beside the clock, on the device here.

    python benchmarks/plan.py [--names sit_s2 unet_cifar10 mlp] [--rounds 5]

On a CPU the rates of the roofline are measured on the spot; of an accelerator they are those of
`genfield.machine.chips`, by the name of the device.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import predicted
import rounds

CASES = {  # config, overrides, shape of an example where the config has none
    "sit_s2": (
        "equilibrium_matching_imagenet256.py:S/2",
        ["--config.net.depth=4", "--config.batch_size=8"],
        None,
    ),
    "unet_cifar10": (
        "flow_matching_cifar10.py:small",
        ["--config.batch_size=16", "--config.net.channels=32"],
        (32, 32, 3),
    ),
    "mlp": ("flow_matching_two_moons.py", ["--config.net.width=512"], None),
}


def measure(name: str, on, turns: int) -> dict:
    """Predicted and measured seconds of a train step, and the roofline's parts."""
    file, overrides, shape = CASES[name]
    ready = predicted.train_step(predicted.prepare(file, overrides, on, shape), on)
    ready.run(2)
    seconds = [rounds.timed(lambda: ready.run(1) or 1)[0] for _ in range(turns)]
    found = ready.predicted
    return found["seconds"] | {"measured": float(np.median(seconds)), "flops": found["flops"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    on, results = predicted.target(), {}
    rate = on.chip.flops["float32"] / 1e9
    print(
        f"{on.machine.name}: {rate:,.0f} GFLOP/s, {on.chip.bandwidth / 1e9:,.1f} GB/s", flush=True
    )
    for name in args.names:
        results[name] = found = measure(name, on, args.rounds)
        parts = ", ".join(f"{key} {1e3 * found[key]:.3g} ms" for key in ("compute", "memory"))
        ratio = found["measured"] / found["predicted"]
        print(
            f"{name}: {parts}; predicted {1e3 * found['predicted']:.3g} ms, measured "
            f"{1e3 * found['measured']:.3g} ms, {ratio:.2f} times as long",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
