"""One case: a problem struck by the faults of a seed, run to its end, and what came of it."""

import contextlib
import fcntl
import json
import re
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

from genfield.machine import logbook

from . import invariants, shim
from .driver import Facts, Kind, Outcome, Zygote, answered
from .problems import PROBLEMS, Problem, reference
from .signals import Counter

FRESH = 20  # of so many cases one runs in interpreters of its own
IMPORTS = 3.0  # processor seconds that such a one takes before it does what a forked one does


class Found(NamedTuple):
    """What came of a case.

    Attributes:
      struck: how many faults met a run. lost: of the results, what is gone, wrong or too much.
      silent: what was wrong where the program said nothing. story: what happened, run by run.
    """

    mode: str
    seed: int
    struck: int
    lost: list[str]
    silent: list[str]
    story: list[str]
    seconds: float


def made(zygote: Zygote, problem: Problem) -> tuple[Path, Facts]:
    """The workdir of an undisturbed run, and what it took; made where the home has none yet."""
    folder = reference(problem.mode, zygote.home)
    folder.parent.mkdir(parents=True, exist_ok=True)
    told = folder.with_name(f"{problem.mode}.json")
    if not told.exists():
        if problem.needs is not None:
            made(zygote, PROBLEMS[problem.needs])
        with open(folder.with_name(f"{problem.mode}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not told.exists():
                logbook.replace_text(told, json.dumps(_make(zygote, problem, folder)))
    return folder, Facts(**json.loads(told.read_text()))


def _make(zygote: Zygote, problem: Problem, folder: Path) -> dict:
    """Runs twice: the first compiles, the second shows what a run takes."""
    counted = folder.with_name(f"{problem.mode}.touches")
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        counted.unlink(missing_ok=True)
        counted.with_suffix(".calls").unlink(missing_ok=True)
        problem.prepare(folder, zygote.home)
        out = zygote.run(problem, folder, Counter(str(counted), folder))
        if out.code:
            raise RuntimeError(f"{problem.mode} undisturbed ends with {out.code}:\n{out.output}")
    return {"seconds": out.seconds, "touches": counted.stat().st_size}


def run(zygote: Zygote, mode: str, kind: Kind, seed: int, folder: Path) -> Found:
    """Strikes a problem as the seed says, runs the same command to its end, and checks."""
    if kind.case is not None:
        return kind.case(zygote, mode, seed, folder)
    problem = PROBLEMS[mode]
    wanted, facts = made(zygote, problem)
    workdir = folder / f"{mode}_{seed}"
    remove(workdir)
    problem.prepare(workdir, zygote.home)
    case = Case(zygote, problem, workdir, wanted)
    faults = kind.make(seed)
    faults = faults if isinstance(faults, list) else [faults]
    for fault in faults:
        if seed % FRESH == 0 and not hasattr(fault, "fresh"):
            fault.fresh = True
        if hasattr(fault, "aim"):
            starts = IMPORTS if getattr(fault, "fresh", False) else 0.0
            fault.aim(facts._replace(seconds=facts.seconds + starts))
        if hasattr(fault, "meet"):
            counted = shim.calls(wanted.with_name(f"{mode}.calls"))
            fault.meet(problem, workdir, zygote.home, counted)
        if case.strike(fault):
            break
    found = case.end()
    for fault in faults:
        found.lost.extend(fault.broken(workdir) if hasattr(fault, "broken") else [])
    if not found.lost + found.silent:
        remove(workdir)
    return found._replace(seed=seed)


def remove(workdir: Path) -> None:
    """Removes a workdir, and what a fault has put beside it."""
    for place in (workdir, *workdir.parent.glob(f"{workdir.name}_*")):
        shutil.rmtree(place, ignore_errors=True)


class Case:
    """A workdir under faults; `strike` as often as there are some, then `end`."""

    def __init__(self, zygote: Zygote, problem: Problem, workdir: Path, wanted: Path):
        self.zygote, self.problem, self.workdir, self.wanted = zygote, problem, workdir, wanted
        self.lost, self.silent, self.story = [], [], []
        self.struck, self.seconds, self.whole, self.step = 0, 0.0, False, None
        self.variables = {}

    def _run(self, fault=None) -> Outcome:
        try:
            out = self.zygote.run(self.problem, self.workdir, fault, self.variables)
        except TimeoutError as error:
            self.lost.append(f"{fault}: {error}")
            out = Outcome(-signal.SIGKILL, str(error), 0.0)
        self.seconds += out.seconds
        last = out.output.strip().rpartition("\n")[2]
        self.story.append(f"{fault or 'undisturbed'}: {out.code}, {last[:200]}")
        return out

    def strike(self, fault) -> bool:
        """Runs under a fault; whether the run came to its end all the same."""
        if hasattr(fault, "surroundings"):
            self.variables = fault.surroundings(self.workdir, self.zygote.home)
        out = self._run(fault)
        landed = fault.landed(out) if hasattr(fault, "landed") else True
        self.struck += landed
        if hasattr(fault, "mend"):
            fault.mend(self.workdir)
        says = fault.answered(out) if hasattr(fault, "answered") else answered(out)
        if says:
            self.silent.append(f"{fault}: {says}")
        self._read()
        if out.code == 0:
            wrong = self._problems()
            told = " ".join(re.findall(r"^genfield: warning: .*", out.output, re.MULTILINE))
            silent = [problem for problem in wrong if f"/{problem.partition(': ')[2]} " not in told]
            self.silent += [f"{fault} ended with 0: {problem}" for problem in silent]
            self.whole = not wrong
        return out.code == 0

    def _read(self) -> None:
        """The folder is readable, never goes back behind what was before, and no file is torn."""
        try:
            step = invariants.readable(self.workdir)
        except Exception as error:
            self.lost.append(f"open_run: {type(error).__name__}: {error}")
            return
        if self.step is not None and (step is None or step < self.step):
            self.lost.append(f"open_run read step {self.step}, and now {step}")
        self.step = step
        self.lost += invariants.torn(self.workdir)

    def _problems(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return invariants.check(self.problem, self.workdir, self.wanted)
        return ["missing: files"]

    def end(self) -> Found:
        """Runs the same command without a fault, where none has ended yet, and checks."""
        if not self.whole:
            out = self._run()
            if out.code:
                self.lost.append(f"the same command ends with {out.code}: {out.output[-2000:]}")
            self.lost += self._problems()
        told = self.lost, self.silent, self.story, self.seconds
        return Found(self.problem.mode, 0, self.struck, *told)
