"""From a configuration to its sampler: stages, stopping, guidance, and the field it follows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from genfield import registry, sampling
from genfield.data import Dataset
from genfield.errors import UserError
from genfield.fields import denoiser_field, negate, score_field
from genfield.guidance import classifier_free, interval
from genfield.preconditionings import PRECONDITIONINGS
from genfield.program.methods import has_clock, loss_of, package
from genfield.program.parts import one_level
from genfield.registry import Methods, bind, bound, build, check_range
from genfield.rng import fold_in
from genfield.sampling import Samples
from genfield.sampling.core import Pieces, pieces, stage_trace
from genfield.sampling.stopping import refill_pieces

SCORED = (
    "makes a score of a velocity, which must have been trained with t on the straight path from "
    "normal noise that hangs on nothing"
)
POSITIONS = 64  # intervals at whose ends the trace of an adaptive sampler has positions


class Stage(NamedTuple):
    """A sampler of a chain: its record, its section's arguments, and what runs."""

    method: registry.Sampler
    arguments: dict[str, Any]
    sampler: Any  # sampling.Sampler, or of adaptive ones a function of (field, x, cond, trace)
    num_steps: int
    rule: registry.StopRule | None


def sections(section) -> list:
    """A sampler section and those nested in its `then`."""
    if section is None:
        return []
    if not hasattr(section, "get"):
        raise UserError(f"config.sampler.then is a section, as config.sampler is: {section!r}")
    return [section, *sections(section.get("then"))]


def stages(section, methods: Methods | None = None) -> list[Stage]:
    """The stages of a sampler section: itself, the one nested in its `then`, and so on.

    Raises:
      UserError: an unknown sampler, rule or field, no number of steps.
    """
    methods = methods or package()
    out, where, table = [], "sampler", methods[registry.Sampler]
    for part in sections(section):
        out.append(_stage(part, table, methods[registry.StopRule], where))
        table = {name: method for name, method in table.items() if not method.adaptive}
        where += ".then"
    return out


def _stage(section, table, rules, where: str) -> Stage:
    fields = dict(section)
    method = registry.entry("sampler", table, section)
    if method.adaptive:
        return Stage(method, bound(method, fields), bind("sampler", table, fields), 0, None)
    fields.pop("then", None)
    num_steps, stop, rule = fields.pop("num_steps", None), fields.pop("stop", None), None
    check_range(f"{where}.num_steps", num_steps, registry.POSITIVE)
    if method.steps is not None:
        num_steps = method.steps(bound(method, fields))
    if not isinstance(num_steps, int) or num_steps < 1:
        raise UserError(f"config.sampler {method.name!r} needs num_steps >= 1, got {num_steps}")
    sampler = build("sampler", table, fields, where=where)
    if stop is not None:
        made = build("sampler.stop", rules, stop, where=f"{where}.stop")
        sampler, rule = sampling.stopping(sampler, made), rules[stop["name"]]
    return Stage(method, bound(method, fields), sampler, num_steps, rule)


def create_sampler(
    config, num_classes: int = 0, output: str = "potential", methods: Methods | None = None
) -> "Course":
    """run(key, field, x, cond=None, trace=None) -> Samples, of the section `sampler`.

    trace: as `sampling.sample` takes it; of adaptive samplers, whatever it is, POSITIONS intervals.
    `sampler.then` nests a further stage. The field is negated where the sampler follows the other
    kind, and guided where `sample.guidance_scale` is not 1 and labels are given.
    Args:
      output: of the objective.
    Raises:
      UserError: unknown sampler or field, a clocked sampler chained, an energy that is not there.
    """
    return Course(*create_chain(config, num_classes, output, methods), config.sample.slots)


class Course(NamedTuple):
    """The sampler of a config; called, it runs in one piece.

    Attributes:
      stages: of the chain. follow: (field, cond) -> the field that they follow.
      slots: of `sample.slots`.
    """

    stages: list[Stage]
    follow: Callable
    slots: int

    def __call__(self, key, field, x, cond=None, trace=None) -> Samples:
        field, first = self.follow(field, cond), self.stages[0]
        if first.method.adaptive:
            positions = None if trace is None else POSITIONS
            return first.sampler(field, x, cond=cond, trace=positions)
        plan = [(stage.sampler, stage.num_steps) for stage in self.stages]
        if self.slots and trace is None:
            run = dict(num_steps=first.num_steps, slots=self.slots, cond=cond)
            return sampling.refill(key, field, x, first.sampler, **run)
        return sampling.chain(key, field, x, plan, cond=cond, trace=trace)

    def pieces(self, trace: int | None = None) -> list[Pieces] | None:
        """The pieces of each stage, for keys [B]; None where it runs in one piece alone.

        A single step is one piece anyway, and as such what it was before there were pieces.
        """
        first = self.stages[0]
        if first.method.adaptive:
            if first.method.pieces is None:
                return None
            positions = None if trace is None else POSITIONS
            return [first.method.pieces(**first.arguments, trace=positions)]
        if self.slots and trace is None:
            return [refill_pieces(first.sampler, first.num_steps, self.slots)]
        if len(self.stages) == 1 and first.num_steps == 1:
            return None
        return [_of_stage(i, stage, trace) for i, stage in enumerate(self.stages)]


def _of_stage(number: int, stage: Stage, trace: int | None) -> Pieces:
    """The pieces of a stage, whose noise is that of its number, as `sampling.chain` has it."""
    run = pieces(stage.sampler, stage.num_steps, stage_trace(trace, stage.num_steps))
    advance = lambda key, *rest: run.advance(fold_in(key, number), *rest)
    return run._replace(advance=advance)


def create_chain(
    config, num_classes: int = 0, output: str = "potential", methods: Methods | None = None
) -> tuple[list[Stage], Callable]:
    """The stages of the section `sampler`, and follow(field, cond) -> the field they follow.

    Raises:
      UserError: as `create_sampler`.
    """
    methods = methods or package()
    chain = stages(config.sampler, methods)
    _check_chain(config, chain, output, methods[registry.StopRule])
    _check_levels(config, chain)
    convert = _conversion(config, chain[0].method, methods)
    guide = _guidance(config, chain[0], num_classes, methods)
    return chain, lambda field, cond=None: convert(guide(field) if cond is not None else field)


def guided_product(config, methods: Methods) -> str:
    """What of a Prediction is guided: as the config says, or what its sampler follows."""
    on = config.sample.guidance_on
    return methods[registry.Sampler][config.sampler.name].product if on == "auto" else on


def _guidance(config, first: Stage, num_classes: int, methods: Methods) -> Callable:
    """field -> the guided one, as the section `sample` has it; the field itself at scale 1."""
    section = config.sample
    ends, channels = tuple(section.guidance_interval), section.guidance_channels or None
    if section.guidance_scale == 1.0:
        return lambda field: field
    if ends and (len(ends) != 2 or not ends[0] <= ends[1]):
        raise UserError(f"config.sample.guidance_interval must be (low, high), got {ends}")
    if ends and not first.method.clock:
        raise UserError(
            f"config.sample.guidance_interval is of times, and sampler {first.method.name!r} "
            "has no clock: set it to ()"
        )

    on = guided_product(config, methods)

    def guide(field):
        guided = classifier_free(
            field, section.guidance_scale, num_classes, on=on, channels=channels
        )
        return interval(guided, field, *ends) if ends else guided

    return guide


def _check_chain(config, chain: list[Stage], output: str, rules) -> None:
    """Raises UserError where stages, outputs and slots do not fit each other."""
    names = [stage.method.name for stage in chain]
    if len({stage.method.follows for stage in chain}) > 1:
        raise UserError(f"config.sampler chains {', '.join(names)}: they follow different fields")
    for stage in chain:
        needs = stage.method.needs_output
        if needs is not None and output not in needs:
            other = "a config.net.distance_head" if "predicted" in needs else "config.energy"
            raise UserError(
                f"sampler {stage.method.name!r} needs a network with an energy: "
                f"config.net.output='scalar' or {other}"
            )
    free = [repr(rule.name) for rule in rules.values() if rule.needs_output is None]
    for rule in filter(None, [stage.rule for stage in chain]):
        if rule.needs_output is not None and output not in rule.needs_output:
            raise UserError(
                f"config.sampler.stop {rule.name!r} needs a network with a distance: set "
                f"config.net.distance_head, or stop by {' or '.join(free)}"
            )
    first = chain[0]
    if config.sample.slots and (len(chain) > 1 or first.method.adaptive or not first.sampler.stops):
        raise UserError(
            "config.sample.slots needs one sampler whose samples stop: set sampler.stop"
        )
    if config.sample.slots and first.method.clock:
        raise UserError(
            f"config.sample.slots: {names[0]!r} has a clock, so its samples end together"
        )


def _check_levels(config, chain: list[Stage]) -> None:
    """Raises UserError where a sampler goes to noise levels that the network never saw."""
    if config.preconditioning == "none":
        return
    known = PRECONDITIONINGS[config.preconditioning]
    slack = 1e-3  # of levels that are written in a few digits
    lowest, highest = known.lowest * (1 - slack), known.highest * (1 + slack)
    for stage in filter(lambda stage: stage.method.levels, chain):
        levels = np.asarray(stage.method.levels(stage.arguments, stage.num_steps))
        levels = levels[levels > 0]  # the last may be 0, where nothing is evaluated
        if levels.min() < lowest or levels.max() > highest:
            raise UserError(
                f"sampler {stage.method.name!r} goes from noise level {levels.max():.4g} to "
                f"{levels.min():.4g}, and config.preconditioning={config.preconditioning!r} is for "
                f"{known.lowest:.4g} to {known.highest:.4g}: set config.sampler.sigma_min and "
                "sigma_max"
            )


def check_deterministic(section, methods: Methods | None = None) -> None:
    """Raises UserError if a sampler's section, or one nested in it, draws noise of its own."""
    table = (methods or package())[registry.Sampler]
    for part in sections(section):
        method = registry.entry("sampler", table, part)
        if method.noisy(bound(method, part)):
            raise UserError(
                f"pairs need a deterministic sampler, and {method.name!r} draws noise of its own: "
                "set config.sampler.name to an ODE solver, without churn"
            )


def _conversion(config, sampler: registry.Sampler, methods: Methods) -> Callable:
    """From the field that was trained to the one a sampler follows; UserError if there is none."""
    loss, wanted = loss_of(config, methods), sampler.follows
    level = one_level(config, methods)
    if loss.at_levels and wanted == "gradient" and level is not None:
        return _at_one_level(loss.teaches, level)
    others = [
        m.name
        for m in methods[registry.Sampler].values()
        if m.follows != "gradient"
        and (m.follows in registry.AT_LEVELS) == loss.at_levels
        and not m.scored  # which need more than the kind of field
    ]
    mend = f"set config.sampler.name to one of {', '.join(sorted(others))}"
    if loss.at_levels != (wanted in registry.AT_LEVELS):
        raise UserError(f"sampler {sampler.name!r} does not follow a field of {loss.name}: {mend}")
    if not sampler.clock and has_clock(config, methods):
        raise UserError(
            f"sampler {sampler.name!r} has no clock, but the field was trained with one: {mend}"
        )
    if sampler.scored and (reason := _against_score(config, loss, methods)):
        raise UserError(f"sampler {sampler.name!r} {SCORED}; {reason}: {mend}")
    if loss.teaches == wanted:
        return lambda field: field
    if loss.at_levels:
        return score_field if wanted == "score" else denoiser_field
    return negate


def check_source(stages: list[Stage], data: Dataset, methods: Methods) -> None:
    """Raises UserError where a sampler makes a score of a velocity from another source."""
    names = [stage.method.name for stage in stages if stage.method.scored]
    if names and (data.draw_source is not None or data.starts is not None):
        known = methods[registry.Sampler].items()
        others = [n for n, m in known if m.follows == "velocity" and not m.scored]
        raise UserError(
            f"sampler {names[0]!r} {SCORED}; these data have a source of their own: set "
            f"config.sampler.name to one of {', '.join(sorted(others))}"
        )


def _against_score(config, loss: registry.Loss, methods: Methods) -> str | None:
    """Why the velocity of a config does not tell the score, in words; None where it does."""
    coupling = methods[registry.Coupling].get(config.coupling.get("name"))
    rematching = methods[registry.Rematching].get(config.rematching.get("name"))
    against = {
        f"{loss.name} teaches a {loss.teaches}": loss.teaches != "velocity",
        "this field has no t": not has_clock(config, methods),
        "config.path_noise is not 0": config.path_noise > 0,
        "config.coupling chooses the noise": coupling is not None and coupling.groups,
        "config.rematching moves the targets": rematching is not None and rematching.moves,
    }
    return next((reason for reason, holds in against.items() if holds), None)


def _at_one_level(teaches: str, level: float) -> Callable:
    """From a field that is trained at one noise level to minus its score there."""
    of = (lambda field: field) if teaches == "score" else score_field

    def at_its_level(field):
        score = of(field)
        return lambda x, t=None, cond=None: -score(x, jnp.full(x.shape[:1], level), cond)

    return at_its_level
