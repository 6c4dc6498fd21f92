"""A job of four processes on this machine, each below its guard, as srun would start them.

The launcher is a run of the fork server, and forks the four: a job costs no import. What each says
goes into a file beside the output, and at its end into the output, a line as `2| text`; the last
line, `codes 75 75 75 75`, tells how each ended.
"""

import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

COUNT = 4
DEAD_AFTER = 10  # seconds, the least that the program takes; it ships with 60
COMMAND = "of_four"  # before the arguments of a command that four processes run


class Below:
    """What `subprocess.Popen` is to a guard: the process that computes, forked and not started."""

    def __init__(self, command, stderr, pass_fds, env):
        del command, stderr, pass_fds
        read, write = os.pipe()
        self.returncode, self.pid = None, os.fork()
        if not self.pid:
            os.dup2(write, 2)
            for end in (read, write):
                os.close(end)
            os.environ.update(env)
            _become(_enter)
        os.close(write)
        self.stderr = os.fdopen(read, "rb")

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Forking:
    """The module `subprocess` as a guard sees it: its process is forked, a stand-in is started."""

    PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
    TimeoutExpired = subprocess.TimeoutExpired

    @staticmethod
    def Popen(command, **options):
        if "pass_fds" in options:
            return Below(command, **options)
        program = command[: command.index("genfield.machine.peers") + 2]  # and the code
        return subprocess.Popen([*program, *_argv], **options)


def _become(does) -> None:
    """This process does one thing, and ends as a process would that was started for it."""
    code = 1
    try:
        code = does()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code or 0)


_argv: list[str] = []  # of this process
_within = None  # what happens in it before its program starts


def _enter() -> int:
    """The program, in the process that computes."""
    from genfield.__main__ import main

    sys.argv[:] = _argv  # which the guard's start has changed
    _keep_programs()
    if _within is not None:
        _within()
    return main()


def _keep_programs() -> None:
    """Every process keeps what it compiles, and not the first alone: a job costs a third so."""
    from jax._src import compiler

    first = SimpleNamespace(global_state=SimpleNamespace(process_id=0))
    write = compiler._cache_write
    compiler._cache_write = FunctionType(write.__code__, write.__globals__ | {"distributed": first})


def _alone(number: int, argv: list[str], fault: Any) -> None:
    """Becomes process `number` of the job: its guard, which forks the one that computes."""
    global _within, _argv
    from genfield.machine import guard

    guard._die_with_the_parent()  # the launcher, when a hang is ended
    _argv = ["genfield", *argv]
    sys.argv = list(_argv)
    if hasattr(fault, "within") and fault.strikes == number:
        _within = fault.within
    guard.subprocess = Forking
    if argv[0] == "prepare":  # whose processes have no guard
        _become(_enter)
    from genfield.__main__ import main

    _become(main)


def places(argv: list[str]) -> list[list[str]]:
    """What each process of a job is told beside the command: the number, the count, where 0 is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = [f"--num_processes={COUNT}"]
    if argv[0] != "prepare":
        shared += [f"--coordinator=127.0.0.1:{port}", f"--dead_after={DEAD_AFTER}"]
    return [[*shared, f"--process_id={number}"] for number in range(COUNT)]


def launch(argv: list[str], output: Path, fault: Any = None) -> None:
    """Runs a command as four processes to the end of all; exits with the highest of their codes."""
    files = [output.with_name(f"{output.name}.{number}") for number in range(COUNT)]
    started = []
    for number, (file, place) in enumerate(zip(files, places(argv), strict=True)):
        pid = os.fork()
        if not pid:
            log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for stream in (1, 2):
                os.dup2(log, stream)
            os.close(log)
            _alone(number, [argv[0], *place, *argv[1:]], fault)
        started.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
    for number, file in enumerate(files):
        if not file.exists():  # it was struck before it wrote anything
            continue
        for line in file.read_text(errors="replace").splitlines():
            print(f"{number}| {line}")
    print("codes", *codes)
    sys.exit(max(128 - code if code < 0 else code for code in codes))


# ---- From outside


def started(launcher: int) -> list[int]:
    """The four of a job in their order, each the guard where it has one; empty until all are."""
    found = children(launcher)
    return found if len(found) == COUNT else []


def computes(above: int, guarded: bool = True) -> int | None:
    """The process that computes, below its guard; None: it does not run."""
    found = children(above) if guarded else [above]
    return found[0] if found else None


def children(pid: int) -> list[int]:
    """A process' children in the order of their start; the dead too, until they are waited for."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []
