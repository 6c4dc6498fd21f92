"""Shards on disk that grow batch by batch: what a kill interrupts is at most the batch at hand.

A shard's examples are appended to 00000.part; when they are on the disk, a line of 00000.jsonl says
which images they are of. A start that finds both goes on behind the last whole line. When all are
there, the array's header is written and the file becomes 00000.npy.
"""

import contextlib
import io
import json
import os
import zlib
from pathlib import Path

import numpy as np

from genfield.machine import headroom, lock
from genfield.reading import json_of

HEADER = 128  # bytes, as NumPy pads its own


class Shard:
    """One shard, of the images first to last - 1.

    Args:
      inner: the shape of an example.
    Raises:
      UserError: another process is at work on it.
    """

    def __init__(self, folder: Path, number: int, first: int, last: int, inner, dtype):
        self.first, self.last = first, last
        self.inner, self.dtype = tuple(inner), np.dtype(dtype)
        self.whole, self.part, self.journal = (
            folder / f"{number:05}{ending}" for ending in (".npy", ".part", ".jsonl")
        )
        self.lines = read_journal(self.journal, first, last)
        if not (self.whole.exists() or self.part.exists()):
            self.lines = []
        self._files, self._held = None, []

    @property
    def count(self) -> int:
        """Examples that are there."""
        return sum(line["count"] for line in self.lines)

    @property
    def next(self) -> int:
        """The first image that is not there yet."""
        return self.lines[-1]["last"] if self.lines else self.first

    @property
    def done(self) -> bool:
        """Whether it is whole."""
        return self.whole.exists() and self.next == self.last

    def open(self) -> None:
        """Takes the shard for this process; drops what no line speaks of."""
        file = self.part.with_name(f".{self.part.stem}.lock")
        does = f"is at work on {self.part}"
        if held := lock.take(file, does, "give each process its own --process_id"):
            self._held.append(held.release)
        journal = open(self.journal, "a+b")
        self._held.append(journal.close)
        if self.whole.exists() and not self.done:  # its journal is gone or cut
            self.whole.unlink()
        self.lines = read_journal(self.journal, self.first, self.last)
        there = self.part.stat().st_size if self.part.exists() else 0
        if there < HEADER + self.count * self._row:
            self.lines = []
        self.lines = self.lines[: self.sound()]
        part = open(self.part, "r+b" if there else "w+b")
        self._held.append(part.close)
        part.truncate(HEADER + self.count * self._row)
        part.seek(0, os.SEEK_END)
        journal.truncate(sum(len(_encoded(line)) for line in self.lines))
        self._files = part, journal

    @property
    def _row(self) -> int:
        return int(np.prod(self.inner, dtype=np.int64)) * self.dtype.itemsize

    def sound(self) -> int:
        """How many lines of the journal, from the first on, are of what the file still holds."""
        file = self.whole if self.whole.exists() else self.part
        if not file.exists():
            return 0
        with file.open("rb") as stream:
            stream.seek(HEADER)
            for number, line in enumerate(self.lines):
                found = zlib.crc32(stream.read(line["count"] * self._row))
                if line.get("crc", found) != found:  # lines of earlier versions have none
                    return number
        return len(self.lines)

    def append(self, values: np.ndarray, line: dict) -> None:
        """Examples [n, *inner] of the images line["first"] to line["last"] - 1, for good."""
        headroom.check()
        part, journal = self._files
        part.write(np.ascontiguousarray(values, self.dtype).tobytes())
        part.flush()
        os.fsync(part.fileno())
        stored = np.ascontiguousarray(values, self.dtype).tobytes()
        line = line | {"count": len(values), "crc": zlib.crc32(stored)}
        line |= {"check": _check(line)}
        journal.write(_encoded(line))
        journal.flush()
        os.fsync(journal.fileno())
        self.lines.append(line)

    def close(self) -> None:
        """Lets go of the shard; where all its images are there it becomes an .npy file."""
        part, _ = self._files
        if self.next == self.last:
            part.seek(0)
            part.write(_header((self.count, *self.inner), self.dtype))
            part.flush()
            os.fsync(part.fileno())
            self.part.replace(self.whole)
        self.let_go()

    def let_go(self) -> None:
        """Closes the files, whole or not, and lets another process in."""
        while self._held:
            with contextlib.suppress(OSError):  # what counts was on the disk before
                self._held.pop()()


def read_journal(path: Path, first: int, last: int) -> list[dict]:
    """The whole lines of a journal, which follow each other from `first` on, at most to `last`."""
    lines, at = [], first
    text = path.read_bytes() if path.exists() else b""
    for row in text.split(b"\n")[:-1]:
        try:
            line = json_of(row)
            whole = all(type(line[name]) is int for name in ("first", "last", "count"))
            whole = whole and isinstance(line["mark"], str) and isinstance(line["left_out"], list)
            sealed = "crc" in line  # lines of earlier versions have neither sum
            whole = whole and line.get("check", None if sealed else _check(line)) == _check(line)
            follows = whole and line["first"] == at < line["last"] <= last and line["count"] >= 0
        except (ValueError, KeyError, TypeError):
            break
        if not follows:
            break
        lines.append(line)
        at = line["last"]
    return lines


def _check(line: dict) -> int:
    """Of all else that stands in a line of the journal."""
    return zlib.crc32(_encoded({name: line[name] for name in line if name != "check"}))


def _encoded(line: dict) -> bytes:
    return json.dumps(line, sort_keys=True).encode() + b"\n"


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The head of an .npy file of this shape, HEADER bytes long."""
    stream = io.BytesIO()
    described = np.lib.format.dtype_to_descr(dtype)
    head = {"descr": described, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, head)
    head = stream.getvalue()
    if len(head) != HEADER:
        raise AssertionError(f"NumPy writes a header of {len(head)} bytes")
    return head
