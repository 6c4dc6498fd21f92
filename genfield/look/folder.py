"""What lies in a run's folder: its pictures by number, its curves, its card and config.

A page names no path: pictures have numbers, which a scan of three folders gives them. What a link
leads to outside the run is not there.
"""

import itertools
import threading
from pathlib import Path
from typing import Any, NamedTuple

from genfield.errors import UserError
from genfield.look.asked import plain
from genfield.machine import logbook
from genfield.reading import json_of

FOLDERS = ("samples", "figures", "studies")
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif"}
MOST = 200  # pictures that are shown: the newest
SCANNED = 20_000  # files of a folder that are looked at
LARGEST = 2**25  # bytes of a file that is served or read, but for the metrics
POINTS = 800  # of a curve; of longer ones an even choice
RECORDS = ("config", "card", "summary", "data")  # JSON files of a run


class Picture(NamedTuple):
    """A picture of the run: where it lies, below which folder, and when it was written."""

    path: Path
    folder: str
    name: str
    written: float


class Folder:
    """A workdir, read again as it changes; its methods may be called from several threads."""

    def __init__(self, workdir: Path):
        self.root = workdir.resolve()
        self._numbers: dict[Path, int] = {}
        self._pictures: dict[int, Picture] = {}
        self._lock = threading.Lock()
        self._curves: tuple[Any, dict] = (None, {})

    def inside(self, path: Path) -> Path | None:
        """Where a file of the run lies, links followed; None where that is outside, or no file."""
        try:
            real = path.resolve(strict=True)
            there = real.is_relative_to(self.root) and real.is_file()
        except (OSError, RuntimeError):  # gone meanwhile, or a circle of links
            return None
        return real if there else None

    def pictures(self) -> list[dict]:
        """The newest pictures, scanned now: {"id", "folder", "name", "written"}, newest first."""
        found = []
        for folder in FOLDERS:
            if not (self.root / folder).resolve().is_relative_to(self.root):
                continue
            for path in itertools.islice((self.root / folder).glob("**/*"), SCANNED):
                if path.suffix.lower() in TYPES and (real := self.inside(path)):
                    written = real.stat().st_mtime
                    name = str(path.relative_to(self.root / folder))
                    found.append(Picture(path, folder, name, written))
        found.sort(key=lambda picture: (-picture.written, picture.folder, picture.name))
        with self._lock:
            numbers = [self._number(picture) for picture in found[:MOST]]
        rows = zip(numbers, found, strict=False)
        return [
            {"id": number, "folder": p.folder, "name": p.name, "written": p.written}
            for number, p in rows
        ]

    def _number(self, picture: Picture) -> int:
        """A file keeps its number for as long as the server runs."""
        number = self._numbers.setdefault(picture.path, len(self._numbers))
        self._pictures[number] = picture
        return number

    def picture(self, number: int) -> tuple[bytes, str]:
        """The bytes of a picture and its type.

        Raises:
          UserError: no such number, gone, outside the run by now, or too large.
        """
        picture = self._pictures.get(number)
        real = None if picture is None else self.inside(picture.path)
        if real is None:
            raise UserError("there is no such picture in the run")
        return self._read(real), TYPES[picture.path.suffix.lower()]

    def _read(self, real: Path) -> bytes:
        with real.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{real.name} is larger than {LARGEST >> 20} MB: open it elsewhere")
        return content

    def records(self) -> dict[str, Any]:
        """The run's JSON files by name, those that are there and whole."""
        out = {}
        for name in RECORDS:
            real = self.inside(self.root / f"{name}.json")
            try:
                if real is not None:
                    out[name] = plain(json_of(self._read(real)))
            except (OSError, ValueError):  # not whole, or too large
                continue
        return out

    def newest(self) -> int | None:
        """The step of the newest finished checkpoint, by its folder's name; None: none there."""
        steps = [p.name for p in (self.root / "checkpoints").glob("*") if p.name.isdecimal()]
        return max(map(int, steps), default=None)

    def curves(self) -> tuple[str, dict]:
        """A token that changes with the file, and {figure: {split: [[step, value], …]}}."""
        real = self.inside(self.root / "metrics.jsonl")
        if real is None:
            return "", {}
        try:
            stat = real.stat()
            token = f"{stat.st_mtime_ns}-{stat.st_size}"
            known, curves = self._curves
            if token != known:
                curves = _curves(logbook.read_metrics(self.root))
                self._curves = token, curves
        except OSError:  # in the midst of being replaced
            return self._curves
        return token, curves


def _curves(rows: list[dict]) -> dict:
    out: dict[str, dict[str, list]] = {}
    for row in rows:
        step, split = row.get("step"), str(row.get("split"))
        for name, value in row.items():
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in ("step", "split") and numeric and isinstance(step, int):
                out.setdefault(str(name), {}).setdefault(split, []).append([step, value])
    return plain(
        {n: {s: _thinned(points) for s, points in splits.items()} for n, splits in out.items()}
    )


def _thinned(points: list) -> list:
    """At most about POINTS of them, the last one included."""
    every = -(-len(points) // POINTS)
    return points[::-1][::every][::-1]
