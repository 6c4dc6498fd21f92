"""Samples from partially noised data (Equilibrium Matching, arXiv:2510.02300, Fig. 10)."""

import math
from collections.abc import Callable

import jax
import numpy as np

from genfield import distances, registry
from genfield.errors import UserError
from genfield.figures.study import against, image_rows, moves
from genfield.registry import PositiveInt
from genfield.study import measures
from genfield.study.subject import (
    SHOWN,
    Findings,
    Study,
    Subject,
    counter,
    heldout,
    make_metric,
    sampler_from,
    source,
    table,
    training,
    viewed,
)


def denoise(
    subject: Subject,
    *,
    times: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9),
    num: PositiveInt = 256,
    metric: str = "auto",
    max_train: PositiveInt = 50_000,
) -> Findings:
    """The run's sampler from partially noised held-out data (EqM Fig. 10).

    times: t of (1-t) noise + t data. num: held-out examples. metric: of the samples: frechet,
    point_cloud, none, or auto (point_cloud for points). max_train: training examples among which
    the nearest is looked for.
    """
    exp = subject.exp
    path = exp.methods[registry.Path][exp.config.path].path
    for t in times:
        if not 0 <= t <= 1:
            raise UserError(f"--times must lie between 0 and 1, got {t:g}")
    x1, labels = heldout(exp, num)
    x0, measure = source(subject, len(x1)), make_metric(exp, metric, subject.seed)
    reference = list(training(exp, max_train))
    to_data = lambda x: float(distances.nearest(x, reference).distance.mean())
    run, tick = sampler_from(subject), counter("samples", len(times) * len(x1))
    noised = jax.jit(lambda t: measures.partially_noised(x0, x1, t, path))
    rows, moved = [], {}
    for t in times:
        start = np.asarray(noised(t))
        out = run(subject.params, start, labels, tick=tick)
        rows.append({"t": t} | _row(start, out, x1, to_data, measure))
        moved[t] = start, out["x"]
    best = {"to_data": to_data(x1)} | measure(x1)  # what the best samples would have
    figures = {
        "rows": rows,
        "heldout": best,
        "examples": len(x1),
        "labels": "the examples' own" if labels is not None else "none",
        "start": "each start is taken for noise: the clock runs from 0 to 1, as in the paper's "
        "flow-matching baseline"
        if exp.objective.clock
        else "the sampler is not told t; all its steps are taken from each start",
    }
    pictures = [against(subject.picture("_curves"), rows, "t", ("mse", "to_data"))]
    if exp.pictures:
        grid = {"original": x1}
        for t, (start, x) in moved.items():
            grid |= {f"t = {t:g}, input": start, f"t = {t:g}, output": x}
        pictures.append(image_rows(subject.picture(""), viewed(exp, grid, SHOWN), SHOWN))
    elif exp.data.shape == (2,):
        panels = {f"t = {t:g}": pair for t, pair in moved.items()}
        pictures.append(moves(subject.picture(""), panels, reference[0]))
    return Findings(figures, table([*rows, {"t": "data"} | best]), pictures)


def _row(start, out: dict, x1, to_data: Callable, measure: Callable) -> dict[str, float]:
    """The figures of samples `out` that began at `start`; those of diverged ones are few."""
    finite = bool(np.isfinite(out["x"]).all())
    row = {
        "mse_of_input": float(np.mean((start - x1) ** 2)),
        "mse": float(np.mean((out["x"] - x1) ** 2)),
        "to_data": to_data(out["x"]) if finite else math.nan,
        "nfe": float(out["nfe"].mean()),
    }
    return row | measure(out["x"]) if finite else row


STUDY = Study(denoise, straight=True)
