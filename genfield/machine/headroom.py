"""The memory that a limit leaves: near it what XLA computed may be wrong, and is not kept.

Of jaxlib 0.10 on a CPU it was seen that a product of matrices, which XLA hands to YNNPACK, is not
computed, no error is raised, and what stood in its place before is taken for it. So a process that
came close to its limit (`ulimit -v`, `ulimit -d`) stores nothing, and says so.
"""

import _thread
import contextlib
import errno
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from genfield.errors import UserError

STATUS = Path("/proc/self/status")  # of Linux
OPEN = Path("/proc/self/fd")
FILES = 32  # that a process opens while it joins others; of four, 17 were counted
MARGIN = 64 << 20  # bytes that must have been left
INTERVAL = 0.5  # seconds between two looks
RESERVE = 4 << 20  # bytes of addresses, which nothing touches
NO_MEMORY = "no memory is left to this process: raise its limit (ulimit -v, ulimit -d)"
_files = 0  # that must be allowed while this process joins others
LIMITS = {  # by what the limit is of: the most, or where that is not told, what there is now
    "VmPeak": (resource.RLIMIT_AS, "-v"),
    "VmData": (resource.RLIMIT_DATA, "-d"),
}


@contextlib.contextmanager
def joining() -> Iterator[None]:
    """While connections are opened, of which a library waits for ever where there can be none.

    Raises:
      UserError: fewer than FILES more may be open. Where that becomes so meanwhile, `watch` tells.
    """
    global _files
    held = len(list(OPEN.iterdir())) if OPEN.exists() else 0
    _files = held + FILES if held else 0
    try:
        _check_files()
        yield
    finally:
        _files = 0


def _check_files() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most != resource.RLIM_INFINITY and most < _files:
        raise UserError(
            f"at most {most} files may be open (ulimit -n), of which {_files - FILES} are: several "
            f"processes need {FILES} more each to speak with each other. Raise the limit"
        )


def watch(ends: Callable[[UserError], None]) -> None:
    """Beside a process until it ends: calls `ends` once it came near a limit.

    Where no memory is left a thread of a library may be missing for which another waits for ever;
    as `threading` does for one of its own that finds no memory to begin, so it starts none here.
    """
    reserve = []  # given back before the line is told, which takes memory too

    def near() -> bool:
        try:
            reserve[:] = reserve or [bytearray(RESERVE)]
            _check_files()
            check()
        except (UserError, MemoryError, OSError) as error:
            if getattr(error, "errno", errno.ENOMEM) != errno.ENOMEM:  # the next look may see more
                return False
            reserve.clear()
            ends(error if isinstance(error, UserError) else UserError(NO_MEMORY))
            return True
        return False

    def look():
        while not near():
            time.sleep(INTERVAL)

    if not near():
        _thread.start_new_thread(look, ())


def check() -> None:
    """Before what was computed is stored: that memory did not run out meanwhile.

    Raises:
      UserError: this process came within MARGIN of a limit.
    """
    limits = {name: resource.getrlimit(which)[0] for name, (which, _) in LIMITS.items()}
    limits = {name: limit for name, limit in limits.items() if limit != resource.RLIM_INFINITY}
    if not limits or not STATUS.exists():
        return
    text = STATUS.read_text()
    for name, limit in limits.items():
        used = 1024 * int(re.search(rf"{name}:\s+(\d+) kB", text)[1])
        if used + MARGIN > limit:
            flag = LIMITS[name][1]
            raise UserError(
                f"memory came to its end (ulimit {flag} is {limit >> 10:,} kB, of which "
                f"{used >> 10:,} were taken): what was computed meanwhile may be wrong and is not "
                f"kept. Raise the limit by at least {MARGIN >> 10:,} kB"
            )
