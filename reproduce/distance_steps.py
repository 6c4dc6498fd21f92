"""Distance Marching: steps as long as u says against steps of one length, by evaluations.

    python reproduce/distance_steps.py --workdir=runs/distance_steps [--part plane digits]

  constant steps  x <- x - (L / K) v: K steps that go L in all (DM eq. 10)
  steps of η u    x <- x - η u v: sphere tracing (DM eq. 9)
  one after other half of the steps as long as η u, and then half of L / K

on eight Gaussians to two moons, by training seeds, and on digits by the model that comes with the
package, by sampling seeds. L and η are those that are best at each K for seed 0 on noise that is
not judged. Figures are the Chamfer distance and W2 of 1,000 points, and "fd", the Fréchet distance
of the 64 pixels of 400 samples to the training images; median (smallest to largest). What the
workdir has is not computed again.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equilibrium_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import markdown, shown
from equilibrium_runs import Kept

from genfield import couplings, fields, losses, nets, paths, pretrained, rng, sampling
from genfield.data import toys
from genfield.metrics import point_cloud

EVALUATIONS = (2, 4, 8, 16, 32)
POINTS, IMAGES, OTHER_NOISE = 1_000, 400, 7
STEPS, BATCH, RATE = 6_000, 256, 1e-3  # of the two moons, as their config has it
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.12)  # η
NET = {"name": "mlp", "width": 64, "depth": 3, "activation": "selu", "output": "scalar"}


class Problem(NamedTuple):
    """What is sampled, and how it is judged.

    Attributes:
      field: (seed, x, cond) -> Prediction. start: noise seed -> (x, cond). judge: x -> figures,
        the first of which is what a length is chosen by. lengths: of L.
    """

    field: Callable
    start: Callable
    judge: Callable
    lengths: tuple[float, ...]


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


def plane(seeds: int) -> Problem:
    apply, _ = nets.create(NET, None, shape=(2,))
    target, params = np.asarray(toys.two_moons(jax.random.key(2), POINTS)), trained(seeds)

    def field(seed, x, cond):
        one = jax.tree.map(lambda a: a[seed], params)
        return fields.potential_field(lambda z, t=None, cond=None: apply(one, z))(x)

    def judge(x):
        found = point_cloud.compare(np.asarray(x), target, POINTS // 2)
        return {"chamfer": found["chamfer"], "w2": found["w2"]}

    start = lambda noise: (toys.eight_gaussians(jax.random.key(noise), POINTS), None)
    return Problem(field, start, judge, (3.0, 4.0, 6.0, 8.0))


# Digits


def digits(seeds: int) -> Problem:
    model = pretrained.load("digits/distance_marching")
    start = lambda noise: (runs.noise(noise, IMAGES), runs.asked(IMAGES))
    return Problem(
        lambda seed, x, cond: model.field(x, None, cond), start, runs.judged, (6.0, 8.0, 11.0, 16.0)
    )


# Both


def ways(problem: Problem) -> dict[str, tuple]:
    """{way: ((first, second) stage of given lengths, what may be tried)}."""
    descend, march = sampling.gradient_descent, sampling.sphere_tracing
    short = [(share, part * length) for share in (1.0, 0.5) for part in (0.03, 0.1, 0.3)
             for length in problem.lengths[1:2]]  # fmt: skip
    return {
        "constant steps": (lambda c, k: [(descend(c[0] / k), k)], [(c,) for c in problem.lengths]),
        "steps of η u": (lambda c, k: [(march(c[0]), k)], [(c,) for c in SHARES]),
        "one after the other": (
            lambda c, k: [(march(c[0]), k // 2), (descend(c[1] / (k - k // 2)), k - k // 2)],
            short,
        ),
    }


class Runner:
    """Samples of a problem, one program a way and number of steps."""

    def __init__(self, problem: Problem, seeds: int, of_training: bool):
        self.problem, self.seeds, self.of_training = problem, seeds, of_training
        self.program = functools.cache(self._program)

    def _program(self, way: str, k: int) -> Callable:
        stages = ways(self.problem)[way][0]

        def run(seed, choice, x, cond):
            field = lambda x, t=None, cond=None: self.problem.field(seed, x, cond)
            key = jax.random.key(0)
            return sampling.chain(key, field, x, stages(choice, k), cond=cond).x

        return jax.jit(run)

    def judged(self, way: str, k: int, choice, seed: int, noise: int) -> dict[str, float]:
        x, cond = self.problem.start(noise)
        choice = tuple(np.float32(c) for c in choice)
        return self.problem.judge(self.program(way, k)(seed, choice, x, cond))

    def best(self, kept: Kept, title: str, way: str, k: int) -> tuple[tuple, list[dict]]:
        choices = ways(self.problem)[way][1]
        first = lambda choice: next(iter(self.judged(way, k, choice, 0, OTHER_NOISE).values()))
        tried = kept(f"{title}, {way}, {k}, tried", lambda: [first(c) for c in choices])
        choice = choices[int(np.argmin(tried))]

        def of(seed):
            noise = 1 if self.of_training else 10 + seed
            return self.judged(way, k, choice, seed if self.of_training else 0, noise)

        name = f"{title}, {way}, {k}, {choice}"
        found = [kept(f"{name}, seed {s}", lambda s=s: of(s)) for s in range(self.seeds)]
        return choice, found


PARTS = {"plane": (plane, True), "digits": (digits, False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/distance_steps"))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    kept = Kept(args.workdir / "figures.json")
    for title in args.part:
        make, of_training = PARTS[title]
        runner, lines, names = Runner(make(args.seeds), args.seeds, of_training), [], []
        for way in ways(runner.problem):
            for k in EVALUATIONS:
                choice, found = runner.best(kept, title, way, k)
                names = list(found[0])
                chosen = ", ".join(f"{c:g}" for c in choice)
                figures = [shown([run[name] for run in found]) for name in names]
                lines.append([way, str(k), chosen, *figures])
        text = f"{title}\n\n" + markdown(["way", "evaluations", "L, η, or η and L", *names], lines)
        (args.workdir / f"{title}.md").write_text(text)
        print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
