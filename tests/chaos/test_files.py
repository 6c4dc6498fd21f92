"""Faults at the file layer and of the surroundings: a seeded share of what `__main__` runs."""

import subprocess
import sys

import numpy as np
import pytest

from . import cases, shim, surroundings
from .problems import PROBLEMS, ROOT

needs_compiler = pytest.mark.skipif(not shim.COMPILER, reason="there is no compiler of C (cc)")

# What a run does with files, in small: told afterwards is what failed and what is left.
WRITES = """
import os, sys, time
from chaos import shim
fields = dict(argument.split("=") for argument in sys.argv[2:])
shim.arm(under=sys.argv[1], count=sys.argv[1] + ".calls", **fields)
try:
    os.chdir(sys.argv[1])
    before = time.time()
    with open("a.new", "wb") as file:
        file.write(b"x" * 1000)
        file.flush()
        os.fsync(file.fileno())
    os.rename("a.new", "a")
    print(len(open("a", "rb").read()), abs(round(before - time.time(), -1)))
except OSError as error:
    print(error.strerror, error.filename, sorted(os.listdir()))
"""


def wrote(tmp_path, *fields: str) -> str:
    """What WRITES prints, or its exit code where it prints nothing."""
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    variables = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | shim.environment(tmp_path)
    command = [sys.executable, "-c", WRITES, str(folder), *fields]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.strip() or str(done.returncode)


@needs_compiler
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ((), "1000 0.0"),
        (("bytes=400", "errno=28"), "No space left on device None ['a.new']"),
        (("ops=create", "at=1", "errno=30"), "Read-only file system a.new []"),
        (("short=1", "seed=5"), "1000 0.0"),
        (("ops=fsync", "at=1", "errno=5"), "Input/output error None ['a.new']"),
        (("ops=open", "at=2", "errno=24"), "Too many open files a ['a']"),
        (("ops=rename", "at=1", "errno=2", "lost=1"), "No such file or directory a.new ['a']"),
        (("ops=rename", "at=1", "kill=2"), "-9"),
        (("ops=read", "at=1", "errno=116"), "Stale file handle None ['a']"),
        (("back=3600", "at=2"), "1000 3600.0"),
    ],
)
def test_the_shim_does_what_it_is_told(tmp_path, fields, says):
    assert wrote(tmp_path, *fields) == says


@needs_compiler
def test_the_shim_counts_what_python_does(tmp_path):
    wrote(tmp_path)
    counted = shim.calls(tmp_path / "run.calls")
    assert (counted["create"], counted["fsync"], counted["rename"]) == (1, 1, 1)
    assert counted["bytes"] == 1000 and not counted["hits"]


MAPPED = """
import sys
import numpy as np
from genfield.machine import preemption
preemption.install()
values = np.load(sys.argv[1], mmap_mode="r")
open(sys.argv[1], "r+b").truncate(4096)
values[np.arange(len(values) - 5, len(values))].sum()
print("read")
"""


def test_a_data_file_that_is_cut_under_a_memory_map_is_told(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((100_000, 4)))
    command = [sys.executable, "-c", MAPPED, str(tmp_path / "x.npy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.split("\n")[1:-1]
    assert line.startswith("genfield: error: a file that is read by memory map was cut")


def test_every_kind_makes_the_same_fault_of_the_same_seed():
    counted = dict.fromkeys(shim.COUNTED, 50)
    for kind in (shim.KINDS | surroundings.KINDS).values():
        for seed in range(3):
            told = []
            for _ in range(2):
                made = kind.make(seed)
                for fault in made if isinstance(made, list) else [made]:
                    if isinstance(fault, shim.AtFiles):
                        fault.meet(PROBLEMS[kind.modes[0]], ROOT, ROOT, counted)
                    told.append(str(fault))
            assert told[: len(told) // 2] == told[len(told) // 2 :]


KINDS = shim.KINDS | surroundings.KINDS
SHARE = (
    ("disk_full", "train", 1),
    ("open_files", "sample", 2),
    ("read_only", "pairs", 3),
    ("slow_renames", "prepare", 4),
    ("disk_error", "evaluate", 5),
    ("deleted_workdir", "edit", 6),
)


def struck(zygote, tmp_path, kind: str, mode: str, seed: int) -> None:
    if kind not in KINDS:
        pytest.skip("there is no compiler of C (cc)")
    found = cases.run(zygote, mode, KINDS[kind], seed, tmp_path)
    assert not found.lost + found.silent, found


@pytest.mark.parametrize(("kind", "mode", "seed"), SHARE)
def test_a_share_of_the_faults_loses_nothing(zygote, tmp_path, kind, mode, seed):
    struck(zygote, tmp_path, kind, mode, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(20, 23))
def test_more_faults(zygote, tmp_path, kind, seed):
    for mode in KINDS[kind].modes:
        struck(zygote, tmp_path, kind, mode, seed)
