"""Pickles of state dicts as data: a small interpreter that calls nothing which a file names.

Also the earlier format of torch.save: a stream of pickles and raw storages
(torch/serialization.py).
"""

import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genfield.errors import UserError

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
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
# Bounds of what a small file can ask for: each operation takes at most some hundred bytes and a few
# microseconds; names are put together from texts, which may be named again and again.
MAX_OPERATIONS, MAX_NAMES, MAX_NAME = 1_000_000, 10_000, 500
# Dictionaries hash their keys. Whoever makes up numbers can make many of them meet in one place,
# which takes time that grows with the square; of such keys a pickle may have so many.
MAX_MADE_UP_KEYS, SMALL = 20_000, 2**24


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
    dtype: str | None = None  # where it is not the storage's


class Machine:
    """An interpreter of the opcodes that state dicts use, for one pickle; others are refused.

    Args:
      path: for messages.
      widths: where given, takes the bytes per element of each storage by key.
      beside: whether the pickle may refer to storages that stand beside it.
    """

    KEYS: tuple[type, ...] = (str, int)  # what may be a dictionary's key
    operations = MAX_OPERATIONS

    def __init__(self, path: Path, widths: dict[str, int] | None = None, beside: bool = True):
        self.path, self.widths, self.beside = path, widths, beside
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[str, Global] = {}
        self.made_up_keys = 0

    def run(self, stream) -> Any:
        """What the stream's next pickle describes; it is read to its end and no further."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count == self.operations:
                raise self.refused(f"more than {count:,} operations")
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
            self.put(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif opcode in ("APPEND", "APPENDS"):
            items = self.take(len(stack) - 1) if opcode == "APPEND" else self.take_marked()
            self.extend(stack[-1], items)
        elif opcode == "GLOBAL":
            stack.append(self.named(argument.replace(" ", ".", 1)))
        elif opcode == "STACK_GLOBAL":
            parts = [expect(part, str)[: MAX_NAME + 1] for part in self.take(len(stack) - 2)]
            stack.append(self.named(".".join(parts)))
        elif opcode == "BINPERSID" and self.beside:
            stack.append(self.referred(stack.pop()))
        elif opcode == "REDUCE":
            function, arguments = self.take(len(stack) - 2)
            stack.append(self.call(function, expect(arguments, tuple)))
        elif opcode == "BUILD":
            state = stack.pop()
            self.build(stack[-1], state)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            self.other(opcode, argument)

    def take(self, begin: int) -> list:
        """The stack from a position on, removed from it."""
        if begin < 0:
            raise IndexError("the stack is too short")
        taken = self.stack[begin:]
        del self.stack[begin:]
        return taken

    def take_marked(self) -> list:
        return self.take(self.marks.pop())

    def put(self, target: Any, pairs) -> None:
        """Pairs of key and value into a dictionary."""
        for key, value in pairs:
            expect(target, dict)[self.key(key)] = value

    def key(self, value: Any) -> Any:
        """A key of a dictionary. ValueError where hashing could take for ever."""
        expect(value, self.KEYS)
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError("a number as a key is out of range")
        whole = isinstance(value, int) and -SMALL < value < SMALL
        self.made_up_keys += isinstance(value, (int, float)) and not whole
        if self.made_up_keys > MAX_MADE_UP_KEYS:
            raise ValueError("too many keys that are no names")
        return value

    def extend(self, target: Any, items: list) -> None:
        expect(target, list).extend(items)

    def build(self, target: Any, state: Any) -> None:
        """The metadata that PyTorch hangs on a state dict: of no use here."""
        expect(target, dict)

    def call(self, function: Any, arguments: tuple) -> Any:
        """What one of the known functions makes of its arguments; none is called."""
        name = expect(function, Global).name
        if name == ORDERED_DICT:
            made: dict = {}
            for pairs in arguments:
                self.put(made, expect(pairs, list))
                # Emptied, so that naming one list many times does not multiply its memory.
                pairs.clear()
            return made
        described = arguments[: REBUILD[name]]
        if name == "torch.Size":
            return counts(described[0])
        if name == "torch._utils._rebuild_parameter":
            return expect(described[0], Tensor)
        storage, offset, shape, strides = described
        return Tensor(expect(storage, Storage), *counts((offset,)), counts(shape), counts(strides))

    def other(self, opcode: str, argument: Any) -> None:
        raise self.refused(f"the operation {opcode}")

    def named(self, name: str) -> Global:
        if name not in GLOBALS:
            raise self.refused(repr(name[:100]))
        return self.kept(name)

    def kept(self, name: str) -> Global:
        """One `Global` for each name."""
        if len(name) > MAX_NAME or len(self.names) > MAX_NAMES:
            raise ValueError("too many names, or too long")
        return self.names.setdefault(name, Global(name))

    def refused(self, what: str) -> UserError:
        return UserError(
            f"{self.path} is refused, and nothing of it was run: it wants {what}, which a "
            "file of weights does not need; save it anew with torch.save(model.state_dict(), path)"
        )

    def referred(self, identity: Any) -> Any:
        """A reference ("storage", type, key, device, length[, view]) to a storage."""
        kind, dtype, key, _, count, *view = expect(identity, tuple)
        dtype = self.numbers(expect(dtype, Global).name)
        expect(kind, str), expect(key, str)
        if self.widths is not None:
            self.widths[key] = 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize
        start = 0
        if view and view[0] is not None:
            _, start, count = expect(view[0], tuple)
        return Storage(key, dtype, *counts((start, count)))

    def numbers(self, kind: str) -> str:
        """NumPy's type of a storage's numbers, bfloat16 by its name."""
        return STORAGES[kind.removeprefix("torch.")]


def expect(value: Any, kind) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"unexpected {type(value).__name__}")
    return value


def counts(numbers: Any) -> tuple[int, ...]:
    known = len(expect(numbers, tuple)) <= MAX_AXES
    if not known or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError("a size or stride is out of range")
    return numbers


def read_stream(path: Path, stream, kind: type[Machine]) -> tuple[Any, dict[str, bytes]]:
    """What a file of the earlier format describes, and the bytes of its storages by key.

    Magic number, protocol, system, object, keys; then of each storage its length and elements,
    which are little-endian on every machine.
    """
    if kind(path).run(stream) != LEGACY_MAGIC:
        raise ValueError("a pickle, but not of torch.save")
    return read_stream_on(path, stream, kind)


def read_stream_on(path: Path, stream, kind: type[Machine]) -> tuple[Any, dict[str, bytes]]:
    """The same from behind the magic number."""
    if kind(path).run(stream) != LEGACY_PROTOCOL:
        raise ValueError("a pickle, but not of torch.save")
    kind(path).run(stream)
    widths: dict[str, int] = {}
    state = kind(path, widths).run(stream)
    raw = {}
    for key in expect(kind(path).run(stream), list):
        length = int.from_bytes(stream.read(8), "little", signed=True) * widths[expect(key, str)]
        raw[key] = stream.read(length) if length >= 0 else b""
        if len(raw[key]) != length:
            raise ValueError(f"storage {key} ends early")
    return state, raw
