"""Finite sets of images to be measured: samples or a reference on disk, a split of the data."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genfield.data import identity, places
from genfield.data.decoding import Notes, Reading
from genfield.data.layouts import Asked
from genfield.data.pipeline import Dataset, short_hash
from genfield.errors import UserError
from genfield.registry import choose

PROBES = 256  # images read to tell one data set on disk from another


def reading_of(section: Mapping) -> Reading:
    """How samples and references are read beside the data of a config's section `data`."""
    section = section.get("real") or section
    background = section.get("background")
    return Reading() if background is None else Reading(background=background)


class ImageSet(NamedTuple):
    """Images in a fixed order.

    Attributes:
      name: what they are, for a reader. identity: a hash of the contents: what was measured
        of one identity holds for it again.
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
    if data.latents is not None:
        raise UserError(
            f"data {name!r} are latents, and image metrics compare pixels: set "
            "config.evaluate.reference to images, a folder or an .npz, or to statistics such as "
            "ADM's VIRTUAL_imagenet256_labeled.npz"
        )
    if not data.pixels:
        raise UserError(
            f"data {name!r} are not images: image metrics need pixels, or a "
            "config.evaluate.reference and --samples, folders or .npz files of images"
        )
    if split == "test" and data.heldout is None:
        raise UserError(
            f"data {name!r} hold nothing out to compare with: set config.data.heldout_fraction, or "
            "config.evaluate.reference_split='train', or a config.evaluate.reference"
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


def open_images(
    path: str,
    log: Callable[[str], None] = lambda line: None,
    reading: Reading = Reading(),
) -> ImageSet:
    """All images at a path, whatever folders or splits they lie in, in the order of their names.

    They are read as `genfield.data.images` reads its own, from folders, archives, .npz files (the
    ADM evaluator's and those of `--mode=sample` too) and Hugging Face's columns.

    Args:
      log: told what is not read, and what is odd about the rest.
    Raises:
      UserError: nothing there, no images, other shapes, NaN, floats outside [0, 1].
    """
    place, notes = Path(path).expanduser(), Notes()
    if not place.exists():
        raise UserError(
            f"{path} does not exist: expected a folder or an archive of images or an .npz file"
        )
    asked = Asked(heldout_split=None, layout="flat")
    try:
        content = short_hash(identity.files_hash(places.on_disk(place)), reading)
    except OSError as error:
        raise UserError(f"cannot read the image {error.filename}: {error.strerror}") from error
    found = places.find(place, asked, reading, float("inf"), notes)
    examples = found.known[asked.split]()
    for line in found.left_out:
        log(line)

    def read(rows: np.ndarray) -> np.ndarray:
        out = examples.gather(rows)["x1"]
        for line in notes.news():
            log(line)
        return out

    return ImageSet(str(path), content, examples.size, read(np.arange(1)).shape[1:], read)
