"""One of four processes is struck: what counts as an answer; slow: a seeded share of every kind."""

import signal

import pytest

from . import cases, processes
from .driver import Outcome, Zygote, environment, kinds

NAMED = "genfield: error: process 2 on here gave no sign of life and counts as dead; exit code 75"
OWN = "genfield: error: process 2 on here was ended by SIGKILL; exit code 75"


def ended(codes: str, *said: str) -> Outcome:
    """A job of four as its launcher tells it."""
    rows = [f"{number}| {line}" for number, line in enumerate(said)]
    return Outcome(75, "\n".join([*rows, f"codes {codes}"]), 1.0)


@pytest.fixture
def strike():
    made = processes.Strike("four_kill", 0, processes.sends(signal.SIGKILL))
    made.strikes, made.struck, made.took = 2, True, 8.0
    return made


def test_three_that_name_the_fourth_are_an_answer(strike):
    assert strike.answered(ended("75 75 75 75", NAMED, NAMED, OWN, NAMED)) is None
    assert strike.answered(ended("0 0 0 0")) is None
    assert strike.answered(ended("143 143 143 143")) is None


def test_a_signal_before_the_first_line_of_prepare_is_an_answer(strike):
    """Its processes have no guard; until they listen themselves Python answers."""
    assert strike.answered(ended("0 0 -15 0")) is None
    said = strike.answered(ended("0 0 -15 0", "", "", "3 of 8 shards", ""))
    assert "a code that promises nothing" in said


@pytest.mark.parametrize(
    ("codes", "said", "why"),
    [
        ("75 75 75 75", (NAMED, NAMED, OWN, OWN.replace("2", "3")), "does not name"),
        ("75 75 75 75", (NAMED, "", OWN, NAMED), "0 lines"),
        ("-6 75 75 75", (NAMED, NAMED, OWN, NAMED), "a code that promises nothing"),
        ("75 75 1 75", (NAMED, NAMED, OWN, NAMED), "a code that promises nothing"),
    ],
)
def test_what_is_no_answer(strike, codes, said, why):
    assert why in strike.answered(ended(codes, *said))


def test_two_lines_and_late_ones_are_no_answer(strike):
    rows = "\n".join(f"0| {line}" for line in ("E1128 17:26:57.2 1 x.cc:1] gone", NAMED))
    assert "2 lines of error" in strike.answered(Outcome(75, f"{rows}\ncodes 75 75 75 75", 1.0))
    strike.took = 61.0
    assert "after 61 s" in strike.answered(ended("75 75 75 75", NAMED, NAMED, OWN, NAMED))


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", processes.KINDS)
def test_one_of_four_is_struck(name, tmp_path_factory, monkeypatch):
    """In a mode that the seed draws."""
    home = tmp_path_factory.getbasetemp() / "four"
    for variable, value in environment(home).items():
        monkeypatch.setenv(variable, value)
    kind = kinds()[name]
    seed = sum(map(ord, name))
    with Zygote(home) as zygote:
        mode = kind.modes[seed % len(kind.modes)]
        found = cases.run(zygote, mode, kind, seed, home / "work")
    assert not found.lost + found.silent, found
