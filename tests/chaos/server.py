"""The fork server: it has imported all that the command does, started nothing, and forks each run.

A run enters by `genfield.__main__`, as the console command does, so that its handlers of signals,
its flags and its exit codes are those of the command line. `python -m chaos.server FD` serves the
connection of that descriptor; `python -m chaos.server run FILE` is one run in a fresh interpreter.
"""

import contextlib
import importlib
import os
import pickle
import select
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from . import four

FROM_OUTSIDE = (signal.SIGINT, signal.SIGTERM)


class Job(NamedTuple):
    """A run: its arguments, its fault (pickled; None: none), its environment, and its output."""

    argv: list[str]
    fault: bytes | None
    environment: dict[str, str]
    output: str


# What is imported late, by some of the runs: of data, loggers, pictures and lowering.
LATE = ("sklearn.datasets", "tensorboardX", "rich.progress", "jaxlib.mlir.dialects.mhlo")
LATE += ("google.protobuf.json_format", "grain._src.python.dataset.transformations.slice")


def bring() -> None:
    """Imports what the commands import, without the modules that they run as scripts."""
    from PIL import Image

    import genfield.__main__  # noqa: F401
    from genfield.prepare import options, run  # noqa: F401
    from genfield.program import modes, published  # noqa: F401
    from genfield.program.methods import package
    from genfield.study import cli  # noqa: F401

    package()
    for name in LATE:
        importlib.import_module(name)
    Image.preinit()


def enter(job: Job) -> None:
    """Becomes the command, in a process of its own; does not come back."""
    code = 1
    try:
        fault = None if job.fault is None else pickle.loads(job.fault)
        if hasattr(fault, "child"):
            fault.child()
        if job.argv[0] == four.COMMAND:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_OUTSIDE)
            four.launch(job.argv[1:], Path(job.output), fault)
        sys.argv = ["genfield", *job.argv]
        from genfield import __main__ as program

        program.start = _heard(program.start)
        code = program.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _heard(start):
    """The program's start, until which signals wait: before it nothing could hear them."""

    def begun(argv):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_OUTSIDE)
        return start(argv)

    return begun


def _fork(job: Job) -> int:
    """The process id of a job that runs below this process."""
    pid = os.fork()
    if pid:
        return pid
    signal.pthread_sigmask(signal.SIG_BLOCK, FROM_OUTSIDE)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.environ.update(job.environment)
    if "JAX_COMPILATION_CACHE_DIR" in job.environment:  # which JAX has read when it was imported
        folder = job.environment["JAX_COMPILATION_CACHE_DIR"] or None
        sys.modules["jax"].config.update("jax_compilation_cache_dir", folder)
    enter(job)
    return 0


def serve(connection: Connection) -> None:
    """Job -> its process id; when it has ended, its wait status and processor seconds.

    The ended process is not taken from the system's table before the other side has said so: until
    then no other process can have its number, and a signal meant for it hits nobody else.
    """
    with contextlib.suppress(EOFError, ConnectionError):  # the driver is gone
        while _serve(connection):
            pass


def _serve(connection: Connection) -> bool:
    """One job; whether there may be another."""
    pid = _fork(connection.recv())
    connection.send(pid)
    with open(os.pidfd_open(pid)) as process:
        ready, _, _ = select.select([process, connection], [], [])
    if connection in ready:  # nothing is sent now but the end of the driver
        os.kill(pid, signal.SIGKILL)
        return False
    connection.send("ended")
    connection.recv()
    _, status, used = os.wait4(pid, 0)
    connection.send((status, used.ru_utime + used.ru_stime))
    return True


if __name__ == "__main__":
    if sys.argv[1] == "run":
        enter(pickle.loads(Path(sys.argv[2]).read_bytes()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    bring()
    served = Connection(int(sys.argv[1]))
    served.send("ready")
    serve(served)
