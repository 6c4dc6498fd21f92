"""Step sizes and numbers of steps (Equilibrium Matching, arXiv:2510.02300, Fig. 7)."""

import inspect
from collections.abc import Callable

import numpy as np

from genfield import abilities, sampling
from genfield.errors import UserError, choose
from genfield.fields import Field
from genfield.studies.common import (
    Findings,
    Subject,
    counter,
    labels,
    make_metric,
    sampler_from,
    scorer,
    source,
    table,
)
from genfield.studies.figures import sweeps

# Samplers whose step is linear in the field: a scaled field has a scaled step.
LINEAR = ("gradient_descent", "nesterov", "sphere_tracing", "euler", "heun")


def sweep(
    subject: Subject,
    *,
    step_sizes: tuple[float, ...] = (),
    num_steps: tuple[int, ...] = (),
    num: int = 256,
    metric: str = "auto",
    figure: str | None = None,
) -> Findings:
    """Step sizes and numbers of steps of the sampler's first stage (EqM Fig. 7).

    step_sizes: left out, 1/4 to 4 times the config's; of Euler and Heun they replace the length of
    each update, 1/num_steps, while the clock goes on as it was. num: samples of each. metric:
    frechet, point_cloud, none or auto (point_cloud for points). figure: the one that is plotted.
    """
    exp, section = subject.exp, subject.exp.config.sampler
    if section.name in sampling.SOLVERS:
        raise UserError(f"sampler {section.name!r} chooses its own steps: set config.sampler")
    num_steps = num_steps or (section.num_steps,)
    measure = make_metric(exp, metric, subject.seed, num)
    total = len(num_steps) * (len(step_sizes) or 5) * num
    rows, tick = [], counter("samples", total)
    for steps in num_steps:
        base = _step_size(section, steps)
        sizes = step_sizes or tuple(base * f for f in (0.25, 0.5, 1.0, 2.0, 4.0))
        run = _swept(subject, steps, base)
        for size in sizes:
            x, nfe, last = run(size, num, tick)
            fine = np.isfinite(x).reshape(len(x), -1).all(1)
            row = {"num_steps": steps, "step_size": size, "nfe": float(nfe.mean())}
            row["diverged"] = float(1 - fine.mean())
            row |= {f"final_{name}": float(v.mean()) for name, v in last.items()}
            if fine.all():
                row |= measure(x)
                choose("--figure", figure or "nfe", row)
            rows.append(row)
    known = dict.fromkeys(name for row in rows for name in row)
    preferred = [n for n in known if n == "chamfer" or n.startswith(("fid", "fd_"))]
    figure = figure or (*preferred, "final_gradient_norm")[0]
    choose("--figure", figure, known)
    figures = {
        "rows": rows,
        "plotted": figure,
        "samples": num,
        "noise": f"the same for all, of seed {subject.seed}",
        "configured": {"num_steps": section.num_steps, "step_size": _step_size(section, None)},
    }
    pictures = [sweeps(subject.picture(""), rows, figure)]
    return Findings(figures, table(rows), pictures)


def _step_size(section, num_steps: int | None) -> float:
    """The step of a sampler section; of a clock, its share of [0, 1]."""
    if "step_size" in section:
        return float(section.step_size)
    parameters = inspect.signature(sampling.SAMPLERS[section.name]).parameters
    if "step_size" in parameters:
        return float(parameters["step_size"].default)
    return 1 / (num_steps or section.num_steps)


def _swept(subject: Subject, num_steps: int, base: float) -> Callable:
    """run(step_size, num, tick) -> (x, nfe, scores at x), with one program where that can be."""
    exp, section = subject.exp, subject.exp.config.sampler
    by_norm = (section.get("stop") or {}).get("name") == "gradient_norm"
    linear = section.name in LINEAR and section.get("then") is None and not by_norm
    score = scorer(exp)

    def configured(objective=exp.objective, **fields) -> Callable:
        config = exp.config.copy_and_resolve_references()
        config.sampler.update(num_steps=num_steps, **fields)
        return sampler_from(subject._replace(exp=exp._replace(config=config, objective=objective)))

    def field(held) -> Field:
        return abilities.scaled(exp.objective.field(held["params"]), held["factor"])

    once = configured(exp.objective._replace(field=field)) if linear else None

    def run(step_size: float, num: int, tick: Callable):
        start, cond = source(subject, num), labels(exp, num)
        if linear:
            held = {"params": subject.params, "factor": np.float32(step_size / base)}
            out = once(held, start, cond, tick=tick)
        else:
            out = configured(step_size=step_size)(subject.params, start, cond, tick=tick)
        return out["x"], out["nfe"], score(subject.params, out["x"], cond)

    return run
