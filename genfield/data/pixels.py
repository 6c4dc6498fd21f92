"""Pixels: scaling to [-1, 1] and back, decoding, cropping, and decoding whole sets into memory."""

import io
import os
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from genfield.data.pipeline import Examples, from_arrays
from genfield.errors import UserError
from genfield.registry import choose

MODES = {1: "L", 3: "RGB"}
CHUNK = 256  # images a thread decodes between two reports of progress
# Everything that Pillow was seen to raise on damaged files.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


def to_unit(x):
    """Examples as networks see them: uint8 0..255 becomes float32 in [-1, 1] by x / 127.5 - 1.

    Anything else stays as it is. NumPy or JAX arrays.
    """
    return x.astype(np.float32) / 127.5 - 1.0 if x.dtype == np.uint8 else x


# How published code turns [-1, 1] into levels; their files differ by one level in places.
ROUNDINGS = {
    "nearest": lambda x, xp: xp.round((x + 1.0) * 127.5),
    "truncate": lambda x, xp: xp.floor((x + 1.0) * 127.5),  # ADM's and its descendants' scripts
    "shift": lambda x, xp: xp.floor(x * 127.5 + 128.0),  # EDM's
}


def to_uint8(x, rounding: str = "nearest"):
    """Floats -> uint8 by round((x + 1) 127.5), clipped to 0..255; undoes `to_unit` exactly.

    "nearest" rounds halves to the even neighbour: 0.0 gives 128 (127.5), as in NumPy.
    Raises:
      UserError: `rounding` is none of ROUNDINGS.
    """
    xp = jnp if isinstance(x, jax.Array) else np
    levels = choose("rounding", rounding, ROUNDINGS)(x, xp)
    return xp.clip(levels, 0, 255).astype(np.uint8)


def prepare(image: Image.Image, size: int | None, channels: int) -> np.ndarray:
    """A PIL image -> uint8 [H, W, channels].

    Transparency is dropped, colours become luma where `channels` is 1. With a size, the centre
    square is resized to [size, size] by an antialiased bicubic filter.
    Raises:
      ValueError: more than 8 bits a channel.
    """
    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel: convert it to 8")
    if image.mode == "P":
        image = image.convert("RGBA")
    if image.mode != MODES[channels]:
        image = image.convert(MODES[channels])
    if size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # Not resize(box=...): its filter would reach beyond the box, into what is cropped.
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, channels)


def decode(data: bytes, size: int | None, channels: int, name: str) -> np.ndarray:
    """The bytes of an image file -> uint8 [H, W, channels]; see `prepare`.

    Raises:
      UserError: not an image, or a damaged one; says `name`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return prepare(image, size, channels)
    except DECODE_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image"
        raise UserError(f"cannot read the image {name}: {reason}") from error


def check_pixels(size: int | None, channels: int) -> None:
    """Raises UserError for a size or a number of channels that no image source takes."""
    if channels not in MODES:
        raise UserError(f"data.channels={channels!r} must be 1 (grayscale) or 3 (RGB)")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UserError(f"data.size={size!r} must be a positive whole number or None")


def on_demand(count: int, read: Callable[[int], tuple[np.ndarray, int | None, str]]) -> Examples:
    """Examples read one by one: `read(row)` gives the image, its label or None, and its name.

    Raises:
      UserError: in `gather`, where an image's shape is not that of the first.
    """
    first, _, first_name = read(0)

    def checked(row: int):
        image, label, name = read(row)
        if image.shape != first.shape:
            raise UserError(
                f"images of several sizes: {first_name} is {_shape(first)}, "
                f"{name} is {_shape(image)}: set data.size"
            )
        return image, label

    def gather(rows: np.ndarray) -> dict:
        images, labels = zip(*(checked(int(row)) for row in rows), strict=True)
        batch = {"x1": np.stack(images)}
        if labels[0] is not None:
            batch["label"] = np.array(labels, np.int32)
        return batch

    return Examples(count, gather)


def _shape(image: np.ndarray) -> str:
    return "x".join(map(str, image.shape))


def nbytes(examples: Examples) -> int:
    """What the images of a set take in memory, judged by the first."""
    return examples.size * examples.gather(np.arange(1))["x1"].nbytes


def load(examples: Examples, what: str, log: Callable[[str], None]) -> Examples:
    """Decodes a whole set into memory, on all cores.

    Args:
      what: the set's name in progress lines, which come after 2, 4, 8, ... seconds.
    """
    if examples.arrays is not None:
        return examples
    one = examples.gather(np.arange(1))
    arrays = {k: np.empty((examples.size, *v.shape[1:]), v.dtype) for k, v in one.items()}

    def fill(rows: np.ndarray) -> int:
        for name, values in examples.gather(rows).items():
            arrays[name][rows] = values
        return int(rows[-1]) + 1

    chunks = np.split(np.arange(examples.size), range(CHUNK, examples.size, CHUNK))
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    start, report_after = time.monotonic(), 2.0
    try:
        for done in pool.map(fill, chunks):
            if time.monotonic() - start > report_after:
                log(f"decoding {what}: {done:,} of {examples.size:,} images")
                report_after *= 2
    finally:
        pool.shutdown(cancel_futures=True)
    return from_arrays(arrays)
