"""python -m genfield.autoencoder --images=… --out=…; --help lists the flags.

Exit codes: 0 done; 2 a mistake that one line explains; 143 stopped by a signal, after saving.
"""

import os
import sys

from genfield.machine import preemption, xla

if __name__ == "__main__":
    preemption.install()  # before the slow imports: a signal never goes unheard
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures are written, never shown
    xla.apply()  # before JAX starts

from genfield.autoencoder import cli
from genfield.program import command


def main(argv: list[str]) -> int:
    """Runs a command line; returns the exit code."""
    return command.main(argv, cli.run)


if __name__ == "__main__":
    command.leave(sys.argv, cli.run)
