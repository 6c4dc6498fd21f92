"""Images and labels in an .npz file, and the cache of decoded images, which is one as well."""

import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from genfield.data.pipeline import Examples, from_arrays
from genfield.data.pixels import prepare
from genfield.errors import UserError

IMAGE_KEYS, LABEL_KEYS = ("images", "x", "arr_0"), ("labels", "y")
# Everything that a damaged or strange .npz can make NumPy and the standard library say.
READ_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def npz_splits(
    path: Path,
    split: str,
    heldout_split: str | None,
    *,
    size: int | None,
    channels: int,
    labels: bool,
) -> tuple[dict[str, Callable[[], Examples]], tuple[str, ...]]:
    """The examples of each split in the file, and the classes' names: "0", "1", ...

    Raises:
      UserError: not an .npz file, no images under a known name, wrong dtypes or shapes, no labels
        where they are wanted.
    """
    stored = read_npz(path, f"{path} is not a readable .npz file")
    keys = {
        name: (f"{name}_images", f"{name}_labels")
        for name in (split, heldout_split)
        if f"{name}_images" in stored
    }
    image_key = next((key for key in IMAGE_KEYS if key in stored), None)
    if not keys and image_key:
        label_key = next((key for key in LABEL_KEYS if key in stored), LABEL_KEYS[0])
        keys = {split: (image_key, label_key)}
    if split not in keys:
        raise UserError(
            f"no images in {path}: expected {split}_images or one of {', '.join(IMAGE_KEYS)}; "
            f"it has {', '.join(stored) or 'nothing'}"
        )
    known, classes = {}, 0
    for name, (image_key, label_key) in keys.items():
        arrays = {"x1": _images(path, image_key, stored[image_key], size, channels)}
        if labels:
            arrays["label"] = _labels(path, label_key, stored, len(arrays["x1"]))
            classes = max(classes, int(arrays["label"].max()) + 1)
        known[name] = partial(from_arrays, arrays)
    return known, tuple(map(str, range(classes)))


def cached(
    file: Path, read: Callable[[], tuple[Examples, Examples, tuple[str, ...]]]
) -> tuple[Examples, Examples, tuple[str, ...]]:
    """What `read` gives, from `file` if it exists; otherwise written to it, if it is in memory.

    Raises:
      UserError: the file is damaged, or its folder cannot be made.
    """
    if file.exists():
        arrays = read_npz(file, f"the cache {file} is damaged: delete it")
        train, heldout = (
            {k.removeprefix(part): v for k, v in arrays.items() if k.startswith(part)}
            for part in ("train_", "heldout_")
        )
        return from_arrays(train), from_arrays(heldout), tuple(map(str, arrays["class_names"]))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder data.cache={file.parent}: {error}") from error
    train, heldout, class_names = read()
    if train.arrays is not None and heldout.arrays is not None:
        arrays = {f"train_{k}": v for k, v in train.arrays.items()}
        arrays |= {f"heldout_{k}": v for k, v in heldout.arrays.items()}
        # Whole or not at all, also when several processes write it.
        unfinished = file.with_name(f".{uuid.uuid4().hex}.npz")
        np.savez(unfinished, class_names=np.array(class_names, dtype=str), **arrays)
        unfinished.replace(file)
    return train, heldout, class_names


def read_npz(
    path: Path, complaint: str, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file whose names are wanted; None stands for the others.

    Raises:
      UserError: no .npz file, or a damaged one; says `complaint`.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip file of arrays, as np.savez writes them")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] if wanted(name) else None for name in file.files}
    except READ_ERRORS as error:
        reason = " ".join(f"{error}".split())[:160] or type(error).__name__
        reason = "it holds Python objects" if "allow_pickle" in reason else reason
        raise UserError(f"{complaint}: {reason}") from error


def _images(path: Path, key: str, images: np.ndarray, size: int | None, channels: int):
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise UserError(
            f"{key} in {path} is {images.dtype} {list(images.shape)}: "
            "expected uint8 [N, H, W] or [N, H, W, 1, 3 or 4]"
        )
    if not len(images):
        raise UserError(f"{key} in {path} is empty")
    height, width = images.shape[1:3]
    if images.shape[1:] == (size or height, size or width, channels):
        return images
    if images.shape[-1] == 1:
        images = images[..., 0]
    return np.stack([prepare(Image.fromarray(image), size, channels) for image in images])


def _labels(path: Path, key: str, stored: dict, count: int) -> np.ndarray:
    if key not in stored:
        raise UserError(f"no {key} in {path}: set data.labels=False and data.classes=None")
    labels = stored[key]
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UserError(
            f"{key} in {path} is {labels.dtype} {list(labels.shape)}: "
            f"expected {count} whole numbers from 0 on"
        )
    return labels.astype(np.int32)
