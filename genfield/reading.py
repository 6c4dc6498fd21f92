"""Files that may be damaged, or of a stranger who means harm: what they may raise, and take.

What a reader makes of a file is bounded by the file's size (`most`), whatever the file says of
itself, and whatever a library raises of it is DAMAGE, which becomes one line.
"""

import contextlib
import csv
import json
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genfield.errors import UserError

# In memory a file may become so many bytes, and so many times its own size.
ROOM, TIMES = 1 << 28, 100
# Everything that the standard library, NumPy and Pillow were seen to raise of strange files.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # RecursionError and NotImplementedError too
    SyntaxError,
    TypeError,
    ValueError,
    csv.Error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def most(size: int) -> int:
    """The bytes that a file of this size may become in memory."""
    return ROOM + TIMES * size


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """This process may take so many bytes more meanwhile; beyond, a library meets MemoryError.

    For libraries that reserve whatever a damaged file says. Where the system does not tell what a
    process has, nothing is limited.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [pages * resource.getpagesize() + size, soft, hard]
    most = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def reason(error: Exception) -> str:
    """What an exception says, short and in a line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def json_of(text: str | bytes) -> Any:
    """What a text of JSON holds.

    Raises:
      ValueError: it is none, or a name stands twice in a section, or sections lie too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("its sections lie too deep in one another") from error


def json_file(path: Path) -> Any:
    """What a file of JSON holds; raises OSError, and ValueError as `json_of` does."""
    return json_of(path.read_bytes())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} stands twice in a section")
    return found


def npy(path: Path, mend: str = ""):
    """The rows of an .npy file, [N, …], by memory map; no Python objects.

    Raises:
      UserError: no such file, or a damaged one; `mend` ends the line.
    """
    import numpy as np  # not above: commands that need the standard library alone read JSON

    try:
        with path.open("rb") as stream, np.errstate(all="ignore"):
            shape, dtype = _header(stream, path.stat().st_size)
        if not shape:
            raise ValueError("it holds one number and no rows")
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        raise UserError(f"cannot read {path}: {reason(error)}{mend}") from error


def _header(stream, size: int) -> tuple[tuple[int, ...], Any]:
    """The shape and type that an .npy file says, where its bytes hold so much.

    NumPy's memory map divides by the width of an element, and ends the process where that is 0.
    """
    from numpy.lib import format

    if stream.peek(4)[:4] == b"PK\x03\x04":
        raise ValueError("it is an .npz file")
    version = format.read_magic(stream)
    known = {(1, 0): format.read_array_header_1_0, (2, 0): format.read_array_header_2_0}
    if version not in known:
        raise ValueError(f"its version is {version}")
    shape, _, dtype = known[version](stream)
    whole = all(type(side) is int and side >= 0 for side in shape) and dtype.itemsize
    if not whole or stream.tell() + math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"it cannot hold {dtype} {str(shape)[:80]}")
    return shape, dtype


def check_archive(archive: zipfile.ZipFile, size: int, names: set[str] | None = None) -> None:
    """Raises ValueError where members (these, or all) would take more memory than `most`."""
    members = [e for e in archive.infolist() if names is None or e.filename in names]
    if sum(entry.file_size for entry in members) > most(size):
        raise ValueError(f"{size:,} bytes would become more than {most(size):,}: a bomb")
