"""Signals at random instants: kill -9, SIGTERM, SIGINT, and SIGSTOP with SIGCONT.

An instant is a share of the processor time that the undisturbed run takes, or a touch of a file:
the n-th time that the run opens one for writing, renames, removes, or makes a folder.
"""

import contextlib
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from genfield.machine import compiled

from . import shim
from .driver import Facts, Kind, Outcome, answered, in_turn

WRITING = frozenset("wax+")
TOUCHES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
STRIKES = 4  # of one run, at most
LATE = 0.004  # seconds behind a touch, at most
TICK = 0.002  # between two looks at a process' clock
PLACES = ("time", "touch", "late")
DEAD = (-signal.SIGKILL, -signal.SIGXFSZ)
CACHE = "own_cache"  # in the path of compiled programs that are a case's own
PROGRAMS = 8  # that every mode compiles, at least


def touches(event: str, args: tuple) -> bool:
    """Whether an audit event of Python changes what is on the disk."""
    if event != "open":
        return event in TOUCHES
    _, mode, flags = args
    written = isinstance(mode, str) and WRITING.intersection(mode)
    return bool(written) or bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))


class Counter:
    """No fault: counts the touches of a run into a file, to know how many there are."""

    name, seed = "none", 0

    def __init__(self, file: str, workdir: Path):
        self.file, self.workdir = file, workdir

    def child(self) -> None:
        if shim.COMPILER:
            shim.arm(under=self.workdir, count=self.workdir.with_name(f"{self.workdir.name}.calls"))
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def heard(event, args):
            if touches(event, args):
                os.write(descriptor, b".")

        sys.addaudithook(heard)


class Signal:
    """One signal at one instant.

    Args:
      number: SIGSTOP is followed by SIGCONT. only: what the path of a touched file holds.

    The instant is a share of the undisturbed run's processor time, or of its touches; and of these
    at it, a little behind it, or (of SIGKILL) torn: dead in the middle of the next write, behind so
    many bytes of a file, whoever writes it.
    """

    def __init__(self, number: signal.Signals, seed: int, only: str = ""):
        draw = random.Random(f"{number.name} {seed} {only}")
        self.name, self.seed, self.number, self.only = number.name, seed, number, only
        self.share = draw.random()
        places = ("time", "touch", "late", "torn") if number == signal.SIGKILL else PLACES
        self.place = draw.choice(places[1:] if only else places)
        self.late = draw.random() * LATE
        self.bytes = int(2 ** (12 * draw.random())) - 1
        self.pause = 0.05 + 0.2 * draw.random()
        self.seconds, self.touch, self.woken = 0.0, 0, False

    def aim(self, facts: Facts) -> None:
        """Makes a share of the undisturbed run an instant."""
        self.seconds = self.share * facts.seconds
        self.touch = int(self.share * facts.touches)

    def child(self) -> None:
        """Counts touches, and strikes at the one that was drawn."""
        if self.place == "time":
            return
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
        left = [self.touch]

        def heard(event, args):
            if left[0] >= 0 and touches(event, args) and self.only in str(args[0]):
                left[0] -= 1
                if left[0] < 0:
                    self._strike()

        sys.addaudithook(heard)

    def _strike(self) -> None:
        if self.place == "torn":
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, self.bytes))
        elif self.place == "late":
            late = lambda: (time.sleep(self.late), os.kill(os.getpid(), self.number))
            threading.Thread(target=late, daemon=True).start()
        else:
            os.kill(os.getpid(), self.number)

    def parent(self, pid: int, workdir) -> None:
        """Strikes when the process has used its seconds; wakes a stopped one."""
        if self.place == "time":
            until_used(pid, self.seconds)
            send(pid, self.number)
        if self.number == signal.SIGSTOP:
            while (now := state(pid)) not in "TZ":
                time.sleep(TICK)
            if now == "T":
                self.woken = True
                self.stopped(workdir)
                send(pid, signal.SIGCONT)

    def landed(self, out: Outcome) -> bool:
        """Whether the signal met the run before its end."""
        if self.number == signal.SIGKILL:
            return out.code in DEAD
        return self.woken or f"{self.name}: " in out.output or out.code == -self.number

    def answered(self, out: Outcome) -> str | None:
        """A killed run says nothing; others are stopped in a line and with their code."""
        if self.number == signal.SIGKILL and out.code in DEAD and "Traceback" not in out.output:
            return None
        if out.code == -self.number and "genfield: " not in out.output:
            return None  # before the command's first line, where Python itself answers
        return answered(out)

    def stopped(self, workdir) -> None:
        """What happens while the process stands still."""
        time.sleep(self.pause)

    def __str__(self):
        behind = {"late": f" + {self.late * 1e3:.1f} ms", "torn": f", then {self.bytes} bytes"}
        where = f"touch {self.touch}{behind.get(self.place, '')}"
        return f"{self.name} at {f'{self.seconds:.3f} s' if self.place == 'time' else where}"


def state(pid: int) -> str:
    """The letter of a process: R, S, T where it is stopped; Z when it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def used(pid: int) -> float:
    """Processor seconds that a process has used; infinite when it has ended."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # its clock's number, as Linux makes it
    except OSError:
        return float("inf")


def until_used(pid: int, seconds: float) -> None:
    """Waits until a process has used so many processor seconds, or has ended."""
    while used(pid) < seconds and state(pid) != "Z":
        time.sleep(TICK)


def send(pid: int, number: int) -> None:
    """Sends a signal, to whom it still reaches."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def several(number: signal.Signals) -> Callable[[int], list[Signal]]:
    """seed -> the strikes of one run."""
    return in_turn(lambda seed: Signal(number, seed), STRIKES)


class Compiling(Signal):
    """A kill while compiled programs are written, into a cache of the run's own."""

    def __init__(self, seed: int):
        super().__init__(signal.SIGKILL, seed, CACHE)
        self.name = "SIGKILL in the cache"

    def aim(self, facts: Facts) -> None:
        """The cache is empty, and any of the programs may be met."""
        self.touch = int(self.share * PROGRAMS)

    def surroundings(self, workdir: Path, home: Path) -> dict[str, str]:
        """The cache that is a user's where JAX is not told of another."""
        cache = workdir.with_name(f"{workdir.name}_{CACHE}")
        return {"JAX_COMPILATION_CACHE_DIR": "", "GENFIELD_CACHE": str(cache)}

    def broken(self, workdir: Path) -> list[str]:
        """Programs that no start can use, and that none replaces."""
        programs = workdir.with_name(f"{workdir.name}_{CACHE}").rglob("*-cache")
        return [f"torn: {path.name}" for path in programs if not compiled.whole(path.read_bytes())]


KINDS = {
    "kill": Kind(several(signal.SIGKILL)),
    "term": Kind(several(signal.SIGTERM)),
    "int": Kind(several(signal.SIGINT)),
    "stop": Kind(several(signal.SIGSTOP)),
    "cache": Kind(lambda seed: [Compiling(seed)], ("train", "sample", "pairs", "edit")),
}
