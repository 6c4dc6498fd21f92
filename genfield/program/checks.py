"""What can be said of a configuration before anything is built: fields, types, numbers, fit."""

import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from genfield import registry
from genfield.errors import UserError, local
from genfield.machine.tables import differences
from genfield.program import config_io
from genfield.program.defaults import (
    FILE_PLACES,
    FORMATS,
    GUIDANCE,
    LIMITS,
    MAY_CHANGE,
    OPEN,
    ROUNDINGS,
    base,
)
from genfield.program.methods import package
from genfield.registry import Methods, check_range, check_type, choose

REFERENCES = ("evaluate.reference", "evaluate.features_path", "autoencoder", "compilation_cache")
METHODS_OF = {  # sections that name a method, and its arguments
    "net": registry.Network,
    "data": registry.DataSource,
    "time": registry.TimeLaw,
    "loss": registry.Loss,
    "coupling": registry.Coupling,
    "rematching": registry.Rematching,
}
LARGEST = 2**63 - 1
LARGEST_SEED = 2**31 - 2**20  # evaluation counts on from the seed


def check(config: ConfigDict) -> None:
    """Raises UserError for fields, types and numbers that cannot work; within milliseconds."""
    check_fields(config)
    check_numbers(config)
    check_places(config)


def check_fields(config: ConfigDict) -> None:
    """Raises UserError for sections, fields and types that `base()` does not know."""
    known = base()
    for section in config:
        choose("config section", section, known)
    missing = [name for name in known if name not in config]
    if missing:
        raise UserError(
            f"config lacks the section {missing[0]!r}: start it from genfield.configuration.base()"
        )
    for section, default in known.items():
        value = config[section]
        if not isinstance(default, ConfigDict):
            wanted = known.get_type(section)
            check_type(section, value, wanted | None if default is None else wanted)
            continue
        if not isinstance(value, ConfigDict):
            raise UserError(f"config.{section} is a section, not a value: {value!r}")
        for field in value if section not in OPEN else ():
            choose(f"field of config.{section}", field, default)
            wanted = default.get_type(field)
            optional = wanted | None if default[field] is None else wanted
            check_type(f"{section}.{field}", value[field], optional)
        needed = default if section not in OPEN else {"name"} & {*default}
        lost = [field for field in needed if field not in value]
        if lost:
            raise UserError(
                f"config.{section} lacks the field {lost[0]!r}: set its fields by "
                f"config.{section}.update(…), which keeps the others"
            )


def check_places(config: ConfigDict) -> None:
    """Raises UserError for paths of another machine, in whatever field."""
    for name, value in _leaves(config):
        if isinstance(value, str):
            local(value, f"config.{name}")


def _leaves(section: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a section and those below it, by dotted name."""
    for field, value in section.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{field}.")
        else:
            yield f"{prefix}{field}", value


def check_numbers(config: ConfigDict) -> None:
    """Raises UserError for values that cannot work, before anything is compiled."""
    for name, value in _leaves(config):
        if isinstance(LIMITS.get(name), registry.OneOf):
            choose(f"config.{name}", value, LIMITS[name].table)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if isinstance(value, int) and not -LARGEST - 1 <= value <= LARGEST:
            raise UserError(
                f"config.{name} must be at most {LARGEST} in size: 64 bits hold no more"
            )
        if not math.isfinite(value):
            raise UserError(f"config.{name} must be finite, got {value}")
        if name in LIMITS:
            check_range(name, value, LIMITS[name])
    last = config.seed + config.sample.seed + config.evaluate.repeats
    if last > LARGEST_SEED:
        raise UserError(
            f"config.seed + config.sample.seed must be at most {LARGEST_SEED} less the repeats"
        )
    name = config.sample.name
    if name is not None and not re.fullmatch(r"[\w-][\w.-]*", name):
        raise UserError(
            f"config.sample.name {name!r} must be a file's name, of letters, digits, . - and _"
        )
    choose("config.sample.guidance_on", config.sample.guidance_on, GUIDANCE)
    choose("config.sample.rounding", config.sample.rounding, ROUNDINGS)
    for name in config.sample.formats:
        choose("config.sample.formats", name, FORMATS)
    if not config.sample.formats:
        raise UserError(f"config.sample.formats is empty: name some of {', '.join(FORMATS)}")
    _check_profile(config)
    _check_batch(config)


def _check_profile(config: ConfigDict) -> None:
    """Raises UserError unless the steps to trace are two that a training takes, in their order."""
    steps, last = config.profile, config.train.steps
    whole = len(steps) == 2 and all(type(step) is int for step in steps)
    if steps and not (whole and 1 <= steps[0] <= steps[1] <= last):
        raise UserError(
            f"config.profile {tuple(steps)!r} must be two numbers of steps, the first and the last "
            f"that are traced, from 1 to config.train.steps ({last}): as (20,24)"
        )


def _check_batch(config: ConfigDict) -> None:
    """Raises UserError unless groups, match sets and microbatches divide or fill batches."""
    parts = {"config.optimizer.accumulate": config.optimizer.accumulate}
    for section in ("rematching", "loss"):
        parts[f"config.{section}.group_size"] = config[section].get("group_size") or 1
    if 0 < config.match_size < config.batch_size:
        parts["config.match_size"] = config.match_size
    elif config.match_size % config.batch_size:
        raise UserError(
            f"config.match_size {config.match_size} is not a multiple of config.batch_size "
            f"{config.batch_size}"
        )
    for name, size in parts.items():
        if isinstance(size, int) and size > 0 and config.batch_size % size:
            raise UserError(
                f"config.batch_size {config.batch_size} is not a multiple of {name} {size}"
            )


def check_same_run(config: ConfigDict, workdir: Path, methods: Methods | None = None) -> None:
    """Raises UserError if `workdir` holds another run than `config` describes."""
    path = workdir / "config.json"
    if not path.exists():
        return
    known = methods or package()
    old, new = (config_io.to_dict(c) for c in (config_io.from_file(path), config))
    found = differences(old, new, missing=None, items=False)
    by_default = _defaults(new, known)
    said = lambda value: None if value is None else json.dumps(value)
    found = [f for f in found if {said(f[1]), said(f[2])} != {None, by_default.get(f[0])}]
    changed = sorted((name for name, *_ in found), key=lambda name: name.split("."))
    changed = [name for name in changed if name.split(".")[0] not in MAY_CHANGE]
    moved = {*FILE_PLACES, *file_places(config, known)}
    moved |= {*_marked("net", known[registry.Network], config.net, registry.Free)}
    changed = [name for name in changed if name not in moved]
    if changed:
        shown = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
        raise UserError(
            f"{workdir} holds a different run: it differs in {shown}. "
            f"Choose another --workdir, or set these fields as {path} has them"
        )


def _defaults(config: dict, methods: Methods) -> dict[str, Any]:
    """By dotted names, what the methods of a config take where it leaves an argument out."""
    return {
        f"{section}.{name}": json.dumps(value, default=repr)
        for section, kind in METHODS_OF.items()
        if (entry := methods[kind].get(config[section].get("name")))
        for name, value in registry.bound(entry, {}).items()
    }


def file_places(config: ConfigDict, methods: Methods) -> Iterator[str]:
    """Dotted names of fields that are paths of files, which may have moved since."""
    sources, losses = methods[registry.DataSource], methods[registry.Loss]
    place = registry.FilePlace
    yield from _marked("data", sources, config.data, place)
    if isinstance(config.data.get("real"), ConfigDict):
        yield from _marked("data.real", sources, config.data.real, place)
    loss = losses.get(config.loss.get("name"))
    for name, nested in loss.tables.items() if loss else ():
        if isinstance(config.loss.get(name), ConfigDict):
            yield from _marked(f"loss.{name}", nested.table, config.loss[name], place)


def _marked(where: str, table, section: ConfigDict, mark: type) -> Iterator[str]:
    """Dotted names of the fields of what a section names that bear a mark."""
    entry = table.get(section.get("name"))
    if entry is None:
        return
    for name, parameter in registry.parameters(registry.parts(entry)[0]).items():
        if any(isinstance(m, mark) for m in registry.marks(parameter.annotation)):
            yield f"{where}.{name}"


def absolute(config, methods: Methods):
    """The config with its paths of files made absolute: a run is found from any folder."""
    config = config.copy_and_resolve_references()
    for name in (*FILE_PLACES, *REFERENCES, *file_places(config, methods)):
        *sections, field = name.split(".")
        section = functools.reduce(lambda part, key: part[key], sections, config)
        place = section.get(field)
        # A reference or weights may be a name, not a path; a bucket's address stays as it is.
        named = name in (*REFERENCES, *FILE_PLACES)
        if place and "://" not in place and (not named or Path(place).expanduser().exists()):
            section[field] = str(Path(place).expanduser().absolute())
    return config
