"""Options that rely on another one which is off: refused, so that none is ignored in silence."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from genfield import registry
from genfield.data import Dataset
from genfield.errors import UserError
from genfield.machine.logbook import say
from genfield.program import optimizer
from genfield.program.defaults import MAY_CHANGE, base
from genfield.program.methods import loss_of
from genfield.registry import Methods

SAMPLING = ("train", "evaluate", "sample", "pairs")
JUDGING = ("train", "evaluate")
OF_FEATURES = ("reference", "features_path", "features_sha256", "features_seed")


class Facts(NamedTuple):
    """What a rule looks at."""

    config: Any
    data: Dataset
    loss: registry.Loss
    methods: Methods
    features: bool  # whether a metric reads a feature network

    def changed(self, section: str, *fields: str) -> list[str]:
        """Those of a section's fields that differ from their defaults, by dotted name."""
        now, known = self.config, base()
        now, known = (now[section], known[section]) if section else (now, known)
        dotted = lambda field: f"config.{section}.{field}" if section else f"config.{field}"
        return [dotted(field) for field in fields if now[field] != known[field]]


class Rule(NamedTuple):
    """Fields that do nothing, or harm, for want of another.

    Attributes:
      modes: of the program. idle: facts -> the fields, by name; none where all is well.
      why: what they lack, and how to mend it; goes on "config.a, config.b …".
    """

    modes: tuple[str, ...]
    idle: Callable[[Facts], list[str]]
    why: str


def _if(condition: Callable[[Facts], bool], section: str, *fields: str) -> Callable:
    return lambda facts: facts.changed(section, *fields) if condition(facts) else []


class _Watched:
    """A section that remembers which of its fields are read."""

    def __init__(self, section):
        self.section, self.read = section, set()

    def __getattr__(self, field: str):
        self.read.add(field)
        return getattr(self.section, field)


def _of_absent_players(facts: Facts) -> set[str]:
    """Fields of the optimiser that players of other losses read, and none of this one's."""

    def read(loss: registry.Loss) -> set[str]:
        watched = _Watched(facts.config.optimizer)
        for make in loss.roles.optimizers.values() if loss.roles else ():
            make(watched)
        return watched.read

    field = _Watched(facts.config.optimizer)
    optimizer.make_optimizer(field, facts.config.train.steps)
    known = set().union(*map(read, facts.methods[registry.Loss].values()))
    return known - read(facts.loss) - field.read


def _no_average(facts: Facts) -> bool:
    return not (facts.config.ema.rate or facts.config.ema.half_life)


RULES = (
    Rule(
        ("train",),
        _if(lambda f: not f.data.num_classes, "", "label_dropout"),
        "drops labels, and there are none: set config.data.labels=True, or config.label_dropout=0",
    ),
    Rule(
        ("train",),
        _if(lambda f: not f.config.augmentation, "", "augmentation_center"),
        "is of an augmentation that is off: set config.augmentation, as 0.12, or leave it out",
    ),
    Rule(
        ("train",),
        _if(_no_average, "ema", "ramp_up", "warmup"),
        "is of an average, and none is kept: set config.ema.rate or half_life, or leave it out",
    ),
    Rule(
        ("train",),
        lambda f: f.changed("optimizer", *sorted(_of_absent_players(f))),
        "is of players that this loss does not have: leave it out",
    ),
    Rule(
        ("train",),
        _if(lambda f: not f.loss.at_levels, "", "sigma_data"),
        "is for losses of noise levels, and this is none: leave it out",
    ),
    Rule(
        SAMPLING,
        _if(
            lambda f: bool(f.data.num_classes) and not f.config.label_dropout,
            "sample",
            "guidance_scale",
        ),
        "leads away from the null class, which this run never trains (config.label_dropout=0): set "
        "guidance_scale=1, or train with label_dropout, as 0.1",
    ),
    Rule(
        SAMPLING,
        _if(
            lambda f: f.config.sample.guidance_scale == 1,
            "sample",
            "guidance_interval",
            "guidance_channels",
        ),
        "is of a guidance that is off: set config.sample.guidance_scale, or leave it out",
    ),
    Rule(
        SAMPLING,
        _if(
            lambda f: not f.data.pixels and not (f.data.latents and f.config.autoencoder),
            "sample",
            "rounding",
        ),
        "is of pixels, and these data are no images: leave it out",
    ),
    Rule(
        SAMPLING,
        _if(lambda f: f.data.latents is None and f.config.autoencoder, "", "autoencoder"),
        "decodes latents, and these data are none: leave it out",
    ),
    Rule(
        SAMPLING,
        _if(lambda f: not f.config.autoencoder, "", "autoencoder_sha256", "autoencoder_dtype"),
        "is of an autoencoder, and config.autoencoder names none: set it, or leave it out",
    ),
    Rule(
        ("train", "evaluate", "sample"),
        _if(lambda f: not f.data.num_classes or f.data.starts is not None, "evaluate", "labels"),
        "is of labels that samples are free in, and these have none: leave it out",
    ),
    Rule(
        JUDGING,
        _if(lambda f: not f.features, "evaluate", *OF_FEATURES),
        "is of image metrics, and config.evaluate.metrics names none: add one, as 'frechet', or "
        "leave it out",
    ),
    Rule(
        JUDGING,
        _if(lambda f: f.config.evaluate.reference is not None, "evaluate", "reference_split"),
        "is of the data, and config.evaluate.reference is taken in their place: leave one out",
    ),
)


def complaints(
    config, data: Dataset, methods: Methods, mode: str
) -> Iterator[tuple[list[str], str]]:
    """(fields that hang in the air, the line that says so) for each rule that is broken."""
    table = methods[registry.Metric]
    judged = any(table[n].reads == "features" for n in config.evaluate.metrics if n in table)
    facts = Facts(config, data, loss_of(config, methods), methods, judged)
    for rule in RULES:
        if mode in rule.modes and (fields := rule.idle(facts)):
            yield fields, f"{', '.join(fields)} {rule.why}"


def check(config, data: Dataset, methods: Methods, mode: str, workdir: Path) -> None:
    """Raises UserError for options that would do nothing, or harm, for want of another.

    A run that has begun cannot change what it learns by: there such a field is told, and the run
    goes on as it began.
    """
    begun = mode == "train" and (workdir / "checkpoints").exists()
    for fields, line in complaints(config, data, methods, mode):
        settled = all(name.split(".")[1] not in MAY_CHANGE for name in fields)
        if not (begun and settled):
            raise UserError(line)
        say(f"ignored, as since this run began: {line}")
