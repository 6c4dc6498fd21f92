"""Hugging Face data sets on disk: as `save_to_disk` wrote them, or as parquet files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genfield.data.containers import files_below, split_in
from genfield.data.decoding import Notes, Reading, decode, is_picture, suffix
from genfield.data.layouts import Asked, heldout
from genfield.data.pipeline import Examples
from genfield.data.pixels import on_demand
from genfield.errors import UserError
from genfield.reading import most, reason
from genfield.registry import choose

SAVED = ("dataset_dict.json", "state.json")  # of a folder that `save_to_disk` wrote
LABELS = ("label", "labels", "class")
BINARY = "image"  # the column of bytes that is taken for images where none says it


def files_of(place: Path) -> dict[str, Path] | None:
    """The files of such a data set by their names; None where a place is none."""
    if not place.is_dir():
        return {place.name: place} if suffix(place.name) == ".parquet" else None
    names = [name for _, files in files_below(place) for name in files]
    if not any((place / name).is_file() for name in SAVED):
        if any(map(is_picture, names)):
            return None
        names = [name for name in names if suffix(name) == ".parquet"]
    return {name: place / name for name in names} or None


def column_splits(
    place: Path, asked: Asked, reading: Reading, limit: float, notes: Notes
) -> tuple[dict[str, Callable[[], Examples]], tuple[str, ...], str]:
    """The examples of each split, the classes' names, and the column that says the classes.

    Raises:
      UserError: `datasets` is not installed, unreadable files, no column of images, no or several
        columns of labels where they are wanted.
    """
    try:
        return _splits(place, asked, reading, limit, notes)
    except UserError:
        raise
    except Exception as error:  # datasets and pyarrow raise all kinds on damaged files
        raise UserError(
            f"{place} is not a readable Hugging Face data set: {reason(error)}"
        ) from error


def _splits(place: Path, asked: Asked, reading: Reading, limit: float, notes: Notes):
    """What `column_splits` gives; raises anything."""
    splits = _open(place, asked.split, limit)
    first = choose(f"split of {place}", asked.split, splits)
    image_key = _image_column(place, first, asked.image_key)
    label_key = _label_column(place, first, asked.label_key) if asked.labels else None
    wanted = {asked.split, heldout(splits, asked.split, asked.heldout_split)}
    if asked.layout == "flat":
        wanted = set(splits)
    known, labels, names = {}, {}, ()
    if label_key:
        for name in sorted(wanted & set(splits)):
            labels[name] = list(splits[name][label_key])
        labels, names = _numbered(place, label_key, first.features[label_key], labels, asked.split)
    for name in sorted(wanted & set(splits)):
        table = _encoded(splits[name], image_key)
        known[name] = _maker(table, image_key, labels.get(name), place, name)
    how = "" if label_key is None else f"column {label_key!r}"
    if asked.layout == "flat":
        parts = [known[name] for name in sorted(known)]
        return {asked.split: lambda: _chain([part(reading, notes) for part in parts])}, names, how
    make = {name: (lambda part=part: part(reading, notes)) for name, part in known.items()}
    return make, names, how


def _package():
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "Hugging Face data sets and parquet files need datasets: pip install 'genfield[hf]'"
        ) from error
    return datasets


def _open(place: Path, split: str, limit: float) -> dict[str, Any]:
    """The tables of a place by split; a place without splits is the training split."""
    datasets = _package()
    if place.is_dir() and any((place / name).exists() for name in SAVED):
        found = datasets.load_from_disk(str(place))
        tables = dict(found) if isinstance(found, datasets.DatasetDict) else {split: found}
        for table in tables.values():
            for part in filter(None, (table.data, table._indices)):
                part.validate(full=True)  # Arrow follows offsets wherever they lead
        return tables
    return _parquet(place, split, limit)


def _parquet(place: Path, split: str, limit: float) -> dict[str, Any]:
    """Tables in memory, still encoded: rows of parquet cannot be read one by one."""
    import pyarrow

    datasets, parts = _package(), {}
    for name, path in sorted((files_of(place) or {}).items()):
        folder = next((part for part in name.split("/")[:-1] if split_in(part)), None)
        parts.setdefault(split_in(folder or name) or "", []).append(path)
    if "" in parts and len(parts) > 1:
        raise UserError(
            f"some files of {place} say their split and {parts[''][0].name} does not: put it into "
            f"a folder {split}/ or leave it out"
        )
    if sum(path.stat().st_size for paths in parts.values() for path in paths) > limit:
        raise UserError(
            f"the images in {place} exceed data.memory_limit_gb, and parquet cannot be read in "
            "place: load it with `datasets` once and pass the folder of save_to_disk"
        )
    tables = {
        name: pyarrow.concat_tables(map(_table, paths), promote_options="permissive")
        for name, paths in parts.items()
    }
    return {name or split: datasets.Dataset(table) for name, table in tables.items()}


def _table(path: Path):
    """The table of a parquet file; ValueError where it takes more memory than its size allows."""
    import pyarrow.parquet

    room, parts = most(path.stat().st_size), []
    with pyarrow.parquet.ParquetFile(path) as file:
        for part in file.iter_batches():
            room -= part.nbytes
            if room < 0:
                raise ValueError(f"{path.name} would become too large for its size: a bomb")
            parts.append(part)
        return pyarrow.Table.from_batches(parts, file.schema_arrow)


def _image_column(place: Path, table, asked: str | None) -> str:
    datasets, features = _package(), table.features
    if asked is not None:
        return choose(f"column of {place}", asked, list(features))
    found = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    found = found or [name for name in (BINARY,) if name in features]
    if len(found) != 1:
        what = f"several columns of images ({', '.join(found)})" if found else "no column of images"
        raise UserError(
            f"{place} has {what} among {', '.join(features)}: set data.image_key to one of them"
        )
    return found[0]


def _label_column(place: Path, table, asked: str | None) -> str:
    datasets, features = _package(), table.features
    if asked is not None:
        return choose(f"column of {place}", asked, list(features))
    found = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    found = found or [name for name in LABELS if name in features]
    if len(found) != 1:
        what = f"several columns of labels ({', '.join(found)})" if found else "no labels"
        raise UserError(
            f"{place} has {what} among {', '.join(features)}: set data.label_key to one of them, "
            "or data.labels=False and data.classes=None"
        )
    return found[0]


def _numbered(place: Path, key: str, kind, labels: dict[str, list], split: str):
    """{split: labels [N]} and the classes' names: the column's own, or its values in order."""
    for name, values in labels.items():
        bad = next((i for i, value in enumerate(values) if value is None or value == -1), None)
        if bad is not None:
            raise UserError(
                f"row {bad} of {name!r} in {place} has no {key!r}: set data.heldout_split=None "
                "where only held-out images have none, or data.labels=False"
            )
    names = getattr(kind, "names", None)
    if names is None:
        seen = sorted(set(labels[split]))
        names, numbers = list(map(str, seen)), {value: i for i, value in enumerate(seen)}
        for name, values in labels.items():
            stray = next((value for value in values if value not in numbers), None)
            if stray is not None:
                raise UserError(f"the class {stray!r} of {name!r} in {place} has no training image")
        labels = {name: [numbers[value] for value in values] for name, values in labels.items()}
    return {name: np.array(values, np.int32) for name, values in labels.items()}, tuple(names)


def _encoded(table, key: str):
    """The table, whose images come as the bytes of their files."""
    return table.select_columns([key]).cast_column(key, _package().Image(decode=False))


def _maker(table, key: str, labels: np.ndarray | None, place: Path, split: str):
    where = f"{split}[%d] of {place}"

    def make(reading: Reading, notes: Notes) -> Examples:
        def read(row: int):
            name = where % row
            try:
                held = table[row][key]
                encoded = held["bytes"] or _beside(place, held["path"])
            except Exception as error:  # datasets and pyarrow raise all kinds on damaged files
                raise UserError(f"cannot read the image {name}: {reason(error)}") from error
            label = None if labels is None else int(labels[row])
            return decode(encoded, reading, name, notes), label, name

        return on_demand(len(table), read, reading.shape)._replace(labels=labels)

    return make


def _beside(place: Path, name: str) -> bytes:
    """A file that a column names; one outside of the place would be whatever a stranger wants."""
    folder = place if place.is_dir() else place.parent
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} lies outside of {folder}: store the images' bytes in the column")
    return file.read_bytes()


def _chain(parts: list[Examples]) -> Examples:
    """Several sets, one after the other."""
    starts = np.cumsum([0, *(part.size for part in parts)])

    def read(row: int):
        number = int(np.searchsorted(starts, row, "right")) - 1
        batch = parts[number].gather(np.array([row - starts[number]]))
        label = batch["label"][0] if "label" in batch else None
        return batch["x1"][0], label, f"image {row}"

    labels = [part.labels for part in parts]
    labels = None if any(part is None for part in labels) else np.concatenate(labels)
    return on_demand(int(starts[-1]), read)._replace(labels=labels)
