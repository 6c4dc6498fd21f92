"""Images and labels in an .npz file, and the cache of decoded images, which is one as well."""

import math
import struct
import sys
import uuid
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from genfield.data.decoding import Reading, prepare
from genfield.data.layouts import Asked, heldout
from genfield.data.pipeline import MOST_CLASSES, Examples, from_arrays
from genfield.errors import UserError
from genfield.reading import DAMAGE, check_archive, reason

# Where an .npz may hold images without splits, and labels. arr_0 and arr_1 are the ADM evaluator's.
IMAGE_KEYS, LABEL_KEYS = ("images", "x", "arr_0", "samples"), ("labels", "y", "arr_1")
CLASS_NAMES = "class_names"
MAPPED = 1 << 30  # bytes of an array, beyond which it may stay on the disk
LOCAL_HEADER = 30  # bytes before the names of a zip's member, whose lengths are its last four


def npz_splits(
    path: Path, asked: Asked, reading: Reading
) -> tuple[dict[str, Callable[[], Examples]], tuple[str, ...], list[str]]:
    """The examples of each split in the file, the classes' names, and lines that name what is not
    read or not as it is.

    A file holds `train_images`, `train_labels`, `test_images`, … (or `x_train`, `y_train`, …), or
    images under one of IMAGE_KEYS and labels under one of LABEL_KEYS: uint8 [N, H, W] or [N, H, W,
    1, 3 or 4], or floats in [0, 1], which round to the nearest level; whole numbers [N] from 0 on,
    whose names are "0", "1", … or stand under `class_names`.
    Raises:
      UserError: not an .npz file, no images under a known name, wrong dtypes or shapes, no labels
        where they are wanted.
    """
    wanted = lambda name: _is_images(name) or _is_labels(name) or name == CLASS_NAMES
    stored = read_npz(path, f"{path} is not a readable .npz file", wanted, mapped=True)
    splits = _split_keys(path, stored, None if asked.layout == "flat" else asked.split)
    if asked.layout != "flat":
        known = {asked.split, heldout(splits, asked.split, asked.heldout_split)}
        splits = {name: keys for name, keys in splits.items() if name in known}
    read, names, used, told = {}, set(), set(), []
    for name, (image_key, label_key) in splits.items():
        images, what = stored[image_key], f"{image_key} in {path}"
        on_disk = isinstance(images, np.memmap)
        if on_disk:
            check_images(images, what)
        arrays = {"x1": images if on_disk else _read(what, images, reading)}
        used.add(image_key)
        if images.dtype.kind == "f":
            told.append(f"images: {image_key} are floats, rounded to 256 levels")
        if asked.labels:
            arrays["label"] = _labels(path, label_key, stored, len(images))
            names |= set(range(int(arrays["label"].max()) + 1))
            used |= {label_key, CLASS_NAMES}
        read[name] = from_arrays(arrays)
        if on_disk:
            read[name] = _on_demand(what, read[name], reading)
    if asked.layout == "flat":
        read = {asked.split: _joined(path, [read[name] for name in sorted(read)])}
    rest = [key for key in stored if key not in used]
    if rest:
        arrays = f"array{'s' * (len(rest) != 1)}"
        told.append(f"images: left out {len(rest)} {arrays}: {', '.join(rest)}")
    examples = {name: partial(read.get, name) for name in read}
    return examples, _class_names(path, stored, len(names)), told


def _split_keys(path: Path, stored: dict, split: str | None) -> dict[str, tuple[str, str]]:
    """The names of images and labels of each split; of `split`, if that is given, at least."""
    keys = {}
    for key in stored:
        if key.endswith("_images"):
            name = key.removesuffix("_images")
            keys[name] = (key, f"{name}_labels")
        elif key.startswith("x_"):
            keys.setdefault(key.removeprefix("x_"), (key, f"y_{key.removeprefix('x_')}"))
    bare = [key for key in IMAGE_KEYS if key in stored]
    if len(bare) > 1:
        raise UserError(
            f"{path} holds {' and '.join(bare)}, which may all be the images: leave one of them"
        )
    if bare and (split or "") not in keys:
        label_key = next((key for key in LABEL_KEYS if key in stored), LABEL_KEYS[0])
        keys[split or ""] = (bare[0], label_key)
    if not keys or split not in (None, *keys):
        known = ", ".join(stored) or "nothing"
        raise UserError(
            f"no images in {path}: expected {split or 'train'}_images or one of "
            f"{', '.join(IMAGE_KEYS)}; it has {known}"
        )
    return keys


def _is_images(name: str) -> bool:
    return name in IMAGE_KEYS or name.endswith("_images") or name.startswith("x_")


def _is_labels(name: str) -> bool:
    return name in LABEL_KEYS or name.endswith("_labels") or name.startswith("y_")


def _joined(path: Path, parts: list[Examples]) -> Examples:
    """One after the other, each where it is: in memory or on the disk."""
    shapes = {part.gather(np.arange(1))["x1"].shape[1:] for part in parts}
    if len(shapes) > 1:
        told = " and ".join(map(str, sorted(shapes)))
        raise UserError(f"{path} holds images of several shapes, {told}: resize them first")
    starts = np.cumsum([0, *(part.size for part in parts)])

    def gather(rows: np.ndarray) -> dict:
        which, out = np.searchsorted(starts, rows, "right") - 1, {}
        for number in np.unique(which):
            chosen = which == number
            for key, values in parts[number].gather(rows[chosen] - starts[number]).items():
                shape = (len(rows), *values.shape[1:])
                out.setdefault(key, np.empty(shape, values.dtype))[chosen] = values
        return out

    return parts[0] if len(parts) == 1 else Examples(int(starts[-1]), gather)


def _class_names(path: Path, stored: dict, count: int) -> tuple[str, ...]:
    """Of the labels 0 … count - 1."""
    if not count or CLASS_NAMES not in stored:
        return tuple(map(str, range(count)))
    names = np.ravel(stored[CLASS_NAMES])
    if len(names) < count:
        raise UserError(f"{path} holds {len(names)} {CLASS_NAMES} and labels up to {count - 1}")
    return tuple(map(str, names[:count]))


def cached(
    file: Path, read: Callable[[list[str]], tuple[Examples, Examples, tuple[str, ...]]]
) -> tuple[Examples, Examples, tuple[str, ...], list[str]]:
    """What `read` gives, from `file` if it exists; otherwise written to it, if it is in memory.

    Args:
      read: gives train, held-out and class names, and adds to a list what there is to tell.
    Raises:
      UserError: the file is damaged, or its folder cannot be made.
    """
    if file.exists():
        arrays = read_npz(file, f"the cache {file} is damaged: delete it", mapped=True)
        train, heldout = (
            {k.removeprefix(part): v for k, v in arrays.items() if k.startswith(part)}
            for part in ("train_", "heldout_")
        )
        _check_cache(file, train, heldout, [arrays.get(key) for key in ("class_names", "told")])
        names, told = (tuple(map(str, arrays[key])) for key in ("class_names", "told"))
        return from_arrays(train), from_arrays(heldout), names, list(told)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder data.cache={file.parent}: {error}") from error
    told = []
    train, heldout, class_names = read(told)
    if train.arrays is not None and heldout.arrays is not None:
        arrays = {f"train_{k}": v for k, v in train.arrays.items()}
        arrays |= {f"heldout_{k}": v for k, v in heldout.arrays.items()}
        arrays |= {"class_names": np.array(class_names, str), "told": np.array(told, str)}
        # Whole or not at all, also when several processes write it.
        unfinished = file.with_name(f".{uuid.uuid4().hex}.npz")
        np.savez(unfinished, **arrays)
        unfinished.replace(file)
    return train, heldout, class_names, told


def _check_cache(file: Path, train: dict, heldout: dict, texts: list) -> None:
    """Raises UserError where the arrays are not such as `cached` writes."""
    images = [part.get("x1") for part in (train, heldout)]
    fits = all(x is not None and x.ndim == 4 and x.dtype == np.uint8 for x in images)
    fits &= all(text is not None and text.ndim == 1 and text.dtype.kind == "U" for text in texts)
    for part in (train, heldout) if fits else ():
        labels, count = part.get("label", np.zeros(len(part["x1"]), int)), len(texts[0])
        fits &= labels.shape == part["x1"].shape[:1] and labels.dtype.kind in "iu"
        fits &= "label" not in part or all((labels >= 0) & (labels < max(1, count)))
        fits &= set(part) <= {"x1", "label"}
    if not fits:
        raise UserError(f"the cache {file} is damaged: delete it")


def read_npz(
    path: Path,
    complaint: str,
    wanted: Callable[[str], bool] = lambda name: True,
    *,
    mapped: bool = False,
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file whose names are wanted; None stands for the others.

    mapped: those beyond MAPPED bytes that are not compressed stay on the disk, by memory map: all
      processes of a machine share what is read of them.
    Raises:
      UserError: no .npz file, or a damaged one, or one that would take more memory than a file of
        its size may; says `complaint`.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip file of arrays, as np.savez writes them")
        with np.load(path, allow_pickle=False) as file:
            chosen = [name for name in file.files if wanted(name)]
            stored = {stored for name in chosen for stored in (name, f"{name}.npy")}
            check_archive(file.zip, Path(path).stat().st_size, stored)
            read = (lambda name: _mapped(path, file, name)) if mapped else file.__getitem__
            found = {name: read(name) for name in chosen}
            other = next((name for name in chosen if not isinstance(found[name], np.ndarray)), None)
            if other is not None:
                raise ValueError(f"{other} is no array")
            for name in chosen:
                _check_letters(name, found[name])
            return {name: found.get(name) for name in file.files}
    except DAMAGE as error:
        told = reason(error)
        told = "it holds Python objects" if "allow_pickle" in told else told
        raise UserError(f"{complaint}: {told}") from error


def _check_letters(name: str, array: np.ndarray) -> None:
    """Raises ValueError where a text has letters that Unicode has not: no string can be made."""
    if array.dtype.kind == "U" and array.size:
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        if native.view(np.uint32).max() > sys.maxunicode:
            raise ValueError(f"{name} holds text that is none")


def _mapped(path: Path, file, name: str) -> np.ndarray:
    """An array of an opened .npz, by memory map where it is large and lies there as it is."""
    known = {info.filename: info for info in file.zip.infolist()}
    info = known.get(f"{name}.npy") or known[name]
    if info.file_size <= MAPPED or info.compress_type != zipfile.ZIP_STORED:
        return file[name]
    with path.open("rb") as stream:
        stream.seek(info.header_offset + LOCAL_HEADER - 4)
        start = info.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", stream.read(4)))
        stream.seek(start)
        version = np.lib.format.read_magic(stream)
        if version[0] > 2:  # names beyond Latin-1, of fields that no images have
            return file[name]
        header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, fortran, dtype = header(stream)
        size = stream.tell() - start + math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size != info.file_size:
            raise ValueError(f"{name} is cut, or holds Python objects")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", stream.tell(), shape, order)


def check_images(images: np.ndarray, what: str) -> None:
    """Raises UserError for other images than `npz_splits` takes; `what` names them in messages."""
    floats = images.dtype.kind == "f"
    known = floats or images.dtype == np.uint8
    shape = (*images.shape, 1) if images.ndim == 3 else images.shape
    if len(shape) != 4 or shape[-1] not in (1, 3, 4) or 0 in shape[1:3] or not known:
        raise UserError(
            f"{what} is {images.dtype} {list(shape)}: expected uint8, or floats in [0, 1], "
            "of shape [N, H, W] or [N, H, W, 1, 3 or 4]"
        )
    if not len(images):
        raise UserError(f"{what} is empty")
    for start in range(0, len(images) if floats else 0, 1024):
        part = images[start : start + 1024]
        for name, bad in (
            ("NaN", np.isnan(part)),
            ("values outside [0, 1]", abs(part - 0.5) > 0.5),
        ):
            if bad.any():
                first = start + int(bad.reshape(len(bad), -1).any(1).argmax())
                raise UserError(
                    f"{what} ({images.dtype}) has {name}, first in image {first}: "
                    "expected uint8, or floats in [0, 1]"
                )


def to_levels(images: np.ndarray, what: str) -> np.ndarray:
    """Images as uint8 [N, H, W, 1, 3 or 4]; raises UserError as `check_images` does."""
    check_images(images, what)
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype.kind != "f":
        return images
    return np.round(images * np.float32(255)).astype(np.uint8)


def _on_demand(what: str, examples: Examples, reading: Reading) -> Examples:
    """Images on the disk, which become as they are to be when something reads them."""

    def gather(rows: np.ndarray) -> dict:
        batch = examples.gather(rows)
        return batch | {"x1": _read(what, batch["x1"], reading)}

    return examples._replace(gather=gather)


def _read(what: str, images: np.ndarray, reading: Reading) -> np.ndarray:
    """Images of a file as they are to be: their size and their channels."""
    images = to_levels(images, what)
    height, width = images.shape[1:3]
    size = (reading.size or height, reading.size or width)
    if images.shape[1:] == (*size, reading.channels):
        return images
    if images.shape[-1] == 1:
        images = images[..., 0]
    return np.stack([prepare(Image.fromarray(image), reading) for image in images])


def _labels(path: Path, key: str, stored: dict, count: int) -> np.ndarray:
    if key not in stored:
        raise UserError(f"no {key} in {path}: set data.labels=False and data.classes=None")
    labels = stored[key]
    whole = labels.shape == (count,) and labels.dtype.kind in "iu"
    if not whole or not 0 <= labels.min() <= labels.max() < MOST_CLASSES:
        raise UserError(
            f"{key} in {path} is {labels.dtype} {list(labels.shape)}: "
            f"expected {count} whole numbers from 0 on"
        )
    return labels.astype(np.int32)
