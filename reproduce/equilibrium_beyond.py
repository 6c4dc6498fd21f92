"""Beyond Equilibrium Matching's paper, on the fields of equilibrium_tables.py, in its workdir.

    python reproduce/equilibrium_beyond.py --workdir=runs/equilibrium [--part curl mcmc]

  curl  how far a learned field is from a gradient: |A|² / (|A|² + |S|²) of its Jacobian A + S, A
        antisymmetric, at points (1 - t) x0 + t x1 of noise and held-out images; 0 of a gradient
  mcmc  samples by descent, and then as many evaluations again: more descent, Langevin steps, or
        Hamiltonian Monte Carlo on an explicit energy; step and temperature as they are best for
        seed 0 on noise that is not judged

Median (smallest to largest) over training seeds; what the workdir has is not computed again.
"""

import argparse
import functools
from pathlib import Path

import equilibrium_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
from common import markdown, shown
from equilibrium_tables import FOR_CHOICE, OTHER_NOISE, ROWS, STEPS, Study, Way

from genfield import fields, rng, sampling

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
PROBES = 16
CURLED = ("constant, t", "constant", "linear", "truncated, a = 0.8", "λ = 4")
PROPOSALS, LEAPFROG = 16, 5  # of HMC, as Distance Marching has it in the plane
AFTER = PROPOSALS * (LEAPFROG + 1)  # evaluations
REFINED = {"λ = 4": ("descent", "Langevin"), "dot": ("descent", "Langevin", "HMC")}
TEMPERATURES = (0.003, 0.01, 0.03, 0.1)
TRIED = {  # step size over the descent's, and temperature
    "descent": [(step, 0.0) for step in (0.1, 0.3, 1.0)],
    "Langevin": [(step, heat) for step in (0.1, 0.3, 1.0) for heat in TEMPERATURES],
    "HMC": [(step, heat) for step in (0.02, 0.06) for heat in TEMPERATURES],  # its own step
}


@functools.cache
def _turning(name: str):
    row, (x1, labels) = ROWS[name], runs.data()["test"]
    x0 = jax.random.normal(rng.stream(0, "curl"), x1.shape)

    def share(params, t):
        x, times = (1 - t) * x0 + t * x1, jnp.full(len(x1), t)
        field, time = runs.field_of(row, params), times if row.clock else None
        key, more = rng.stream(1, "probes"), {"num_probes": PROBES}
        turning, rest = fields.jacobian_parts(key, field, x, time, labels, **more)
        return turning.sum() / (turning + rest).sum()

    return jax.jit(share)


def curl(study: Study) -> str:
    """Of fields that are no gradient by their making, as those of energies are."""
    lines = []
    for name in CURLED:

        def measured(seed: int, name=name) -> list[float]:
            params = runs.of_seed(study.params(name), seed)
            return [float(_turning(name)(params, np.float32(t))) for t in TIMES]

        found = np.array(study.each(f"curl, {name}", measured))
        lines.append([name, *(shown(found[:, i]) for i in range(len(TIMES)))])
    return markdown(["share of the Jacobian that turns, at t =", *map(str, TIMES)], lines)


@functools.cache
def _refiner(name: str, way: str):
    row = ROWS[name]

    def run(params, step, choice, x, cond):
        size, heat = choice
        made = {
            "descent": lambda: (sampling.gradient_descent(size * step), AFTER),
            "Langevin": lambda: (sampling.langevin(size * step, heat), AFTER),
            "HMC": lambda: (sampling.hamiltonian(size, LEAPFROG, 1.0, heat), PROPOSALS),
        }[way]()
        stages = [(sampling.gradient_descent(step), STEPS), made]
        out = sampling.chain(jax.random.key(0), runs.field_of(row, params), x, stages, cond=cond)
        return out.x, out.info

    return jax.jit(run)


def mcmc(study: Study) -> str:
    lines = []
    for name, ways in REFINED.items():
        travel, found = study.best(Way(name))
        cells = [shown([run[figure] for run in found]) for figure in ("fd", "right")]
        lines.append([name, "-", "-", "-", *cells, "-"])
        step = np.float32(travel / STEPS / ROWS[name].size)

        def judge(way, choice, seed, noise=1, num=runs.NUM, name=name, step=step) -> dict:
            params = runs.of_seed(study.params(name), seed)
            x, cond = runs.noise(noise, num), runs.asked(num)
            choice = tuple(np.float32(c) for c in choice)
            x, info = _refiner(name, way)(params, step, choice, x, cond)
            accepted = {k: float(v.mean()) for k, v in info.items()}
            return runs.judged(x) | accepted

        for way in ways:
            tried = lambda way=way, judge=judge: [
                judge(way, choice, 0, OTHER_NOISE, FOR_CHOICE)["fd"] for choice in TRIED[way]
            ]
            choice = TRIED[way][int(np.argmin(study.kept(f"refined, {name}, {way}", tried)))]
            of = lambda seed, way=way, choice=choice, judge=judge: judge(way, choice, seed)
            found = study.each(f"refined, {name}, {way}, {choice}", of)
            cells = [shown([run[figure] for run in found]) for figure in ("fd", "right")]
            accepted = shown([run["acceptance"] for run in found]) if way == "HMC" else "-"
            lines.append([name, way, f"{choice[0]:g}", f"{choice[1]:g}", *cells, accepted])
    head = ["field", "then", "step", "temperature", "fd", "right", "acceptance"]
    return markdown(head, lines)


PARTS = {"curl": curl, "mcmc": mcmc}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/equilibrium"))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    study = Study(args.workdir, args.seeds)
    for name in args.part:
        text = f"{name}\n\n{PARTS[name](study)}"
        (args.workdir / f"{name}.md").write_text(text)
        print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
