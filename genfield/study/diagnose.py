"""A predicted distance and the true one (Distance Marching, arXiv:2602.02928, Fig. 14, 30, 31)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from genfield import distances, paths, registry, rng
from genfield.errors import UserError
from genfield.figures.study import descent, errors
from genfield.losses import distance_marching
from genfield.program import generate
from genfield.program.parts import create_coupling
from genfield.registry import PositiveInt
from genfield.study import measures
from genfield.study.subject import (
    PER_DRAWN,
    Findings,
    Study,
    Subject,
    counter,
    from_zero,
    heldout,
    labels,
    on_batches,
    quantiles,
    source,
    table,
    training,
)

ERRORS = ("distance", "displacement")


def diagnose(
    subject: Subject,
    *,
    num: PositiveInt = 2048,
    bins: PositiveInt = 10,
    num_samples: PositiveInt = 64,
) -> Findings:
    """How right a distance is, and how it falls along sampling (DM Fig. 14, 30, 31).

    num: pairs of noise and held-out data, each at a time of its own, uniform on [0, 1). bins: of t
    and of r. num_samples: whose sampling is followed.
    """
    exp = subject.exp
    if exp.objective.method.function is not distance_marching:
        raise UserError(f"diagnose needs distance_marching, not {exp.config.loss.name!r}")
    c0 = float(exp.config.loss.c0)
    x1, cond = heldout(exp, num)
    x, t = _pairs(subject, x1, cond)
    targets = {"x1 of the pair": x1}
    if exp.data.draw is not None:  # training may rematch: the nearest point is what u can know
        [points] = training(exp)
        targets["the nearest data"] = points[distances.nearest(x, points).index[:, 0]]

    def measured(field, index, x, x1, cond):
        output = field(x, None, cond)
        return measures.distance_errors(output, x, x1, c0) | {"u": output.distance}

    over, tick = on_batches(exp, measured), counter("pairs", len(x1) * len(targets), "pairs")
    found = {
        name: over(subject.params, x, target, cond, tick=tick) for name, target in targets.items()
    }
    rows = [{"r_to": name} | _row(out, c0) for name, out in found.items()]
    binned = {name: _binned(out, t, bins) for name, out in found.items()}
    curves = _follow(subject, num_samples)
    figures = binned | {
        "rows": rows,
        "c0": c0,
        "pairs": len(x1),
        "r": f"|x_t - x1|; the nearest data: of {PER_DRAWN:,} drawn points. distance: u against "
        "sqrt(r² + c0); displacement: |u v| against r. u_over_r: median of u / sqrt(r² + c0)",
        "sampling": {
            name: {"mean": values.mean(1)} | quantiles(values, axis=1)
            for name, values in curves.items()
        },
        "samples": num_samples,
        "end": {name: quantiles(values[-1]) for name, values in curves.items()},
        "sqrt_c0": math.sqrt(c0),
    }
    pictures = [
        errors(subject.picture(""), binned),
        descent(subject.picture("_sampling"), curves, math.sqrt(c0)),
    ]
    return Findings(figures, table(rows), pictures)


def _pairs(subject: Subject, x1: np.ndarray, label) -> tuple[np.ndarray, np.ndarray]:
    """x_t between noise and x1, paired by the config's coupling, and t [n], uniform on [0, 1)."""
    exp, config, n = subject.exp, subject.exp.config, len(x1)
    couple, key = create_coupling(config, exp.methods), rng.stream(subject.seed, "coupling")
    path, x0 = exp.methods[registry.Path][config.path].path, jnp.asarray(source(subject, n))
    point = lambda key, x0: paths.interpolate(path, couple(x0, x1, key, label), x1, t).x
    t = ((np.random.default_rng(subject.seed).permutation(n) + 0.5) / n).astype(np.float32)
    try:
        x = np.asarray(jax.jit(point)(key, x0))
    except ValueError as error:
        raise UserError(f"config.coupling cannot pair --num={n}: {error}") from error
    return x, t


def _row(out: dict[str, np.ndarray], c0: float) -> dict[str, float]:
    """Relative errors over all pairs."""
    row = {}
    for which in ERRORS:
        row |= {f"{which}_mape": float(out[which].mean())}
        row |= {f"{which}_median": float(np.median(out[which]))}
    row["distance_below_5%"] = float((out["distance"] < 0.05).mean())
    row["u_over_r"] = float(np.median(out["u"] / np.sqrt(out["r"] ** 2 + c0)))
    return row


def _binned(out: dict[str, np.ndarray], t: np.ndarray, bins: int) -> dict[str, dict]:
    """Relative errors in bins of t and of r (Fig. 14)."""
    edges = {"t": np.linspace(0, 1, bins + 1), "r": np.linspace(0, out["r"].max(), bins + 1)}
    by = {"t": t, "r": out["r"]}
    return {
        axis: {
            which: {"edges": edges[axis]} | measures.binned(out[which], by[axis], edges[axis])
            for which in ERRORS
        }
        for axis in by
    }


def _follow(subject: Subject, num: int) -> dict[str, np.ndarray]:
    """`measures.along` of samples 0 … num - 1 (Fig. 30, 31): {name: [steps + 1, num]}."""
    exp = subject.exp
    draw = generate.make_drawer(exp, trace=1)
    out = draw(subject.params, num, subject.seed, from_zero(counter("followed", num)))
    over = on_batches(
        exp,
        lambda field, index, trace, cond: {
            name: values.T
            for name, values in measures.along(field, jnp.swapaxes(trace, 0, 1), cond).items()
        },
    )
    curves = over(subject.params, np.swapaxes(out.trace, 0, 1), labels(exp, num))
    return {name: np.asarray(values).T for name, values in curves.items()}


STUDY = Study(diagnose, straight=True)
