"""Every command line of README and docs is one that the program takes."""

import pytest
from blocks import NAMES, PAGES, ROOT, SHELL, Command, blocks, commands, is_synopsis
from checking import Checker


def shell(page):
    return [b for b in blocks(page) if b.language in SHELL and b.skip is None]


WITH = [(page, name) for page, name in zip(PAGES, NAMES, strict=True) if shell(page)]


@pytest.mark.parametrize("page", [page for page, _ in WITH], ids=[name for _, name in WITH])
def test_the_program_takes_every_command(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    checker, wrong = Checker(), []
    for block in shell(page):
        if is_synopsis(block):
            continue
        for line in commands(block):
            try:
                checker.check(line)
            except (Exception, SystemExit) as error:
                wrong.append(f"{line.place}: {line}\n    {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


WRONG = (
    ("genfield.main --config=configs/no_such.py --workdir=runs/x", "unknown config"),
    ("genfield.main --config=configs/edm_two_moons.py --workdir=x --configg=1", "flag"),
    ("genfield.main --config=configs/edm_two_moons.py --workdir=x --config.nett.width=1", "nett"),
    ("genfield.main --config=configs/edm_two_moons.py --workdir=x --config.net.widht=1", "widht"),
    ("genfield.main --config=configs/edm_two_moons.py --workdir=x --config.loss.name=x", "unknown"),
    (
        "genfield.main --config=configs/edm_two_moons.py --workdir=x "
        "--config.evaluate.metrics=('fiddd',)",
        "unknown metric",
    ),
    ("genfield.study no_such --workdir=x", "unknown study"),
    ("genfield.analyze --path=x --no_such=1", "not take"),
    ("genfield.plan --config=configs/edm_two_moons.py", "topology"),
    ("genfield.no_such --x", "no module"),
    ("genfield.compare only_one", "not take"),
)


@pytest.mark.parametrize("words, says", WRONG, ids=[words for words, _ in WRONG])
def test_a_wrong_command_is_seen(words, says, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit), match=says):
        Checker().check(Command("here", ("python", "-m", *words.split())))


@pytest.mark.parametrize(
    "words",
    [
        "python reproduce/no_such.py",
        "python benchmarks/flux.py --no_such=1",
        "pip install -e .[no_such]",
        "pip install numpy",
        "no_such --flag",
    ],
)
def test_a_wrong_program_is_seen(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, SystemExit)):
        Checker().check(Command("here", tuple(words.split())))
