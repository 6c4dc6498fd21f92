"""Pixels: scaling to [-1, 1] and back, and decoding whole sets into memory."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genfield.data.pipeline import Examples, from_arrays
from genfield.errors import UserError
from genfield.registry import choose

CHUNK = 256  # images a thread decodes between two reports of progress


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


def on_white(levels: jax.Array) -> jax.Array:
    """uint8 [..., 4], of colours and opacity -> uint8 [..., 3], as they look on white."""
    opacity = levels[..., 3:].astype(jnp.float32) / 255.0
    laid = levels[..., :3].astype(jnp.float32) * opacity + 255.0 * (1.0 - opacity)
    return jnp.round(laid).astype(jnp.uint8)


def on_demand(
    count: int,
    read: Callable[[int], tuple[np.ndarray, int | None, str]],
    shape: tuple[int, ...] | None = None,
) -> Examples:
    """Examples read one by one: `read(row)` gives the image, its label or None, and its name.

    Args:
      shape: of all images; None: that of the first, which is read now.
    Raises:
      UserError: in `gather`, where an image's shape is another.
    """
    first_name = ""
    if shape is None:
        first, _, first_name = read(0)
        shape = first.shape

    def checked(row: int):
        image, label, name = read(row)
        if image.shape != shape:
            raise UserError(
                f"images of several sizes: {first_name} is {_shape(shape)}, "
                f"{name} is {_shape(image.shape)}: set data.size, or resize samples and references "
                "first"
            )
        return image, label

    def gather(rows: np.ndarray) -> dict:
        images, labels = zip(*(checked(int(row)) for row in rows), strict=True)
        batch = {"x1": np.stack(images)}
        if labels[0] is not None:
            batch["label"] = np.array(labels, np.int32)
        return batch

    return Examples(count, gather)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def nbytes(examples: Examples) -> int:
    """What the images of a set take in memory, judged by the first."""
    return examples.size and examples.size * examples.gather(np.arange(1))["x1"].nbytes


def load(examples: Examples, what: str, log: Callable[[str], None]) -> Examples:
    """Decodes a whole set into memory, on all cores.

    Args:
      what: the set's name in progress lines, which come after 2, 4, 8, ... seconds.
    """
    if examples.arrays is not None:
        return examples
    one = examples.gather(np.arange(1))
    arrays = {k: np.empty((examples.size, *v.shape[1:]), v.dtype) for k, v in one.items()}

    def fill(rows: np.ndarray, batch: dict) -> None:
        for name, values in batch.items():
            arrays[name][rows] = values

    over_chunks(examples, fill, f"decoding {what}", log)
    return from_arrays(arrays)


def over_chunks(
    examples: Examples, use: Callable[[np.ndarray, dict], Any], doing: str, log: Callable
) -> list:
    """`use(rows, batch)` of each chunk of a set, on all cores; what it gave, in order."""
    chunks = np.split(np.arange(examples.size), range(CHUNK, examples.size, CHUNK))
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    start, report_after, out = time.monotonic(), 2.0, []
    try:
        for rows, value in zip(
            chunks, pool.map(lambda rows: use(rows, examples.gather(rows)), chunks), strict=True
        ):
            out.append(value)
            if time.monotonic() - start > report_after:
                log(f"{doing}: {int(rows[-1]) + 1:,} of {examples.size:,} images")
                report_after *= 2
    finally:
        pool.shutdown(cancel_futures=True)
    return out
