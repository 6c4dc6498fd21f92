"""Finite sets of images to be measured: samples in an .npz or a folder, a split of the data."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genfield.data.listing import walk
from genfield.data.npz import read_npz
from genfield.data.pipeline import Dataset, short_hash
from genfield.data.pixels import decode
from genfield.errors import UserError
from genfield.registry import choose

IMAGES = ("arr_0", "images", "samples")  # where an .npz may hold them; arr_0 is the ADM evaluator's
PROBES = 256  # images read to tell one data set on disk from another


class ImageSet(NamedTuple):
    """Images in a fixed order.

    Attributes:
      name: what they are, for a reader. identity: a hash of the place and the files in it: what
        was measured of one identity holds for it again.
      size: how many. shape: of one, (H, W, 1 or 3).
      read: rows [n] -> uint8 [n, H, W, 1 or 3].
    """

    name: str
    identity: str
    size: int
    shape: tuple[int, int, int]
    read: Callable[[np.ndarray], np.ndarray]


def from_dataset(data: Dataset, split: str, section: Mapping) -> ImageSet:
    """A split, "train" or "test", of the data set that a config's section `data` describes.

    Raises:
      UserError: the data are no images; unknown split.
    """
    name = section["name"]
    if not data.pixels:
        raise UserError(
            f"data {name!r} are not images: image metrics need pixels, or a "
            "config.evaluate.reference and --samples, folders or .npz files of images"
        )
    examples = choose("split", split, data.examples)
    read = lambda rows: examples.gather(rows)["x1"]
    # Pixels themselves, or enough of them that other data, or other fields, cannot pass for these.
    probe = np.unique(np.linspace(0, examples.size - 1, PROBES).astype(int))
    pixels = read(probe) if examples.arrays is None else examples.arrays["x1"]
    digest = hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()
    fields = sorted((key, str(value)) for key, value in section.items())
    identity = short_hash(data.fingerprint, split, examples.size, digest)
    if examples.arrays is None:
        identity = short_hash(identity, fields)
    return ImageSet(f"{name}, {split}", identity, examples.size, data.shape, read)


def open_images(path: str) -> ImageSet:
    """The images of an .npz file, or of a folder and those below it.

    An .npz holds them under arr_0 (as the ADM evaluator and `--mode=sample` have it), `images` or
    `samples`: uint8 [N, H, W, 1 or 3], or floats in [0, 1], which round to the nearest level.
    Raises:
      UserError: nothing there, no images, other shapes, NaN, floats outside [0, 1].
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _folder(place)
    if not place.exists():
        raise UserError(f"{path} does not exist: expected a folder of images or an .npz file")
    return _npz(place)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, as sixteen hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _npz(path: Path) -> ImageSet:
    complaint = f"{path} is not a readable .npz file"
    stored = read_npz(path, complaint, wanted=lambda name: name in IMAGES)
    key = next((k for k in IMAGES if k in stored), None)
    if key is None:
        known = ", ".join(stored) or "nothing"
        raise UserError(f"{path} holds no images under {', '.join(IMAGES)}; it has {known}")
    images = to_levels(stored[key], f"{key} in {path}")
    identity = file_hash(path)
    return ImageSet(str(path), identity, len(images), images.shape[1:], lambda rows: images[rows])


def to_levels(images: np.ndarray, what: str) -> np.ndarray:
    """Images as uint8 [N, H, W, 1 or 3]; `what` names them in messages.

    Raises:
      UserError: other shapes or dtypes, none at all, NaN, floats outside [0, 1].
    """
    floats = images.dtype.kind == "f"
    known = floats or images.dtype == np.uint8
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3] or not known:
        raise UserError(
            f"{what} is {images.dtype} {list(images.shape)}: expected uint8, or floats in [0, 1], "
            "of shape [N, H, W, 1 or 3]"
        )
    if not len(images):
        raise UserError(f"{what} is empty")
    if not floats:
        return images
    for start in range(0, len(images), 1024):
        part = images[start : start + 1024]
        for name, bad in (
            ("NaN", np.isnan(part)),
            ("values outside [0, 1]", abs(part - 0.5) > 0.5),
        ):
            if bad.any():
                first = start + int(bad.any((1, 2, 3)).argmax())
                raise UserError(
                    f"{what} has {name}, first in image {first}: "
                    "expected uint8, or floats in [0, 1]"
                )
    return np.round(images * np.float32(255)).astype(np.uint8)


def _folder(path: Path) -> ImageSet:
    sizes = {}
    for directory, files in walk(path):
        for file in (os.path.join(directory, name) for name in files):
            try:
                stat = os.stat(file)
            except OSError as error:
                raise UserError(f"cannot read the image {file}: {error.strerror}") from error
            sizes[os.path.relpath(file, path)] = (stat.st_size, stat.st_mtime_ns)
    if not sizes:
        raise UserError(f"the folder {path} holds no .png, .jpg or .jpeg")
    names = sorted(sizes)
    first = _decode(path, names[0])

    def read(rows: np.ndarray) -> np.ndarray:
        images = [_decode(path, names[row]) for row in rows]
        for row, image in zip(rows, images, strict=True):
            if image.shape != first.shape:
                raise UserError(
                    f"images of several sizes in {path}: {names[0]} is {first.shape}, "
                    f"{names[row]} is {image.shape}: resize them first"
                )
        return np.stack(images)

    identity = short_hash(str(path.resolve()), [(name, *sizes[name]) for name in names])
    return ImageSet(str(path), identity, len(names), first.shape, read)


def _decode(folder: Path, name: str) -> np.ndarray:
    where = folder / name
    try:
        return decode(where.read_bytes(), None, 3, str(where))
    except OSError as error:
        raise UserError(f"cannot read the image {where}: {error.strerror}") from error
