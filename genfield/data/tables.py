"""The class of each image: from its folder, a table, or a file beside it; the names of synsets."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from genfield.data.containers import Files
from genfield.errors import UserError
from genfield.reading import json_of

TABLES = ("dataset.json", "labels.csv", "labels.json")
NAMES = ("LOC_synset_mapping.txt", "words.txt")
SYNSET = re.compile(r"n\d{8}")
KEYS = ("label", "cls", "class")  # of a .json beside an image


class Heap(NamedTuple):
    """Files in which classes are looked for.

    Attributes:
      root: the folder in which splits or classes lie. depth: how many folders lie above a class.
      in_splits: whether the folders at the root are splits.
      where: their place, for messages. source: `data.labels_from`.
    """

    files: Files
    root: str
    depth: int
    in_splits: bool
    where: str
    source: str


class Classes(NamedTuple):
    """The class of each image by its name, the classes in their order, how, and what was read."""

    of: Mapping[str, str]
    names: tuple[str, ...]
    how: str
    read: set[str]


def classes(heap: Heap, train: list[str], used: list[str]) -> Classes:
    """The classes of images, in the order of their names, or of their numbers.

    Args:
      train: the images whose classes count. used: all that need one.
    Raises:
      UserError: an image without a class, a class without a training image, an unreadable table,
        several sources that may be meant.
    """
    found = {"folders": _folders, "table": _table, "files": _beside}[_source(heap, train)](
        heap, used
    )
    known = {found.of[name] for name in train}
    stray = next((name for name in used if found.of[name] not in known), None)
    if stray:
        raise UserError(f"the class of {stray} in {heap.where} has no training image")
    names = sorted(known)
    if found.how != "folders" and all(name.isdecimal() for name in names):
        names.sort(key=int)
    titles, read = _titles(heap, names)
    count = f"{len(names):,} class{'es' * (len(names) != 1)}"
    renamed = {name: titles.get(name, name) for name in names}
    of = {name: renamed[found.of[name]] for name in used}
    shown = tuple(renamed[name] for name in names)
    return Classes(of, shown, f"{count} in {found.how}", found.read | read)


def _source(heap: Heap, train: list[str]) -> str:
    """What says the classes: "folders", "table" or "files"."""
    if heap.source != "auto":
        return heap.source
    folders = {name.split("/")[heap.depth] for name in train if name.count("/") > heap.depth}
    every = all(name.count("/") > heap.depth for name in train)
    if heap.in_splits and every:
        return "folders"
    tables = _tables(heap)
    if any(name.endswith("dataset.json") for name in tables):
        return "table"
    found = ["folders"] * (every and len(folders) > 1) + ["table"] * bool(tables)
    found += ["files"] * (not tables and bool(_labels_beside(heap, train)))
    if len(found) > 1:
        raise UserError(
            f"the classes of {heap.where} may be said by {' or '.join(found)}: set "
            f"data.labels_from={found[0]!r} or {found[1]!r}"
        )
    return found[0] if found else "folders"


def _folders(heap: Heap, used: list[str]) -> Classes:
    stray = next((name for name in used if name.count("/") <= heap.depth), None)
    if stray:
        raise UserError(
            f"{stray} in {heap.where} lies in no class folder: set data.labels=False and "
            "data.classes=None, or data.heldout_split=None where only held-out images do, or write "
            "the names of files and their classes into a labels.csv"
        )
    return Classes({name: name.split("/")[heap.depth] for name in used}, (), "folders", set())


# ---- Tables


def _tables(heap: Heap) -> list[str]:
    """The tables at the root and in the folders above it."""
    above = ["", *(heap.root[: m.end()] for m in re.finditer("/", heap.root))]
    known = set(heap.files.names)
    return [name for folder in above for table in TABLES if (name := f"{folder}{table}") in known]


def _table(heap: Heap, used: list[str]) -> Classes:
    tables = _tables(heap)
    if len(tables) != 1:
        found = "several tables: " + ", ".join(tables) if tables else "no table of labels"
        raise UserError(f"{heap.where} has {found}: expected one of {', '.join(TABLES)}")
    (table,) = tables
    what = f"{table} in {heap.where}"
    text = _text(heap.files, table, what)
    rows = _csv_rows(text, what) if table.endswith(".csv") else _json_rows(text, what)
    folder = table.rpartition("/")[0]
    return Classes(_matched(rows, used, folder, what), (), table, {table})


def _text(files: Files, name: str, what: str) -> str:
    try:
        return files.read(name).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {what}: {error}") from error


def _csv_rows(text: str, what: str) -> dict[str, str]:
    """{name: class} of the first two columns; a first row of titles matches no image."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text)) if len(row) > 1]
    except csv.Error as error:
        raise UserError(f"{what} is no table of commas and quotes: {error}") from error
    return {name.strip(): label.strip() for name, label, *_ in rows}


def _json_rows(text: str, what: str) -> dict[str, str]:
    """{name: class} of an object, of a list of pairs, or of either under "labels" (EDM's)."""
    try:
        found = json_of(text)
        found = found["labels"] if isinstance(found, dict) and "labels" in found else found
        rows = dict(found)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{what} is no table of labels: expected {{name: class}} or a list of pairs"
        ) from error
    for name, label in rows.items():
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise UserError(f"{what} gives {name} the class {label!r}: expected a name or a number")
    return {name: str(label) for name, label in rows.items()}


def _matched(rows: dict[str, str], used: list[str], folder: str, what: str) -> dict[str, str]:
    """The class of each image; a row names its path from the table on, or its file's name, either
    with or without the suffix."""
    paths = {name: name[len(folder) + 1 :] if folder else name for name in used}
    short: list[Callable[[str], str]] = [
        lambda path: path,
        lambda path: path.rpartition(".")[0],
        lambda path: path.rpartition("/")[2],
        lambda path: path.rpartition("/")[2].rpartition(".")[0],
    ]
    counts = [Counter(map(of, paths.values())) for of in short]
    found = {}
    for name, path in paths.items():
        number = next((i for i, of in enumerate(short) if of(path) in rows), None)
        if number is None:
            raise UserError(f"{what} has no row for {path}, nor for others perhaps: add them")
        key = short[number](path)
        if counts[number][key] > 1:
            raise UserError(f"{key} of {what} may be any of several images: write their paths")
        found[name] = rows[key]
    return found


# ---- Files beside images, as webdataset has them


def _stem(name: str) -> str:
    """webdataset's key: all before the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.split('.')[0]}"


def _labels_beside(heap: Heap, train: list[str]) -> str | None:
    """The suffix of the files that say classes, as the first image has them."""
    names, stem = set(heap.files.names), _stem(train[0])
    if f"{stem}.cls" in names:
        return ".cls"
    if f"{stem}.json" in names and _label_of(heap, f"{stem}.json") is not None:
        return ".json"
    return None


def _beside(heap: Heap, used: list[str]) -> Classes:
    kind, names = _labels_beside(heap, used), set(heap.files.names)
    if kind is None:
        raise UserError(
            f"{used[0]} in {heap.where} has no class beside it: expected {_stem(used[0])}.cls, or "
            f".json with one of {', '.join(KEYS)}"
        )
    of, seen = {}, {}
    for name in used:
        file = _stem(name) + kind
        if file not in names:
            raise UserError(f"{name} in {heap.where} has no {file} beside it")
        if file in seen:
            raise UserError(
                f"{file} in {heap.where} is beside {seen[file]} and {name}: leave one of them out"
            )
        label = _label_of(heap, file)
        if label is None:
            raise UserError(f"{file} in {heap.where} says no class")
        seen[file], of[name] = name, label
    return Classes(of, (), f"{kind} files", set(seen))


def _label_of(heap: Heap, file: str) -> str | None:
    """The class that a file says; None where it says none."""
    what = f"{file} in {heap.where}"
    text = _text(heap.files, file, what).strip()
    if not file.endswith(".json"):
        return text or None
    try:
        held = json_of(text)
    except ValueError as error:
        raise UserError(f"{what} is not readable: {error}") from error
    held = held if isinstance(held, dict) else {}
    label = next((held[key] for key in KEYS if key in held), None)
    return str(label) if isinstance(label, int | str) and not isinstance(label, bool) else None


# ---- ImageNet's synsets


def _titles(heap: Heap, names: list[str]) -> tuple[dict[str, str], set[str]]:
    """What synsets are called, where the classes are synsets and a file says it."""
    if not all(SYNSET.fullmatch(name) for name in names):
        return {}, set()
    files = [n for n in heap.files.names if n.rpartition("/")[2] in NAMES]
    file = min(files, key=lambda n: NAMES.index(n.rpartition("/")[2]), default=None)
    if file is None:
        return {}, set()
    lines = _text(heap.files, file, f"{file} in {heap.where}").splitlines()
    rows = (re.split(r"\s+", line.strip(), maxsplit=1) for line in lines)
    words = {row[0]: row[1].split(",")[0] for row in rows if len(row) == 2}
    count = Counter(words.get(name) for name in names)
    titles = {
        n: words[n] if count[words[n]] == 1 else f"{words[n]} ({n})" for n in names if n in words
    }
    return titles, {file}
