"""How straight a sampler's trajectories are, and what its evaluations buy (LMM, Table 1)."""

import jax.numpy as jnp

from genfield import rng
from genfield.errors import UserError
from genfield.metrics import path_geometry
from genfield.objectives import ADAPTIVE, POSITIONS, at_levels
from genfield.sampling.diffusion import SIGMA_MAX, SIGMA_MIN, log_noise_levels, noise_levels
from genfield.studies.common import (
    Findings,
    Subject,
    counter,
    labels,
    make_metric,
    on_batches,
    source,
    table,
    with_sampler,
)
from genfield.studies.figures import evaluations

ENDS = (("sigma_max", SIGMA_MAX), ("sigma_min", SIGMA_MIN))


def straightness(
    subject: Subject,
    *,
    num_steps: tuple[int, ...] = (),
    indices: tuple[str, ...] = (),
    num: int = 256,
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
    variants = _variants(section, num_steps, indices)
    measure = make_metric(exp, metric, subject.seed, num)
    start, cond = source(subject, num), labels(exp, num)
    rows, tick = [], counter("samples", num * len(variants))
    for name, change in variants.items():
        out = _traced(subject, change)(subject.params, start, cond, tick=tick)
        row = {"sampler": name, "nfe": float(out["nfe"].mean())}
        row |= {figure: float(out[figure].mean()) for figure in ("deviation", "relative")}
        rows.append(row | measure(out["x"]))
    preferred = [n for n in rows[0] if n == "w2" or n.startswith(("fid", "fd_"))]
    figures = {"rows": rows, "samples": num, "linear_path": at_levels(exp.config)}
    picture = evaluations(subject.picture(""), rows, ["deviation", *preferred[:1]])
    return Findings(figures, table(rows), [picture])


def _variants(section, num_steps: tuple[int, ...], indices: tuple[str, ...]) -> dict[str, dict]:
    """What each row changes of the sampler, by its name."""
    name = section.name
    if name in ADAPTIVE and (num_steps or indices):
        raise UserError(f"sampler {name!r} chooses its own steps: leave out --num_steps")
    if indices and name != "multistep":
        raise UserError(f"--indices are of multistep, not {name!r}: give --num_steps")
    if num_steps and name == "multistep":
        raise UserError("multistep takes the steps of its levels: give --indices=0,0+1 instead")
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
    levels = _levels(config.sampler) if at_levels(config) else None

    def call(field, index, start, cond):
        keys = rng.per_index(key, index, lambda k: k)
        out = exp.sampler(keys, field, start, cond, trace=1)
        trace, times = out.trace, _own_times(out.trace)
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


def _levels(section):
    """The noise levels at which a sampler down them stands, the start first; None at one level."""
    fields = {n: section[n] for n in ("sigma_min", "sigma_max") if n in section}
    spaced = fields | ({"rho": section.rho} if "rho" in section else {})
    if section.name == "multistep":
        levels = noise_levels(section.get("schedule_steps", 18), **spaced)
        return levels[jnp.asarray([*section.get("indices", (0,)), -1])]
    if section.name in ("edm_heun", "edm_euler"):
        return noise_levels(section.num_steps, **spaced)
    if section.name == "probability_flow":
        ends = (fields.get(name, default) for name, default in ENDS)
        return jnp.geomspace(*ends, POSITIONS + 1)
    if section.name in ("reverse_ve", "predictor_corrector"):
        return log_noise_levels(section.num_steps, **fields)
    return None
