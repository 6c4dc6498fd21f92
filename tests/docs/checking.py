"""A command line of the docs, checked by the program that it names, up to where the work starts.

What is asked of files is left out: the data of a page are not here.
"""

import argparse
import copy
import importlib.util
import re
import runpy
import sys
import tomllib
from pathlib import Path

from blocks import ROOT, Command

from genfield import __main__ as console
from genfield import registry
from genfield.autoencoder import cli as autoencoder
from genfield.plan import __main__ as plan
from genfield.prepare import options as prepare
from genfield.program import checks, command, config_io, defaults, evaluate, experiment
from genfield.registry import choose
from genfield.shipped import __main__ as shipped
from genfield.study import cli as study

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = set(PROJECT["optional-dependencies"])

OTHERS = ("mkdocs", "cd", "git", "jupyter", "tensorboard")  # not of this project


class Parsed(Exception):
    """A script has read its flags."""


class Checker:
    """Checks command lines in the order of a page, and knows which runs they have made."""

    def __init__(self):
        self.runs = {}  # workdir: config and methods

    def check(self, line: Command) -> None:
        """Raises what the program says of a line that it would not take."""
        program, *words = line.words
        if program == "python" and words[0] == "-m":
            self.module(words[1], words[2:])
        elif program == "python":
            script(ROOT / words[0], words[1:])
        elif program == "genfield":
            self.command(*words)
        elif program == "pip":
            installs(words)
        elif program.startswith("launch/"):
            assert (ROOT / program).is_file(), f"no launcher {program}"
        else:
            assert program in OTHERS, f"unknown program {program}"

    def command(self, name: str, *given: str) -> None:
        """`genfield NAME …`."""
        if name.startswith("--"):
            assert name in ("--help", "--version") and not given, name
            return
        asked = choose("command", name, console.COMMANDS)
        words = console.arguments(name, asked, list(given))
        self.module(f"genfield.{asked.module}", words)

    def module(self, name: str, words: list[str]) -> None:
        """`python -m NAME …`."""
        if name == "genfield":
            self.command(*words)
            return
        if "--help" in words and name.startswith("genfield."):
            words = [word for word in words if word != "--help"]
            if not words or name != "genfield.main":
                assert importlib.util.find_spec(name), name
                return
        argv = [name, *words]
        if name == "genfield.main":
            values, overrides = command.parse(argv)
            self.configured(values, overrides)
        elif name == "genfield.study":
            _, _, values, overrides = study.parse(argv)
            self.configured(values, overrides)
        elif name == "genfield.plan":
            options, overrides = plan.parse(words)
            fits(*config_io.read(options.config), overrides)
        elif name == "genfield.prepare":
            prepare.parse(words, checks.__doc__)
        elif name == "genfield.autoencoder":
            autoencoder.parser().parse_args(words)
        elif name == "pytest":
            paths = [word.split("::")[0] for word in words if word.startswith("tests/")]
            assert all((ROOT / path).exists() for path in paths), words
        elif name == "genfield.shipped":
            shipped.run(words)
        elif name == "genfield.doctor":
            assert not words, words
        else:
            parses(importlib.import_module(entry(name)).main, words)

    def configured(self, values, overrides: list[str]) -> None:
        """What genfield.main and genfield.study read: a config, and what is set in it."""
        known = self.runs.get(values.workdir)
        if values.config is not None:
            known = config_io.read(values.config)
            if values.mode == "train":
                self.runs[values.workdir] = known
        if known is not None:
            fits(*known, overrides)
            return
        config = config_io.override(defaults.base(), overrides)
        checks.check_fields(config)


def fits(config, methods, overrides: list[str]) -> None:
    """Raises UserError where a config with these overrides cannot work, whatever the data."""
    from genfield.program.methods import package

    config = config_io.override(copy.deepcopy(config), overrides)
    methods = methods or package()
    checks.check(config)
    experiment.check_names(config, methods)
    for section, kind in (("net", registry.Network), ("data", registry.DataSource)):
        registry.bind(section, methods[kind], config[section])
    evaluate.metrics_of(config.evaluate.metrics, methods)


def entry(name: str) -> str:
    """The module with the `main` of `python -m NAME`."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"there is no module {name}"
    return f"{name}.__main__" if spec.submodule_search_locations else name


def parses(main, words: list[str]) -> None:
    """Runs a `main` of argparse to where it has read its flags."""
    real = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args

    def stop(parser, *args, **kwargs):
        argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args = real
        parser.parse_args(words)
        raise Parsed

    argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_known_args = stop
    argv, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        main()
        raise AssertionError(f"it does not take {words}")
    except Parsed:
        return
    finally:
        argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args = real
        sys.argv = argv


def script(path: Path, words: list[str]) -> None:
    """`python FILE …`: the file is there, and takes these flags."""
    assert path.is_file(), f"there is no {path}"
    if "parse_args" not in path.read_text(encoding="utf-8"):
        assert not words, f"{path} takes no flags"
        return
    before = list(sys.path)
    sys.path.insert(0, str(path.parent))
    try:
        parses(lambda: runpy.run_path(str(path), run_name="__main__"), words)
    finally:
        sys.path[:] = before


def installs(words: list[str]) -> None:
    """`pip install …`: genfield itself, with extras that it has; Jupyter beside it."""
    assert words[0] == "install", words
    repository = f"git+{PROJECT['urls']['Homepage']}"
    for word in words[1:]:
        if not word.startswith("-") and word.removesuffix(".git") not in (repository, "jupyterlab"):
            named = re.match(r"(?:\.|genfield)(?:\[([\w,-]+)\])?(?: @ (\S+))?$", word)
            assert named, f"pip install {word}: neither genfield nor this checkout"
            assert {*(named[1] or "").split(",")} - {""} <= EXTRAS, word
            assert not named[2] or named[2].removesuffix(".git") == repository, word
