"""What `python -m genfield.plan` predicts of a train step, beside the clock, on the device here.

    python benchmarks/plan.py [--names sit_s2 unet_cifar10 mlp] [--rounds 5]

On a CPU the rates of the roofline are measured on the spot; of an accelerator they are those of
`genfield.machine.chips`, by the name of the device.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield.errors import UserError  # noqa: E402
from genfield.machine import chips  # noqa: E402
from genfield.plan import analyse, devices, plan, programs, shapes  # noqa: E402
from genfield.program import config_io  # noqa: E402
from genfield.program.methods import package  # noqa: E402

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


def target() -> analyse.Target:
    """The first device here, as a machine of one chip."""
    device = jax.devices()[0]
    name = chips.CPU if device.platform == "cpu" else chips.of_device(device.device_kind)
    if name is None:
        raise UserError(f"the figures of {device.device_kind} are not in genfield.machine.chips")
    axes = chips.CHIPS[name].axes if name in chips.CHIPS else 0
    machine = chips.parse(f"{name}:{'x'.join(['1'] * max(axes, 1))}")
    return analyse.Target(machine, devices.chip_of(machine), [device])


def measure(name: str, on: analyse.Target, rounds: int) -> dict:
    """Predicted and measured seconds of a train step, and the roofline's parts."""
    file, overrides, shape = CASES[name]
    config, methods = config_io.read(str(ROOT / "configs" / file))
    config = config_io.override(config, overrides)
    with tempfile.TemporaryDirectory() as folder:
        config.mesh.update(data=1, fsdp=1)
        options = argparse.Namespace(config=f"{folder}/none.py", shape=shape, classes=None)
        exp = plan.prepare(config, methods or package(), on, options)
    traced = programs.train(exp)
    found = analyse.program(exp, traced, on, None)
    compiled = traced.traced.lower().compile()
    random = np.random.default_rng(0)

    def drawn(a):
        if a.dtype == np.float32:
            return random.normal(size=a.shape).astype(np.float32)
        return random.integers(0, 2, a.shape).astype(a.dtype)

    state, seconds = exp.init(), []
    batch = {key: drawn(a) for key, a in shapes.batch(exp).items() if key != "step"}
    for i in range(rounds + 2):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, {"step": np.int32(i)} | batch))
        seconds.append(time.perf_counter() - begun)
    return found["seconds"] | {"measured": float(np.median(seconds[2:])), "flops": found["flops"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    on, results = target(), {}
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
