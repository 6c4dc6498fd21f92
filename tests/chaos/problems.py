"""The program's modes on tiny problems: what is disturbed, and what it must come to all the same.

A home is a folder that is kept: it holds the compiled programs, the references (runs that nothing
disturbed, made once for the sources as they are), and the images of `prepare`.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
CONFIG = TESTS / "tiny_digits.py"


class Problem(NamedTuple):
    """A command on a tiny problem.

    Attributes:
      mode: what a table calls it.
      arguments: workdir -> the command line behind `genfield`.
      prepare: (workdir, home) -> makes the workdir as the command finds it at its first start.
      needs: the problem whose reference the workdir begins as, or None.
    """

    mode: str
    arguments: Callable[[Path], list[str]]
    prepare: Callable[[Path, Path], None]
    needs: str | None = None


def sources() -> str:
    """A hash of all that a reference depends on: the package's code and this folder's problems."""
    told = hashlib.sha256()
    for file in sorted([*(ROOT / "genfield").rglob("*.py"), CONFIG, Path(__file__)]):
        told.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return told.hexdigest()[:16]


def reference(name: str, home: Path) -> Path:
    """Where a home keeps the undisturbed workdir of a problem."""
    return home / f"reference_{sources()}" / name


SMALL = ("train.steps=12", "checkpoint.every=4", "train.eval_every=6", "train.eval_samples=8")


def of_run(*command: str, overrides: tuple[str, ...] = ()) -> Callable[[Path], list[str]]:
    """The arguments of a command on a run of digits."""
    set_to = [f"--config.{one}" for one in overrides]
    return lambda workdir: [*command, f"--workdir={workdir}", *set_to]


def nothing(workdir: Path, home: Path) -> None:
    """The command makes its workdir."""


PROBLEMS = {
    "train": Problem("train", of_run("train", f"--config={CONFIG}", overrides=SMALL), nothing),
}
