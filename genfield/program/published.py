"""Runs as published weights: what a run's network is, opened like a file, and written into one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genfield import registry
from genfield.errors import UserError, local
from genfield.features import weights
from genfield.machine import checkpoint, processes, sharding
from genfield.machine.logbook import say
from genfield.pretrained import exporting, loading
from genfield.pretrained.family import Description, Family, Guidance
from genfield.pretrained.info import Info
from genfield.pretrained.loading import Pretrained
from genfield.program import checks, generate, objective
from genfield.program.experiment import Experiment
from genfield.program.open_run import Run, load_state, open_run

# Sections that a file holds beside network, loss and field: how the run samples.
SAMPLING = ("path", "path_noise", "time", "coupling", "sampler", "sample", "label_dropout")


def load(
    path: str | Path,
    *,
    ema: bool = True,
    kind: str | Family | None = None,
    config: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    teaches: str | None = None,
) -> Pretrained:
    """Opens published weights, an export, or a trained run; see `pretrained.loading.load`.

    Of a run, a folder with config.json and checkpoints/, the newest whole checkpoint is taken, and
    `ema` chooses between its average, where it keeps one, and the parameters themselves.

    Raises:
      UserError: as `pretrained.loading.load` and `open_run`.
    """
    folder = local(path, "the weights")
    if not (folder / "checkpoints").exists():
        given = dict(kind=kind, config=config, sha256=sha256, teaches=teaches)
        return loading.load(path, ema=ema, **given)
    if kind or config or sha256:
        raise UserError(f"{folder} is a run, which says what it is: leave out kind, config, sha256")
    run = open_run(folder)
    exp, params = run.experiment, run.params
    if not ema and generate.averaged(exp):
        params = checkpoint.load(folder, step=run.step, item="params")
    part = "ema" if ema and generate.averaged(exp) else "params"
    apply, abstract = objective.create_net(exp.config, exp.data, methods=exp.methods)
    description = describe(exp)
    digest = weights.digest(host(params["field"]))
    info = Info.of("run", description, str(folder), digest, part, abstract)
    field = exp.objective.field(params)
    return Pretrained(description.net, apply, params["field"], field, info, description)


def host(params: Mapping) -> dict:
    """Nested dicts of NumPy arrays."""
    return jax.tree.map(np.asarray, dict(params))


def describe(exp: Experiment) -> Description:
    """What a run's network is, in genfield's names."""
    config, data, method = exp.config, exp.data, exp.objective.method
    sections = config.to_dict()
    section, sources = config.sample, exp.methods[registry.DataSource]
    apply, abstract = objective.create_net(config, data, methods=exp.methods)
    guided = section.guidance_scale != 1
    source = registry.bound(sources[config.data.name], config.data)
    named = {name: value for name, value in sections["data"].items() if value is not None}
    for place in checks.file_places(config, exp.methods):
        if place.startswith("data."):
            named.pop(place.split(".")[1], None)
    return Description(
        title=f"{config.loss.name}, net {config.net.name}",
        net=sections["net"],
        shape=data.shape,
        num_classes=data.num_classes,
        facts={},
        teaches=method.teaches,
        clock=exp.objective.clock,
        loss=sections["loss"],
        program={"data": named, **{name: sections[name] for name in SAMPLING}},
        output=objective.output_of(config, data, apply, abstract, exp.methods),
        energy=config.energy,
        preconditioning=config.preconditioning,
        sigma_data=config.sigma_data,
        rotation=config.rotation,
        guidance=Guidance(section.guidance_channels or None, section.guidance_scale)
        if guided
        else None,
        scale=source.get("scale"),
        null=config.label_dropout > 0,
    )


def export(
    source: str | Path | Run | Pretrained | Mapping,
    out: str | Path,
    *,
    kind: str | Family | None = None,
    step: int | None = None,
    best: bool = False,
    like: Description | None = None,
) -> Path:
    """Writes parameters into a .safetensors file that `load`, or the authors' code, opens.

    Under published names where a family has a place for the network, with NAME.json beside, which
    holds the arguments of the published constructor; else under genfield's own. What `load` gives
    again are the same parameters, to the bit.

    Args:
      source: a run, its workdir, opened weights, or their file; or parameters of a field, nested
        dicts, with like=a description of their network, such as `load(…).description`.
      out: where; a file that is there is never replaced by another one.
      kind: the family; see `exporting.family_of`.
      step, best: of a workdir, the checkpoint; otherwise the newest.
    Returns:
      The file.
    Raises:
      UserError: a network that cannot be written, or not so; another file in the way.
    """
    exporting.place(out)
    if (step is not None or best) and not _is_run(source):
        raise UserError("step and best choose among the checkpoints of a workdir")
    if _is_run(source):
        source = open_run(source, step, best=best)
    elif isinstance(source, str | Path):
        source = loading.load(source)
    if isinstance(source, Run):
        params, description = source.params["field"], describe(source.experiment)
        tell_left(source.params)
    elif isinstance(source, Pretrained):
        params, description = source.params, source.description
    elif like is not None:
        params, description = source, like
    else:
        raise UserError("parameters alone do not say what network is theirs: pass like=…")
    return exporting.write(host(params), description, out, kind)[0]


def _is_run(source) -> bool:
    return isinstance(source, str | Path) and (Path(source).expanduser() / "checkpoints").exists()


def tell_left(params: Mapping) -> None:
    """Says which parameters beside the field's an export leaves out."""
    others = sorted(set(params) - {"field"})
    if others:
        say(f"left out: {', '.join(others)}, which only the training uses")


def mode(exp: Experiment, *, step: int | None, best: bool, out: str | None, kind: str | None):
    """Writes a checkpoint of a run into a file, exports/step_N.safetensors unless told."""
    state, step = load_state(exp, step, best)
    params = generate.parameters(exp, state)
    with processes.together():
        file = exporting.place(out or exp.workdir / "exports" / f"step_{step}.safetensors")
    field = sharding.to_host(params["field"])
    with processes.together():
        if jax.process_index() == 0:
            tell_left(params)
            file, family = exporting.write(field, describe(exp), file, kind)
            say(f"export: {file}  step {step}, {family.title}")
