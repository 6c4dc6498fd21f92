"""PyTorch and safetensors files as NumPy arrays, without PyTorch and without running the file.

Formats: the zip files of torch >= 1.6 and the earlier stream of pickles and raw storages
(torch/serialization.py), plain pickles, and safetensors. A pickle is a program; here an interpreter
carries out only what describes values, and calls nothing that a file names.
"""

import io
import mmap
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genfield.errors import UserError
from genfield.features.free_pickles import FreeMachine, Object, StreamMachine
from genfield.features.pickles import (
    BFLOAT16,
    LEGACY_MAGIC,
    Machine,
    Tensor,
    read_stream,
    read_stream_on,
)
from genfield.features.torch_trees import ROOM, TIMES, Arrays, Plain, module_state, state_dict
from genfield.reading import DAMAGE, json_of

__all__ = ["Object", "module_state", "read", "read_tree", "state_dict"]

ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
SAFETENSORS_HEADER = b'{"'  # after the header's length, 8 bytes
MAX_HEADER = 10_000_000  # of safetensors, in bytes
LOCAL_HEADER = 30  # bytes of a record of a zip file before its name, whose length ends them
ORDERS = {b"little": "<", b"big": ">"}
# How files begin that are often saved in the place of weights, and what helps.
MISTAKEN = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file with `git lfs pull`",
    b"<!doctype html": "a web page: open its address in a browser, and save the file itself",
    b"<html": "a web page: open its address in a browser, and save the file itself",
    b"\x1f\x8b": "an archive of gzip: unpack it first",
}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, whatever the file's ending says.

    A checkpoint that holds the state dict under "state_dict" is accepted. bfloat16 becomes
    float32, which holds it exactly; other types are kept. The arrays may be read-only and may
    share memory, as the tensors did.

    Raises:
      UserError: no such file, not a weights file, damaged, a TorchScript archive, or a pickle that
        asks for anything but the making of tensors (none of it is carried out).
    """
    path = Path(path)
    found = _opened(path, lambda file: _state_dict(path, file))
    if not found:
        raise UserError(f"{path} holds no tensors by name: save it with model.state_dict()")
    return found


def read_tree(path: str | Path) -> Any:
    """All that a file of weights holds, as plain data: whatever torch.save or pickle.dump wrote.

    Dictionaries (ordered ones too), lists, tuples, sets, numbers and texts are themselves; tensors,
    storages, NumPy's arrays and numbers are NumPy's, as `read` says of them. Everything else is an
    `Object`, which holds the name of its class or function, its arguments and its state, or a
    `Global`, a name alone. No name is imported or looked up, and nothing is called. Attributes hung
    on tensors and ordered dictionaries are left out, and where something holds itself, an `Object`
    says so. Of safetensors: the arrays by name.

    Raises:
      UserError: no such file, not a weights file, damaged, a TorchScript archive, or one that would
        take more memory or time than a file of its size may.
    """
    path = Path(path)
    return _opened(path, lambda file: _tree(path, file))


def _opened(path: Path, reader: Callable[[Any], Any]) -> Any:
    """What a reader makes of the open file; whatever it meets is one line."""
    try:
        # A pipe or a device could be without end.
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise UserError(f"{path} is no file of weights but a pipe or a device")
        file = open(path, "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the weights file {path}: {reason}") from error
    try:
        with file:
            return reader(file)
    except UserError:
        raise
    except DAMAGE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"{path} is damaged: fetch it again ({reason})") from error


def _state_dict(path: Path, file) -> dict[str, np.ndarray]:
    start = file.read(40)
    if _is_safetensors(path, start):
        return _read_safetensors(path)
    if start[:4] == ZIP_START:
        with zipfile.ZipFile(file) as archive:
            return _named(path, *_read_zip(path, archive, Machine))
    if start[:1] != PICKLE_START:
        raise UserError(_not_weights(path, start))
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        state, raw = read_stream(path, stream, Machine)
    return _named(path, state, Arrays(raw.__getitem__, "<"))


def _tree(path: Path, file) -> Any:
    start, size = file.read(40), path.stat().st_size
    if _is_safetensors(path, start):
        return _read_safetensors(path)
    if start[:4] == ZIP_START:
        with zipfile.ZipFile(file) as archive:
            state, arrays = _read_zip(path, archive, FreeMachine)
            return Plain(arrays, size)(state)
    if start[:1] != PICKLE_START:
        raise UserError(_not_weights(path, start))
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        machine = FreeMachine(path, beside=False)
        state, raw = machine.run(stream), machine.embedded
        if state == LEGACY_MAGIC:
            state, raw = read_stream_on(path, stream, StreamMachine)
    return Plain(Arrays(raw.__getitem__, "<"), size)(state)


def _is_safetensors(path: Path, start: bytes) -> bool:
    return start[:4] != ZIP_START and (
        start[8:10] == SAFETENSORS_HEADER or path.suffix == ".safetensors"
    )


def _not_weights(path: Path, start: bytes) -> str:
    for begin, what in MISTAKEN.items():
        if start.lower().lstrip().startswith(begin):
            return f"{path} is not a weights file but {what}"
    what = "empty" if not start else "not a weights file"
    return f"{path} is {what}: expected a PyTorch state dict (.pth, .pt, .bin) or .safetensors"


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors

    _check_header(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: _widened(file, name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def _check_header(path: Path) -> None:
    """That no name stands twice, which the format forbids and its reader does not see."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError("the header is too long")
        json_of(file.read(length))


def _widened(file, name: str) -> np.ndarray:
    array = file.get_tensor(name)
    return array.astype(np.float32) if array.dtype.name == BFLOAT16 else array


def _read_zip(path: Path, archive: zipfile.ZipFile, kind: type[Machine]) -> tuple[Any, Arrays]:
    """What the archive's pickle describes, and its storages."""
    names = archive.namelist()
    prefix = next((n.removesuffix("data.pkl") for n in names if n.endswith("/data.pkl")), None)
    if prefix is None:
        raise UserError(f"{path} is a zip file without weights: expected a PyTorch state dict")
    if f"{prefix}constants.pkl" in names:
        raise UserError(
            f"{path} is a TorchScript archive, a program: use a state dict instead, for "
            "Inception pt_inception-2015-12-05-6726825d.pth of the pytorch-fid releases"
        )
    _check_records(path, archive)
    marked = f"{prefix}byteorder" in names
    order = _record(archive, prefix, "byteorder") if marked else b"little"
    machine = kind(path)
    state = machine.run(io.BytesIO(_record(archive, prefix, "data.pkl")))
    embedded = getattr(machine, "embedded", {})

    mapped = memoryview(mmap.mmap(archive.fp.fileno(), 0, access=mmap.ACCESS_READ))

    def raw(key: str) -> bytes | memoryview:
        if key in embedded:
            return embedded[key]
        return _mapped(archive, _entry(archive, prefix, f"data/{key}"), mapped)

    return state, Arrays(raw, ORDERS[order])


def _check_records(path: Path, archive: zipfile.ZipFile) -> None:
    """That records do not share bytes: else a small file could hold any amount of them."""
    entries = archive.infolist()
    if len({entry.filename for entry in entries}) != len(entries):
        raise ValueError("two records have the same name")
    if sum(entry.compress_size for entry in entries) > path.stat().st_size:
        raise ValueError("its records overlap")


def _record(archive: zipfile.ZipFile, prefix: str, name: str) -> bytes:
    """A record's bytes. PyTorch stores without compression, so none is larger than the file."""
    return archive.read(_entry(archive, prefix, name))


def _entry(archive: zipfile.ZipFile, prefix: str, name: str) -> zipfile.ZipInfo:
    entry = archive.getinfo(prefix + name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ValueError(f"{name} is a link")
    return entry


def _mapped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, mapped: memoryview) -> memoryview:
    """A record's bytes as they stand in the file, so that those which nobody reads take no memory.

    A checkpoint holds an optimiser's moments beside the weights, twice as large as they are.
    """
    with archive.open(entry):  # checks the record's own header
        start = entry.header_offset + LOCAL_HEADER
    lengths = struct.unpack("<HH", mapped[start - 4 : start])
    found = mapped[start + sum(lengths) :][: entry.file_size]
    if len(found) != entry.file_size or zlib.crc32(found) != entry.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for {entry.filename}")
    return found


def _named(path: Path, state: Any, arrays: Arrays) -> dict[str, np.ndarray]:
    """The tensors of a state dict."""
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        return {}
    tensors = {n: t for n, t in state.items() if isinstance(n, str) and isinstance(t, Tensor)}
    found = {name: arrays.view(tensor, name) for name, tensor in tensors.items()}
    if sum(array.nbytes for array in found.values()) > ROOM + TIMES * path.stat().st_size:
        raise ValueError("its tensors share their storages too often")
    return found
