"""One of four processes of a job is struck: killed, stopped, out of something, unable to read.

The others must end within a minute, each with one line that names it, and the same command must end
as four that nothing struck. The instant is a share of the processor time that the process takes.
What came of each strike is a line of four.jsonl in the home: who, when, the codes, and how long the
others took to end.
"""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from . import four, signals
from .driver import Facts, Kind, Outcome
from .problems import (
    CONFIG,
    IMAGES,
    PROBLEMS,
    Problem,
    from_arrays,
    images,
    nothing,
    on_a_run,
    preparing,
    reference,
    write_data,
)

WITHIN = 60.0  # seconds in which the others end
TICK = 0.02
STRIKES = 4  # of one run, at most
SHORT = 0.4  # of the limit: a process that stops for so long is waited for
LATER = ("four_stop", "four_pause")  # one that stands still before it has joined is waited for:
JOINED = 0.25  # it may only be slow to come, and five minutes are what the program gives it
EARLY = (-signal.SIGTERM, -signal.SIGINT)  # of a process without a guard
MEBI = 1 << 20
MET = b"\nstruck\n"  # what a process prints when it meets its fault


class Strike:
    """What strikes one process of four from outside, at one instant."""

    fresh = False

    def __init__(self, name: str, seed: int, act):
        draw = random.Random(f"{name} {seed}")
        self.name, self.seed, self._act = name, seed, act
        self.strikes, self.share = draw.randrange(four.COUNT), draw.random()
        if name in LATER:
            self.share = JOINED + (1 - JOINED) * self.share
        self.size = draw.random()  # of what is left to it, where that matters
        self.seconds, self.struck, self.took, self.home = 0.0, False, None, None
        self.guarded = True

    def __getstate__(self):
        return self.__dict__ | {"_act": None}  # it acts from outside, where it was made

    def aim(self, facts: Facts) -> None:
        """The instant, in processor seconds of one process."""
        self.seconds = self.share * facts.seconds / four.COUNT

    def parent(self, launcher: int, workdir: Path) -> None:
        """Strikes, and measures how long the others take to end; no pause of the machine counts."""
        self.home, self.guarded = workdir.parents[1], "prepare" not in workdir.name
        while not (all_four := four.started(launcher)):
            if signals.state(launcher) == "Z":
                return
            time.sleep(TICK)
        above = all_four.pop(self.strikes)
        computes = lambda: four.computes(above, self.guarded)
        while (pid := computes()) is None or signals.used(pid) < self.seconds:
            if signals.state(above) == "Z" or (pid and signals.state(pid) == "Z"):
                return
            time.sleep(TICK)
        self.struck = self._act(self, pid)
        ended = lambda: all(signals.state(other) == "Z" for other in all_four)
        self.took = waited(ended, 5 * WITHIN)
        if signals.state(pid) == "T":
            signals.send(pid, signal.SIGKILL)

    def landed(self, out: Outcome) -> bool:
        """Whether the process was there to be struck; what came of it is written down."""
        told = {"kind": self.name, "seed": self.seed, "struck": self.strikes}
        told |= {"share": round(self.share, 3), "took": self.took, "codes": codes(out)}
        told["cpu"] = round(out.seconds, 2)
        told["said"] = [lines(out, n)[:1] for n in range(four.COUNT)]
        if self.struck and self.home:
            with (self.home / "four.jsonl").open("a") as file:
                file.write(json.dumps(told) + "\n")
        return self.struck

    def answered(self, out: Outcome) -> str | None:
        """What is wrong with how the four ended; None: they went on, or each said it in a line."""
        found = codes(out)
        if not any(found):
            return None
        if self.took is not None and self.took > WITHIN:
            return f"the others ended after {self.took:.0f} s: {out.output[-3000:]}"
        for number, code in enumerate(found):
            silent = re.search(rf"^{number}\| ", out.output, re.MULTILINE) is None
            if number == self.strikes and code in EARLY and silent:
                continue  # before the first line of `prepare`, where Python itself answers
            said = lines(out, number)
            if problem := self._wrong(number, code, said):
                return f"process {number}, code {code}: {problem}:\n{out.output[-4000:]}"
        return None

    def _wrong(self, number: int, code: int, said: list[str]) -> str | None:
        """What is wrong with how one of the four ended."""
        if code in (0, 143):
            return None
        unguarded = code == -signal.SIGKILL  # of `prepare`, whose processes do not work together
        if number == self.strikes and (unguarded or self.struck_says_what_it_will):
            return None
        if code not in (2, 75) and not (number != self.strikes and code == 1):
            return "a code that promises nothing"
        if len(said) != 1:
            return f"{len(said)} lines of error"
        if number != self.strikes and not re.search(rf"process {self.strikes}\b", said[0]):
            return "its line does not name the one that was struck"
        return None

    # Out of memory or of descriptors, a process may have a traceback to tell.
    struck_says_what_it_will = False

    def __str__(self):
        return f"{self.name}: process {self.strikes} at {self.seconds:.2f} s"


class Short(Strike):
    """A process that comes to the end of a resource, and may tell it in any words."""

    struck_says_what_it_will = True


class Full(Strike):
    """A process that can write no more: its lines reach their file by its guard, or not at all."""

    @property
    def struck_says_what_it_will(self) -> bool:
        return not self.guarded


def codes(out: Outcome) -> list[int]:
    """How the four ended."""
    found = re.findall(r"^codes (.*)$", out.output, re.MULTILINE)
    return [int(word) for word in found[-1].split()] if found else [-1]


def lines(out: Outcome, number: int) -> list[str]:
    """What a process says of an error: its lines, and those of others' tracebacks."""
    mine = re.findall(rf"^{number}\| (.*)$", out.output, re.MULTILINE)
    told = re.compile(r"Traceback|[EF]\d{4} |\w+Error")
    # The log of one that may write no more lacks the end of the line before.
    return [row for row in mine if told.match(row) or "genfield: error: " in row]


def waited(ended, longest: float) -> float:
    """Seconds until it holds, of which no step counts more than a tenth; `longest` at most."""
    took, last = 0.0, time.monotonic()
    while not ended() and took < longest:
        time.sleep(TICK)
        now = time.monotonic()
        took, last = took + min(now - last, 0.1), now
    return round(took, 2)


# ---- From outside


def sends(number: signal.Signals):
    def act(strike: Strike, pid: int) -> bool:
        signals.send(pid, number)
        return True

    return act


def pauses(strike: Strike, pid: int) -> bool:
    signals.send(pid, signal.SIGSTOP)
    waited(lambda: False, SHORT * four.DEAD_AFTER)
    signals.send(pid, signal.SIGCONT)
    return True


def limits(which: int, left):
    """A limit of a resource from this instant on: what the process has, and what is left to it."""

    def act(strike: Strike, pid: int) -> bool:
        try:
            resource.prlimit(pid, which, (left(strike, pid),) * 2)
        except (ProcessLookupError, FileNotFoundError, ValueError):  # it has just ended
            return False
        return True

    return act


def _memory(strike: Strike, pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize() + int(strike.size**3 * 64 * MEBI)


def _descriptors(strike: Strike, pid: int) -> int:
    held = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
    return max(held) + 1 + int(4 * strike.size)


def _bytes(strike: Strike, pid: int) -> int:
    return int(4096 * strike.size**2)


# ---- From within


class Unreadable(Strike):
    """A file that one process cannot open, the n-th time that it wants to, and from then on."""

    def __init__(self, name: str, seed: int, pattern: str, most: int):
        super().__init__(name, seed, None)
        self.pattern, draw = pattern, random.Random(seed)
        self.spared = draw.randrange(most)
        self.number = draw.choice((errno.EIO, errno.EACCES, errno.ESTALE))

    def within(self) -> None:
        """In the process, before its program starts."""
        left, pattern, number = [self.spared], re.compile(self.pattern), self.number

        def heard(event, args):
            if event != "open" or not isinstance(args[0], str) or not pattern.search(args[0]):
                return
            if args[2] & (os.O_WRONLY | os.O_RDWR):
                return
            left[0] -= 1
            if left[0] < 0:
                os.write(1, MET)
                raise OSError(number, os.strerror(number), args[0])

        sys.addaudithook(heard)

    def parent(self, launcher: int, workdir: Path) -> None:
        self.home = workdir.parents[1]

    def landed(self, out: Outcome) -> bool:
        self.struck = f"{self.strikes}| {MET.decode().strip()}" in out.output
        return super().landed(out)

    def __str__(self):
        what = errno.errorcode[self.number]
        return f"{self.name}: process {self.strikes}, {what} after {self.spared} times"


class Unfed(Unreadable):
    """Data that one process cannot read, at a step that is drawn."""

    def within(self) -> None:
        from genfield.program import match_sets

        source, left, number = match_sets._source, self.spared, self.number

        def fails(exp, start):
            for step, batch in enumerate(source(exp, start)):
                if step == left:
                    os.write(1, MET)
                    raise OSError(number, os.strerror(number), "the_data")
                yield batch

        match_sets._source = fails


class NotFinite(Unfed):
    """An example that one process feeds is NaN, at a step that is drawn: all stop at that step."""

    def within(self) -> None:
        from genfield.machine import sharding
        from genfield.program import match_sets

        left = self.spared

        def feeds(exp, start):
            for step, batch in enumerate(exp.data.train(start)):
                if step == left:
                    os.write(1, MET)
                    batch = batch | {"x1": np.array(batch["x1"])}
                    batch["x1"][0, 0] = np.nan
                yield sharding.put_batch(batch, exp.mesh)

        match_sets._source = feeds

    def answered(self, out: Outcome) -> str | None:
        """One line, the same on all, and a dump of the step; or it came too late to be used."""
        if not any(codes(out)):
            return None
        said = {tuple(lines(out, number)) for number in range(four.COUNT)}
        line = "".join(said.pop()) if len(said) == 1 else ""
        found = re.search(r"step (\d+) is not finite, first its data: x1", line)
        if found and self.dumped == [f"step_{found[1]}"]:
            return None
        return f"codes {codes(out)}, dumps {self.dumped}: {out.output[-3000:]}"

    def mend(self, workdir: Path) -> None:
        """Takes the whole dumps away, of which a run that nothing disturbed has none."""
        whole = (workdir / "nonfinite").glob("*/fault.json")
        self.dumped = sorted(path.parent.name for path in whole)
        shutil.rmtree(workdir / "nonfinite", ignore_errors=True)


# ---- The commands

TRAIN = "four_train"
MESH = "--config.mesh.data=-1"
SMALL = ("--config.train.eval_samples=0", "--config.checkpoint.keep=3")


def of_four(*command: str):
    """The arguments of a command on a run of digits, as four processes."""
    return on_a_run(four.COMMAND, *command, MESH)


def half_way(workdir: Path, home: Path) -> None:
    """A run of four as it was at step 8."""
    whole(workdir, home)
    shutil.rmtree(workdir / "checkpoints" / "12")
    for name in ("summary.json", "card.json", "card.md"):
        (workdir / name).unlink()


def whole(workdir: Path, home: Path) -> None:
    """A run of four that has ended, from which others draw."""
    shutil.copytree(reference(TRAIN, home), workdir)


def _prepare(workdir: Path) -> list[str]:
    return [four.COMMAND, *preparing(workdir), "--shard_size=12"]


def _on_arrays(workdir: Path) -> list[str]:
    return [*_run(workdir), *from_arrays(workdir)]


_run = of_four("train", f"--config={CONFIG}", *SMALL)
OF_FOUR = {
    TRAIN: Problem(TRAIN, _run, nothing),
    "four_resume": Problem("four_resume", _run, half_way, TRAIN),
    "four_evaluate": Problem("four_evaluate", of_four("evaluate"), whole, TRAIN),
    "four_sample": Problem("four_sample", of_four("sample"), whole, TRAIN),
    "four_pairs": Problem("four_pairs", of_four("pairs"), whole, TRAIN),
    "four_prepare": Problem("four_prepare", _prepare, images),
}
ARRAYS = "four_arrays"  # data that may be NaN, as levels of grey may not
PROBLEMS |= OF_FOUR | {ARRAYS: Problem(ARRAYS, _on_arrays, write_data)}
ALL = tuple(OF_FOUR)
TOGETHER = tuple(name for name in OF_FOUR if name != "four_prepare")


def _several(make):
    """seed -> the strikes of one run, each on the start that goes on after the one before."""
    return lambda seed: [make(seed * 100 + strike) for strike in range(STRIKES)]


def _outside(name: str, act, modes=TOGETHER, kind=Strike) -> dict[str, Kind]:
    return {name: Kind(_several(lambda seed: kind(name, seed, act)), modes)}


def _inside(name: str, pattern: str, most: int, modes, kind=Unreadable) -> dict[str, Kind]:
    return {name: Kind(_several(lambda seed: kind(name, seed, pattern, most)), modes)}


KINDS = (
    _outside("four_kill", sends(signal.SIGKILL), ALL)
    | _outside("four_term", sends(signal.SIGTERM), ALL)
    | _outside("four_int", sends(signal.SIGINT), ALL)
    | _outside("four_pause", pauses)
    | _outside("four_stop", sends(signal.SIGSTOP))
    | _outside("four_memory", limits(resource.RLIMIT_AS, _memory), ALL, Short)
    | _outside("four_descriptors", limits(resource.RLIMIT_NOFILE, _descriptors), ALL, Short)
    | _outside("four_disk", limits(resource.RLIMIT_FSIZE, _bytes), ALL, Full)
    | _inside("four_checkpoint", "/checkpoints/", 12, TOGETHER[1:])
    | _inside("four_config", rf"/{CONFIG.name}$|/config.json$", 3, TOGETHER)
    | _inside("four_data", f"digits.csv|{IMAGES}", 2, ALL)
    | _inside("four_batch", "", 8, TOGETHER[:2], Unfed)
    | _inside("four_nan", "", 8, (ARRAYS,), NotFinite)
)
