"""The images that are prepared, one by one and in a fixed order."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genfield.data import places
from genfield.data.decoding import Notes
from genfield.data.layouts import Asked
from genfield.data.pipeline import short_hash
from genfield.errors import UserError
from genfield.prepare.crop import AdmReading
from genfield.registry import choose

# What messages say of fields that have no flag here.
ELSEWHERE = (
    r" and data\.classes=None|,? ?(or )?data\.heldout_split=None where only held-out \w+( \w+)?"
)


class Source(NamedTuple):
    """Images in a fixed order.

    Attributes:
      read: row -> uint8 [size, size, 3]; it raises UserError, naming the image, where it is
        damaged. Safe to call from many threads.
      name: row -> what the image is called. labels: int32 [count], or None without classes.
      listing: a hash of the names and labels in their order. mark: rows -> a hash of what the disk
        says of their files: sizes and times of the last write.
      told: lines that say what was found, and what is not read. notes: what is odd about images.
    """

    count: int
    read: Callable[[int], np.ndarray]
    name: Callable[[int], str]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    listing: str
    mark: Callable[[range], str]
    told: list[str]
    notes: Notes


def open_source(place: Path, asked: Asked, size: int, memory_limit_gb: float) -> Source:
    """The images of a place, as `data.name='images'` finds them, in ADM's crop.

    Raises:
      UserError: nothing there or nothing readable, no classes where they are wanted.
    """
    if not place.exists():
        raise UserError(f"--images {place} does not exist")
    notes = Notes()
    try:
        limit = memory_limit_gb * 1e9
        found = places.find(place, asked, AdmReading(size), limit, notes)
        files = places.on_disk(place)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or place}: {error.strerror}") from error
    except UserError as error:  # which speaks of a config's section
        text = re.sub(ELSEWHERE, "", str(error))
        raise UserError(re.sub(r"\bdata\.(?=[a-z_]+\b)", "--", text)) from error
    examples = choose(f"split of {place}", asked.split, found.known)()
    names = found.names.get(asked.split)
    labels = examples.labels if asked.labels else None
    by_name = names is not None and all(name in files for name in names)
    # Of files inside of others, and of rows of columns, all files are asked once.
    of_all = None if by_name else _mark(files, list(files))
    named = list(files) if names is None else names
    return Source(
        count=examples.size,
        read=lambda row: examples.gather(np.array([row]))["x1"][0],
        name=lambda row: f"image {row} of {place}" if names is None else f"{names[row]} in {place}",
        labels=labels,
        class_names=found.class_names if asked.labels else (),
        listing=short_hash(examples.size, named, None if labels is None else labels.tolist()),
        mark=lambda rows: of_all or _mark(files, [names[row] for row in rows]),
        told=[f"images: {found.how}, {examples.size:,} of split {asked.split!r}", *found.left_out],
        notes=notes,
    )


def _mark(files: dict[str, Path], names: list[str]) -> str:
    """What the file system says of files."""
    stats = [(name, files[name].stat()) for name in names]
    return short_hash([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
