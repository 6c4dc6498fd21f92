"""Signals at random instants: kill -9, SIGTERM, SIGINT, and SIGSTOP with SIGCONT.

An instant is a share of the processor time that the undisturbed run takes, or a touch of a file:
the n-th time that the run opens one for writing, renames, removes, or makes a folder.
"""

import contextlib
import os
import random
import signal
import sys
import threading
import time

from . import problems
from .driver import Facts, Kind, Outcome, answered

WRITING = frozenset("wax+")
TOUCHES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
STRIKES = 4  # of one run, at most
LATE = 0.004  # seconds behind a touch, at most
TICK = 0.002  # between two looks at a process' clock


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

    def __init__(self, file: str):
        self.file = file

    def child(self) -> None:
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def heard(event, args):
            if touches(event, args):
                os.write(descriptor, b".")

        sys.addaudithook(heard)


class Signal:
    """One signal at one instant.

    Args:
      number: SIGSTOP is followed by SIGCONT. pause: seconds between them.
    """

    def __init__(self, number: signal.Signals, seed: int):
        draw = random.Random(f"{number.name} {seed}")
        self.name, self.seed, self.number = number.name, seed, number
        self.share, self.at_touch = draw.random(), draw.random() < 0.5
        self.late = draw.choice((0.0, draw.random() * LATE))
        self.pause = 0.05 + 0.2 * draw.random()
        self.seconds, self.touch, self.woken = 0.0, None, False

    def aim(self, facts: Facts) -> None:
        """Makes a share of the undisturbed run an instant."""
        self.seconds = self.share * facts.seconds
        self.touch = int(self.share * facts.touches) if self.at_touch else None

    def child(self) -> None:
        """Counts touches, and strikes at the one that was drawn, or a little behind it."""
        if self.touch is None:
            return
        left = [self.touch]

        def heard(event, args):
            if left[0] >= 0 and touches(event, args):
                left[0] -= 1
                if left[0] < 0:
                    self._strike()

        sys.addaudithook(heard)

    def _strike(self) -> None:
        if not self.late:
            os.kill(os.getpid(), self.number)
            return
        late = lambda: (time.sleep(self.late), os.kill(os.getpid(), self.number))
        threading.Thread(target=late, daemon=True).start()

    def parent(self, pid: int, workdir) -> None:
        """Strikes when the process has used its seconds; wakes a stopped one."""
        if self.touch is None:
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
            return out.code == -signal.SIGKILL
        return self.woken or f"{self.name}: " in out.output or out.code == -self.number

    def answered(self, out: Outcome) -> str | None:
        """A killed run says nothing; others are stopped in a line and with their code."""
        if out.code == -signal.SIGKILL == -self.number and "Traceback" not in out.output:
            return None
        return answered(out)

    def stopped(self, workdir) -> None:
        """What happens while the process stands still."""
        time.sleep(self.pause)

    def __str__(self):
        where = f"{self.seconds:.3f} s" if self.touch is None else f"touch {self.touch}"
        return f"{self.name} at {where}" + (f" + {self.late * 1e3:.1f} ms" if self.late else "")


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


def several(number: signal.Signals):
    """seed -> the strikes of one run, each on the start that goes on after the one before."""

    def make(seed: int) -> list[Signal]:
        count = random.Random(f"strikes {seed}").randint(1, STRIKES)
        return [Signal(number, seed * 100 + strike) for strike in range(count)]

    return make


MODES = tuple(problems.PROBLEMS)
KINDS = {
    "kill": Kind(several(signal.SIGKILL), MODES),
    "term": Kind(several(signal.SIGTERM), MODES),
    "int": Kind(several(signal.SIGINT), MODES),
    "stop": Kind(several(signal.SIGSTOP), MODES),
}
