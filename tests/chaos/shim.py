"""Faults at the file layer, below Python and the libraries in C++: shim.c, and what it is told.

The fork server starts with the library, which does nothing before a run arms it. Where there is no
compiler of C there is no library, and the kinds of faults that need it are left out.
"""

import ctypes
import errno
import os
import random
import shutil
import signal
import struct
import subprocess
from pathlib import Path

from .driver import Kind, answered, in_turn

SOURCE = Path(__file__).with_name("shim.c")
COUNTED = "open create write fsync rename make remove read stat bytes clock hits".split()
COMPILER = shutil.which("cc")


def library(home: Path) -> Path:
    """The library, compiled where the home has none of this source."""
    made = home / f"shim_{SOURCE.stat().st_mtime_ns}.so"
    if not made.exists():
        part = made.with_suffix(f".{os.getpid()}")
        command = [COMPILER, "-O1", "-fPIC", "-shared", "-o", part, SOURCE, "-ldl"]
        subprocess.run(command, check=True)
        part.replace(made)
    return made


def environment(home: Path) -> dict[str, str]:
    """The variables that a process needs to be one that can be armed."""
    return {"LD_PRELOAD": str(library(home))} if COMPILER else {}


def arm(**fields) -> None:
    """Sets the fault of this process, as shim.c says; without fields it has none."""
    spec = ";".join(f"{name}={value}" for name, value in fields.items())
    ctypes.CDLL(None).chaos_arm(spec.encode())


def calls(file: Path) -> dict[str, int]:
    """How often each operation was called, of the file that `count` names."""
    stored = file.read_bytes() if file.exists() else b""
    size = 8 * len(COUNTED)
    numbers = struct.unpack(f"{len(COUNTED)}q", stored.ljust(size, b"\0"))
    return dict(zip(COUNTED, numbers, strict=True))


class AtFiles:
    """One fault of the file layer, below the workdir of a run.

    name: of DRAWS, which draws what shim.c is told.
    """

    def __init__(self, name: str, seed: int):
        self.name, self.seed, self.told = name, seed, {}

    def meet(self, problem, workdir: Path, home: Path, counted: dict) -> None:
        """Draws the fault for a run; counted: the calls of the undisturbed one."""
        drawn = DRAWS[self.name](random.Random(f"{self.name} {self.seed}"), counted)
        count = workdir.with_name(f"{workdir.name}.calls")
        self.told = drawn | {"seed": self.seed, "under": workdir, "count": count}

    def child(self) -> None:
        """In the run's process."""
        arm(**self.told)

    def landed(self, out) -> bool:
        """Whether it met the run."""
        return calls(self.told["count"])["hits"] > 0

    def answered(self, out) -> str | None:
        """What is wrong with how the run ended; a killed one says nothing."""
        killed = "kill" in self.told and out.code == -signal.SIGKILL
        return None if killed else answered(out)

    def mend(self, workdir: Path) -> None:
        """Removes what counted."""
        self.told["count"].unlink(missing_ok=True)

    def __str__(self):
        told = {k: v for k, v in self.told.items() if k not in ("under", "count", "seed")}
        return f"{self.name} ({', '.join(f'{k}={v}' for k, v in told.items())})"


def nth(draw: random.Random, counted: dict[str, int], ops: str) -> dict:
    """One call of these operations."""
    total = sum(counted[op] for op in ops.split(","))
    return {"ops": ops, "at": draw.randint(1, max(1, total))}


def disk_full(draw, counted):
    """From some byte on, or from some call that needs room."""
    if draw.random() < 0.5:
        return {"bytes": draw.randrange(max(1, counted["bytes"])), "errno": errno.ENOSPC}
    return nth(draw, counted, "create,write,make") | {"times": 0, "errno": errno.ENOSPC}


def read_only(draw, counted):
    """From some call on nothing can be changed."""
    ops = "create,write,rename,make,remove"
    return nth(draw, counted, ops) | {"times": 0, "errno": errno.EROFS}


def short_writes(draw, counted):
    """Each write takes a part of what it is given."""
    return {"short": 1}


def fsync(draw, counted):
    """The disk lost what was written."""
    return nth(draw, counted, "fsync") | {"errno": errno.EIO}


def disk_error(draw, counted):
    """A call, or all from it on, of a disk or a server that fails."""
    ops = draw.choice(("open,read", "create,write,rename,make,remove,fsync", "stat"))
    code = draw.choice((errno.EIO, errno.ESTALE))
    return nth(draw, counted, ops) | {"times": draw.choice((0, 1)), "errno": code}


def slow_renames(draw, counted):
    """A server that takes its time; whose answers are lost; or the process ends meanwhile."""
    waits = {name: draw.randrange(60) for name in ("before", "after")}
    which = draw.randrange(3)
    if which == 0:
        return waits
    one = nth(draw, counted, "rename") | {"before": waits["before"] // 4}
    return one | ({"lost": 1, "errno": errno.ENOENT} if which == 1 else {"kill": 2})


def stale(draw, counted):
    """What another machine wrote just before cannot be seen yet."""
    return {"stale": draw.randint(100, 3000)}


def open_files(draw, counted):
    """A file too many is open, once or from then on."""
    return nth(draw, counted, "open") | {"times": draw.choice((0, 1)), "errno": errno.EMFILE}


def clock_back(draw, counted):
    """The clock of the wall jumps back by a minute, an hour, or more than a year."""
    at = draw.randint(1, max(1, counted["clock"]))
    return {"back": draw.choice((60, 3600, 400 * 86400)), "at": at}


def kill_at_call(draw, counted):
    """Killed at a call of a file, of Python or of a library."""
    ops = draw.choice(("create", "write", "fsync", "rename", "make", "remove"))
    return nth(draw, counted, ops) | {"kill": 1}


DRAWS = {
    each.__name__: each
    for each in (
        disk_full,
        read_only,
        short_writes,
        fsync,
        disk_error,
        slow_renames,
        stale,
        open_files,
        clock_back,
        kill_at_call,
    )
}


class Make:
    """seed -> a fault of a name."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, seed: int) -> AtFiles:
        return AtFiles(self.name, seed)


ENDS = ("disk_full", "read_only", "fsync", "disk_error", "open_files", "kill_at_call")
KINDS = {name: Kind(Make(name)) for name in DRAWS if name != "stale"}
KINDS |= {name: Kind(in_turn(Make(name))) for name in ENDS}  # one run may meet several
KINDS["fsync"] = KINDS["fsync"]._replace(modes=("train", "prepare"))  # which alone ask for it
KINDS = KINDS if COMPILER else {}
