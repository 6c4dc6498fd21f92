"""Which data these are: hashes of contents, and of files that were hashed before.

Names and sizes are never enough. A hash of a set is of its examples, so that a folder, an archive
and an array of the same images are the same data. It is kept, in `identities/` of the cache folder
($GENFIELD_CACHE or ~/.cache/genfield), under what the file system says of every file: its full
path, size, inode, and the nanoseconds of its last write and last change. Files of which all of that
is as it was are trusted to hold what they held, and are not read again. What was changed in the
last seconds is never kept, as a clock might not tell two writes apart.
"""

import hashlib
import itertools
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from genfield.data.pipeline import Examples, short_hash
from genfield.data.pixels import over_chunks
from genfield.errors import UserError
from genfield.features import weights
from genfield.reading import json_file

SETTLED_NS = 3_000_000_000  # since a file's last change, before its hash is kept
WATCHED = 1000  # files, at most
_watched: dict[Path, tuple[int, int, int]] = {}  # inode, size, last write
OLD_SUFFIXES = (".jpg", ".jpeg", ".png")
OLD_BYTES = 1 << 20  # of each end of an archive


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, as sixteen hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def files_hash(files: Mapping[str, Path]) -> str:
    """A hash of the names and the contents of files, {name: path}, kept as the module says.

    Raises:
      OSError: a file cannot be read.
    """
    names = sorted(files)
    paths = [files[name] for name in names]
    make = lambda: short_hash([(name, file_hash(files[name])) for name in names])
    return remembered(("files", names), paths, make)


def examples_hash(examples: Examples, what: str, log: Callable[[str], None]) -> str:
    """A hash of all examples in their order: their shape, pixels and labels."""

    def one(rows: np.ndarray, batch: dict) -> bytes:
        digest = hashlib.sha256()
        for key in sorted(batch):
            digest.update(f"{key} {batch[key].dtype} {batch[key].shape}".encode())
            digest.update(np.ascontiguousarray(batch[key]))
        return digest.digest()

    parts = over_chunks(examples, one, f"checking {what}", log)
    return short_hash(examples.size, hashlib.sha256(b"".join(parts)).hexdigest())


def remembered(what: tuple, files: Iterable[Path], make: Callable):
    """make(), of JSON types, or what it gave when the files last were as they are.

    Args:
      what: whatever else it depends on.
      files: all that it is made of.
    Raises:
      OSError: a file is not there.
    """
    stats = [(str(path.absolute()), path.stat()) for path in files]
    marks = [(p, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for p, s in stats]
    kept = weights.cache() / "identities" / f"{short_hash(what, marks)}.json"
    try:
        return json_file(kept)["value"]
    except (OSError, ValueError, KeyError, TypeError):
        value = make()
    newest = max((max(s.st_mtime_ns, s.st_ctime_ns) for _, s in stats), default=0)
    if newest < time.time_ns() - SETTLED_NS:
        _keep(kept, {"value": value})
    return value


def watch(files: Iterable[Path]) -> None:
    """Notes how the files are that will be read while a run goes on, the first WATCHED of them."""
    for path in itertools.islice(files, WATCHED):
        known = path.stat()
        _watched[path.absolute()] = known.st_ino, known.st_size, known.st_mtime_ns


def watch_none() -> None:
    """Forgets the files of another data set."""
    _watched.clear()


def check_unchanged() -> None:
    """Raises UserError where a file that is watched was written to.

    One that was moved, removed or replaced is let be: what was opened before is read on.
    """
    for path, (inode, *known) in _watched.items():
        try:
            now = path.stat()
        except OSError:
            continue
        if now.st_ino == inode and [now.st_size, now.st_mtime_ns] != known:
            raise UserError(
                f"{path} was changed since this run started: what was learned since the last "
                "checkpoint is dropped. Put the old file back; the same command goes on"
            )


def _keep(file: Path, value: dict) -> None:
    """Writes it whole or, where that cannot be, not at all: it is made anew then."""
    unfinished = file.with_name(f".{uuid.uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(value))
        unfinished.replace(file)
    except OSError:
        return


def older(place: Path, splits: Iterable[str], walk: Callable) -> str:
    """The identity of images by which runs knew their data that were begun by earlier versions.

    By names and sizes of a folder's files, and by the size and both ends of any other file.
    """
    if not place.is_dir():
        size = place.stat().st_size
        with open(place, "rb") as file:
            head = file.read(OLD_BYTES)
            file.seek(max(0, size - OLD_BYTES))
            tail = file.read(OLD_BYTES)
        return short_hash(size, hashlib.sha256(head + tail).hexdigest())
    sizes = {}
    for split in splits:
        for directory, files in walk(place / split):
            for name in files:
                if name.lower().endswith(OLD_SUFFIXES):
                    file = os.path.join(directory, name)
                    sizes[Path(file).relative_to(place).as_posix()] = os.path.getsize(file)
    return short_hash([(name, sizes[name]) for name in sorted(sizes)])
