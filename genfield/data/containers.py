"""The files of a folder, of a tar or zip archive, or of a folder of archives, by their names."""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from genfield.data.decoding import is_picture, suffix
from genfield.errors import UserError
from genfield.reading import DAMAGE, most, reason

ARCHIVE_ERRORS = (*DAMAGE, tarfile.TarError)
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz", ".tbz2", ".zip")
BESIDE = (".csv", ".json", ".txt", ".cls")  # what may say classes
SPLITS = ("train", "test", "val", "valid", "validation")
ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # with files in it, and without
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


class Files(NamedTuple):
    """All files of a place that are not hidden.

    Attributes:
      names: relative to the place, sorted. folders: with or without files in them.
      read: name -> the file's bytes; safe to call from many threads. It raises OSError.
    """

    names: list[str]
    folders: set[str]
    read: Callable[[str], bytes]


def sources(place: Path) -> dict[str, Path]:
    """The files on disk that hold what can be read of a place, by their names below it.

    A folder's pictures and what may say their classes; where it has no pictures, its archives.

    Raises:
      OSError: a link that leads nowhere.
    """
    if not place.is_dir():
        return {place.name: place}
    names = [name for _, files in files_below(place) for name in files]
    if not any(map(is_picture, names)) and any(map(is_archive, names)):
        return {name: place / name for name in names if is_archive(name)}
    return {n: place / n for n in names if is_picture(n) or suffix(n) in BESIDE}


def open_files(place: Path, limit: float) -> Files:
    """The files of a place.

    A plain tar and a zip are read in place. A compressed tar cannot be: its pictures are kept,
    encoded, in memory.
    Raises:
      UserError: neither a folder nor an archive, or a damaged one; a compressed tar with more than
        `limit` bytes of pictures; a file that two archives of a folder hold.
    """
    if not place.is_dir():
        return _archive(place, limit)
    names, folders = [], set()
    for folder, files in files_below(place):
        folders.add(folder)
        names += files
    archives = [name for name in sorted(names) if is_archive(name)]
    if archives and not any(map(is_picture, names)):
        return _joined(place, archives, [n for n in names if n not in archives], limit)
    return Files(sorted(names), folders - {""}, lambda name: (place / name).read_bytes())


def is_archive(name: str) -> bool:
    """Whether a file is an archive by its name."""
    return name.lower().endswith(ARCHIVES)


def split_in(name: str) -> str | None:
    """The split that a file's name says, as "train" of cifar10-train-0001.tar."""
    base = name.rsplit("/", 1)[-1].lower()
    found = re.search(rf"(?<![a-z0-9])({'|'.join(SPLITS)})(?![a-z])", base)
    return found[1] if found else None


def walk(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `path` on, with the names of its files; links followed, each folder once.

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
        yield directory, [name for name in files if not name.startswith(".")]


def files_below(place: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder below a place, and the files in it, by their names relative to the place."""
    for directory, files in walk(place):
        relative = Path(directory).relative_to(place).as_posix()
        folder = "" if relative == "." else relative
        yield folder, [f"{folder}/{name}" if folder else name for name in files]


def _archive(path: Path, limit: float) -> Files:
    try:
        with open(path, "rb") as file:
            start = file.read(6)
        return _zip(path) if start[:4] in ZIP else _tar(path, limit, start)
    except UserError:
        raise
    except ARCHIVE_ERRORS as error:
        raise UserError(
            f"{path} is damaged, or neither a folder nor a tar or zip archive nor an .npz file: "
            f"{reason(error).rstrip(':')}"
        ) from error


class _Bounded:
    """A stream of which no more is read, or gone over, than a file of its size may hold."""

    def __init__(self, stream, end: int):
        self.stream, self.end = stream, end
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if size < 0 or self.tell() + size > self.end:
            raise tarfile.ReadError(f"it would become more than {self.end:,} bytes: a bomb")
        return self.stream.read(size)


def _tar(path: Path, limit: float, start: bytes) -> Files:
    members, folders = {}, set()
    opener = next((o for begin, o in COMPRESSED.items() if start.startswith(begin)), None)
    compressed, size = opener is not None, path.stat().st_size
    end = most(size) if compressed else size + tarfile.RECORDSIZE
    with (
        (opener or open)(path, "rb") as stream,
        tarfile.open(fileobj=_Bounded(stream, end), mode="r:") as tar,
    ):
        for member in tar:
            if member.size < 0 or member.offset_data + member.size > end:
                raise tarfile.ReadError("it ends too early, or it would become too large")
            name = _plain(member.name)
            if not name:
                continue
            if member.isdir():
                folders.add(name)
            elif not member.isreg() or member.issparse():
                members[f"{name} (a link)"] = None
            elif not compressed:
                members[name] = (member.offset_data, member.size)
            elif is_picture(name) or suffix(name) in BESIDE:
                limit -= member.size
                if limit < 0:
                    raise UserError(
                        f"the images in {path} exceed data.memory_limit_gb, and a compressed "
                        "archive cannot be read in place: extract it and pass the folder"
                    )
                members[name] = tar.extractfile(member).read()
            else:
                members[name] = b""
        # tarfile takes a cut or a broken header for the end; the true end is a block of zeros.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends too early")

    def read_in_place(name: str) -> bytes:
        offset, size = members[name]
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    read = members.__getitem__ if compressed else read_in_place
    return Files(sorted(members), folders, read)


def _zip(path: Path) -> Files:
    archive = zipfile.ZipFile(path)  # stays open: its reads are safe from many threads
    folders, members = set(), {}
    for entry in archive.infolist():
        name = _plain(entry.filename)
        if entry.is_dir():
            folders.add(name)
        elif name:
            members[name] = entry
    if any(entry.flag_bits & 1 for entry in members.values()):
        raise RuntimeError("it is encrypted")

    def read(name: str) -> bytes:
        entry = members[name]
        try:
            if entry.file_size > most(entry.compress_size):
                raise ValueError(f"it would become {entry.file_size:,} bytes: a bomb")
            return archive.read(entry)
        except DAMAGE as error:
            raise OSError(0, reason(error)) from error

    return Files(sorted(members), folders - {""}, read)


def _plain(name: str) -> str:
    """A member's name without "." and "/" before it; "" for what is hidden."""
    parts = [part for part in PurePosixPath(name).parts if part != "/"]
    return "" if any(part.startswith(".") for part in parts) else "/".join(parts)


def _joined(place: Path, archives: list[str], others: list[str], limit: float) -> Files:
    """The files of several archives, as if all were extracted into one folder.

    An archive whose name says a split is extracted into a folder of that name, and one in a folder
    into that folder.
    """
    names, folders, home = list(others), set(), {}
    for archive in archives:
        files = _archive(place / archive, limit)
        above = [part for part in archive.split("/")[:-1] if part not in SPLITS]
        split = next((part for part in archive.split("/") if part in SPLITS), split_in(archive))
        above += [split] if split else []
        for name in files.names:
            parts = name.split("/")
            parts = parts[1:] if split and parts[0] == split else parts
            full = "/".join([*above, *parts])
            if full in home:
                first = home[full][0]
                raise UserError(
                    f"{full} is in {first} and in {archive} of {place}: leave one of them out"
                )
            home[full] = (archive, files, name)
        folders |= {"/".join([*above, folder]) for folder in files.folders if not split}
    names += home

    def read(name: str) -> bytes:
        _, files, inner = home[name]
        return files.read(inner)

    return Files(sorted(names), folders, read)
