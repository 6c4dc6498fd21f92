"""Image data sets that a user brings: a folder or a tar archive `split/class/file`, or an .npz."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from genfield import registry
from genfield.data.listing import Listing, file_identity, list_archive, list_folder
from genfield.data.npz import cached, npz_splits
from genfield.data.pipeline import (
    Dataset,
    Examples,
    Feed,
    assemble,
    check_classes,
    short_hash,
)
from genfield.data.pixels import check_pixels, decode, on_demand
from genfield.data.splits import Splits
from genfield.errors import UserError
from genfield.registry import Place


def images(
    path: Place | None = None,
    size: int | None = None,
    channels: int = 3,
    flip: bool = True,
    labels: bool = False,
    classes: tuple[int, ...] | None = None,
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
    """The images (JPEG, PNG) under a path.

    Args:
      path: a folder or a tar archive, compressed or not, of `split/class/file`, or without labels
        of `split/file`; or an .npz file with uint8 [N, H, W, C] under `images`, `x` or `arr_0`
        and labels under `labels` or `y`, or with `train_images`, `train_labels`, `test_images`, ...
      size: crop the centre square and resize it to size x size; None: all images must agree.
      channels: 3, or 1 for grayscale.
      flip: mirror training images with probability 1/2.
      labels: class conditioning; classes are numbered in the order of their names.
      classes: train on and hold out these labels alone, with or without conditioning. They are
        numbered anew, from 0 in the order given. Held-out images of the other classes become
        `Dataset.examples["other_classes"]`. None: all classes.
      split: to train on. heldout_split: to evaluate on, perhaps the same one. Where there is no
        "test", or with None, the last `heldout_fraction` of a fixed permutation of the training
        images is held out instead.
      in_memory: True decodes all images at the start, False decodes each when it is needed,
        "auto" decides by `memory_limit_gb`. An .npz file is always read into memory.
      memory_limit_gb: of pixels; also of the files of a compressed archive, which cannot be read
        in place.
      max_images: keep at most so many of each split, by a fixed permutation; `classes` are chosen
        among them.
      cache: a folder for the decoded images, which later runs read instead.
    Raises:
      UserError: nothing or nothing readable at the path, an absent or empty split, an empty class,
        an unreadable image (named), images of several shapes without a `size`, `classes` that
        are unknown or have no image.
    """
    check_pixels(size, channels)
    splits = Splits(split, heldout_split, heldout_fraction, in_memory, memory_limit_gb, max_images)
    splits.check()
    if path is None:
        raise UserError("data.path is None: pass --config.data.path=<folder, tar or .npz>")
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"data.path {path} does not exist")
    wanted = [name for name in (split, heldout_split) if name]
    labelled = labels or classes is not None
    pixels = {"size": size, "channels": channels, "labels": labelled}
    try:
        listing = list_folder(place, wanted) if place.is_dir() else None
        identity = listing.identity if listing else file_identity(place)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from error

    def read() -> tuple[Examples, Examples, tuple[str, ...]]:
        if place.suffix == ".npz":
            known, class_names = npz_splits(place, split, heldout_split, **pixels)
        else:
            files = listing or list_archive(place, wanted, splits.limit)
            known, class_names = _file_splits(place, files, split, **pixels)
        if classes is not None:
            check_classes(classes, class_names)  # before the long work
        return *splits.settle(known, path, feed), class_names

    if cache is None:
        train, heldout, class_names = read()
    else:
        options = (identity, size, channels, labelled, split, heldout_split, heldout_fraction)
        stored = Path(cache).expanduser() / f"{short_hash(*options, max_images)}.npz"
        train, heldout, class_names = cached(stored, read)
    return assemble(
        train,
        heldout,
        class_names=class_names,
        labels=labels,
        flip=flip,
        fingerprint=short_hash(identity, split),
        feed=feed,
        classes=classes,
    )


def _file_splits(
    path: Path, files: Listing, split: str, *, size: int | None, channels: int, labels: bool
) -> tuple[dict[str, Callable[[], Examples]], tuple[str, ...]]:
    """The examples of each split of a listing, and the names of the classes."""
    members, used = {}, set()
    for name in files.names:
        parts = name.split("/")
        members.setdefault(parts[0], []).append(name)
        used.update((parts[0], "/".join(parts[:2])))
    empty = min(files.folders - used, default=None)
    if empty:
        raise UserError(f"the folder {empty} of {path} holds no .jpg, .jpeg or .png")
    if split not in members:
        raise UserError(
            f"no split {split!r} in {path}: expected {split}/<class>/<name>.jpg, .jpeg or .png"
        )
    classes = sorted({_class_of(name, path) for name in members[split]}) if labels else []
    numbers = {name: number for number, name in enumerate(classes)}

    def examples(names: list[str]) -> Examples:
        targets = [None] * len(names)
        if labels:
            targets = [numbers.get(_class_of(name, path)) for name in names]
            if None in targets:
                stray = names[targets.index(None)]
                raise UserError(f"the class of {stray} in {path} has no training image")

        def read(row: int):
            where = f"{names[row]} in {path}"
            try:
                encoded = files.read(names[row])
            except OSError as error:
                raise UserError(f"cannot read the image {where}: {error.strerror}") from error
            return decode(encoded, size, channels, where), targets[row], where

        known = np.array(targets, np.int32) if labels else None
        return on_demand(len(names), read)._replace(labels=known)

    return {name: partial(examples, names) for name, names in members.items()}, tuple(classes)


def _class_of(name: str, path: Path) -> str:
    parts = name.split("/")
    if len(parts) < 3:
        raise UserError(
            f"{name} in {path} lies in no class folder: set data.labels=False and data.classes=None"
        )
    return parts[1]


METHOD = registry.DataSource(
    name="images",
    make=images,
    holds="images",
    drawn=False,
    beside_pairs=True,
    fed=True,
)
