"""The program: python -m genfield.main --config=configs/… --workdir=… [--mode=…] [--config.a.b=…]
or genfield train|evaluate|sample|pairs|export --config=NAME --workdir=… [--config.a.b=…]

Exit codes: 0 done; 2 a mistake that one line explains; 143 stopped by a signal, after saving; 75 a
process or its host died, and the same command goes on from the last checkpoint.
"""

import functools
import os
import sys
import time

from genfield.machine import allocator, guard, preemption, xla

if __name__ == "__main__":
    guard.stand()  # of several processes the parent stays here
    preemption.install()  # before the slow imports: a signal never goes unheard
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures are written, never shown
    xla.apply()  # before JAX starts
    allocator.keep(xla.platform())  # before there are threads

from genfield.errors import UserError, local, tell
from genfield.machine import logbook
from genfield.program import command


def run(argv: list[str]) -> None:
    """Runs a command line to its end."""
    begun = time.perf_counter()
    values, overrides = command.parse(argv)
    if values.help:
        tell(command.usage(__doc__, values, overrides))
        return
    if not values.workdir:
        raise UserError(
            "--workdir is missing: the folder that the run writes to. --help lists all flags"
        )
    workdir = local(values.workdir, "--workdir").resolve()
    command.check_flags(values, workdir)
    if values.weights is not None:  # which JAX opens
        _start(values)
    config, methods, weights = command.load_config(values, overrides, workdir)
    what = values.samples or config.loss.name
    head = f"genfield: {values.mode} {what} in {workdir}"
    if not values.process_id and not values.distributed:
        tell(head)
    if weights is None:
        _start(values)
    if values.distributed:  # only now it is known which process this is
        logbook.say(head)
    # Only now, with the simple mistakes told within a second, the slow imports.
    from genfield import registry
    from genfield.machine import compiled, lock, loggers, processes
    from genfield.machine.clock import Clock
    from genfield.program import experiment, modes, published
    from genfield.program.methods import package

    compiled.keep(config.compilation_cache)
    reads_data = values.mode in ("train", "evaluate")
    if reads_data:  # before they are read for nothing
        with processes.together():
            lock.check(workdir / lock.FILE, modes.purpose(values.mode, workdir)[1])
            if values.samples is None:
                loggers.check(config.train.loggers, (methods or package())[registry.Logger])
        if logbook.first_process():  # behind all that ask
            lock.sweep(workdir)
    if values.samples is not None:
        modes.evaluate_images(config, workdir, values.samples, methods)
        return
    decodes = values.mode != "pairs"
    opens = dict(reads_data=reads_data, decodes=decodes, weights=weights)
    with processes.together():
        exp = experiment.prepare(config, workdir, methods, **opens)
        modes.check(exp, values.mode)
    command.describe(exp)
    preemption.begin()
    modes.begin_on_weights(exp)
    if values.mode != "train":
        preemption.nothing_to_save("stopped; the same command goes on, or starts again")
    run_mode = {
        "train": functools.partial(modes.train, clock=Clock(begun=begun)),
        "evaluate": modes.evaluate,
        "sample": modes.sample,
        "pairs": modes.pairs,
        "export": functools.partial(published.mode, out=values.out, kind=values.kind),
    }
    run_mode[values.mode](exp, step=values.step, best=values.best)


def _start(values) -> None:
    command.start_distributed(values)
    command.check_devices()


def main(argv: list[str]) -> int:
    """Runs a command line; returns the exit code."""
    return command.main(argv, run)


if __name__ == "__main__":
    command.leave(sys.argv, run)
