"""Where splits and classes are in a heap of files: folders, tables, and files beside the images."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from genfield.data import tables
from genfield.data.containers import SPLITS, Files
from genfield.data.decoding import is_picture, suffix
from genfield.errors import UserError

LAYOUTS = ("auto", "splits", "folders", "flat")
LABELS_FROM = ("auto", "folders", "table", "files")
SHOWN = 3  # names that a message lists


class Asked(NamedTuple):
    """What a config asks of a layout; `images` says what the fields do."""

    split: str = "train"
    heldout_split: str | None = "test"
    labels: bool = False
    layout: str = "auto"
    labels_from: str = "auto"
    image_key: str | None = None
    label_key: str | None = None


class Layout(NamedTuple):
    """What was found.

    Attributes:
      splits: the names of the images of each, sorted; `Asked.split` alone where there are none.
      classes: name of an image that is trained on or held out -> name of its class; None where
        none were asked for.
      class_names: in the order of the labels.
      how: for a reader, as "10 classes in folders".
      left_out: files that are not read.
    """

    splits: dict[str, list[str]]
    classes: Mapping[str, str] | None
    class_names: tuple[str, ...]
    how: str
    left_out: list[str]


def find(files: Files, asked: Asked, where: str) -> Layout:
    """The layout of the files under `where`.

    Raises:
      UserError: no images, no such split, an empty split or class; classes asked for and not
        found; a layout that may be read in two ways.
    """
    pictures = _pictures(files, where)
    root = _root(pictures, asked, where)
    inside = [name for name in pictures if name.startswith(root)]
    tops = sorted({name[len(root) :].split("/")[0] for name in inside if "/" in name[len(root) :]})
    if asked.layout not in ("folders", "flat"):
        _check_empty(files, root, inside, asked, where)
    in_splits = _in_splits(inside, root, tops, asked, where)
    if in_splits:
        splits = {}
        for name in inside:
            top, slash, _ = name[len(root) :].partition("/")
            if slash:
                splits.setdefault(top, []).append(name)
    else:
        splits = {asked.split: inside}
    wanted = dict.fromkeys((asked.split, heldout(splits, asked.split, asked.heldout_split)))
    used, labelled = [name for split in wanted for name in splits.get(split, ())], None
    if asked.labels:
        # Of how many folders the last one says the class: more than any has where none is to.
        depth = 1 << 30 if asked.layout == "flat" else root.count("/") + in_splits
        heap = tables.Heap(files, root, depth, in_splits, where, asked.labels_from)
        labelled = tables.classes(heap, splits[asked.split], used)
        used += labelled.read
    read = set(used)
    rest = [name for name in files.names if name not in read]
    if labelled is None:
        return Layout(splits, None, (), "no classes", rest)
    return Layout(splits, labelled.of, labelled.names, labelled.how, rest)


def left_out(names: Iterable[str], prefix: str = "images") -> list[str]:
    """The line that counts files that are not read, by suffix; none where there are none."""
    kinds, folders = Counter(), Counter()
    for name in names:
        if is_picture(name):
            folders[name.rpartition("/")[0].split("/")[0]] += 1
        else:
            kinds[suffix(name) or "without a suffix"] += 1
    total = kinds.total() + folders.total()
    if not total:
        return []
    order = lambda counts: sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{count:,} {kind}" for kind, count in order(kinds)]
    for folder, count in order(folders):
        told.append(f"{count:,} image{'s' * (count > 1)} in {folder or '.'}/")
    return [f"{prefix}: left out {total:,} file{'s' * (total > 1)}: {', '.join(told)}"]


def _pictures(files: Files, where: str) -> list[str]:
    found = [name for name in files.names if is_picture(name)]
    if found:
        return found
    rest = left_out(files.names)
    has = rest[0].split(": ", 2)[-1] if rest else "nothing"
    raise UserError(f"{where} holds no image that can be read; it has {has}")


def heldout(splits: Iterable[str], split: str, asked: str | None) -> str | None:
    """The split that is held out: the one asked for; or, for "test", what stands in its place."""
    if asked != "test" or "test" in splits:
        return asked
    instead = (name for name in ("val", "validation", "valid") if name in splits)
    return next((name for name in instead if name != split), asked)


def _root(pictures: list[str], asked: Asked, where: str) -> str:
    """The folder in which splits or classes lie, "" or with a slash at its end."""
    named, root = {*SPLITS, asked.split, asked.heldout_split}, ""
    while True:
        rest = [name[len(root) :] for name in pictures]
        tops = {name.split("/")[0] for name in rest}
        wraps = len(tops) == 1 and all(name.count("/") > 1 for name in rest)
        if not wraps or tops & named:
            break
        root += f"{tops.pop()}/"
    if asked.split in tops or asked.layout in ("folders", "flat"):
        return root
    # Splits below folders of which others hold something else.
    deep = {name[: m.start(1)] for name in pictures if (m := _folder(asked.split).search(name))}
    if len(deep) > 1:
        shown = ", ".join(f"{folder}{asked.split}" for folder in sorted(deep)[:SHOWN])
        raise UserError(
            f"{where} has several folders {asked.split!r} ({shown}): point data.path at one of "
            "those above them, or set data.layout='folders'"
        )
    return deep.pop() if deep else root


def _folder(name: str) -> re.Pattern:
    return re.compile(rf"(?:^|/)({re.escape(name)})/")


def _in_splits(inside: list[str], root: str, tops: list[str], asked: Asked, where: str) -> bool:
    """Whether the folders at the root are splits; raises UserError where that is unclear."""
    if asked.layout in ("folders", "flat"):
        return False
    if asked.split not in tops:
        splits = [name for name in tops if name in SPLITS]
        if asked.layout == "splits" or asked.split != "train" or (splits and splits == tops):
            has = ", ".join(tops[:SHOWN]) or "images in no folder"
            raise UserError(
                f"no split {asked.split!r} in {where}: expected {asked.split}/<class>/<name>.jpg "
                f"or another image; it has {has}: set data.split"
            )
        return False
    strange = [name for name in tops if name not in {*SPLITS, asked.split, asked.heldout_split}]
    pattern = re.compile(rf"{re.escape(root + asked.split)}/[^/]+/")
    nested = any(map(pattern.match, inside))
    beside = len(strange) < len(tops) - 1  # another split
    if asked.labels and strange and not (nested or beside) and asked.layout == "auto":
        raise UserError(
            f"{asked.split}/ of {where} may be a split, or a class beside "
            f"{', '.join(strange[:SHOWN])}: set data.layout='splits' or 'folders'"
        )
    return True


def _check_empty(files: Files, root: str, inside: list[str], asked: Asked, where: str) -> None:
    """Raises UserError for a wanted split, or a class in one, without an image."""
    used = set()
    for name in inside:
        parts = name[len(root) :].split("/")
        used |= {parts[0], "/".join(parts[:2])}
    for folder in sorted(files.folders):
        inner = folder[len(root) :] if folder.startswith(root) else ""
        shallow = inner.count("/") <= 1 and inner.split("/")[0] in (
            asked.split,
            asked.heldout_split,
        )
        if inner and shallow and inner not in used:
            raise UserError(f"the folder {inner} of {where} holds no image that can be read")
