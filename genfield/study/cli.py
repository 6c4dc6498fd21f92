"""Studies of a trained run: python -m genfield.study NAME --workdir=… [--option=…] [--config.a.b=…]

They write studies/NAME.json and PNGs into the workdir; `--help` lists them. What they compute is in
`genfield.study.measures`, of fields and arrays; claims and figures are in docs/abilities.md.
"""

import importlib
import inspect
import math
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from genfield import registry, study
from genfield.errors import UserError, local, tell
from genfield.machine import compiled, lock, logbook, preemption, processes
from genfield.machine.logbook import say
from genfield.machine.tables import columns
from genfield.program import card, command, config_io, experiment, generate, modes
from genfield.program.methods import loss_of
from genfield.program.open_run import load_state
from genfield.registry import choose
from genfield.study.subject import Findings, Study, Subject


def _found() -> Mapping[str, Study]:
    """The studies of this package: what its files declare as STUDY."""
    names = sorted(info.name for info in pkgutil.iter_modules(study.__path__))
    modules = [importlib.import_module(f"genfield.study.{n}") for n in names if n != "__main__"]
    studies = [module.STUDY for module in modules if hasattr(module, "STUDY")]
    return {each.run.__name__: each for each in studies}


STUDIES = _found()


def options(study: Callable) -> dict[str, inspect.Parameter]:
    """The options of a study by flag: its keyword-only arguments."""
    parameters = inspect.signature(study).parameters.values()
    return {p.name.rstrip("_"): p for p in parameters if p.kind is p.KEYWORD_ONLY}


def _value(flag: str, text: str, wanted) -> Any:
    """The text of an option as `wanted`: a number, a string, or several numbers with commas."""
    if typing.get_origin(wanted) is typing.Annotated:
        wanted = typing.get_args(wanted)[0]
    if typing.get_origin(wanted) is tuple:
        kind = typing.get_args(wanted)[0]
        return tuple(_value(flag, part, kind) for part in text.split(",") if part.strip())
    if wanted not in (int, float):
        return text
    try:
        value = wanted(text)
    except ValueError:
        says = "a whole number" if wanted is int else "a number"
        raise UserError(f"--{flag}={text} must be {says}") from None
    if not math.isfinite(value):
        raise UserError(f"--{flag} must be finite, got {value}")
    return value


def parse(argv: list[str]) -> tuple[str, dict[str, Any], Any, list[str]]:
    """A command line: the study, its options, main's flags, and the overrides of the config.

    Raises:
      UserError: unknown study or flag, a value of the wrong type.
    """
    if len(argv) < 2 or argv[1].startswith("-"):
        raise UserError(f"name a study first: {', '.join(STUDIES)}. --help says what they do")
    name = argv[1]
    known, chosen, rest = options(choose("study", name, STUDIES).run), {"name": name}, argv[:1]
    given = iter(argv[2:])
    for argument in given:
        flag, equals, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or flag not in (*known, "name"):
            rest.append(argument)
            continue
        text = text if equals else next(given, "-")
        if not equals and text.startswith("-"):
            raise UserError(f"--{flag} needs a value, as --{flag}=…")
        chosen[flag] = text if flag == "name" else _value(flag, text, known[flag].annotation)
        values = chosen[flag] if isinstance(chosen[flag], tuple) else [chosen[flag]]
        if not len(values):
            raise UserError(f"--{flag} is empty: give one value or several, with commas")
        for value in values:
            _check_range(flag, value, known)
    flags = [*command.parse(argv[:1])[0], *known, "name", "config.<section>.<field>"]
    for argument in rest[1:]:
        flag = re.match(r"--?(?:no)?([a-z_]\w*)(?!\w|\.)", argument)
        if flag:
            choose(f"flag of {name}", flag[1], dict.fromkeys(flags))
    return name, chosen, *command.parse(rest)


def _check_range(flag: str, value, known: dict[str, inspect.Parameter]) -> None:
    """Raises UserError where a number of an option lies outside the range it is marked with."""
    marks = registry.marks(known[flag].annotation) if flag in known else ()
    for mark in marks:
        if isinstance(mark, registry.Range) and isinstance(value, int | float):
            if not mark.holds(value):
                raise UserError(f"--{flag} {mark.says}, got {value}")


def usage() -> str:
    """What --help prints: a line a study, and its options with their defaults."""
    lines = [__doc__, "Studies:"]
    for name, each in STUDIES.items():
        first, *rest = inspect.getdoc(each.run).split("\n\n")
        lines.append(f"\n  {name}: {first}")
        shown = {flag: p.default for flag, p in options(each.run).items()}
        plain = lambda v: ",".join(f"{x:g}" for x in v) if isinstance(v, tuple) else v
        lines.append("    " + " ".join(f"--{flag}={plain(v)}" for flag, v in shown.items()))
        lines += [f"    {line}" for part in rest for line in part.splitlines()]
    lines += [
        "",
        "Each takes --name (of its files; the study's own where left out), --step=N or --best",
        "(which checkpoint), and overrides of the config, as --config.sampler.num_steps=100;",
        "--config.sample.seed sets the noise.",
    ]
    return "\n".join(lines)


def run(argv: list[str]) -> None:
    """Runs a command line to its end."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        tell(usage())
        return
    name, chosen, values, overrides = parse(argv)
    for flag in ("mode", "samples", "distributed", "coordinator"):  # a study is of one process
        if values[flag].present:
            raise UserError(f"--{flag} is not for studies: leave it out")
    if not values.workdir:
        raise UserError("--workdir is missing: the folder of the run to study")
    file = chosen.pop("name")
    if not re.fullmatch(r"[\w.-]+", file):
        raise UserError(f"--name={file} must be a plain file name, without its ending")
    subject = _open(name, values, overrides, file)
    known = options(STUDIES[name].run)
    settings = {flag: chosen.get(flag, p.default) for flag, p in known.items()}
    path = subject.picture("").with_suffix(".json")
    does = f"writes the study {path.with_suffix('')}"
    with lock.held(path.with_name(f".{file}.lock"), does, "choose another --name"):
        found = STUDIES[name].run(subject, **{p.name: settings[flag] for flag, p in known.items()})
        processes.check_memory()
        lines = [f"figures: {path}", *(f"picture: {p}" for p in found.pictures)]
        if found.arrays:
            logbook.replace_arrays(path.with_suffix(".npz"), found.arrays)
            lines.append(f"arrays: {path.with_suffix('.npz')}")
        # All else is there by then.
        logbook.write_json(path, _plain(_record(name, subject, settings, found)))
    say("\n" + columns(found.table))
    say("\n".join(lines))


def _open(name: str, values, overrides: list[str], file: str) -> Subject:
    """The run of a command line, its checkpoint loaded; raises UserError where that cannot be."""
    workdir = local(values.workdir, "--workdir").resolve()
    values["mode"].value = "evaluate"  # what a study needs of a workdir is what evaluation needs
    command.check_flags(values, workdir)
    command.check_devices()
    config, methods, weights = command.load_config(values, overrides, workdir)
    compiled.keep(config.compilation_cache)
    tell(f"genfield: study {name} of {config.loss.name} in {workdir}")
    if STUDIES[name].straight and loss_of(config, methods).at_levels:
        raise UserError(f"{name} is for fields on straight paths, not {config.loss.name}")
    exp = experiment.prepare(config, workdir, methods, reads_data=False, weights=weights)
    modes.check(exp)
    command.describe(exp)
    preemption.begin()
    preemption.nothing_to_save("stopped; the same command starts again")
    state, step = load_state(exp, values.step, values.best)
    folder = workdir / "studies"  # which its lock makes: in a workdir that is there
    modes.begin_on_weights(exp)
    picture = lambda tail: folder / f"{file}{tail}.{config.figures.format}"
    seed = config.seed + config.sample.seed
    return Subject(exp, generate.parameters(exp, state), step, seed, picture)


def _record(name: str, subject: Subject, settings: dict, found: Findings) -> dict:
    """What a study found, and all that it depends on."""
    exp, config = subject.exp, subject.exp.config
    return {
        "study": name,
        "figures": found.figures,
        "options": settings,
        "seed": subject.seed,
        "parameters": generate.which(exp),
        "sampler": config_io.to_dict(config.sampler),
        "sample": config_io.to_dict(config.sample),
        "versions": logbook.versions(),
        "device": jax.devices()[0].device_kind,
        **card.of_origin(exp, subject.step, subject.params),
    } | ({} if exp.decoder is None else {"autoencoder": exp.decoder.facts})


def _plain(value):
    """As JSON has it; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
