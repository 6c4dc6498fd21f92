"""python -m genfield.study NAME --workdir=… [--option=…] [--config.a.b=…]; --help lists them."""

import os
import sys

from genfield.machine import preemption, xla

if __name__ == "__main__":
    preemption.install()  # before the slow imports: a signal never goes unheard
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures are written, never shown
    xla.apply()  # before JAX starts

from genfield.program import command


def main(argv: list[str]) -> int:
    """Runs a command line; returns the exit code."""
    from genfield.study import cli

    return command.main(argv, cli.run)


if __name__ == "__main__":
    from genfield.study import cli

    command.leave(sys.argv, cli.run)
