"""python -m tests.chaos --kind=kill --runs=1000 --seed=0 --out=chaos.json

Strikes the program's modes until so many faults have met a run, with two workers; the same command
goes on behind what --out holds. --kind=kill,term takes several in turn, and --kind=all all of them,
so many faults of each. --modes=train,sample and --seed choose: with one mode and --runs=1 this is
the rerun of one seed, which is printed where something is lost. --home is a folder that is kept,
with compiled programs and references. --table prints what the files of --out hold.
"""

import argparse
import itertools
import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

from . import cases, workers
from .driver import Tally, kinds, table

WORKERS = 2


def parse():
    """The command line."""
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("--kind", help=f"of {', '.join(kinds())}; with commas, or all")
    parser.add_argument("--runs", type=int, default=100, help="faults that must have met a run")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--modes", help="with commas; all that the kind is for")
    parser.add_argument("--workers", type=int, default=WORKERS, help="at most two")
    parser.add_argument("--out", default="chaos.json", help="counts; several with commas: --table")
    parser.add_argument("--home", default=str(Path(tempfile.gettempdir()) / "genfield_chaos"))
    parser.add_argument("--table", action="store_true", help="print the table of --out")
    return parser.parse_args()


def order(asked, kind: str, done: set):
    """(mode, seed) of the cases that are still to come, without end: the modes in turn."""
    modes = asked.modes.split(",") if asked.modes else kinds()[kind].modes
    for number in itertools.count():
        case = modes[number % len(modes)], asked.seed + number
        if case not in done:
            yield case


def main() -> int:
    """Runs a schedule; 1 where something was lost or silent."""
    asked = parse()
    if asked.table:
        print(table([Tally.read(Path(name)) for name in asked.out.split(",")]))
        return 0
    home, out = Path(asked.home).resolve(), Path(asked.out)
    tally = Tally.read(out) if asked.runs > 1 else Tally(out, [], [])  # one is run again
    folder = home / f"work_{os.getpid()}"
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    count = max(1, min(asked.workers, WORKERS, asked.runs))  # of one run no other is made
    pool = ProcessPoolExecutor(count, context, workers.begin, (home,))
    try:
        for kind in kinds() if asked.kind == "all" else asked.kind.split(","):
            schedule(pool, count, asked, kind, tally, folder)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on")
        for process in list(pool._processes.values()):
            process.kill()
        return 130
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if not tally.failures:  # what is lost may be looked at
            shutil.rmtree(folder, ignore_errors=True)
    print(table([tally]))
    return int(bool(tally.failures))


def schedule(pool, count: int, asked, kind: str, tally: Tally, folder: Path) -> None:
    """Hands cases to the workers until enough faults have struck, and counts what comes back."""
    running, waiting = set(), order(asked, kind, tally.done(kind))
    start = lambda: running.add(pool.submit(workers.work, kind, *next(waiting), folder))
    while running or tally.struck(kind) < asked.runs:
        while len(running) < count and tally.struck(kind) < asked.runs:
            start()
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            found = future.result()
            tally.add(kind, found)
            tell(asked, kind, tally, found)
            if asked.runs == 1:
                return


def tell(asked, kind: str, tally: Tally, found: cases.Found) -> None:
    """A line a case on a file, one that moves on a terminal; all of what was lost."""
    bad = found.lost + found.silent
    count = f"{tally.struck(kind)}/{asked.runs}"
    line = f"{kind} {count}  {found.mode} {found.seed}: {found.seconds:.1f} s"
    moves = sys.stdout.isatty() and not bad
    print(f"\r{line}\033[K" if moves else line, end="" if moves else "\n", flush=True)
    if bad or asked.runs == 1:
        print("\n".join([*(f"  {one}" for one in found.story), *(f"  LOST {b}" for b in bad)]))
    if bad:
        again = f"--kind={kind} --modes={found.mode} --seed={found.seed} --runs=1"
        print(f"  again: python -m tests.chaos {again} --out=again.json", flush=True)


if __name__ == "__main__":
    sys.exit(main())
