"""The console command: genfield COMMAND …; each command is a module's, as python -m runs it.

Nothing slow is imported here: a module brings what it needs, after its signal handlers.
"""

import runpy
import sys
from typing import NamedTuple

import genfield
from genfield.errors import UserError, tell, told
from genfield.machine import preemption


class Command(NamedTuple):
    """A module, and what it does in a line.

    Attributes:
      mode: of genfield.main. extra: of the package, with what the module needs beyond it.
    """

    module: str
    says: str
    mode: str | None = None
    extra: str | None = None


COMMANDS = {
    "train": Command("main", "train a model of a config, or go on with a run", mode="train"),
    "sample": Command("main", "draw samples of a run, or of published weights", mode="sample"),
    "evaluate": Command("main", "measure a run, weights, or any images", mode="evaluate"),
    "pairs": Command("main", "draw pairs of noise and sample, to train on", mode="pairs"),
    "export": Command("main", "write a run as one .safetensors file", mode="export"),
    "look": Command("look", "look at a run in the browser", extra="look"),
    "study": Command("study", "what a trained field can do, one study at a time"),
    "compare": Command("compare", "what differs between two runs"),
    "prepare": Command("prepare", "images to latents or small pixels, once, in shards"),
    "autoencoder": Command("autoencoder", "train a small autoencoder of images"),
    "analyze": Command("analyze", "what a set of images says by itself, without training"),
    "plan": Command("plan", "what a training asks of a machine, before it is rented"),
    "configs": Command("shipped", "the recipes that come with the package"),
    "doctor": Command("doctor", "what this machine can do, and what is missing for what"),
}


def usage() -> str:
    """What `genfield --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.says}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"genfield {genfield.__version__}: generative fields in JAX",
            "",
            "  genfield COMMAND --help     its flags",
            "  genfield train --config=NAME --help     every field of that config",
            "",
            "Commands:",
            *lines,
        ]
    )


def arguments(name: str, command: Command, given: list[str]) -> list[str]:
    """The arguments of the module behind a command.

    Raises:
      UserError: --mode, where the command is one.
    """
    if command.mode is None:
        return given
    for argument in given:
        if argument.lstrip("-").partition("=")[0] == "mode" and argument.startswith("-"):
            raise UserError(f"genfield {name} is a mode: leave out --mode")
    return [f"--mode={command.mode}", *given]


def start(argv: list[str]) -> None:
    """Runs a command line as the whole of a process: the module's exit code is its own.

    Raises:
      UserError: an unknown command, or one whose packages are not installed.
    """
    name, *given = argv or ["--help"]
    if name in ("--help", "-help", "-h", "help"):
        tell(usage())
        return
    if name in ("--version", "-version", "-V"):
        tell(f"genfield {genfield.__version__}")
        return
    if name not in COMMANDS:
        from genfield.registry import choose

        choose("command", name, dict.fromkeys(COMMANDS))
    command = COMMANDS[name]
    sys.argv[1:] = arguments(name, command, given)
    if not sys.flags.safe_path:
        sys.path.append("")  # modules of the current folder, as with python -m; these hide none
    try:
        runpy.run_module(f"genfield.{command.module}", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "genfield"):
            raise
        wanted = f"genfield[{command.extra}]" if command.extra else "genfield"
        raise UserError(
            f"genfield {name} needs the package {package}, which is not installed: "
            f"pip install '{wanted}'"
        ) from error


def main() -> int:
    """Runs the command line of this process; 2 with one line where the user can mend it."""
    try:
        return told(lambda: start(sys.argv[1:]))
    except KeyboardInterrupt:  # before a command listens to signals itself
        tell("SIGINT: stopped before the run began", error=True)
        return preemption.EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
