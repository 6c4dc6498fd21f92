"""The plan of a config on a machine: every program compiled, and what follows from it."""

import argparse
from pathlib import Path

from genfield.errors import tell
from genfield.machine import chips, flops
from genfield.nets import count_parameters
from genfield.placement import sizes
from genfield.plan import analyse, devices, programs, report, shapes, suggest
from genfield.plan.analyse import Target
from genfield.program import experiment, speed
from genfield.program.experiment import Experiment
from genfield.program.methods import package
from genfield.registry import Methods


def target(machine: chips.Machine) -> Target:
    """A machine with its devices and their figures; raises UserError where there are none."""
    return Target(machine, devices.chip_of(machine), devices.of(machine))


def make(config, methods: Methods | None, target: Target, options: argparse.Namespace) -> dict:
    """What plan.json holds. options: shape, classes, suggest, and config, its file.

    Raises:
      UserError: a config that cannot work on this machine.
    """
    methods, machine = methods or package(), target.machine
    exp = prepare(config, methods, target, options)
    out: dict = {"config": options.config, "topology": machine.name, "slices": machine.slices}
    out |= {"chips": machine.count, "mesh": sizes(exp.mesh), "batch_size": config.batch_size}
    out |= {"parameters": count_parameters(exp.abstract.params)}
    for name, trace in programs.PROGRAMS.items():
        tell(f"compiling the {report.TITLES[name]} for {machine.name} …")
        traced = trace(exp)
        if traced is None:
            out[name] = None
            continue
        useful = _model_flops(config, methods, target, options) if name == "train" else None
        out[name] = analyse.program(exp, traced, target, useful)
    fits = [part["fits"] for _, part in report.programs(out)]
    out |= {"fits": all(fits), "suggestions": []}
    out["headline"], out["mend"] = _headline(out), _mend(out, config, machine, methods)
    if options.suggest:

        def again(changed) -> dict:
            other = prepare(changed, methods, target, options)
            return analyse.program(other, programs.train(other), target, None)

        tell("compiling the options …")
        out["suggestions"] = list(suggest.tried(config, machine, methods, again))
    return out


def prepare(config, methods: Methods, target: Target, options: argparse.Namespace) -> Experiment:
    """The experiment of a config on these devices, its data by their shape."""
    config = config.copy_and_resolve_references()
    config.initial_parameters = None  # where training starts changes no shape
    dataset = shapes.dataset(config, methods, options.shape, options.classes)
    nowhere = Path(options.config).with_name("no run of this name")
    return experiment.prepare(
        config, nowhere, methods, decodes=False, dataset=dataset, devices=target.devices
    )


def _model_flops(config, methods: Methods, target: Target, options) -> float | None:
    """FLOPs of a train step that recomputes nothing; None where it is that already."""
    plain = speed.without_remat(config, methods)
    if plain is None:
        return None
    exp = prepare(plain, methods, target, options)
    counted = flops.count(programs.train(exp).traced.jaxpr)
    return sum(n for dtype, n in counted.items() if dtype != flops.UNKNOWN)


def _headline(out: dict) -> str:
    worst = max((part["memory_bytes"]["peak"], name) for name, part in report.programs(out))
    limit = out["train"]["memory_bytes"]["limit"]
    verdict = "fits" if out["fits"] else "does not fit"
    spent = (out["train"]["seconds"] or {}).get("predicted")
    mesh = ", ".join(f"{axis} {n}" for axis, n in out["mesh"].items())
    line = (
        f"{out['parameters']:,} parameters, batch {out['batch_size']}, {out['chips']} chips "
        f"({mesh}): {verdict}, {report.size(worst[0])} of {report.size(limit)} a chip in the "
        f"{report.TITLES[worst[1]]}"
    )
    return line + ("" if spent is None else f"; a step takes at least {report.duration(spent)}")


def _mend(out: dict, config, machine: chips.Machine, methods: Methods) -> str | None:
    """What to change where it does not fit."""
    if out["fits"]:
        return None
    if out["train"]["fits"]:
        part, each = out["sample"]["memory_bytes"], config.sample.batch_size
        how = f"set --config.sample.batch_size below {each}"
        what = "the sampler step"
    else:
        part, what = out["train"]["memory_bytes"], "the train step"
        how = suggest.mend(config, machine, methods)
    return (
        f"{what} does not fit on {out['topology']}: {report.size(part['peak'])} a chip, which has "
        f"{report.size(part['limit'])}: {how}"
    )
