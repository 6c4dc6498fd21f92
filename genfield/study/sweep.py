"""Step sizes and numbers of steps (Equilibrium Matching, arXiv:2510.02300, Fig. 7)."""

from collections.abc import Callable

import numpy as np

from genfield import guidance
from genfield.errors import UserError
from genfield.fields import Field
from genfield.figures.study import sweeps
from genfield.program import sampler
from genfield.registry import Positive, PositiveInt, choose
from genfield.study.subject import (
    Findings,
    Study,
    Subject,
    counter,
    labels,
    make_metric,
    sampler_from,
    scorer,
    source,
    table,
)


def sweep(
    subject: Subject,
    *,
    step_sizes: tuple[Positive, ...] = (),
    num_steps: tuple[PositiveInt, ...] = (),
    num: PositiveInt = 256,
    metric: str = "auto",
    figure: str | None = None,
) -> Findings:
    """Step sizes and numbers of steps of the sampler's first stage (EqM Fig. 7).

    step_sizes: left out, 1/4 to 4 times the config's; of Euler and Heun they replace the length of
    each update, 1/num_steps, while the clock goes on as it was. num: samples of each. metric:
    frechet, point_cloud, none or auto (point_cloud for points). figure: the one that is plotted.
    """
    exp, section = subject.exp, subject.exp.config.sampler
    first = sampler.stages(section, exp.methods)[0]
    if first.method.adaptive:
        raise UserError(f"sampler {section.name!r} chooses its own steps: set config.sampler")
    num_steps = num_steps or (section.num_steps,)
    measure = make_metric(exp, metric, subject.seed, num)
    total = len(num_steps) * (len(step_sizes) or 5) * num
    rows, tick = [], counter("samples", total)
    for steps in num_steps:
        base = _step_size(first, steps)
        sizes = step_sizes or tuple(base * f for f in (0.25, 0.5, 1.0, 2.0, 4.0))
        run = _swept(subject, first, steps, base)
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
        "configured": {"num_steps": section.num_steps, "step_size": _step_size(first, None)},
    }
    pictures = [sweeps(subject.picture(""), rows, figure)]
    return Findings(figures, table(rows), pictures)


def _step_size(first: sampler.Stage, num_steps: int | None) -> float:
    """The step of a sampler; of a clock, its share of [0, 1]."""
    size = first.arguments.get("step_size")
    return 1 / (num_steps or first.num_steps) if size is None else float(size)


def _swept(subject: Subject, first: sampler.Stage, num_steps: int, base: float) -> Callable:
    """run(step_size, num, tick) -> (x, nfe, scores at x), with one program where that can be."""
    exp, section = subject.exp, subject.exp.config.sampler
    by_scale = first.rule is not None and first.rule.scales
    linear = first.method.step_scales_field and section.get("then") is None and not by_scale
    score = scorer(exp)

    def configured(objective=exp.objective, **fields) -> Callable:
        config = exp.config.copy_and_resolve_references()
        config.sampler.update(num_steps=num_steps, **fields)
        return sampler_from(subject._replace(exp=exp._replace(config=config, objective=objective)))

    def field(held) -> Field:
        return guidance.scaled(exp.objective.field(held["params"]), held["factor"])

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


STUDY = Study(sweep, straight=False)
