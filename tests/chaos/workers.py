"""What a worker of `python -m tests.chaos` does: one case after the other, with a fork server."""

import logging
import os
import signal
from pathlib import Path

from . import cases
from .driver import Zygote, environment, kinds


def begin(home: Path) -> None:
    """What a worker is before its first case: its environment is that of the runs."""
    global zygote
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment(home))
    logging.getLogger("absl").setLevel(logging.ERROR)
    zygote = Zygote(home)


def work(kind: str, mode: str, seed: int, folder: Path) -> cases.Found:
    """A case, in a worker."""
    return cases.run(zygote, mode, kinds()[kind], seed, folder)
