"""SIGTERM, Ctrl-C and a closed terminal: finish the step, save, exit with code 143.

`install` is called before the slow imports, so that no moment of a run is unguarded. Python runs a
signal's handler between two lines of the main thread, which may be minutes away while a program is
compiled or computes: a thread that waits for signals hears them in its place, and ends the process
where nothing has to be saved.
"""

import _thread
import contextlib
import ctypes
import itertools
import os
import signal
import time

from genfield import errors

EXIT_CODE = 143

PATIENCE = 2.0  # seconds that a signal waits for the main thread

_received: list[str] = []
_begun = _distributed = _alone = False
_last_words: str | None = None  # where nothing has to be saved: what is said at the end
_handled: list[int] = []  # by the main thread, and not yet seen to be so by the one that waits
_late: set[int] = set()  # those that were handled in its place, which it is still to be told of
_calls = itertools.count()


class Preempted(Exception):
    """Raised by `poll`; what must be saved has been or is saved by whoever catches it."""


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # no terminal any more
        os.write(2, f"\n{text}\n".encode())  # sys.stderr may be in mid-write, and not reentrant


def _note(number, frame) -> None:
    if number in _late:
        _late.discard(number)
    else:
        _handled.append(number)
        _hear(number)


def _hear(number: int) -> None:
    if _distributed and number != signal.SIGTERM:
        os.kill(os.getpid(), signal.SIGTERM)
        return
    name = signal.Signals(number).name
    if not _begun:
        _tell(f"{name}: stopped before the run began")
        os._exit(EXIT_CODE)
    if _received and number == signal.SIGINT:  # a second Ctrl-C: the user does not want to wait
        _tell("stopped without saving")
        os._exit(EXIT_CODE)
    _received.append(name)
    _tell(
        f"{name}: finishing the step, then saving" if _last_words is None else f"{name}: stopping"
    )


def _watch(signals: int) -> None:
    """Handles the signals that the main thread does not come to, or comes to no poll after."""
    while number := os.read(signals, 1):
        time.sleep(PATIENCE)
        if number[0] in _handled:  # perhaps before this thread read of it
            _handled.remove(number[0])
        else:
            _late.add(number[0])
            _hear(number[0])
        if _last_words is not None:
            _tell(_last_words)
            os._exit(EXIT_CODE)


def install() -> None:
    """Notes SIGTERM, SIGINT and SIGHUP instead of dying of them; what `nohup` ignores stays so."""
    signal.signal(signal.SIGTERM, _note)
    signal.signal(signal.SIGINT, _note)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _note)
    signals, end = os.pipe()
    os.set_blocking(end, False)
    signal.set_wakeup_fd(end)
    _thread.start_new_thread(_watch, (signals,))  # `threading` may wait for ever (`headroom.watch`)
    ctypes.CDLL(None).signal(signal.SIGBUS, _at_bus_error)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _at_bus_error(number: int) -> None:
    """In the place of Python's handler, which would run behind the read that cannot end."""
    _tell(
        "genfield: error: a file that is read by memory map was cut, or its disk is gone: put it "
        "back; the same command goes on"
    )
    os._exit(errors.EXIT_CODE)


def begin() -> None:
    """From now on a signal waits for the next poll; before, there was nothing to save."""
    global _begun, _last_words
    _begun, _last_words = True, None


def nothing_to_save(last_words: str, alone: bool = False) -> None:
    """From now on a signal that no poll comes to ends the process; whatever is lost is drawn again.

    Of several processes none leaves alone, unless they do not work together: they stop where they
    agree to.
    """
    import jax

    global _last_words, _alone
    _alone = alone
    if alone or jax.process_count() == 1:
        _last_words = last_words


def install_distributed() -> None:
    """With jax.distributed, SIGTERM belongs to its notifier, which tells all processes."""
    global _distributed
    _distributed = True
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _note)


def reached() -> bool:
    """Whether to stop now; with several processes, True at one agreed call on all of them.

    Every process must call it equally often.
    """
    import jax

    if _alone or jax.process_count() == 1:
        return bool(_received)
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(next(_calls))


def poll() -> None:
    """Raises Preempted if it is time to stop."""
    if reached():
        raise Preempted


def told(progress):
    """An `on_batch(done, note)` that shows progress, and stops at a signal."""

    def on_batch(done: float, note: str = "") -> None:
        progress.update(done, note)
        poll()

    return on_batch
