"""A row of `side_by_side.py` in a process of its own: asked by lines, answers in JSON.

Only the standard library is needed, so that the peers' Python can have it too.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """What one side of a row does.

    run(n) does n units of work to their end; it may return its own seconds, where setting up takes
    time that does not count. parameters: of the network. value: what both sides must agree on.
    """

    run: Callable[[int], float | None]
    parameters: int = 0
    value: float | None = None


def serve(make: Callable[[], Row]) -> None:
    """Makes the row, says so, then does as many units as each line says, until the lines end."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    tell = lambda **what: print(json.dumps(what), file=answers, flush=True)
    try:
        row = make()
    except ImportError as error:
        tell(missing=str(error))
        return
    row.run(1)  # compiles
    tell(parameters=row.parameters, value=row.value)
    for line in sys.stdin:
        units, before, begun = int(line), _usage(), time.perf_counter()
        own = row.run(units)
        seconds = time.perf_counter() - begun if own is None else own
        after = _usage()
        used = {name: after[name] - before[name] for name in ("faults", "cpu", "system")}
        tell(seconds=seconds, **used, peak=after["peak"])


def _usage() -> dict[str, float]:
    """Page faults, seconds of the processor (in all, and in the kernel), largest memory in MiB."""
    now = resource.getrusage(resource.RUSAGE_SELF)
    cpu = now.ru_utime + now.ru_stime
    return dict(faults=now.ru_minflt, cpu=cpu, system=now.ru_stime, peak=now.ru_maxrss / 1024)
