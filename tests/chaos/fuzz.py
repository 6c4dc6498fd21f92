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

import sys

if __name__ == "__main__":
    from .strange.command import main

    sys.exit(main())
