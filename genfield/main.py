"""The program: python -m genfield.main --config=configs/… --workdir=… [--mode=…] [--config.a.b=…]

Exit codes: 0 done; 2 a mistake that one line explains; 143 stopped by a signal, after saving.
"""

import os
import sys

from genfield import preemption

if __name__ == "__main__":
    preemption.install()  # before the slow imports: a signal never goes unheard
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures are written, never shown

import errno
import functools
import logging
import re
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from absl import flags

from genfield import configuration
from genfield.errors import UserError, choose

MODES = ("train", "evaluate", "sample", "pairs")
MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def parse(argv: list[str]):
    """The flags of a command line, and the arguments that override fields of the config.

    Raises:
      UserError: unknown flags, values of the wrong type.
    """
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_string, flag_values=values)
    define(
        "config",
        None,
        "Configuration file, with an argument after a colon where it takes one; --config.a.b=… "
        "sets a field. Left out: the one in the workdir.",
    )
    define("workdir", None, "Folder of the run: checkpoints, metrics, samples, figures.")
    define("mode", "train", f"One of {', '.join(MODES)}.")
    define("coordinator", None, "host:port of process 0, for several processes.")
    flags.DEFINE_integer("process_id", None, "Of several processes.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "Number of processes.", flag_values=values)
    flags.DEFINE_bool(
        "distributed", False, "Find the other processes (Slurm, TPU pods).", flag_values=values
    )
    flags.DEFINE_integer("step", None, "Checkpoint to evaluate or sample.", flag_values=values)
    flags.DEFINE_bool("best", False, "Evaluate or sample the best one.", flag_values=values)
    define("samples", None, "Evaluate these images instead: a folder, or an .npz file.")
    flags.DEFINE_bool("help", False, "Show this.", flag_values=values)
    try:
        overrides = values(argv, known_only=True)[1:]
    except flags.IllegalFlagValueError as error:
        raise UserError(configuration.problem(str(error))) from error
    except flags.Error as error:
        raise UserError(str(error)) from error
    for argument in overrides:
        name = re.match(r"--?(?:no)?([a-z_]\w*)(?!\w|\.)", argument)
        if name:
            choose("flag", name[1], dict.fromkeys([*values, "config.<section>.<field>"]))
    return values, overrides


def load_config(values, overrides: list[str], workdir: Path):
    """The config of the command line, or the one that the workdir holds, with its overrides."""
    if values.config is not None:
        config = configuration.load(values.config)
    elif (workdir / "config.json").exists():
        config = configuration.from_file(workdir / "config.json")
    elif values.samples is not None:
        config = configuration.base()
    else:
        raise UserError(
            f"--config is missing, and {workdir} holds no run to take it from: "
            "pass --config=configs/….py"
        )
    config = configuration.override(config, overrides)
    configuration.check(config)
    return config


def check_flags(values, workdir: Path) -> None:
    """Raises UserError for an unknown mode, or a workdir that cannot serve it."""
    if values.mode not in MODES:
        raise UserError(f"unknown mode {values.mode!r}. Known: {', '.join(MODES)}")
    if values.mode == "train" and (values.best or values.step is not None):
        raise UserError("--step and --best choose what --mode=evaluate or sample reads")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file, not a folder")
    if values.samples is not None and values.mode != "evaluate":
        raise UserError("--samples names images to evaluate: add --mode=evaluate")
    if values.samples is not None and (values.best or values.step is not None):
        raise UserError("--samples needs no checkpoint: leave out --step and --best")
    if values.mode != "train" and not values.samples and not (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds no checkpoints to {values.mode}: train first")
    there = next(folder for folder in (workdir, *workdir.parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"--workdir {workdir}: cannot write in {there}; choose another folder")


def start_distributed(values) -> None:
    """Joins the other processes, if there are any."""
    import jax

    given = [values.coordinator, values.process_id, values.num_processes]
    if not values.distributed and given == [None] * 3:
        return
    if not values.distributed:
        if None in given:
            raise UserError("--coordinator, --process_id and --num_processes go together")
        if not 0 <= values.process_id < values.num_processes:
            raise UserError(
                f"--process_id {values.process_id} must be one of 0 to --num_processes - 1"
            )
    try:
        if values.distributed:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(values.coordinator, values.num_processes, values.process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the other processes: {error}") from error
    preemption.install_distributed()


def check_devices() -> None:
    """Raises UserError where JAX finds no device, as with JAX_PLATFORMS=cuda on a CPU."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX finds no device (JAX_PLATFORMS={asked!r}) {error}".rstrip()
            + ": python -m genfield.doctor shows what is here"
        ) from error


def describe(exp) -> None:
    """The head of a run's output: processes, devices, mesh, batch, parameters."""
    import jax
    from clu import parameter_overview

    from genfield.logbook import say

    mesh = ", ".join(f"{axis} {size}" for axis, size in exp.mesh.shape.items())
    batch, count = exp.config.batch_size, jax.process_count()
    kind = jax.devices()[0].device_kind
    total = parameter_overview.count_parameters(exp.abstract.params)
    say(
        f"process {jax.process_index()}/{count}  {jax.device_count()} x {kind}  mesh ({mesh})\n"
        f"batch {batch} ({batch // count} a process)  "
        f"{total:,} parameters  data {exp.config.data.name} {exp.data.sizes}"
    )


def run(argv: list[str]) -> None:
    """Runs a command line to its end."""
    values, overrides = parse(argv)
    if values.help:
        print(__doc__, values.get_help(include_special_flags=False), sep="\n")
        return
    if not values.workdir:
        raise UserError(
            "--workdir is missing: the folder that the run writes to. --help lists all flags"
        )
    workdir = Path(values.workdir).expanduser().resolve()
    check_flags(values, workdir)
    config = load_config(values, overrides, workdir)
    what = values.samples or config.loss.name
    if not values.process_id:
        print(f"genfield: {values.mode} {what} in {workdir}", flush=True)
    start_distributed(values)
    check_devices()
    # Only now, with the simple mistakes told within a second, the slow imports.
    from genfield import experiment, jobs

    if values.samples is not None:
        jobs.evaluate_images(config, workdir, values.samples)
        return
    exp = experiment.prepare(config, workdir)
    jobs.check(exp, values.mode)
    describe(exp)
    preemption.begin()
    run_mode = {
        "train": jobs.train,
        "evaluate": jobs.evaluate,
        "sample": jobs.sample,
        "pairs": jobs.pairs,
    }
    run_mode[values.mode](exp, step=values.step, best=values.best)


def mendable(error: Exception) -> str | None:
    """What the user can do about an error that is no bug of the program; None if it is one."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and error.errno in MENDABLE:
        return f"{error.filename or 'the disk'}: {error.strerror}. Make room or choose another path"
    if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return (
            f"out of memory ({text.splitlines()[0]}): lower config.batch_size or "
            "config.sample.batch_size, raise config.optimizer.accumulate, or shrink config.net"
        )
    return None


def main(argv: list[str], command: Callable | None = None) -> int:
    """Runs a command line, by `run` or another command; returns the exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        (command or run)(argv)
        return 0
    except preemption.Preempted:
        return preemption.EXIT_CODE
    except Exception as error:
        message = mendable(error)
        if message is None:
            raise
        message = re.sub(r"\s*\n\s*", " ", message)
        print(f"genfield: error: {message}", file=sys.stderr, flush=True)
        return 2


def _exit(code: int) -> None:
    """Leaves: together with the other processes when all is well, at once after an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    jax = sys.modules.get("jax")
    if code in (0, preemption.EXIT_CODE) and jax is not None and jax.process_count() > 1:
        jax.distributed.shutdown()
    os._exit(code)  # threads of a peer that died may never end


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"genfield: warning: {message}\n"
    try:
        code = main(sys.argv)
    except Exception:
        traceback.print_exc()
        code = 1
    _exit(code)
