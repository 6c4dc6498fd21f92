"""Images at a place, whatever it is: a folder, archives, arrays or columns; read in one way."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from genfield.data import layouts, shards
from genfield.data.columns import column_splits, files_of
from genfield.data.containers import Files, open_files, sources
from genfield.data.decoding import Notes, Reading, decode, prepare
from genfield.data.layouts import Asked
from genfield.data.npz import npz_splits
from genfield.data.pipeline import Examples
from genfield.data.pixels import on_demand
from genfield.errors import UserError


class Found(NamedTuple):
    """The images of a place.

    Attributes:
      known: the examples of each split, made when they are asked for.
      class_names: in the order of the labels. how: where the classes are, for a reader.
      left_out: lines that name what is not read.
      names: of the images of each split in their order, where they are files.
    """

    known: dict[str, Callable[[], Examples]]
    class_names: tuple[str, ...]
    how: str
    left_out: list[str]
    names: Mapping[str, list[str]] = {}


def find(place: Path, asked: Asked, reading: Reading, limit: float, notes: Notes) -> Found:
    """The images of a place.

    Args:
      limit: bytes of encoded images that may be kept in memory, where files cannot be read in
        place.
      notes: told what is odd about files.
    Raises:
      UserError: nothing there or nothing readable; see `layouts.find`, `npz_splits` and
        `column_splits`.
    """
    if shards.is_prepared(place):
        return _prepared(place, asked, reading)
    if place.suffix == ".npz":
        known, names, told = npz_splits(place, asked, reading)
        how = f"{_classes(names)} in its labels" if asked.labels else "no classes"
        return Found(known, names, how, told)
    if files_of(place) is not None:
        known, names, column = column_splits(place, asked, reading, limit, notes)
        how = f"{_classes(names)} in {column}" if asked.labels else "no classes"
        return Found(known, names, how, [])
    files = open_files(place, limit)
    layout = layouts.find(files, asked, str(place))
    numbers = {name: number for number, name in enumerate(layout.class_names)}
    labels = None
    if layout.classes is not None:
        labels = {name: numbers[label] for name, label in layout.classes.items()}
    make = partial(_examples, files=files, labels=labels, place=place, reading=reading, notes=notes)
    known = {name: partial(make, names) for name, names in layout.splits.items()}
    rest = layouts.left_out(layout.left_out)
    return Found(known, layout.class_names, layout.how, rest, layout.splits)


def _prepared(place: Path, asked: Asked, reading: Reading) -> Found:
    """The pixels that `python -m genfield.prepare --pixels` stored, by memory map."""
    stored = shards.open_shards(place)
    if stored.manifest["kind"] != shards.PIXELS:
        raise UserError(
            f"{place} holds latents, not images: config.data reads it under name='latents'; images "
            "are what python -m genfield.prepare --pixels writes"
        )
    names = tuple(stored.manifest["class_names"]) if asked.labels else ()
    if asked.labels and not names:
        raise UserError(f"{place} was prepared without classes: set data.labels=False")
    shards.checked_hash(stored)
    size, _, channels = stored.manifest["shape"]
    as_stored = reading.size in (None, size) and reading.channels == channels

    def gather(rows: np.ndarray) -> dict:
        levels = stored.read(rows)
        if not as_stored:
            levels = np.stack([prepare(Image.fromarray(image), reading) for image in levels])
        return {"x1": levels} | ({"label": stored.labels[rows]} if names else {})

    labels = stored.labels if names else None
    known = {asked.split: lambda: Examples(stored.manifest["count"], gather, labels=labels)}
    how = f"{_classes(names)} in its labels" if names else "no classes"
    return Found(known, names, f"prepared, {how}", [])


def on_disk(place: Path) -> dict[str, Path]:
    """The files that are read of a place, by their names below it.

    Raises:
      OSError: a link that leads nowhere.
    """
    if shards.is_prepared(place):
        return shards.files_of(place)
    found = files_of(place)
    return sources(place) if found is None else found


def _classes(names: tuple[str, ...]) -> str:
    return f"{len(names):,} class{'es' * (len(names) != 1)}"


def _examples(
    names: list[str], *, files: Files, labels: dict | None, place: Path, reading: Reading, notes
) -> Examples:
    """The images of these names, decoded one by one."""

    def read(row: int):
        name = names[row]
        where = f"{name} in {place}"
        try:
            encoded = files.read(name)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot read the image {where}: {reason}") from error
        label = None if labels is None else labels[name]
        return decode(encoded, reading, where, notes), label, where

    known = None if labels is None else np.array([labels[name] for name in names], np.int32)
    return on_demand(len(names), read, reading.shape)._replace(labels=known)
