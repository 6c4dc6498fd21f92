"""The commands of README and docs are really run, page by page, with everything made small.

What a page needs and does not make is not here: such a command has to say in one line which file
is missing. Scripts of reproduce/ and benchmarks/ have tests of their own.
"""

import re
import shutil

import pytest
from blocks import NAMES, PAGES, SHELL, Command, blocks, commands, is_synopsis
from own_images import tree
from programs import MOONS, TINY_DIGITS, smoke, trained

from genfield import __main__ as console
from genfield import compare, main
from genfield.program import config_io
from genfield.study import __main__ as study

pytestmark = pytest.mark.slow
MISSING = re.compile(
    "does not exist|no such|not there|cannot be read|missing|holds no|neither|no weights|no file"
    "|not a folder|needs |there is no|no autoencoder at",
    re.IGNORECASE,
)
PROGRAMS = {"genfield.main": main.main, "genfield.study": study.main}
RUNS = {  # of other pages, or of readers
    "runs/two_moons": (MOONS, dict(train__steps=2)),
    "runs/digits": (TINY_DIGITS, dict(small={"train.steps": 2})),
}
FLOW = {
    "train.steps": 2,
    "net": "{'name':'mlp','width':16,'depth':1,'time_input':True}",
    "loss": "{'name':'flow_matching'}",
    "sampler": "{'name':'heun','num_steps':4}",
}
OF_PAGES = {"editing.md": {"runs/digits": (TINY_DIGITS, dict(small=FLOW))}}


def shell(page):
    found = [b for b in blocks(page) if b.language in SHELL and b.skip is None]
    return [line for b in found if not is_synopsis(b) for line in commands(b)]


def modular(line: Command) -> tuple[str, list[str]]:
    """The module behind a command line, and its arguments."""
    program, *words = line.words
    if program == "genfield" and not words[0].startswith("-"):
        asked = console.COMMANDS[words[0]]
        return f"genfield.{asked.module}", console.arguments(words[0], asked, words[1:])
    if program == "python" and words[0] == "-m":
        return words[1], words[2:]
    return program, words


def small(words: list[str]) -> list[str]:
    """Without the numbers that only make it long."""
    return [re.sub(r"^--num=\d+$", "--num=64", word) for word in words]


def shrunk(override):
    """The program's reading of flags, whose config is then made small."""

    def read(config, given):
        config = smoke(override(config, given))
        config.profile = ()  # steps that there are not
        return config

    return read


RUN = [
    (page, name)
    for page, name in zip(PAGES, NAMES, strict=True)
    if any(modular(line)[0] in PROGRAMS for line in shell(page))
]


@pytest.mark.parametrize("page", [page for page, _ in RUN], ids=[name for _, name in RUN])
def test_commands_run(page, tmp_path, tmp_path_factory, monkeypatch, capsys):
    for folder in ("configs", "examples"):
        (tmp_path / folder).symlink_to(PAGES[0].parent / folder)
    tree(tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    real = config_io.override
    wrong, ran = [], 0
    for line in shell(page):
        module, words = modular(line)
        workdir = next((w[10:] for w in words if w.startswith("--workdir=")), "")
        if module == "genfield.compare" and all((tmp_path / w).exists() for w in words):
            assert compare.main(words) == 0
        if module not in PROGRAMS or "--help" in words:
            continue
        if workdir in RUNS and not any(w.startswith("--config=") for w in words):
            if not (tmp_path / workdir).exists():
                config, asked = (RUNS | OF_PAGES.get(page.name, {}))[workdir]
                shutil.copytree(trained(tmp_path_factory, config, **asked), tmp_path / workdir)
        # Of published weights the network is what it is, and they are small here.
        whole = any(word.startswith("--weights=") for word in words)
        monkeypatch.setattr(config_io, "override", real if whole else shrunk(real))
        capsys.readouterr()
        code = PROGRAMS[module]([module, *small(words)])
        said = capsys.readouterr().err
        ran += code == 0
        if code and not (code == 2 and MISSING.search(said)):
            wrong.append(f"{line.place}: {line}\n    {code}: {said.strip().splitlines()[-1:]}")
    assert not wrong, "\n".join(wrong)
    print(f"{ran} commands of {page.name} were run")
