"""How far learned fields are from gradients: those of equilibrium_tables.py, in its workdir.

    python reproduce/equilibrium_curl.py --workdir=runs/equilibrium

|A|² / (|A|² + |S|²) of the Jacobian A + S, A antisymmetric, at points (1 - t) x0 + t x1 of noise
and held-out images; 0 of a gradient. Median (smallest to largest) over training seeds; what the
workdir has is not computed again.
"""

import argparse
import functools
from pathlib import Path

import equilibrium_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
from common import markdown, shown
from equilibrium_tables import ROWS, Study

from genfield import fields, rng

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
PROBES = 16
CURLED = ("constant, t", "constant", "linear", "truncated, a = 0.8", "λ = 4")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/equilibrium"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    text = curl(Study(args.workdir, args.seeds))
    (args.workdir / "curl.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
