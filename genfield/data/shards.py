"""What `python -m genfield.prepare` leaves: latents or pixels in shards that are memory-mapped.

A folder with shards/00000.npy, 00001.npy, …; labels.npy, int32 [N]; prepare.json, what was asked
for; and manifest.json, what is there, which is written last. docs/imagenet.md says what they hold.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genfield.data import identity
from genfield.data.pipeline import short_hash
from genfield.errors import UserError
from genfield.reading import json_file, npy

ASKED, FINISHED, LABELS = "prepare.json", "manifest.json", "labels.npy"
SHARDS = "shards"
AGAIN = ". Prepare it again"
LATENTS, PIXELS = "latents", "pixels"  # kinds
NEEDED = ("kind", "size", "shape", "copies", "count", "class_names", "shards")


class Shards(NamedTuple):
    """The arrays of a finished folder.

    Attributes:
      manifest: as it stands in the folder. labels: int32 [N], or None without classes.
      arrays: one a shard, by memory map: float16 [n, copies, 2, H, W, C], of which copy 1 is of
        the mirrored image and the 2 are the posterior's mean and standard deviation; or, of
        pixels, uint8 [n, H, W, 3].
      starts: [S + 1], the first row of each shard, and N.
    """

    folder: Path
    manifest: dict
    labels: np.ndarray | None
    arrays: list[np.ndarray]
    starts: np.ndarray

    def read(self, rows: np.ndarray, inner: np.ndarray | None = None) -> np.ndarray:
        """What is stored of rows [n], in their order; `inner` [n] chooses among copies.

        Returns:
          [n, 2, H, W, C] of latents, [n, H, W, 3] of pixels.
        """
        inner = np.zeros(len(rows), int) if inner is None else inner
        shard = np.searchsorted(self.starts, rows, "right") - 1
        first = self.arrays[0]
        latents = self.manifest["kind"] == LATENTS
        out = np.empty((len(rows), *first.shape[1 + latents :]), first.dtype)
        for place in np.argsort(rows, kind="stable"):  # in the order of the files
            stored = self.arrays[shard[place]][rows[place] - self.starts[shard[place]]]
            out[place] = stored[inner[place]] if latents else stored
        return out


def is_prepared(place: Path) -> bool:
    """Whether `python -m genfield.prepare` wrote, or began, this folder."""
    return (place / ASKED).is_file()


def files_of(folder: Path) -> dict[str, Path]:
    """The files that are read of a finished folder, by their names below it."""
    manifest = read_manifest(folder)
    names = [f"{SHARDS}/{shard['file']}" for shard in manifest["shards"]]
    names += [LABELS] if manifest["class_names"] else []
    return {name: folder / name for name in names}


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished folder.

    Raises:
      UserError: it is not finished, or its manifest is damaged.
    """
    path = folder / FINISHED
    if not path.exists():
        raise UserError(
            f"{folder} is not finished: run the same `python -m genfield.prepare` again, which "
            "goes on where it stopped"
        )
    try:
        manifest = json_file(path)
        needed = {name: manifest[name] for name in NEEDED}
        wrong = [name for name, value in needed.items() if not _fits(name, value)]
        if wrong:
            raise ValueError(f"its {wrong[0]} is {str(needed[wrong[0]])[:80]}")
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete it and run the same `python -m "
            "genfield.prepare` again, which writes it anew"
        ) from error


def _fits(name: str, value: Any) -> bool:
    """Whether a field of a manifest may be so; the files of shards lie in their own folder."""
    whole = lambda number: type(number) is int and number >= 0
    shard = lambda one: (
        isinstance(one, dict)
        and whole(one["count"])
        and isinstance(one["hash"], str)
        and re.fullmatch(r"\w+\.npy", one["file"]) is not None
    )
    of = {"kind": (LATENTS, PIXELS).__contains__, "shape": whole, "shards": shard}
    of |= {"class_names": lambda one: isinstance(one, str)}
    if name in ("shape", "shards", "class_names"):
        return isinstance(value, list) and all(map(of[name], value))
    return of.get(name, whole)(value)


def open_shards(folder: Path) -> Shards:
    """The arrays of a finished folder, none of which is read yet.

    Raises:
      UserError: it is not finished, or a file is gone or is not what the manifest says.
    """
    manifest = read_manifest(folder)
    latents, shape = manifest["kind"] == LATENTS, tuple(manifest["shape"])
    inner = (manifest["copies"], 2, *shape) if latents else shape
    dtype, arrays, counts = np.float16 if latents else np.uint8, [], []
    for shard in manifest["shards"]:
        values = npy(folder / SHARDS / shard["file"], AGAIN)
        if values.shape != (shard["count"], *inner) or values.dtype != dtype:
            raise UserError(
                f"{folder / SHARDS / shard['file']} holds {values.dtype} {list(values.shape)}, and "
                f"the manifest says {np.dtype(dtype)} {[shard['count'], *inner]}: prepare it again"
            )
        arrays.append(values)
        counts.append(shard["count"])
    labels, count = None, len(manifest["class_names"])
    if count:
        labels = np.array(npy(folder / LABELS, AGAIN))
        whole = labels.ndim == 1 and labels.dtype.kind == "i"
        if not whole or (len(labels) and not 0 <= labels.min() <= labels.max() < count):
            raise UserError(f"{folder / LABELS} holds no labels below {count}{AGAIN}")
    if sum(counts) != manifest["count"] or (labels is not None and len(labels) != sum(counts)):
        raise UserError(
            f"{folder} holds {sum(counts):,} examples, and its manifest or its labels say "
            "otherwise: prepare it again"
        )
    return Shards(folder, manifest, labels, arrays, np.cumsum([0, *counts]))


def checked_hash(shards: Shards) -> str:
    """A hash of all that a finished folder holds.

    Raises:
      UserError: a shard has other contents than when it was written; it is named.
    """
    files = files_of(shards.folder)
    identity.watch(files.values())
    hashes = lambda: [identity.file_hash(path) for path in files.values()]
    found = identity.remembered(("shards", *files), files.values(), hashes)
    for shard, mark in zip(shards.manifest["shards"], found, strict=False):
        if shard["hash"] != mark:
            raise UserError(
                f"{shards.folder / SHARDS / shard['file']} is damaged: its hash is {mark}, and the "
                f"manifest says {shard['hash']}. Delete it and {FINISHED}, and run the same "
                "`python -m genfield.prepare` again"
            )
    return short_hash(shards.manifest["kind"], found)
