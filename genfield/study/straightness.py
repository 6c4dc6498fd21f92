"""How straight a sampler's trajectories are, and what its evaluations buy (LMM, Table 1)."""

import jax.numpy as jnp

from genfield import registry, rng
from genfield.errors import UserError
from genfield.figures.study import evaluations
from genfield.metrics import path_geometry
from genfield.program import sampler
from genfield.program.experiment import Experiment
from genfield.registry import PositiveInt
from genfield.study.subject import (
    Findings,
    Study,
    Subject,
    counter,
    labels,
    make_metric,
    on_batches,
    source,
    table,
    with_sampler,
)


def straightness(
    subject: Subject,
    *,
    num_steps: tuple[PositiveInt, ...] = (),
    indices: tuple[str, ...] = (),
    num: PositiveInt = 256,
    metric: str = "auto",
) -> Findings:
    """∫ |dx/dt - (x1 - x0)| dt of the sampler's trajectories, and quality against evaluations.

    Down noise levels it is that of z = x / (1 + σ) over t = 1 / (1 + σ), of other samplers that of
    x over even steps, up to where each sample stopped; 0 where samples run straight on. num_steps:
    several numbers of steps, of the sampler's first stage; left out, the config's. indices: several
    choices of multistep, as 0,0+1,0+3+5. num: samples of each. metric: frechet, point_cloud, none
    or auto (point_cloud for points).
    """
    exp, section = subject.exp, subject.exp.config.sampler
    method = sampler.stages(section, exp.methods)[0].method
    variants = _variants(section, method, num_steps, indices)
    measure = make_metric(exp, metric, subject.seed, num)
    start, cond = source(subject, num), labels(exp, num)
    rows, tick = [], counter("samples", num * len(variants))
    for name, change in variants.items():
        out = _traced(subject, change)(subject.params, start, cond, tick=tick)
        row = {"sampler": name, "nfe": float(out["nfe"].mean())}
        row |= {figure: float(out[figure].mean()) for figure in ("deviation", "relative")}
        rows.append(row | measure(out["x"]))
    preferred = [n for n in rows[0] if n == "w2" or n.startswith(("fid", "fd_"))]
    figures = {"rows": rows, "samples": num, "linear_path": exp.objective.method.at_levels}
    picture = evaluations(subject.picture(""), rows, ["deviation", *preferred[:1]])
    return Findings(figures, table(rows), [picture])


def _variants(
    section, method: registry.Sampler, num_steps: tuple[int, ...], indices: tuple[str, ...]
) -> dict[str, dict]:
    """What each row changes of the sampler, by its name."""
    name, by_levels = method.name, method.steps is not None
    if method.adaptive and (num_steps or indices):
        raise UserError(f"sampler {name!r} chooses its own steps: leave out --num_steps")
    if indices and not by_levels:
        raise UserError(f"--indices are of multistep, not {name!r}: give --num_steps")
    if num_steps and by_levels:
        raise UserError(f"{name} takes the steps of its levels: give --indices=0,0+1 instead")
    if num_steps:
        return {f"{name}, {n}": {"num_steps": n} for n in num_steps}
    try:
        chosen = {text: tuple(map(int, text.split("+"))) for text in indices}
    except ValueError:
        raise UserError(f"--indices={','.join(indices)} must be as 0,0+1,0+3+5") from None
    return {f"{name}, {text}": {"indices": of} for text, of in chosen.items()} or {name: {}}


def _traced(subject: Subject, change: dict):
    """over(params, start, cond) -> {"x", "nfe", "deviation", "relative"}, [N] each but x."""
    config = subject.exp.config.copy_and_resolve_references()
    config.sample.slots = 0
    config.sampler.update(change)
    exp, key = with_sampler(subject.exp, config), rng.stream(subject.seed, "sampler")
    levels = _levels(exp) if exp.objective.method.at_levels else None
    first, *others = sampler.stages(config.sampler, exp.methods)
    whole = first.method.times is not None and not others and first.rule is None
    at = first.method.times(first.arguments, first.num_steps) if whole else None

    def call(field, index, start, cond):
        keys = rng.per_index(key, index, lambda k: k)
        out = exp.sampler(keys, field, start, cond, trace=1)
        trace, times = out.trace, _own_times(out.trace) if at is None else at
        if levels is not None:  # the noise is traced as it was given
            trace = trace.at[0].multiply(levels[0])
            trace, times = path_geometry.on_linear_path(trace, levels)
        found = path_geometry.straightness(trace, times)
        return {"x": out.x, "nfe": out.nfe, **found._asdict()}

    return on_batches(exp, call)


def _own_times(trace):
    """Even times from 0 to where each sample stopped, 1 from there on: [K+1, B]."""
    moved = jnp.any(jnp.diff(trace, axis=0) != 0, axis=tuple(range(2, trace.ndim)))
    steps = jnp.arange(1, len(trace))[:, None]
    last = jnp.maximum(jnp.max(jnp.where(moved, steps, 0), axis=0), 1)
    return jnp.minimum(jnp.arange(len(trace))[:, None] / last[None], 1.0)


def _levels(exp: Experiment):
    """The noise levels at which a sampler down them stands, the start first; None at one level."""
    first = sampler.stages(exp.config.sampler, exp.methods)[0]
    if first.method.levels is None:
        return None
    steps = sampler.POSITIONS if first.method.adaptive else first.num_steps
    return first.method.levels(first.arguments, steps)


STUDY = Study(straightness, straight=False)
