"""Runs problems under faults, and counts what came of it.

A fault is any object with a `name` and a `seed`, and one or both of

    child()               called in the run's process before the program starts
    parent(pid, workdir)  called beside it, from outside; it must end when the process has

What else it may have:

    fresh = True          an interpreter of its own (for LD_PRELOAD, say)
    environment()         variables of the runs that it strikes
    surroundings(workdir, home)   variables of all runs of its case, also when it is gone
    aim(facts)            is told the reference's `Facts` before it is used
    mend(workdir)         takes the fault away, before the same command runs again
    landed(outcome)       whether it met the run
    broken(workdir)       what else is lost when the same command has ended, in a list
    answered(outcome)     what is wrong with how the run ended, or None

Each file of this folder may list its KINDS: how to make a fault from a seed, and for which modes.
"""

import importlib
import json
import os
import pickle
import pkgutil
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from genfield.machine import compiled

from .problems import MODES, ROOT, TESTS, Problem
from .server import Job

LIMIT = 300.0  # seconds of a run, after which it hangs
ENDS = (2, 75, 143)  # exit codes that go with one clear line


class Outcome(NamedTuple):
    """How a run ended: exit code (negative: the signal), what it said, its processor seconds."""

    code: int
    output: str
    seconds: float


class Facts(NamedTuple):
    """What an undisturbed run took: processor seconds, and how often it touched files."""

    seconds: float
    touches: int


class Kind(NamedTuple):
    """A kind of fault: seed -> a fault, or a list that strike one run in turn; its modes.

    case: (zygote, mode, seed, folder) -> what came of it, where a case is another than `cases.run`.
    """

    make: Callable[[int], Any]
    modes: tuple[str, ...] = MODES
    case: Callable | None = None


def in_turn(make: Callable[[int], Any], most: int = 3) -> Callable[[int], list]:
    """seed -> one to `most` faults of a run, each on the start that goes on after the one before.

    make: seed -> a fault.
    """

    def several(seed: int) -> list:
        count = random.Random(f"strikes {seed}").randint(1, most)
        return [make(seed * 100 + strike) for strike in range(count)]

    return several


def environment(home: Path) -> dict[str, str]:
    """The variables of every run: one CPU, and compiled programs that are kept in the home."""
    from . import shim  # which has kinds of faults, as this module knows them

    return (
        os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "GENFIELD_CACHE": str(home / "cache"),
            "EQX_ON_ERROR": "raise",
            "MPLBACKEND": "Agg",
            "PYTHONPATH": f"{ROOT}:{TESTS}",
            "PYTHONUNBUFFERED": "1",
        }
        | shim.environment(home)
    )


class Zygote:
    """A process that has imported everything and forks each run; a context, one run at a time."""

    def __init__(self, home: Path):
        programs = home / "compiled"
        programs.mkdir(parents=True, exist_ok=True)
        compiled.tidy(programs)  # of runs that died while they wrote one
        self.home, self.variables = home, environment(home)
        self._process = self._channel = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Ends the server, if there is one; the next run starts another."""
        if self._process is not None:
            self._channel.close()
            self._process.wait()
            self._process = self._channel = None

    def _served(self) -> Connection:
        """The connection to the server, which is started when it is first asked."""
        if self._process is None:
            mine, other = _pair()
            command = [sys.executable, "-m", "chaos.server", str(other.fileno())]
            options = dict(env=self.variables, pass_fds=(other.fileno(),), cwd=self.home)
            self._process = subprocess.Popen(command, **options)
            other.close()
            self._channel = mine
            mine.recv()
        return self._channel

    def run(
        self, problem: Problem, workdir: Path, fault: Any = None, variables: Mapping = {}
    ) -> Outcome:
        """Runs the problem's command on the workdir, under the fault, to its end.

        variables: of the environment, beside the fault's own.

        Raises:
          TimeoutError: it did not end; what it said is in the message.
        """
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            output = Path(folder) / "output"
            output.touch()
            extra = dict(variables) | (fault.environment() if hasattr(fault, "environment") else {})
            pickled = None if fault is None else pickle.dumps(fault)
            job = Job(problem.arguments(workdir), pickled, extra, str(output))
            fresh = getattr(fault, "fresh", False)
            code, seconds = (self._alone if fresh else self._forked)(job, workdir, fault)
            return Outcome(code, output.read_text(errors="replace"), seconds)

    def _forked(self, job: Job, workdir: Path, fault: Any) -> tuple[int, float]:
        channel = self._served()
        channel.send(job)
        pid = channel.recv()
        try:
            with _beside(fault, pid, workdir):
                _wait(channel.poll, pid, job)
                channel.recv()
        except BaseException:
            self.close()
            raise
        channel.send("go on")
        status, seconds = channel.recv()
        return os.waitstatus_to_exitcode(status), seconds

    def _alone(self, job: Job, workdir: Path, fault: Any) -> tuple[int, float]:
        """A run in an interpreter of its own: the command itself where nothing happens within."""
        if hasattr(fault, "child"):
            file = Path(job.output).with_name("job")
            file.write_bytes(pickle.dumps(job._replace(environment={})))
            command = [sys.executable, "-m", "chaos.server", "run", str(file)]
        else:
            command = [sys.executable, "-m", "genfield", *job.argv]
        with open(job.output, "ab") as output:
            streams = dict(stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            variables = self.variables | job.environment
            process = subprocess.Popen(command, env=variables, cwd=self.home, **streams)
        ended = lambda seconds: not _lives(process.pid, seconds)
        with _beside(fault, process.pid, workdir):
            _wait(ended, process.pid, job)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, used.ru_utime + used.ru_stime


def _pair() -> tuple[Connection, Connection]:
    mine, other = socket.socketpair()
    return Connection(mine.detach()), Connection(other.detach())


def _lives(pid: int, seconds: float) -> bool:
    """Whether a child of this process still runs, after so many seconds at most."""
    until = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() >= until:
            return True
        time.sleep(0.01)
    return False


class _beside:
    """Calls fault.parent beside a run; what it raises is raised at the end."""

    def __init__(self, fault: Any, pid: int, workdir: Path):
        self.error, self.thread = None, None
        if hasattr(fault, "parent"):
            self.thread = threading.Thread(target=self._act, args=(fault, pid, workdir))

    def _act(self, fault, pid, workdir) -> None:
        try:
            fault.parent(pid, workdir)
        except BaseException as error:
            self.error = error

    def __enter__(self):
        if self.thread is not None:
            self.thread.start()

    def __exit__(self, kind, *_):
        if self.thread is not None:
            self.thread.join()
        if self.error is not None and kind is None:
            raise self.error


def _wait(ended: Callable[[float], bool], pid: int, job: Job) -> None:
    """Waits for the end of a run. A second in which this process was paused counts as one."""
    waited, seconds = 0.0, 1.0
    try:
        while not ended(seconds):
            waited += seconds
            if waited > LIMIT:
                raise TimeoutError(f"no end: {' '.join(job.argv)}\n{Path(job.output).read_text()}")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise


def answered(out: Outcome) -> str | None:
    """What is wrong with how a run ended under a fault; None: it went on, or said it in a line."""
    if "Traceback" in out.output:
        return f"a traceback: {out.output[-1500:]}"
    lines = re.findall(r"^genfield: error: .*", out.output, re.MULTILINE)
    if out.code == 0 or (out.code in ENDS and (len(lines) == 1 or out.code == 143)):
        return None
    return f"exit code {out.code} with {len(lines)} lines of error: {out.output[-1500:]}"


def kinds() -> dict[str, Kind]:
    """All kinds of faults: what the files of this folder list as KINDS."""
    found = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not info.name.startswith(("test_", "__")):
            module = importlib.import_module(f".{info.name}", __package__)
            found |= getattr(module, "KINDS", {})
    return found


class Tally:
    """Counts of cases, kept in a JSON file after each.

    Attributes:
      cases: a row a case: kind, mode, seed, runs (faults that struck), lost, silent, seconds.
      failures: of those with something lost or silent, all that is known.
    """

    def __init__(self, file: Path | None, cases: list, failures: list):
        self.file, self.cases, self.failures = file, cases, failures

    @classmethod
    def read(cls, file: Path) -> "Tally":
        """What a file holds; nothing where there is none."""
        held = json.loads(file.read_text()) if file.exists() else {"cases": [], "failures": []}
        return cls(file, held["cases"], held["failures"])

    def done(self, kind: str) -> set[tuple[str, int]]:
        """(mode, seed) of a kind's cases."""
        return {(row["mode"], row["seed"]) for row in self.cases if row["kind"] == kind}

    def struck(self, kind: str) -> int:
        """How many faults of a kind met a run."""
        return sum(row["runs"] for row in self.cases if row["kind"] == kind)

    def count(self, kind: str, mode: str, seed: int, runs: int, lost=(), silent=(), **more) -> None:
        """Adds a case and writes the file; lost and silent are lines that say what."""
        row = {"kind": kind, "mode": mode, "seed": seed, "runs": runs}
        counts = {"lost": int(bool(lost)), "silent": int(bool(silent))}
        self.cases.append(row | counts | {"seconds": round(more.pop("seconds", 0.0), 2)})
        if lost or silent:
            self.failures.append(row | {"lost": list(lost), "silent": list(silent)} | more)
        if self.file is not None:
            held = json.dumps({"cases": self.cases, "failures": self.failures}, indent=1)
            new = self.file.with_name(f"{self.file.name}.new")
            new.write_text(held)
            os.replace(new, self.file)

    def add(self, kind: str, found) -> None:
        """Adds what came of a case (`cases.Found`)."""
        told = dict(story=found.story, seconds=found.seconds)
        self.count(kind, found.mode, found.seed, found.struck, found.lost, found.silent, **told)


def table(tallies: list[Tally]) -> str:
    """Markdown: fault, mode, runs, lost, silent, of all that was counted."""
    sums: dict[tuple[str, str], list[int]] = {}
    for row in (row for tally in tallies for row in tally.cases):
        held = sums.setdefault((row["kind"], row["mode"]), [0, 0, 0])
        for place, name in enumerate(("runs", "lost", "silent")):
            held[place] += row[name]
    lines = ["| fault | mode | runs | lost | silent |", "|---|---|---|---|---|"]
    for (kind, mode), (runs, lost, silent) in sorted(sums.items()):
        lines.append(f"| {kind} | {mode} | {runs:,} | {lost} | {silent} |")
    return "\n".join(lines)
