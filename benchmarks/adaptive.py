"""What adaptive compute saves: time against evaluations, masked and refilled, on a real network.

    python benchmarks/adaptive.py [--samples 128] [--slots 16] [--num_steps 40] [--rounds 3]

Gradient descent whose field costs an evaluation of the small CIFAR-10 U-Net and moves each sample
so that it stops after its own number of steps, spread as widely as EqM's Fig. 8 has them. Against
the same sampler without a stop: the share of evaluations saved, and the share of time.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rounds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield import nets, sampling  # noqa: E402
from genfield.fields import squared_norm  # noqa: E402
from genfield.program import config_io  # noqa: E402

STEP_SIZE = 0.1


def make_field(shape: tuple[int, ...]):
    """A bowl's gradient, plus a share of a network's output that is there only for its cost."""
    config = config_io.load(str(ROOT / "configs/equilibrium_matching_cifar10.py") + ":small")
    apply, params = nets.create(config.net, jax.random.key(0), shape=shape)

    def field(x, t=None, cond=None):
        return x + 1e-6 * apply(params, x)

    return field


def make_starts(num: int, shape, num_steps: int) -> jax.Array:
    """Starts whose gradients fall below 1 after a tenth to all of the steps."""
    x = jax.random.normal(jax.random.key(1), (num, *shape))
    steps = jnp.linspace(0.1, 0.75, num) * num_steps
    wanted = jax.random.permutation(jax.random.key(2), (1 - STEP_SIZE) ** -steps)
    length = jnp.sqrt(squared_norm(x))
    return x * (wanted / length).reshape(-1, 1, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--num_steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    where, shape = rounds.machine(), (32, 32, 3)
    print(rounds.describe(where) + "\n", flush=True)
    field, key = make_field(shape), jax.random.key(0)
    x = make_starts(args.samples, shape, args.num_steps)
    plain = sampling.gradient_descent(STEP_SIZE)
    stops = sampling.stopping(plain, sampling.gradient_norm(1.0))
    steps = dict(num_steps=args.num_steps)

    def batched(sampler):
        one = jax.jit(lambda x: sampling.sample(key, field, x, sampler, **steps))
        parts = jnp.split(x, args.samples // args.slots)
        return lambda: [jax.block_until_ready(one(part)) for part in parts]

    refilled = jax.jit(lambda x: sampling.refill(key, field, x, stops, slots=args.slots, **steps))
    runs = {
        "all steps": batched(plain),
        "masked": batched(stops),
        "refilled": lambda: [jax.block_until_ready(refilled(x))],
    }
    results = {name: run() for name, run in runs.items()}  # compiled
    join = lambda name, field: np.concatenate([getattr(part, field) for part in results[name]])
    np.testing.assert_allclose(join("refilled", "x"), join("masked", "x"), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(join("refilled", "nfe"), join("masked", "nfe"))
    saved = 1 - join("masked", "nfe").mean() / args.num_steps
    count = lambda run: lambda: rounds.timed(lambda: run() and args.samples)
    rates = rounds.interleave({n: count(run) for n, run in runs.items()}, args.rounds)
    rows, shares = [], {}
    for name, values in rates.items():
        share = 1 - rates["all steps"] / values  # of the time
        shares[name] = float(np.median(share))
        ratio = rounds.spread(share / saved, rounds.ratio) if name != "all steps" else "-"
        rows.append([name, rounds.spread(values), f"{shares[name]:.3f}", ratio])
    print(rounds.table(["execution", "samples/s", "time saved", "of evaluations saved"], rows))
    print(f"evaluations saved: {saved:.3f}")
    if args.json:
        content = {"machine": where, "evaluations_saved": float(saved), "time_saved": shares}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
