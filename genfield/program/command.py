"""The command line: flags, the configuration they name, processes and devices, exit codes.

Nothing slow is imported here before the simple mistakes are told.
"""

import functools
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from genfield import errors
from genfield.errors import UserError
from genfield.machine import headroom, peers, preemption
from genfield.program import checks, config_io, defaults, own_files
from genfield.registry import Methods, choose

FIELDS_OF = """\
Recipes that come with the package are found by name, as --config=distance_marching_two_moons:
`genfield configs` lists them. --config=… --help lists all fields of one, and every loss, sampler,
network, coupling, data source and metric that may be chosen, with their fields.
"""
MODES = ("train", "evaluate", "sample", "pairs", "export")


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
        "A configuration file or a recipe's name, with an argument behind a colon; "
        "or a run's config.json. --config.a.b=… sets a field. Left out: that of the workdir.",
    )
    define("workdir", None, "Folder of the run: checkpoints, metrics, samples, figures.")
    define("mode", "train", f"One of {', '.join(MODES)}.")
    define("coordinator", None, "host:port of process 0, for several processes.")
    flags.DEFINE_integer("process_id", None, "Of several processes.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "Number of processes.", flag_values=values)
    flags.DEFINE_bool(
        "distributed", False, "Find the other processes (Slurm, TPU pods).", flag_values=values
    )
    flags.DEFINE_integer(
        "dead_after",
        peers.LIMIT,
        "Seconds without a sign of life after which one of several processes counts as dead.",
        lower_bound=10,
        flag_values=values,
    )
    flags.DEFINE_integer("step", None, "Checkpoint to evaluate or sample.", flag_values=values)
    flags.DEFINE_bool("best", False, "Evaluate or sample the best one.", flag_values=values)
    define(
        "weights",
        None,
        "Sample, evaluate or study this instead of a checkpoint: a file of published weights, an "
        "export, or the folder of a run; see docs/published.md.",
    )
    define("samples", None, "Evaluate these images instead: a folder, or an .npz file.")
    define("out", None, "The .safetensors file that --mode=export writes.")
    define(
        "kind",
        None,
        "A family of published weights: the one that --weights are of, where names and shapes fit "
        "several; of --mode=export the one whose names are written.",
    )
    flags.DEFINE_bool("help", False, "Show this.", flag_values=values)
    try:
        overrides = values(argv, known_only=True)[1:]
    except flags.IllegalFlagValueError as error:
        raise UserError(config_io.problem(str(error))) from error
    except flags.Error as error:
        raise UserError(str(error)) from error
    for argument in overrides:
        name = re.match(r"--?(?:no)?([a-z_]\w*)(?!\w|\.)", argument)
        if name:
            choose("flag", name[1], dict.fromkeys([*values, "config.<section>.<field>"]))
    return values, overrides


def usage(head: str, values, overrides: list[str]) -> str:
    """What --help prints: the flags; of a --config all its fields, and what may be chosen.

    Raises:
      UserError: no such config, or an override that it cannot have.
    """
    if values.config is None:
        return f"{head}\n{FIELDS_OF}\n{values.get_help(include_special_flags=False)}"
    config, methods = config_io.read(values.config)
    config = config_io.override(config, overrides)
    checks.check(config)
    # Slow to import, which no other mistake waits for.
    from genfield.program import explain
    from genfield.program.methods import package

    return explain.text(values.config, config, methods or package())


class Asked(NamedTuple):
    """What a command line asks for: a config, the methods that it can name, and its --weights.

    Attributes:
      methods: None: the package's alone. weights: `pretrained.Pretrained`, or None.
    """

    config: ConfigDict
    methods: Methods | None
    weights: Any


def load_config(values, overrides: list[str], workdir: Path) -> Asked:
    """The config of the command line, or the one that the workdir holds, with its overrides.

    Of --weights, the config is what their file says, on top of the one that is named otherwise.
    """
    methods = own = None
    if values.config is not None:
        config, methods = config_io.read(values.config)
    elif (workdir / "config.json").exists():
        config = config_io.from_file(workdir / "config.json")
        methods = own_files.methods_of(workdir)
        own = config
    elif values.samples is not None:
        config = defaults.base()
    elif values.weights is not None:
        config = None
    else:
        raise UserError(
            f"--config is missing, and {workdir} holds no run to take it from: "
            "pass --config=NAME or FILE; genfield configs lists the recipes"
        )
    opened, alone = None, config is None
    if values.weights is not None:
        from genfield.program import weights  # slow to import

        opened = _open_weights(values, config, methods)
        config = weights.derived(opened, config, methods)
    config = config_io.override(config, overrides)
    if opened is not None and alone:
        weights.settled(opened, config, overrides, methods)
    check_mended(workdir, own, config, methods)
    own_files.tell_changes(workdir, methods)
    return Asked(config, methods, opened)


def check_mended(workdir: Path, own, config, methods: Methods | None) -> None:
    """Raises UserError for a config that nothing can use; of a run's own, it names the file.

    own: what the workdir's config.json says, which the command line may have mended; or None.
    """
    try:
        checks.check(config)
    except UserError:
        if own is not None:
            from genfield.program import open_run  # slow to import

            open_run.check_own(workdir, own, methods)
        raise


def _open_weights(values, page, methods):
    """What --weights names; the field of a page tells apart families with the same names."""
    from genfield.program import published, weights

    options = dict(kind=values.kind, teaches=weights.taught(page, methods))
    return weights.opened(published.load, values.weights, "--weights", "add --kind=", **options)


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
    if values.mode != "export" and values.out:
        raise UserError("--out is of an export: add --mode=export")
    if values.mode != "export" and values.kind and values.weights is None:
        raise UserError("--kind is of --weights or an export: add --weights=FILE or --mode=export")
    if values.weights is not None:
        _check_weights(values, workdir)
    for name in ("config", "samples", "out", "weights"):
        errors.local(getattr(values, name) or "", f"--{name}")
    if values.step is not None and values.best:
        raise UserError("--step and --best name two checkpoints: leave one of them out")
    needs = values.mode != "train" and not values.samples and values.weights is None
    if needs and not (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds no checkpoints to {values.mode}: train first")
    there = next(folder for folder in (workdir, *workdir.parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"--workdir {workdir}: cannot write in {there}; choose another folder")


def _check_weights(values, workdir: Path) -> None:
    """Raises UserError where --weights cannot be what a mode and a workdir are of."""
    if values.mode == "train":
        raise UserError(
            "--weights are sampled or evaluated: add --mode=sample or evaluate; to train on from "
            f"them, --config=… --config.initial_parameters={values.weights}"
        )
    if values.mode == "export":
        raise UserError(
            "--mode=export writes a run; genfield.pretrained.export(FILE, OUT, kind=…) writes one "
            "file of weights as another"
        )
    if values.samples is not None or values.best or values.step is not None:
        raise UserError("--weights take the place of --samples, --step and --best: leave them out")
    if (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds a run: choose another --workdir for the weights")


def start_distributed(values) -> None:
    """Joins the other processes, if there are any."""
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
    found = values.distributed
    address = () if found else (values.coordinator, values.num_processes, values.process_id)
    peers.join(*address, limit=values.dead_after)
    preemption.install_distributed()


def check_devices() -> None:
    """Raises UserError where JAX finds no device, as with JAX_PLATFORMS=cuda on a CPU."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        if "oordination" in str(error):  # what the processes tell each other of their devices
            peers.wait_for_the_dead(error)
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX finds no device (JAX_PLATFORMS={asked!r}) {error}".rstrip()
            + ": genfield doctor shows what is here"
        ) from error


def describe(exp) -> None:
    """The head of a run's output: processes, devices, mesh, batch, parameters."""
    import jax

    from genfield.machine import fixed
    from genfield.machine.logbook import say
    from genfield.nets import count_parameters
    from genfield.placement import sizes

    mesh = ", ".join(f"{axis} {size}" for axis, size in sizes(exp.mesh).items())
    batch, count = exp.config.batch_size, jax.process_count()
    kind = jax.devices()[0].device_kind
    total = count_parameters(fixed.without(exp.abstract.params, exp.fixed))
    say(
        f"process {jax.process_index()}/{count}  {jax.device_count()} x {kind}  mesh ({mesh})\n"
        f"batch {batch} ({batch // count} a process)  "
        f"{total:,} parameters  data {exp.config.data.name}: {_amount(exp)}"
    )


def _amount(exp) -> str:
    """How much there is to train on, in words."""
    data = exp.data
    if exp.weights is not None and not any(data.sizes.values()):
        return "not read" + (f", {data.num_classes} classes" if data.num_classes else "")
    if data.draw is not None:
        return "drawn afresh at each step"
    classes = f", {data.num_classes} classes" if data.num_classes else ""
    held = f"{data.sizes['test']:,}" if data.heldout else "none"
    return f"{data.sizes['train']:,} to train on, {held} held out{classes}"


def main(argv: list[str], command: Callable) -> int:
    """Runs a command line; returns the exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("absl").addFilter(_in_one_line)
    try:
        return errors.told(lambda: command(argv))
    except preemption.Preempted:
        return preemption.EXIT_CODE


def _in_one_line(record: logging.LogRecord) -> bool:
    """Whether a record of orbax is to be shown, and without its traceback: what it logs of a save
    that failed it raises as well."""
    if record.exc_info and record.module in ("future", "async_checkpointer"):
        return False
    if record.exc_info:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}", ()
        record.msg = record.msg.partition("\n")[0]
        record.exc_info = record.exc_text = None
    return True


def _untold(hook: Callable, about) -> None:
    """In the place of sys.unraisablehook, for what a save that failed, and is told, leaves behind.

    TensorStore, called back from C++ by what was under way, finds the loop of events closed, and
    would tell that many times; and a loop that could not be opened cannot be closed.
    """
    half_made = getattr(about.object, "__qualname__", "") == "BaseEventLoop.__del__"
    if not half_made and "Event loop is closed" not in str(about.exc_value):
        hook(about)


def leave(argv: list[str], command: Callable) -> None:
    """Runs a command line as the whole of a process."""
    warnings.formatwarning = lambda message, *_: f"genfield: warning: {message}\n"
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # of a save that failed
    sys.unraisablehook = functools.partial(_untold, sys.unraisablehook)
    headroom.watch(_near_the_limit)
    try:
        code = main(argv, functools.partial(_speaking, command))
    except Exception as error:
        if peers.several():
            peers.wait_for_the_dead(error)
        errors.tell(traceback.format_exc(), error=True)
        code = 1
    for error in (False, True):
        errors.tell("", end="", error=error)  # flushed, where there is anybody to read it
    if peers.several():
        peers.leave(code)
    os._exit(code)  # threads of a peer that died may never end


def _near_the_limit(error: errors.UserError) -> None:
    """Ends this process, whatever its other threads wait for, unless it is about to end."""
    if not peers.speak(errors.EXIT_CODE):
        return
    try:
        errors.tell(f"genfield: error: {error}", error=True)
        if peers.several():
            peers.leave(errors.EXIT_CODE)
    finally:  # also where there is no memory to tell it
        os._exit(errors.EXIT_CODE)


def _speaking(command: Callable, argv: list[str]) -> None:
    """Runs a command line; where it ends in a line of its own, no other is told."""
    try:
        command(argv)
    except Exception as error:
        if errors.mendable(error) is not None:
            peers.speak(errors.EXIT_CODE)
        raise
