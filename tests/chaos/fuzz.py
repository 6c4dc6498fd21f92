"""Files from strangers: every reader of the package on files that are damaged or mean harm.

    python -m tests.chaos.fuzz --files=100000 --seed=0 --out=/tmp/fuzz

Each file is drawn from (seed, reader, number), read in a worker that was forked, and must be read
as something valid or refused by one line: no other exception, no crash, nothing run, nothing opened
outside of its folder, MEMORY bytes at most, SECONDS of a processor at most. What fails is kept
below `found/` and the command that reads it again is printed. The same command goes on where it
stopped.

A plain mutator and not Hypothesis: a file is a function of its number alone, so that a hundred
thousand are shared among processes, resumed, and read again one by one without a data base.
"""

import argparse
import sys
import tempfile
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Reads the files of a schedule, or those of one case again."""
    parser = argparse.ArgumentParser("python -m tests.chaos.fuzz")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "genfield_fuzz")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--readers", default="", help="names, or how they begin; all without")
    parser.add_argument("--again", type=Path, help="a folder below found/: reads its files again")
    options = parser.parse_args(argv)
    from .strange import command  # imports all readers

    return command.start(options)


if __name__ == "__main__":
    sys.exit(main())
