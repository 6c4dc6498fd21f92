"""Which samplers suit a run's field, asked of `program.sampler`, and where their sliders begin."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from genfield import registry
from genfield.errors import UserError
from genfield.program import config_io, sampler
from genfield.program.experiment import Experiment
from genfield.program.sampler import Course

OWN = "as the run has it"
STEPS = 100  # where a sampler begins that the run's config does not name
MOMENTUM = 0.35  # of `nesterov`, as EqM has it on CIFAR-10 (arXiv:2510.02300, appendix)


class Choice(NamedTuple):
    """A sampler that suits the run: its name, and its section of a config."""

    name: str
    section: dict

    @property
    def stages(self) -> list[dict]:
        """The section and those nested in it."""
        return sampler.sections(self.section)


def course(exp: Experiment, section: dict, guidance: float) -> Course:
    """The sampler of a section, with the run's field converted and guided as it needs.

    Raises:
      UserError: it does not suit the run.
    """
    config = exp.config.copy_and_resolve_references()
    config.sampler, config.sample.slots = section, 0
    config.sample.guidance_scale = guidance
    if guidance == 1.0:
        config.sample.guidance_interval = ()
    sizes = exp.data.num_classes, exp.objective.output
    made = sampler.create_sampler(config, *sizes, exp.methods)
    sampler.check_source(made.stages, exp.data, exp.methods)
    return made


def suitable(exp: Experiment, step_size: Callable[[], float]) -> dict[str, Choice]:
    """The run's own sampler first, then the others that suit its field, by name.

    Args:
      step_size: () -> where a sampler begins whose step size neither it nor the run says.
    """
    own = config_io.to_dict(exp.config.sampler)
    found = {OWN: Choice(OWN, own)}
    alone = own["name"] if len(sampler.sections(own)) == 1 and "stop" not in own else None
    for method in exp.methods[registry.Sampler].values():
        if method.name == alone or (method.adaptive and method.pieces is None):
            continue
        section = _section(method, exp, step_size)
        if section is None:
            continue
        try:
            course(exp, section, 1.0)
        except UserError:
            continue
        found[method.name] = Choice(method.name, section)
    return found


def _section(method: registry.Sampler, exp: Experiment, step_size: Callable) -> dict | None:
    """A sampler's section with what it needs; None where nobody knows what that should be."""
    own = sampler.sections(config_io.to_dict(exp.config.sampler))
    alike = [part for part in own if part["name"] == method.name]
    section: dict[str, Any] = {"name": method.name}
    section |= {k: v for part in alike[:1] for k, v in part.items() if k not in ("then", "stop")}
    known = {"step_size": lambda: _shared(method, exp, own) or step_size()}
    known["momentum"] = lambda: MOMENTUM
    for name, argument in registry.parameters(method.target).items():
        optional = name in method.supplied or argument.default is not inspect.Parameter.empty
        if optional or name in section:
            continue
        if name not in known:
            return None
        section[name] = known[name]()
    if not method.adaptive and method.steps is None:
        section["num_steps"] = STEPS
    return section


def _shared(method: registry.Sampler, exp: Experiment, own: list[dict]) -> float | None:
    """The step size of one of the run's samplers that makes steps of the same kind."""
    kind = lambda one: (one.follows, one.product, one.step_scales_field)
    for part in own:
        other = exp.methods[registry.Sampler][part["name"]]
        if "step_size" in part and method.step_scales_field and kind(other) == kind(method):
            return part["step_size"]
    return None


def sliders(exp: Experiment, choice: Choice) -> list[dict]:
    """Of each stage its name, its step size (None where it has none) and steps (None: its own)."""
    out = []
    for part, stage in zip(choice.stages, course(exp, choice.section, 1.0).stages, strict=True):
        free = not stage.method.adaptive and stage.method.steps is None
        steps, size = stage.num_steps if free else None, stage.arguments.get("step_size")
        out.append({"name": part["name"], "step_size": size, "num_steps": steps})
    return out
