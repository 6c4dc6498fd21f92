"""The program: python -m genfield.main --config=configs/… --workdir=… [--mode=…] [--config.a.b=…]

Exit codes: 0 done; 2 a mistake that one line explains; 143 stopped by a signal, after saving.
"""

import sys

from genfield import preemption

if __name__ == "__main__":
    preemption.install()  # before the slow imports: a signal never goes unheard

import functools
import logging
import os
import re
import traceback
from pathlib import Path

from absl import flags

from genfield.errors import UserError

MODES = ("train", "evaluate", "sample")


def parse(argv: list[str]):
    """The flags of a command line.

    Raises:
      UserError: unknown flags, no config or an unknown one, values of the wrong type.
    """
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Configuration file, with an argument after a colon where it takes one; --config.a.b=… "
        "sets a field. Left out: the one in the workdir.",
        lock_config=False,
        flag_values=values,
        accept_new_attributes=True,
        sys_argv=argv,
    )
    define = functools.partial(flags.DEFINE_string, flag_values=values)
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
    flags.DEFINE_bool("help", False, "Show this.", flag_values=values)
    try:
        rest = values(argv)
        str(values["config"].value)  # a config file that failed to load says so only when used
    except Exception as error:
        raise UserError(_flag_problem(error)) from error
    if values.help:
        print(__doc__, values.get_help(), sep="\n")
        raise SystemExit(0)
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
    return values


def _flag_problem(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no such config section: {error.args[0]}"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r"\s+", " ", text)


def load_config(values, workdir: Path):
    """The config of the command line, or the one that the workdir holds."""
    from genfield import configuration

    if values.config is not None:
        return values.config
    if (workdir / "config.json").exists():
        return configuration.from_file(workdir / "config.json")
    raise UserError(
        f"--config is missing, and {workdir} holds no run to take it from: "
        "pass --config=configs/….py"
    )


def start_distributed(values) -> None:
    """Joins the other processes, if there are any."""
    import jax

    given = [values.coordinator, values.process_id, values.num_processes]
    if values.distributed:
        jax.distributed.initialize()
    elif any(v is not None for v in given):
        if any(v is None for v in given):
            raise UserError("--coordinator, --process_id and --num_processes go together")
        jax.distributed.initialize(values.coordinator, values.num_processes, values.process_id)
    else:
        return
    preemption.install_distributed()


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


def run(values) -> None:
    """Runs a parsed command line to its end."""
    if values.workdir is None:
        raise UserError("--workdir is missing: the folder that the run writes to")
    if values.mode not in MODES:
        raise UserError(f"unknown mode {values.mode!r}. Known: {', '.join(MODES)}")
    workdir = Path(values.workdir).resolve()
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file, not a folder")
    if values.mode != "train" and not (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds no checkpoints to {values.mode}: train first")
    config = load_config(values, workdir)
    print(f"genfield: {values.mode} {config.loss.name} in {workdir}", flush=True) if (
        not values.process_id
    ) else None
    start_distributed(values)
    # Only now, with the simple mistakes told within a second, the slow imports.
    from genfield import experiment, jobs

    exp = experiment.prepare(config, workdir)
    jobs.check(exp)
    describe(exp)
    {"train": jobs.train, "evaluate": jobs.evaluate, "sample": jobs.sample}[values.mode](
        exp, step=values.step, best=values.best
    )


def main(argv: list[str]) -> int:
    """Runs a command line; returns the exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        run(parse(argv))
        return 0
    except UserError as error:
        message = re.sub(r"\s*\n\s*", " ", str(error))
        print(f"genfield: error: {message}", file=sys.stderr, flush=True)
        return 2
    except preemption.Preempted:
        return preemption.EXIT_CODE


def _exit(code: int) -> None:
    """Leaves at once: after an error, threads of other processes' peers may never end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        code = main(sys.argv)
    except Exception:
        traceback.print_exc()
        code = 1
    _exit(code)
