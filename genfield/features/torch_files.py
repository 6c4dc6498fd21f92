"""PyTorch and safetensors files as NumPy arrays, without PyTorch and without running the file.

Formats: the zip files of torch >= 1.6 and the earlier stream of pickles and raw storages
(torch/serialization.py), and safetensors. A pickle is a program; here a small interpreter carries
out only what a state dict needs and calls nothing that a file names.
"""

import io
import math
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genfield.errors import UserError

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
SAFETENSORS_HEADER = b'{"'  # after the header's length, 8 bytes
BFLOAT16 = "bfloat16"
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
MAX_AXES = 64  # NumPy's
ORDERS = {b"little": "<", b"big": ">"}
ORDERED_DICT = "collections.OrderedDict"
# How many of a function's first arguments describe the tensor.
REBUILD = {
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 4,
    "torch._utils._rebuild_parameter": 1,
    "torch.Size": 1,
}
GLOBALS = {ORDERED_DICT, *REBUILD, *(f"torch.{name}" for name in STORAGES)}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = set(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING".split()
)
CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Everything that damaged bytes can make the standard library and NumPy say.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Global(NamedTuple):
    """A name that a pickle refers to; it is never looked up."""

    name: str


class Storage(NamedTuple):
    """`count` elements of the storage `key`, from element `start` on."""

    key: str
    dtype: str
    start: int
    count: int


class Tensor(NamedTuple):
    """A strided view of a storage; all numbers count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


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
    try:
        with open(path, "rb") as file:
            start = file.read(10)
            if start[:4] == ZIP_START:
                found = _read_zip(path, file)
            elif start[8:10] == SAFETENSORS_HEADER or path.suffix == ".safetensors":
                found = _read_safetensors(path)
            elif start[:1] == PICKLE_START:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
                    found = _read_legacy(path, stream)
            else:
                raise UserError(_not_weights(path, start))
    except UserError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"cannot read the weights file {path}: {error.strerror}") from error
    except DAMAGE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"{path} is damaged: fetch it again ({reason})") from error
    if not found:
        raise UserError(f"{path} holds no tensors by name: save it with model.state_dict()")
    return found


def _not_weights(path: Path, start: bytes) -> str:
    what = "empty" if not start else "not a weights file"
    return f"{path} is {what}: expected a PyTorch state dict (.pth, .pt, .bin) or .safetensors"


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: _widened(file, name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def _widened(file, name: str) -> np.ndarray:
    array = file.get_tensor(name)
    return array.astype(np.float32) if array.dtype.name == BFLOAT16 else array


def _read_zip(path: Path, file) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        prefix = next((n.removesuffix("data.pkl") for n in names if n.endswith("/data.pkl")), None)
        if prefix is None:
            raise UserError(f"{path} is a zip file without weights: expected a PyTorch state dict")
        if f"{prefix}constants.pkl" in names:
            raise UserError(
                f"{path} is a TorchScript archive, a program: use a state dict instead, for "
                "Inception pt_inception-2015-12-05-6726825d.pth of the pytorch-fid releases"
            )
        marked = f"{prefix}byteorder" in names
        order = _record(archive, prefix, "byteorder") if marked else b"little"
        state = _interpret(path, io.BytesIO(_record(archive, prefix, "data.pkl")))
        return _arrays(state, lambda key: _record(archive, prefix, f"data/{key}"), ORDERS[order])


def _record(archive: zipfile.ZipFile, prefix: str, name: str) -> bytes:
    """A record's bytes. PyTorch stores without compression, so none is larger than the file."""
    entry = archive.getinfo(prefix + name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(entry)


def _read_legacy(path: Path, stream: mmap.mmap) -> dict[str, np.ndarray]:
    """Magic number, protocol, system, object, keys; then of each storage its length and elements.

    These are little-endian on every machine.
    """
    if _interpret(path, stream) != LEGACY_MAGIC or _interpret(path, stream) != LEGACY_PROTOCOL:
        raise ValueError("a pickle, but not of torch.save")
    _interpret(path, stream)
    widths: dict[str, int] = {}
    state = _interpret(path, stream, widths)
    raw = {}
    for key in _expect(_interpret(path, stream), list):
        length = int.from_bytes(stream.read(8), "little", signed=True) * widths[_expect(key, str)]
        raw[key] = stream.read(length) if length >= 0 else b""
        if len(raw[key]) != length:
            raise ValueError(f"storage {key} ends early")
    return _arrays(state, raw.__getitem__, "<")


def _arrays(state: Any, raw: Callable[[str], bytes], order: str) -> dict[str, np.ndarray]:
    """The tensors of the state dict as views of their storages' bytes."""
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        return {}
    storages: dict[tuple, np.ndarray] = {}

    def elements(storage: Storage) -> np.ndarray:
        identity = storage.key, storage.dtype
        if identity not in storages:
            storages[identity] = _elements(raw(storage.key), storage.dtype, order)
        return storages[identity]

    tensors = {n: t for n, t in state.items() if isinstance(n, str) and isinstance(t, Tensor)}
    return {name: _view(name, tensor, elements(tensor.storage)) for name, tensor in tensors.items()}


def _elements(raw: bytes, dtype: str, order: str) -> np.ndarray:
    if dtype != BFLOAT16:
        values = np.frombuffer(raw, np.dtype(dtype).newbyteorder(order))
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    bits = np.frombuffer(raw, order + "u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


def _view(name: str, tensor: Tensor, elements: np.ndarray) -> np.ndarray:
    """The tensor as a view of its storage's elements; ValueError if it leaves them."""
    storage, offset, shape, strides = tensor
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    inside = last < storage.count and storage.start + storage.count <= len(elements)
    # Repeated elements (stride 0) would let a small file ask for any amount of memory.
    if math.prod(shape) and not (inside and math.prod(shape) <= storage.count):
        raise ValueError(f"tensor {name!r} lies outside its storage")
    if not math.prod(shape):
        return np.zeros(shape, elements.dtype)
    begun = elements[storage.start + offset :]
    return np.lib.stride_tricks.as_strided(
        begun, shape, [s * elements.itemsize for s in strides], writeable=False
    )


class _Machine:
    """An interpreter of the pickle opcodes that state dicts use, for one pickle."""

    def __init__(self, path: Path, widths: dict[str, int] | None):
        self.path, self.widths = path, widths
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):
            self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in LITERALS:
            stack.append(argument)
        elif opcode in CONSTANTS:
            stack.append(CONSTANTS[opcode])
        elif opcode in CONTAINERS:
            stack.append(CONTAINERS[opcode]())
        elif opcode in TUPLES:
            stack.append(tuple(self.take(len(stack) - TUPLES[opcode])))
        elif opcode == "TUPLE":
            stack.append(tuple(self.take_marked()))
        elif opcode == "MARK":
            self.marks.append(len(stack))
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self.take(len(stack) - 2) if opcode == "SETITEM" else self.take_marked()
            _fill(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif opcode in ("APPEND", "APPENDS"):
            items = self.take(len(stack) - 1) if opcode == "APPEND" else self.take_marked()
            _expect(stack[-1], list).extend(items)
        elif opcode == "GLOBAL":
            stack.append(self.named(argument.replace(" ", ".", 1)))
        elif opcode == "STACK_GLOBAL":
            parts = [_expect(part, str) for part in self.take(len(stack) - 2)]
            stack.append(self.named(".".join(parts)))
        elif opcode == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif opcode == "REDUCE":
            function, arguments = self.take(len(stack) - 2)
            stack.append(_call(_expect(function, Global), _expect(arguments, tuple)))
        elif opcode == "BUILD":
            # The metadata that PyTorch hangs on a state dict: of no use here.
            stack.pop()
            _expect(stack[-1], dict)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise self.refused(f"the operation {opcode}")

    def take(self, begin: int) -> list:
        """The stack from a position on, removed from it."""
        if begin < 0:
            raise IndexError("the stack is too short")
        taken = self.stack[begin:]
        del self.stack[begin:]
        return taken

    def take_marked(self) -> list:
        return self.take(self.marks.pop())

    def named(self, name: str) -> Global:
        if name not in GLOBALS:
            raise self.refused(repr(name[:100]))
        return Global(name)

    def refused(self, what: str) -> UserError:
        return UserError(
            f"{self.path} is refused, and nothing of it was run: it wants {what}, which a "
            "file of weights does not need; save it anew with torch.save(model.state_dict(), path)"
        )

    def storage(self, identity: Any) -> Storage:
        """A reference ("storage", type, key, device, length[, view]) to a storage."""
        kind, dtype, key, _, count, *view = _expect(identity, tuple)
        dtype = STORAGES[_expect(dtype, Global).name.removeprefix("torch.")]
        _expect(kind, str), _expect(key, str)
        if self.widths is not None:
            self.widths[key] = 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize
        start = 0
        if view and view[0] is not None:
            _, start, count = _expect(view[0], tuple)
        return Storage(key, dtype, *_counts((start, count)))


def _interpret(path: Path, stream, widths: dict[str, int] | None = None) -> Any:
    """What the next pickle of a stream describes: constants, containers and `Tensor`s.

    Args:
      path: for messages.
      stream: a file; it is read to the pickle's end and no further.
      widths: where given, takes the bytes per element of each storage by key.
    """
    return _Machine(path, widths).run(stream)


def _call(function: Global, arguments: tuple) -> Any:
    """What one of the known functions makes of its arguments; none is called."""
    if function.name == ORDERED_DICT:
        made: dict = {}
        for pairs in arguments:
            _fill(made, _expect(pairs, list))
            # Emptied, so that naming one list many times does not multiply its memory.
            pairs.clear()
        return made
    described = arguments[: REBUILD[function.name]]
    if function.name == "torch.Size":
        return _counts(described[0])
    if function.name == "torch._utils._rebuild_parameter":
        return _expect(described[0], Tensor)
    storage, offset, shape, strides = described
    return Tensor(_expect(storage, Storage), *_counts((offset,)), _counts(shape), _counts(strides))


def _fill(target: Any, pairs) -> None:
    for key, value in pairs:
        # A tuple as a key could hold tuples in tuples that take for ever to hash.
        _expect(target, dict)[_expect(key, (str, int))] = value


def _expect(value: Any, kind) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"unexpected {type(value).__name__}")
    return value


def _counts(numbers: Any) -> tuple[int, ...]:
    known = len(_expect(numbers, tuple)) <= MAX_AXES
    if not known or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError("a size or stride is out of range")
    return numbers
