"""Images to latents or small pixels: python -m genfield.prepare --images=… --out=… --autoencoder=…

The same command goes on where it was stopped. docs/imagenet.md says what is written.
"""

import os
import sys

from genfield import errors
from genfield.machine import peers, preemption, xla

if __name__ == "__main__":
    preemption.install()  # before the slow imports: a signal never goes unheard
    os.environ.setdefault("MPLBACKEND", "Agg")
    xla.apply()  # before JAX starts

from genfield.program import command

GOES_ON = "stopped; the same command goes on"


def run(argv: list[str]) -> None:
    """Runs a command line to its end."""
    from genfield.prepare import options as parsing

    options = parsing.parse(argv[1:], __doc__)
    if options.distributed:
        options = joined(options)
    command.check_devices()
    from genfield.machine import compiled
    from genfield.prepare.run import prepare

    compiled.keep(None)
    preemption.begin()
    preemption.nothing_to_save(GOES_ON, alone=True)
    try:
        prepare(options)
    except preemption.Preempted:
        errors.tell(GOES_ON)
        raise


def joined(options):
    """The options of one of several processes, whose number and count JAX finds.

    Then they part: each works by itself, and neither waits for another nor dies with it.
    """
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # each obeys signals by itself
    peers.find()
    number, count = jax.process_index(), jax.process_count()
    jax.distributed.shutdown()
    return options._replace(process_id=number, num_processes=count)


def main(argv: list[str]) -> int:
    """Runs a command line; returns the exit code."""
    return command.main(argv, run)


if __name__ == "__main__":
    command.leave(sys.argv, run)
