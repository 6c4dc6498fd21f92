"""A seeded share of the signals over all modes, and checks that find what is lost."""

import json
import shutil
import signal

import numpy as np
import pytest

from . import cases, invariants
from .driver import Kind, Outcome, Tally, answered, kinds, table
from .problems import PROBLEMS
from .signals import Signal

SEEDS = dict(train=3, sample=9, pairs=10, prepare=11, evaluate=38)


def struck(zygote, tmp_path, kind: str | Kind, mode: str, seed: int) -> cases.Found:
    kind = kinds()[kind] if isinstance(kind, str) else kind
    found = cases.run(zygote, mode, kind, seed, tmp_path)
    assert not found.lost + found.silent, found
    return found


@pytest.mark.parametrize("mode", SEEDS)
def test_kills_lose_nothing(zygote, tmp_path, mode):
    """At touches of files, and in the middle of a write, one start after the other."""
    assert struck(zygote, tmp_path, "kill", mode, SEEDS[mode]).struck


@pytest.mark.parametrize("mode, name", [("edit", "edit_vary.npz"), ("sample", "step_12_grid.png")])
def test_who_dies_in_a_file_leaves_no_part_of_it(zygote, tmp_path, mode, name):
    fault = Signal(signal.SIGKILL, 0, name)
    fault.place, fault.share, fault.bytes = "torn", 0.0, 100
    assert struck(zygote, tmp_path, Kind(lambda seed: [fault]), mode, 1).struck == 1


@pytest.mark.parametrize(
    "kind, mode, seed", [("term", "train", 4), ("int", "sample", 4), ("stop", "pairs", 6)]
)
def test_signals_are_obeyed_and_lose_nothing(zygote, tmp_path, kind, mode, seed):
    assert struck(zygote, tmp_path, kind, mode, seed).struck


def test_a_kill_among_compiled_programs_costs_no_start_more(zygote, tmp_path):
    assert struck(zygote, tmp_path, "cache", "pairs", 1).struck


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "term", "int", "stop", "cache"])
@pytest.mark.parametrize("seed", range(20, 24))
def test_more_signals(zygote, tmp_path, kind, seed):
    for mode in kinds()[kind].modes:
        struck(zygote, tmp_path, kind, mode, seed)


HARMS = {
    "metrics.jsonl": lambda file: file.write_text(file.read_text().split("\n", 1)[1]),
    "card.json": lambda file: file.write_text("{}"),
    "samples/step_12.png": lambda file: file.unlink(),
    "metrics.jsonl.new": lambda file: file.write_text(""),
    "samples/step_13.png": lambda file: file.write_text(""),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_file_that_is_lost_changed_or_too_much_is_found(zygote, tmp_path, name):
    wanted, _ = cases.made(zygote, PROBLEMS["train"])
    workdir = shutil.copytree(wanted, tmp_path / "run")
    assert invariants.check(PROBLEMS["train"], workdir, wanted) == []
    HARMS[name](workdir / name)
    assert any(name in line for line in invariants.check(PROBLEMS["train"], workdir, wanted))


def test_a_part_of_a_file_is_found(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(1000))
    (tmp_path / "b.json").write_text('{"whole": 1}')
    assert invariants.torn(tmp_path) == []
    for name in ("a.npz", "b.json"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-1])
    assert sorted(line.split(":")[1] for line in invariants.torn(tmp_path)) == [" a.npz", " b.json"]


def test_a_checkpoint_of_other_parameters_or_counts_is_found(zygote, tmp_path):
    wanted, _ = cases.made(zygote, PROBLEMS["train"])
    workdir = shutil.copytree(wanted, tmp_path / "run")
    last = workdir / "checkpoints" / "12"
    told = last / "meta" / "metadata"
    told.write_text(told.read_text().replace('"counted": 0', '"counted": 3'))
    assert any("counted" in line for line in invariants.trained(workdir, wanted))
    shutil.rmtree(last)
    assert invariants.trained(workdir, wanted) == ["checkpoints [8, 12] are [8]"]
    assert invariants.readable(workdir) == 8
    shutil.rmtree(workdir / "checkpoints")
    assert invariants.readable(workdir) is None


def test_arrays_are_compared_to_the_bit(tmp_path):
    values = np.zeros((2, 3), np.float32)
    np.savez(tmp_path / "a.npz", x=values)
    np.savez(tmp_path / "b.npz", x=np.negative(values))
    assert "array x" in invariants.differs(tmp_path / "a.npz", tmp_path / "b.npz")
    assert invariants.differs(tmp_path / "a.npz", tmp_path / "a.npz") is None


def test_a_fault_is_answered_by_one_line_and_a_code():
    line = "genfield: error: the disk is full\n"
    assert answered(Outcome(2, line, 0)) is None and answered(Outcome(0, "", 0)) is None
    assert answered(Outcome(143, "SIGTERM: stopping\n", 0)) is None
    for out in (Outcome(2, "", 0), Outcome(2, 2 * line, 0), Outcome(1, line, 0)):
        assert "exit code" in answered(out)
    assert "traceback" in answered(Outcome(2, f"Traceback (most recent call last):\n{line}", 0))


def test_a_seed_draws_the_same_instants_again():
    told = [[str(fault) for fault in kinds()["kill"].make(seed)] for seed in (7, 7, 8)]
    assert told[0] == told[1] != told[2]
    places = {Signal(signal.SIGKILL, seed).place for seed in range(50)}
    assert places == {"time", "touch", "late", "torn"}


def test_a_tally_is_kept_read_again_and_summed(tmp_path):
    tally = Tally.read(tmp_path / "tally.json")
    tally.count("kill", "train", 3, 2, seconds=1.0)
    tally.count("kill", "train", 4, 1, lost=["a card"], seconds=1.0)
    again = Tally.read(tmp_path / "tally.json")
    assert again.done("kill") == {("train", 3), ("train", 4)} and again.struck("kill") == 3
    assert again.failures[0]["lost"] == ["a card"]
    assert "| kill | train | 3 | 1 | 0 |" in table([again])
    assert json.loads((tmp_path / "tally.json").read_text())["cases"] == tally.cases
