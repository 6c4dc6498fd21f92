"""What several processes do side by side: an error of one ends all, by name; one disk for all.

A process that raises by itself leaves the others waiting in the next thing that they do together.
So whatever can fail on one of them alone stands in `together`, and nothing collective does.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sized
from pathlib import Path

import jax
import numpy as np

from genfield.errors import UserError, mendable
from genfield.machine import headroom, peers, sharding

LONGEST = 600  # bytes of what a process tells the others
SHOWN = 3  # processes that are named in one line
PATIENCE = 90.0  # seconds; a network disk may take a minute to show what another machine wrote


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what each process does by itself: an error of one is raised on all.

    Every process must come here, and nothing inside may be collective. Of one process it does
    nothing.

    Raises:
      UserError: on every process, naming those that failed; where an error is a bug and no mistake
        of the user's, it stays what it is on the process that made it.
    """
    if jax.process_count() == 1:
        yield
        return
    own = None
    try:
        yield
    except Exception as error:
        own = error
    bug = own is not None and mendable(own) is None
    text = f"{type(own).__name__}: {own}" if bug else own and mendable(own)
    if problem := common(text):
        raise own if bug else UserError(problem) from own


def check_memory() -> None:
    """Before what all computed is stored by any: what is wrong on one is part of it.

    Raises:
      UserError: on every process, where one came near its limit (`headroom.check`).
    """
    with together():
        headroom.check()


def common(problem: str | None) -> str | None:
    """What went wrong on any process, by name and the same on all; None where nothing did.

    problem: what went wrong on this one, or None.
    """
    if jax.process_count() == 1 or sharding.agreed(problem is None):
        return problem
    found = "" if problem is None else problem or "failed"
    told = _exchanged(f"{jax.process_index()}|{peers.host()}|{found}")
    failed = [(number, host, text) for number, host, text in told if text]
    texts = {text for *_, text in failed}
    if len(failed) == len(told) and len(texts) == 1:  # the same mistake everywhere
        return texts.pop()
    lines = [f"process {number} on {host}: {text}" for number, host, text in failed]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN} processes more"]
    return "; ".join(lines)


def _exchanged(text: str) -> list[list[str]]:
    """What each process tells, number|host|text, apart and in their order."""
    from jax.experimental import multihost_utils

    raw = np.frombuffer(text.encode()[:LONGEST], np.uint8)
    rows = multihost_utils.process_allgather(np.pad(raw, (0, LONGEST - len(raw))))
    told = [bytes(row).rstrip(b"\0").decode(errors="ignore").split("|", 2) for row in rows]
    return sorted(told, key=lambda parts: int(parts[0]))


class Errors:
    """What goes wrong on this process in long work whose devices should not wait for an agreement.

    The work goes on, with anything in the place of what failed, until `tell`.
    """

    def __init__(self):
        self.first: Exception | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Around what may fail; of one process alone, an error is raised at once."""
        try:
            yield
        except Exception as error:
            if jax.process_count() == 1:
                raise
            self.first = self.first or error

    def tell(self) -> None:
        """Raises on all processes what was kept on any, as `together` does."""
        with together():
            if self.first is not None:
                raise self.first


def check_shared(folder: Path) -> None:
    """Raises UserError on all processes unless each writes in a folder where process 0 sees it."""
    count = jax.process_count()
    if count == 1:
        return
    token = int(sharding.from_first(np.array([secrets.randbelow(2**31)]))[0])
    mark = lambda number: folder / f".process_{number}_{token}"
    want = "several processes write into one workdir: pass a --workdir on a disk that all share"
    mine = mark(jax.process_index())
    try:
        with together():
            try:
                mine.touch()
            except OSError as error:
                raise UserError(f"cannot write in {folder} ({error.strerror}); {want}") from error
        with together():
            if jax.process_index() == 0:
                unseen = waited(lambda: [n for n in range(count) if not mark(n).exists()])
                if unseen:
                    names = ", ".join(map(str, unseen[:8])) + (", …" if len(unseen) > 8 else "")
                    raise UserError(f"{folder} here lacks what process {names} wrote in it; {want}")
                for old in folder.glob(".process_*"):  # of one that was killed here
                    if not old.name.endswith(f"_{token}"):
                        old.unlink(missing_ok=True)
    finally:
        mine.unlink(missing_ok=True)


def waited(lacking: Callable[[], Sized]) -> Sized:
    """What `lacking()` still gives after it was asked again and again for PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while len(found := lacking()) and time.monotonic() < end:
        time.sleep(0.5)
    return found
