"""What each of four processes does in tests/program/test_four_processes.py, in one start."""

import contextlib
import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import jax
from programs import TINY_DIGITS, arguments

from genfield.machine import sharding
from genfield.main import main
from genfield.program.sample_files import Shards

COUNT = 4
ORDER = (5, 2, 7, 0, 1, 6, 3, 4)  # of two devices a process: no process has neighbours
FIELDS = {"sample.batch_size": 2, "sample.num": 40, "sample.shard_size": 18}


def command(workdir, name: str, mode: str = "sample", **fields) -> list[str]:
    """The command line that draws samples, or pairs, of a name."""
    extra = (f"--mode={mode}", f"--config.sample.name={name}")
    return arguments(workdir, TINY_DIGITS, *extra, small=FIELDS | fields)


def told(argv: list[str]) -> list:
    """The exit code of a command line, and its last line on stderr."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        code = main(argv)
    return [code, *text.getvalue().strip().splitlines()[-1:]]


def permuted() -> None:
    """Meshes go through the devices in another order than their numbers."""
    make, devices = sharding.make_mesh, [jax.devices()[i] for i in ORDER]
    sharding.make_mesh = lambda section, given=None: make(section, given or devices)


@contextlib.contextmanager
def full_disk():
    """The disk is full when this process writes its second file."""
    write, calls = Shards.write, []

    def fails(self, number, arrays):
        calls.append(number)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the_disk")
        write(self, number, arrays)

    Shards.write = fails
    yield
    Shards.write = write


def work(rank: int, workdir: Path) -> None:
    """Everything that the tests look at; what this process was told goes into a file."""
    permuted()
    out = {"sample": told(command(workdir, "four"))}
    out["pairs"] = told(command(workdir, "four", "pairs"))
    with full_disk() if rank == 2 else contextlib.nullcontext():
        out["full disk"] = told(command(workdir, "cut"))
    apart = workdir
    if rank == 3:  # a disk of its own, on which the run lies
        apart = workdir.with_name("apart")
        shutil.copytree(workdir, apart, ignore=shutil.ignore_patterns("samples", "pairs"))
    out["two disks"] = told(command(apart, "apart"))
    workdir.with_name(f"told_{rank}.json").write_text(json.dumps(out))


if __name__ == "__main__":
    jax.distributed.initialize(sys.argv[1], COUNT, int(sys.argv[2]))
    work(int(sys.argv[2]), Path(sys.argv[3]))
    jax.distributed.shutdown()
