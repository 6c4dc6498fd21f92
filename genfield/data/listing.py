"""The image files of a folder or a tar archive: what they are called and how to read one."""

import hashlib
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from genfield.data.pipeline import short_hash
from genfield.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png")
IDENTITY_BYTES = 1 << 20  # of each end of an archive
ARCHIVE_ERRORS = (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error)


class Listing(NamedTuple):
    """Image files by their names relative to the data, `split/class/file` or `split/file`.

    Attributes:
      names: sorted.
      folders: every `split` and `split/class`, with or without images in it.
      read: name -> the file's bytes; safe to call from many threads.
      identity: a hash that other files under the same path would not have.
    """

    names: list[str]
    folders: set[str]
    read: Callable[[str], bytes]
    identity: str


def list_folder(path: Path, splits: Iterable[str]) -> Listing:
    """The images under `path/split`, links followed, hidden files left out."""
    sizes, folders = {}, set()
    for split in splits:
        for directory, files in walk(path / split):
            relative = Path(directory).relative_to(path).as_posix()
            folders.add(relative)
            for name in files:
                sizes[f"{relative}/{name}"] = os.path.getsize(os.path.join(directory, name))
    names = sorted(sizes)
    identity = short_hash([(name, sizes[name]) for name in names])
    return Listing(names, _shallow(folders), lambda name: (path / name).read_bytes(), identity)


def walk(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `path` on, with the names of its images; links followed, each folder once.

    Hidden files and folders are left out.
    """
    seen = set()
    for directory, inner, files in os.walk(path, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link back to where we have been
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield directory, list(filter(_is_image, files))


def list_archive(path: Path, splits: Iterable[str], limit: float) -> Listing:
    """The images of a tar archive, under whatever folder it puts its splits in.

    A plain archive is read in place. A compressed one cannot be: its files are kept, encoded, in
    memory.
    Raises:
      UserError: not an archive or a damaged one; a compressed one with over `limit` bytes of files.
    """
    try:
        with tarfile.open(path, "r:*") as tar:
            compressed = not isinstance(tar.fileobj, io.BufferedReader)
            members, folders = {}, set()
            for name, member in _members(tar, set(splits)):
                if member.isdir():
                    folders.add(name)
                elif compressed:
                    limit -= member.size
                    if limit < 0:
                        raise UserError(
                            f"the images in {path} exceed data.memory_limit_gb, and a compressed "
                            "archive cannot be read in place: extract it and pass the folder"
                        )
                    members[name] = tar.extractfile(member).read()
                else:
                    members[name] = (member.offset_data, member.size)
    except ARCHIVE_ERRORS as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise UserError(
            f"{path} is damaged, or neither a folder nor a tar archive nor an .npz file: {reason}"
        ) from error

    def read_in_place(name: str) -> bytes:
        offset, size = members[name]
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    read = members.__getitem__ if compressed else read_in_place
    return Listing(sorted(members), _shallow(folders), read, file_identity(path))


def file_identity(path: Path) -> str:
    """A hash of a file's size and of both its ends."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(IDENTITY_BYTES)
        file.seek(max(0, size - IDENTITY_BYTES))
        tail = file.read(IDENTITY_BYTES)
    return short_hash(size, hashlib.sha256(head + tail).hexdigest())


def _members(tar: tarfile.TarFile, splits: set[str]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for member in tar:
        name = _below_split(member.name, splits)
        if name and (member.isdir() or (member.isreg() and _is_image(name))):
            yield name, member
    # tarfile takes a cut or a broken header for the end; the true end is a block of zeros.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends too early")


def _is_image(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(SUFFIXES) and not base.startswith(".")


def _below_split(name: str, splits: set[str]) -> str | None:
    parts = PurePosixPath(name).parts
    for depth, part in enumerate(parts):
        if part in splits:
            below = parts[depth:]
            return None if any(inner.startswith(".") for inner in below) else "/".join(below)
    return None


def _shallow(folders: set[str]) -> set[str]:
    return {name for name in folders if name.count("/") <= 1}
