"""Image data sets that a user brings: a folder, archives, an .npz, or Hugging Face's columns."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

from genfield import registry
from genfield.data import identity, places
from genfield.data.containers import walk
from genfield.data.decoding import WHITE, Notes, Reading
from genfield.data.layouts import LABELS_FROM, LAYOUTS, Asked
from genfield.data.npz import cached
from genfield.data.pipeline import Dataset, Examples, Feed, assemble, check_classes, short_hash
from genfield.data.splits import Splits
from genfield.errors import UserError
from genfield.registry import OneOf, Place


def images(
    path: Place | None = None,
    size: int | None = None,
    channels: int = 3,
    background: int | tuple[int, ...] = WHITE,
    flip: bool = True,
    labels: bool = False,
    classes: tuple[int, ...] | None = None,
    layout: Annotated[str, OneOf(LAYOUTS)] = "auto",
    labels_from: Annotated[str, OneOf(LABELS_FROM)] = "auto",
    image_key: str | None = None,
    label_key: str | None = None,
    split: str = "train",
    heldout_split: str | None = "test",
    heldout_fraction: float = 0.1,
    in_memory: bool | str = "auto",
    memory_limit_gb: float = 8.0,
    max_images: int | None = None,
    cache: Place | None = None,
    *,
    feed: Feed,
) -> Dataset:
    """The images under a path, of every format that Pillow decodes, as a viewer shows them.

    docs/images.md shows the layouts. A folder, an archive and an .npz of the same images are the
    same data set. Files that are not read are counted in a line of the log.

    Args:
      path: a folder, a tar archive, compressed or not, a zip, or a folder of such archives: of
        `split/class/file`, `class/file`, `split/file` or files alone; or an .npz file, as
        `npz_splits` says; or a folder of Hugging Face's `save_to_disk`, or its parquet files.
      size: crop the centre square and resize it to size x size; None: all images must agree.
      channels: 3, or 1 for grayscale, or 4 for colour with transparency.
      background: what transparent pixels are laid on, a grey level 0..255 or (red, green, blue).
      flip: mirror training images with probability 1/2.
      labels: class conditioning; classes are numbered in the order of their names, or of their
        numbers where they come from a table, a column or files beside the images.
      classes: train on and hold out these labels alone, with or without conditioning. They are
        numbered anew, from 0 in the order given. Held-out images of the other classes become
        `Dataset.examples["other_classes"]`. None: all classes.
      layout: of folders: "splits", "folders" (each is a class), "flat" (their names say nothing);
        "auto" looks.
      labels_from: where they stand: "folders", "table" (labels.csv, labels.json or EDM's
        dataset.json), "files" (a .cls or .json beside each image); "auto" looks.
      image_key, label_key: the columns of a Hugging Face data set; None: the only ones that can be.
      split: to train on. heldout_split: to evaluate on, perhaps the same one. Where there is no
        "test", `val`, `validation` or `valid` is taken; without any, or with None, the last
        `heldout_fraction` of a fixed permutation of the training images is held out instead; of 0
        nothing is.
      in_memory: True decodes all images at the start, False decodes each when it is needed,
        "auto" decides by `memory_limit_gb`. Arrays of an .npz or of a cache are in memory if they
        are compressed or no larger than 1 GiB; others may stay on disk, by memory map.
      memory_limit_gb: of pixels; also of the files of a compressed tar or of parquet, which cannot
        be read in place.
      max_images: keep at most so many of each split, by a fixed permutation; `classes` are chosen
        among them.
      cache: a folder for the decoded images, which later runs read instead.
    Raises:
      UserError: nothing or nothing readable at the path, an absent or empty split, an empty class,
        an unreadable image (named), images of several shapes without a `size`, `classes` that
        are unknown or have no image, a layout that may be read in two ways.
    """
    reading = Reading(size, channels, background)
    reading.check()
    splits = Splits(split, heldout_split, heldout_fraction, in_memory, memory_limit_gb, max_images)
    splits.check()
    labelled = labels or classes is not None
    asked = Asked(split, heldout_split, labelled, layout, labels_from, image_key, label_key)
    if path is None:
        raise UserError("data.path is None: pass --config.data.path=<folder, archive or .npz>")
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"data.path {path} does not exist")

    try:
        opened = _open(place, asked, reading, splits, classes, cache, feed)
        older = identity.older(place, [name for name in (split, heldout_split) if name], walk)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from error
    for line in opened.told:
        feed.log(line)
    return assemble(
        opened.train,
        opened.heldout,
        class_names=opened.class_names,
        labels=labels,
        flip=flip,
        fingerprint=opened.mark,
        older=(short_hash(older, split),),
        feed=feed,
        classes=classes,
    )


class _Opened(NamedTuple):
    """What lies at a path: examples, a hash of them, and what is to be told of their files."""

    train: Examples
    heldout: Examples
    class_names: tuple[str, ...]
    mark: str
    told: list[str]


def _open(
    place: Path,
    asked: Asked,
    reading: Reading,
    splits: Splits,
    classes: tuple[int, ...] | None,
    cache: str | None,
    feed: Feed,
) -> _Opened:
    """The examples at a path, from the cache where they are there; raises OSError."""
    notes = Notes()

    def read(told: list[str]) -> tuple[Examples, Examples, tuple[str, ...]]:
        found = places.find(place, asked, reading, splits.limit, notes)
        if classes is not None:
            check_classes(classes, found.class_names)  # before the long work
        train, heldout, line = splits.settle(found.known, str(place), feed)
        told += [f"images: {found.how}, {line}", *found.left_out]
        told += notes.lines() if train.arrays is not None else []  # of all images, not of the first
        return train, heldout, found.class_names

    options = (asked, reading, splits.heldout_fraction, splits.max_images)
    files = places.on_disk(place)
    if cache is None:
        told = []
        train, heldout, class_names = read(told)
    else:
        key = short_hash(identity.files_hash(files), *options)
        stored = Path(cache).expanduser() / f"{key}.npz"
        train, heldout, class_names, told = cached(stored, read)
    content = partial(_content, train, heldout, notes, str(place), feed.log)
    if train.arrays is None or heldout.arrays is None:
        identity.watch(files.values())
        mark, noted = identity.remembered(options, files.values(), content)
    else:
        mark, noted = content()
    return _Opened(train, heldout, class_names, mark, list(dict.fromkeys([*told, *noted])))


def _content(
    train: Examples, heldout: Examples, notes: Notes, where: str, log: Callable
) -> tuple[str, list[str]]:
    """A hash of all examples, and what was odd about their files."""
    first = identity.examples_hash(train, where, log)
    other = first if heldout is train else identity.examples_hash(heldout, where, log)
    return short_hash(first, other), notes.lines()


METHOD = registry.DataSource(
    name="images",
    make=images,
    holds="images",
    drawn=False,
    beside_pairs=True,
    fed=True,
)
