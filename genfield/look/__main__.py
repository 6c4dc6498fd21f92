"""python -m genfield.look --workdir=… [--port=…]; --help lists the rest."""

import os
import sys

from genfield.machine import preemption, xla

if __name__ == "__main__":
    preemption.install()  # before the slow imports: a signal never goes unheard
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures are served, never shown
    xla.apply()  # before JAX starts

from genfield.program import command


def main(argv: list[str] | None = None) -> int:
    """Runs a command line, or that of this process; returns the exit code."""
    from genfield.look import cli

    return command.main(sys.argv if argv is None else argv, cli.run)


if __name__ == "__main__":
    from genfield.look import cli

    command.leave(sys.argv, cli.run)
