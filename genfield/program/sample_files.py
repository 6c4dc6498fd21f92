"""Samples on disk: written shard by shard, so that a kill costs one; then one file, or PNGs.

`samples/NAME.json` says what was drawn; `samples/NAME_shards/` holds finished shards until all are
there: 000003.npz is shard 3, and 000003_000003200.npz the part of it that one of several processes
drew, from sample 3,200 on; its `index` says which. Then `samples/NAME.npz` has them in the ADM
evaluator's format: `arr_0` uint8 [N, H, W, C] (float32 for what are no images) and `arr_1`, the
labels, with `class_names`, where there are classes; and `nfe`. PNGs have their number and class for
names. Pairs become a folder of .npy files instead, which can be read by memory map.
"""

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from genfield.data.npz import read_npz
from genfield.data.pairs import FINISHED
from genfield.errors import UserError
from genfield.machine import logbook
from genfield.machine.tables import differences
from genfield.reading import json_file, reason

NAMED = re.compile(r"(\d{6,})(_\d{9,})?\.npz")  # the file of a shard, or of a part of one


class Shards:
    """The samples of one name: every process writes what it drew, process 0 all else.

    Args:
      folder: `samples/` of a workdir. name: of the samples.
      settings: JSON types; all that decides the samples, with "num" and "shard_size".
      formats: of `defaults.FORMATS`, or "npy": a folder NAME with a file an array.
      class_names: of the labels; empty without classes.
    Raises:
      UserError: samples of this name were drawn with other settings.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: dict,
        formats: tuple[str, ...],
        class_names: tuple[str, ...] = (),
    ):
        self.path, self.shards = folder / f"{name}.npz", folder / f"{name}_shards"
        self.images, self.manifest = folder / name, folder / f"{name}.json"
        self.settings, self.formats, self.class_names = settings, formats, tuple(class_names)
        self.num, self.size = settings["num"], settings["shard_size"]
        for path in (self.path, self.manifest):
            if path.is_dir():
                raise UserError(f"{path} is a folder: choose another --config.sample.name")
        self.sums: dict[str, str] = {}
        self.done = self._done()

    def _done(self) -> list[str]:
        """The formats that are finished."""
        if not self.manifest.exists():
            return []
        try:
            old = json_file(self.manifest)
            if not isinstance(old["settings"], dict):
                raise TypeError("settings are a section")
            found = differences(old["settings"], self.settings, missing=None, items=False)
            changed, done = sorted(name for name, *_ in found), list(old["finished"])
            self.sums = dict(old.get("sums", {}))
            if not all(isinstance(name, str) for name in done):
                raise TypeError("formats are names")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.manifest} is damaged: delete it and its samples") from error
        if changed:
            raise UserError(
                f"{self.manifest} tells of samples that differ in {', '.join(changed[:5])}: choose "
                "another --config.sample.name, or delete these"
            )
        there = {
            "npz": self.path.exists(),
            "png": len(self._pictures()) == self.num,
            "npy": (self.images / FINISHED).exists(),
        }
        return [name for name in done if there.get(name) and self._is_sound(name)]

    def _is_sound(self, name: str) -> bool:
        """Whether a format's files are as they were written; says so where they are not."""
        if self.sums.get(name, (found := self._sum(name))) == found:  # earlier versions: no sums
            return True
        place = self.path if name == "npz" else self.images
        logbook.say(f"{place} is damaged, or was changed since it was drawn: it is made anew")
        return False

    def _sum(self, name: str) -> str:
        """The SHA-256 of all files of a format."""
        pattern = "*.png" if name == "png" else "*.npy"
        total = hashlib.sha256()
        for path in [self.path] if name == "npz" else sorted(self.images.glob(pattern)):
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def _pictures(self) -> list[Path]:
        return list(self.images.glob("*.png"))

    def finished(self) -> bool:
        """Whether every format that is asked for is there; PNGs are made of an .npz that is."""
        if "npz" in self.done and "png" in self.formats and "png" not in self.done:
            self._save_pictures(0, read_npz(self.path, f"{self.path} is damaged: delete it"))
            self.done.append("png")
            self.sums["png"] = self._sum("png")
            self._tell()
        done = set(self.formats) <= set(self.done)
        if done:  # what made them may have been ended before it removed their parts
            shutil.rmtree(self.shards, ignore_errors=True)
        return done

    def begin(self) -> None:
        """Makes the folders and writes down what will be drawn.

        Raises:
          UserError: a folder cannot be made.
        """
        try:
            self.shards.parent.mkdir(exist_ok=True)
            self.shards.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {error.filename}: {error.strerror}") from error
        self._tell()

    def _tell(self) -> None:
        told = {"settings": self.settings, "finished": self.done}
        logbook.write_json(self.manifest, told | {"sums": self.sums})

    def missing(self, check: bool = True) -> np.ndarray:
        """The sample indices that are in no file; check: damaged ones are deleted: drawn again."""
        there = np.zeros(self.num, bool)
        for path, number in self._written():
            if check and not self._whole(path, number):
                path.unlink()
            elif path.stem.isdigit():
                there[slice(*self.bounds(number))] = True
            else:
                there[read_npz(path, f"{path} is damaged: delete it")["index"]] = True
        return np.flatnonzero(~there)

    def _whole(self, path: Path, number: int) -> bool:
        """Whether a shard can be read, every array by its checksum, and holds its own samples."""
        try:
            arrays = read_npz(path, "damaged")
        except UserError:
            return False
        first, last = self.bounds(number)
        index = arrays.pop("index", np.arange(first, last)) if not path.stem.isdigit() else None
        index = np.arange(first, last) if index is None else index
        rows = {len(values) for values in arrays.values() if values.ndim}
        inside = index.ndim == 1 and index.dtype.kind in "iu" and index.size
        return bool(
            inside
            and first <= index.min() <= index.max() < last
            and rows == {len(np.unique(index))}
            and all(values.ndim for values in arrays.values())
        )

    def _written(self) -> list[tuple[Path, int]]:
        """The files of shards and of parts, and of which shard each is."""
        found = [(path, NAMED.fullmatch(path.name)) for path in sorted(self.shards.glob("*.npz"))]
        return [(path, int(name[1])) for path, name in found if name]

    def bounds(self, number: int) -> tuple[int, int]:
        """First and one past the last sample index of a shard."""
        return number * self.size, min((number + 1) * self.size, self.num)

    def write(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """A shard, or a part of one, which has the numbers of its samples as "index".

        All of the file or nothing.
        """
        name = f"{number:06}"
        if "index" in arrays:
            name += f"_{arrays['index'][0]:09}"
        unfinished = self.shards / f"unfinished_{name}.npz"
        np.savez(unfinished, **arrays)
        os.replace(unfinished, self.shards / f"{name}.npz")

    def finish(self) -> list[Path]:
        """Joins the shards into the files asked for, and removes them.

        Raises:
          UserError: they do not belong together.
        """
        try:
            self._finish()
        except UserError:
            raise
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"the files in {self.shards} do not belong together ({reason(error)}): delete "
                "them, and they are drawn again"
            ) from error
        self.done = sorted({*self.done, *self.formats})
        self.sums |= {name: self._sum(name) for name in self.formats}
        self._tell()
        shutil.rmtree(self.shards)
        return self.files()

    def _finish(self) -> None:
        """Joins the shards into the files asked for."""
        if "npz" in self.formats:
            unfinished = self.path.with_suffix(".unfinished")
            with zipfile.ZipFile(unfinished, "w", allowZip64=True) as archive:
                for name in self._load(0):
                    self._join(archive, name)
                if self.class_names:
                    with archive.open("class_names.npy", "w") as file:
                        npy.write_array(file, np.array(self.class_names), allow_pickle=False)
            os.replace(unfinished, self.path)
        if "npy" in self.formats:
            self.images.mkdir(exist_ok=True)
            for name in self._load(0):
                with (self.images / f"{name}.npy").open("wb") as file:
                    self._join_into(file, name)
            nfe = float(np.mean(np.load(self.images / "nfe.npy")))
            found = {"num": self.num, "nfe": nfe, "settings": self.settings}
            logbook.write_json(self.images / FINISHED, found)
        if "png" in self.formats:
            for number in range(-(-self.num // self.size)):
                self._save_pictures(self.bounds(number)[0], self._load(number))

    def _save_pictures(self, first: int, arrays) -> None:
        """`first`.png or `first`_class.png, and so on; those of an earlier try are written over."""
        self.images.mkdir(exist_ok=True)
        names = [re.sub(r"[^\w.-]+", "-", name) for name in self.class_names]
        ends = [f"_{names[label]}" for label in arrays["arr_1"]] if names else None
        for place, image in enumerate(arrays["arr_0"]):
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            end = ends[place] if ends else ""
            picture.save(self.images / f"{first + place:06}{end}.png")

    def files(self) -> list[Path]:
        """Where the samples are."""
        there = {"npz": self.path, "png": self.images, "npy": self.images}
        return [there[name] for name in self.formats]

    def _load(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a shard, put together where several processes drew it."""
        paths = [path for path, of in self._written() if of == number]
        whole = [path for path in paths if path.stem.isdigit()]
        parts = []
        for path in whole or paths:
            parts.append(read_npz(path, f"{path} is damaged: delete it"))
        if whole:
            return parts[0]
        order = np.argsort(np.concatenate([part.pop("index") for part in parts]))
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

    def _parts(self, name: str) -> Iterator[np.ndarray]:
        for number in range(-(-self.num // self.size)):
            yield np.ascontiguousarray(self._load(number)[name])

    def _join(self, archive: zipfile.ZipFile, name: str) -> None:
        """One array of all shards into the archive, a shard at a time: it may exceed the memory."""
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            self._join_into(file, name)

    def _join_into(self, file, name: str) -> None:
        for number, part in enumerate(self._parts(name)):
            if number == 0:
                header = npy.header_data_from_array_1_0(part)
                npy.write_array_header_1_0(file, header | {"shape": (self.num, *part.shape[1:])})
            file.write(part.data)
