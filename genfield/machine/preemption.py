"""SIGTERM, Ctrl-C and a closed terminal: finish the step, save, exit with code 143.

`install` is called before the slow imports, so that no moment of a run is unguarded.
"""

import contextlib
import itertools
import os
import signal

EXIT_CODE = 143

_received: list[str] = []
_begun = False
_calls = itertools.count()


class Preempted(Exception):
    """Raised by `poll`; what must be saved has been or is saved by whoever catches it."""


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # no terminal any more
        os.write(2, f"\n{text}\n".encode())  # sys.stderr may be in mid-write, and not reentrant


def _note(number, frame) -> None:
    name = signal.Signals(number).name
    if not _begun:
        _tell(f"{name}: stopped before the run began")
        os._exit(EXIT_CODE)
    if _received and number == signal.SIGINT:  # a second Ctrl-C: the user does not want to wait
        _tell("stopped without saving")
        os._exit(EXIT_CODE)
    _received.append(name)
    _tell(f"{name}: finishing the step, then saving")


def install() -> None:
    """Notes SIGTERM, SIGINT and SIGHUP instead of dying of them; what `nohup` ignores stays so."""
    signal.signal(signal.SIGTERM, _note)
    signal.signal(signal.SIGINT, _note)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _note)


def begin() -> None:
    """From now on a signal waits for the next poll; before, there was nothing to save."""
    global _begun
    _begun = True


def install_distributed() -> None:
    """With jax.distributed, SIGTERM belongs to its notifier, which tells all processes."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))


def reached() -> bool:
    """Whether to stop now; with several processes, True at one agreed call on all of them.

    Every process must call it equally often.
    """
    import jax

    if jax.process_count() == 1:
        return bool(_received)
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(next(_calls))


def poll() -> None:
    """Raises Preempted if it is time to stop."""
    if reached():
        raise Preempted
