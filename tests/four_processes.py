"""What each of four processes does in tests/program/test_four_processes.py, in one start."""

import contextlib
import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from programs import SMALL, TINY_DIGITS, arguments

from genfield.configuration import base
from genfield.data.sets import ImageSet
from genfield.errors import UserError
from genfield.machine import headroom, processes, sharding
from genfield.machine.checkpoint import Checkpoints
from genfield.main import main
from genfield.metrics import images, known
from genfield.program import experiment
from genfield.program.sample_files import Shards

COUNT = 4
ORDER = (5, 2, 7, 0, 1, 6, 3, 4)  # of two devices a process: no process has neighbours
FIELDS = {"sample.batch_size": 2, "sample.num": 40, "sample.shard_size": 18}

SPLIT = SMALL | {  # a run whose parameters no process has whole
    **{"net.width": 128, "mesh.fsdp": 8, "train.steps": 2, "evaluate.figures": True},
    "sampler": {"name": "sphere_tracing", "step_size": 0.1, "num_steps": 2},
}


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


@contextlib.contextmanager
def broken(holder, name: str, when=lambda *arguments: True):
    """Calls of a function fail on this process alone, those for which `when` holds."""
    original = getattr(holder, name)

    def fails(*arguments, **options):
        if when(*arguments):
            raise UserError("it cannot be read")
        return original(*arguments, **options)

    setattr(holder, name, fails)
    yield
    setattr(holder, name, original)


def raised(call) -> list[str]:
    """What a call ends with."""
    try:
        call()
    except UserError as error:
        return [str(error)]
    return []


def of_images(rank: int) -> dict:
    """An image that process 2 cannot read, and one whose features are not finite there."""
    mesh = sharding.make_mesh(base().mesh)
    levels = np.ones((40, 2, 2, 3), np.uint8)

    def read(rows):
        if rank == 2:
            raise UserError("it cannot be read")
        return levels[rows]

    of = lambda read: images.blocks(ImageSet("", "", 40, (2, 2, 3), read), mesh, 2)
    network = SimpleNamespace(name="net", origin="a file")
    log = jax.jit(lambda x: {"pool": jax.numpy.log(x[:, 0, 0].astype(np.float32))})
    metrics = (known()["frechet"],)
    judge = images.Judge(network, "", metrics, mesh, 2, {"pool": 3}, log)
    levels[sharding.local_rows(mesh, 16) if rank == 2 else []] = 0
    return {
        "image": raised(lambda: list(of(read))),
        "features": raised(lambda: images.statistics(judge, of(levels.__getitem__))),
    }


def work(rank: int, workdir: Path) -> None:
    """Everything that the tests look at; what this process was told goes into a file."""
    permuted()
    only = lambda number, context: context if rank == number else contextlib.nullcontext()
    out = {"sample": told(command(workdir, "four"))}
    out["pairs"] = told(command(workdir, "four", "pairs"))
    with only(2, full_disk()):
        out["full disk"] = told(command(workdir, "cut"))
    apart = workdir
    if rank == 3:  # a disk of its own, on which the run lies
        apart = workdir.with_name("apart")
        shutil.copytree(workdir, apart, ignore=shutil.ignore_patterns("samples", "pairs"))
    out["two disks"] = told(command(apart, "apart"))
    processes.PATIENCE = 0.5
    own = apart / "there"
    own.mkdir(exist_ok=True)
    out["two folders"] = raised(lambda: processes.check_shared(own))
    (workdir / ".process_1_17").touch()  # of one that was killed there
    processes.check_shared(workdir)
    with only(1, broken(experiment, "open_data")):
        out["data"] = told(command(workdir, "no_data"))
    with only(2, broken(Checkpoints, "_alone", lambda self, step, items: step == 4)):
        out["checkpoint"] = told(command(workdir.with_name("damaged"), "older"))
    with only(3, broken(headroom, "check")):
        evaluates = ("--mode=evaluate", "--config.evaluate.num_samples=24")
        out["short of memory"] = [
            *told(command(workdir, "short")),
            *told(arguments(workdir, TINY_DIGITS, *evaluates, small={})),
        ]
    out |= of_images(rank)
    out["moons"] = told(arguments(workdir.with_name("moons"), small=SPLIT))
    workdir.with_name(f"told_{rank}.json").write_text(json.dumps(out))


if __name__ == "__main__":
    jax.distributed.initialize(sys.argv[1], COUNT, int(sys.argv[2]))
    work(int(sys.argv[2]), Path(sys.argv[3]))
    jax.distributed.shutdown()
