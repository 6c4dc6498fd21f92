"""How straight a sampler's trajectories are, and what its evaluations buy (LMM, Table 1)."""

import jax.numpy as jnp

from genfield import rng
from genfield.errors import UserError
from genfield.metrics import path_geometry
from genfield.objectives import ADAPTIVE, at_levels
from genfield.sampling.diffusion import log_noise_levels, noise_levels
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


def straightness(
    subject: Subject,
    *,
    num_steps: tuple[int, ...] = (),
    num: int = 256,
    metric: str = "auto",
) -> Findings:
    """∫ |dx/dt - (x1 - x0)| dt of the sampler's trajectories, and quality against evaluations.

    Down noise levels it is that of z = x / (1 + σ) over t = 1 / (1 + σ), of other samplers that of
    x over even steps; 0 where samples run straight on. num_steps: several numbers of steps; left
    out, the config's. num: samples of each. metric: frechet, point_cloud, none or auto (point_cloud
    for points).
    """
    exp, section = subject.exp, subject.exp.config.sampler
    if section.name in ADAPTIVE:
        raise UserError(f"sampler {section.name!r} chooses its own steps: set config.sampler")
    if num_steps and section.name == "multistep":
        raise UserError(
            "multistep takes the steps of config.sampler.indices: leave out --num_steps"
        )
    if section.get("then") is not None or section.get("stop") is not None:
        raise UserError("straightness needs one sampler whose samples end together")
    counts = num_steps or (section.get("num_steps") or len(section.get("indices", (0,))),)
    measure = make_metric(exp, metric, subject.seed, num)
    start, cond = source(subject, num), labels(exp, num)
    rows, tick = [], counter("samples", num * len(counts))
    for count in counts:
        out = _traced(subject, count)(subject.params, start, cond, tick=tick)
        row = {"num_steps": count, "nfe": float(out["nfe"].mean())}
        row |= {name: float(out[name].mean()) for name in ("deviation", "relative")}
        rows.append(row | measure(out["x"]))
    preferred = [n for n in rows[0] if n == "w2" or n.startswith(("fid", "fd_"))]
    figures = {"rows": rows, "samples": num, "linear_path": at_levels(exp.config)}
    picture = evaluations(subject.picture(""), rows, ["deviation", *preferred[:1]])
    return Findings(figures, table(rows), [picture])


def _traced(subject: Subject, num_steps: int):
    """over(params, start, cond) -> {"x", "nfe", "deviation", "relative"}, [N] each but x."""
    config = subject.exp.config.copy_and_resolve_references()
    config.sample.slots = 0
    if config.sampler.name != "multistep":
        config.sampler.num_steps = num_steps
    exp, key = with_sampler(subject.exp, config), rng.stream(subject.seed, "sampler")
    levels = _levels(config.sampler) if at_levels(config) else None

    def call(field, index, start, cond):
        keys = rng.per_index(key, index, lambda k: k)
        out, times = exp.sampler(keys, field, start, cond, trace=1), None
        trace = out.trace
        if levels is not None:  # the noise is traced as it was given
            trace = trace.at[0].multiply(levels[0])
            trace, times = path_geometry.on_linear_path(trace, levels)
        found = path_geometry.straightness(trace, times)
        return {"x": out.x, "nfe": out.nfe, **found._asdict()}

    return on_batches(exp, call)


def _levels(section):
    """The noise levels at which a sampler down them stands, the start first; None at one level."""
    fields = {n: section[n] for n in ("sigma_min", "sigma_max") if n in section}
    spaced = fields | ({"rho": section.rho} if "rho" in section else {})
    if section.name == "multistep":
        levels = noise_levels(section.get("schedule_steps", 18), **spaced)
        return levels[jnp.asarray([*section.get("indices", (0,)), -1])]
    if section.name in ("edm_heun", "edm_euler"):
        return noise_levels(section.num_steps, **spaced)
    if section.name in ("reverse_ve", "predictor_corrector"):
        return log_noise_levels(section.num_steps, **fields)
    return None
