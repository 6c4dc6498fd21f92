"""Distance Marching: steps as long as u says against steps of one length, by evaluations.

    python reproduce/distance_steps.py --workdir=runs/distance_steps --seeds=3

  constant steps       x <- x - (L / K) v: K steps that go L in all (DM eq. 10)
  steps of η u         x <- x - η u v: sphere tracing (DM eq. 9)
  one after the other  half of the steps as long as η u, then half that go L in all

on eight Gaussians to two moons. L and η are those that are best at each K for training seed 0 on
noise that is not judged. The Chamfer distance and W2 are of 1,000 points; median (smallest to
largest) over training seeds. What the workdir has is not computed again.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import markdown, shown
from equilibrium_runs import Kept

from genfield import couplings, fields, losses, nets, paths, rng, sampling
from genfield.data import toys
from genfield.metrics import point_cloud

EVALUATIONS = (2, 4, 8, 16, 32)
POINTS, OTHER_NOISE = 1_000, 7
STEPS, BATCH, RATE = 6_000, 256, 1e-3  # of the two moons, as their config has it
LENGTHS, SHORT = (3.0, 4.0, 6.0, 8.0), (0.12, 0.4, 1.2)  # L
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.12)  # η
NET = {"name": "mlp", "width": 64, "depth": 3, "activation": "selu", "output": "scalar"}


# Two moons


def trained(seeds: int):
    """Parameters [S, …] of Distance Marching's scalar network, by training seed."""
    apply, _ = nets.create(NET, None, shape=(2,))
    tx = optax.adam(RATE)

    def risk(params, key):
        keys = jax.random.split(key, 3)
        x0, x1 = toys.eight_gaussians(keys[0], BATCH), toys.two_moons(keys[1], BATCH)
        sample = paths.interpolate(paths.linear, x0, x1, paths.uniform()(keys[2], BATCH))
        sample = couplings.nearest_target(paths.linear, sample)
        field = fields.potential_field(lambda x, t=None, cond=None: apply(params, x))
        return losses.distance_marching(field, sample, epsilon=0.01, c0=0.01)[0].mean()

    def one(seed):
        params = nets.create(NET, rng.stream(seed, "init"), shape=(2,))[1]

        def step(carry, i):
            params, state = carry
            key = jax.random.fold_in(rng.stream(seed, "train"), i)
            updates, state = tx.update(jax.grad(risk)(params, key), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(STEPS))[0][0]

    return jax.jit(jax.vmap(one))(jnp.arange(seeds))


def judged(x) -> dict[str, float]:
    target = np.asarray(toys.two_moons(jax.random.key(2), POINTS))
    found = point_cloud.compare(np.asarray(x), target, POINTS // 2)
    return {"chamfer": found["chamfer"], "w2": found["w2"]}


# Ways


def _descend(length, k: int):
    return sampling.gradient_descent(length / k), k


WAYS = {  # way: ((lengths, K) -> stages, what is tried)
    "constant steps": (lambda c, k: [_descend(c[0], k)], [(length,) for length in LENGTHS]),
    "steps of η u": (lambda c, k: [(sampling.sphere_tracing(c[0]), k)], [(c,) for c in SHARES]),
    "one after the other": (
        lambda c, k: [(sampling.sphere_tracing(c[0]), k // 2), _descend(c[1], k - k // 2)],
        [(share, length) for share in (1.0, 0.5) for length in SHORT],
    ),
}


class Runner:
    """Samples of each seed's field, one program a way and number of steps."""

    def __init__(self, seeds: int):
        self.seeds, self.params = range(seeds), trained(seeds)
        self.program = functools.cache(self._program)

    def _program(self, way: str, k: int) -> Callable:
        apply, _ = nets.create(NET, None, shape=(2,))

        def run(params, choice, x):
            field = fields.potential_field(lambda z, t=None, cond=None: apply(params, z))
            return sampling.chain(jax.random.key(0), field, x, WAYS[way][0](choice, k)).x

        return jax.jit(run)

    def judged(self, way: str, k: int, choice, seed: int, noise: int = 1) -> dict[str, float]:
        params = jax.tree.map(lambda a: a[seed], self.params)
        x = toys.eight_gaussians(jax.random.key(noise), POINTS)
        return judged(self.program(way, k)(params, tuple(map(np.float32, choice)), x))

    def best(self, kept: Kept, way: str, k: int) -> tuple[tuple, list[dict]]:
        """The lengths that are best for seed 0, and what each seed's samples are worth."""
        fd = lambda choice: self.judged(way, k, choice, 0, OTHER_NOISE)["chamfer"]
        tried = kept(f"{way}, {k}, tried", lambda: [fd(choice) for choice in WAYS[way][1]])
        choice = WAYS[way][1][int(np.argmin(tried))]
        one = lambda seed: self.judged(way, k, choice, seed)
        name = f"{way}, {k}, {choice}"
        return choice, [kept(f"{name}, seed {s}", lambda s=s: one(s)) for s in self.seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/distance_steps"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    kept, runner, lines = Kept(args.workdir / "figures.json"), Runner(args.seeds), []
    for way in WAYS:
        for k in EVALUATIONS:
            choice, found = runner.best(kept, way, k)
            chosen = ", ".join(f"{c:g}" for c in choice)
            cells = [shown([run[name] for run in found]) for name in ("chamfer", "w2")]
            lines.append([way, str(k), chosen, *cells])
    text = markdown(["way", "evaluations", "L, η, or η and L", "chamfer", "w2"], lines)
    (args.workdir / "distance_steps.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
