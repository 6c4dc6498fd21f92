"""What orbax needs around it: which checkpoints it keeps, and how what it raises is told."""

import contextlib
import functools
import importlib
import logging
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from orbax.checkpoint import checkpoint_managers

from genfield.errors import UserError, mendable, of_machine

GONE = re.compile(r"NOT_FOUND|No such file|[Dd]irectory does not exist|No ArrayMetadata found")


def figure(metrics: dict, name: str) -> float:
    """What checkpoints are ordered by; NaN is the worst, as nothing is."""
    value = metrics.get(name, math.inf)
    return math.inf if math.isnan(value) else value


def policy(keep: int, keep_best: int, metric: str):
    latest = checkpoint_managers.LatestN(keep)
    if not keep_best:
        return latest
    best = checkpoint_managers.BestN(
        get_metric_fn=lambda metrics: figure(metrics, metric),
        reverse=True,  # the smallest is the best
        n=keep_best,
        keep_checkpoints_without_metrics=False,
    )
    return checkpoint_managers.AnyPreservationPolicy([latest, best])


def unseen(folder: Path) -> str | None:
    """Why this machine cannot look at a folder's files just now; None: it can, or they are gone."""
    try:
        for path in [folder, *folder.rglob("*")]:
            path.stat()
    except OSError as error:
        return of_machine(error)
    return None


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """What orbax raises where files of a save are not there any more is one line."""
    try:
        yield
    except Exception as error:
        if mendable(error) is None and (GONE.search(str(error)) or not folder.exists()):
            raise UserError(
                f"a checkpoint in {folder} was not finished, as its files are gone or cannot be "
                "seen: see to the disk, or put the folder back; the same command goes on"
            ) from error
        raise


UNREAD = "Encountered error while reading array index"


@functools.cache
def hush_parts() -> None:
    """Each part that is still read when another has failed would be a traceback of its own."""
    before = sys.unraisablehook

    def hook(told):
        text = str(told.exc_value)
        closed = told.exc_type is RuntimeError and text == "Event loop is closed"
        if not closed and not text.startswith(UNREAD):
            before(told)

    def shown(record: logging.LogRecord) -> bool:
        return not (record.exc_info and str(record.exc_info[1]).startswith(UNREAD))

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(shown)  # "Task exception was never retrieved"


@functools.cache
def forgo_raw_bytes() -> None:
    """Orbax (0.12.5 to 0.12.8) asks TensorStore twice a save for what it wrote, and logs it.

    TensorStore (0.1.74 to 0.1.86) keeps the objects of its answer for ever: 45 kB a save. None is
    what Orbax takes for a figure that is not known.
    """
    with contextlib.suppress(ImportError):
        module = importlib.import_module("orbax.checkpoint._src.serialization.tensorstore_utils")
        if hasattr(module, "get_tensorstore_raw_bytes"):
            module.get_tensorstore_raw_bytes = lambda direction: None
