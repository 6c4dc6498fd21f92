"""What a pickle describes as plain data: its tensors and NumPy's arrays as arrays."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from genfield.features.free_pickles import Object
from genfield.features.pickles import BFLOAT16, Global, Storage, Tensor, counts, expect

MAX_DEPTH = 200
ROOM, TIMES = 2**28, 16  # what follows all references may take so many bytes, or times the file's
PLAIN_TYPE = re.compile(r"[<>=|]?([biuf][1248]|c8|c16|f16|\?)")
CYCLE = Object("a reference to what holds it")


class Arrays:
    """Tensors as views of their storages' bytes.

    Args:
      raw: of a storage's key, its bytes.
      order: "<" or ">", of its numbers.
    """

    def __init__(self, raw: Callable[[str], bytes], order: str):
        self.raw, self.order = raw, order
        self.held: dict[str, bytes] = {}
        self.storages: dict[tuple[str, str], np.ndarray] = {}

    def elements(self, key: str, dtype: str) -> np.ndarray:
        """All of a storage, as numbers of a type."""
        if key not in self.held:
            self.held[key] = self.raw(key)
        if (key, dtype) not in self.storages:
            self.storages[key, dtype] = _elements(self.held[key], dtype, self.order)
        return self.storages[key, dtype]

    def view(self, tensor: Tensor, name: str = "") -> np.ndarray:
        """The tensor as a view of its storage's elements; ValueError if it leaves them."""
        storage, offset, shape, strides, dtype = tensor
        if dtype:  # the storage counts bytes
            width = 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize
            start, count = storage.start // width, storage.count // width
            storage = Storage(storage.key, dtype, start, count)
        elements = self.elements(storage.key, storage.dtype)
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

    def whole(self, storage: Storage) -> np.ndarray:
        return self.view(Tensor(storage, 0, (storage.count,), (1,)))


def _elements(raw: bytes, dtype: str, order: str) -> np.ndarray:
    if dtype != BFLOAT16:
        values = np.frombuffer(raw, np.dtype(dtype).newbyteorder(order))
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    bits = np.frombuffer(raw, order + "u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


class Plain:
    """Makes plain data of what a pickle describes. What the file shares stays shared.

    Args:
      arrays: of its storages.
      size: of the file in bytes; ValueError where following all references would meet far more.
    """

    def __init__(self, arrays: Arrays, size: int):
        self.arrays, self.most = arrays, ROOM + TIMES * size
        self.done: dict[int, tuple[Any, int]] = {}  # by identity: what became of it, and its bytes
        self.open: set[int] = set()
        self.made: dict[Any, Any] = {}

    def __call__(self, value: Any) -> Any:
        return self.follow(value, 0)[0]

    def follow(self, value: Any, depth: int) -> tuple[Any, int]:
        """The value as plain data, and about how many bytes all that it holds would take."""
        if isinstance(value, (str, bytes)):
            return value, 64 + len(value)
        if isinstance(value, (bool, int, float, Global, set, frozenset, type(None))):
            return value, 64
        if id(value) in self.open:
            return CYCLE, 64
        if id(value) not in self.done:
            if depth > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} things in one another")
            self.open.add(id(value))
            found, size = self.convert(value, depth + 1)
            self.open.remove(id(value))
            if size > self.most:
                raise ValueError("what it names again and again would take too much memory")
            self.done[id(value)] = found, size
        return self.done[id(value)]

    def convert(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, (Tensor, Storage)):
            of = self.arrays.view if isinstance(value, Tensor) else self.arrays.whole
            array = of(value)
            return array, 64 + array.nbytes
        if isinstance(value, dict):
            found = {key: self.follow(v, depth) for key, v in value.items()}
            return {key: v for key, (v, _) in found.items()}, 64 + sum(
                64 + n for _, n in found.values()
            )
        if isinstance(value, (list, tuple)):
            members = [self.follow(v, depth) for v in value]
            return type(value)([v for v, _ in members]), 64 + sum(n for _, n in members)
        parts = [expect(value, Object).arguments, value.state, value.items, value.elements]
        found, sizes = zip(*(self.follow(part, depth) for part in parts), strict=True)
        made = self.known(Object(value.name, *found))
        return made, 64 + sum(sizes)

    def known(self, value: Object) -> Any:
        """Of an object that describes plain data (of NumPy, bytes, a set) that, else the object."""
        name = value.name.replace("__builtin__.", "builtins.", 1)
        name = name.replace("numpy._core.", "numpy.core.", 1)
        arguments, state = value.arguments, value.state
        if name == "numpy.dtype":
            return _dtype(value)
        if name == "numpy.core.multiarray.scalar" and isinstance(arguments[0], np.dtype):
            return np.frombuffer(self.bytes_of(arguments[1]), arguments[0], 1)[0]
        if name == "numpy.core.multiarray._reconstruct" and isinstance(state, tuple):
            *_, shape, dtype, columns, raw = state
            return self.array_of(value, raw, dtype, shape, "F" if columns else "C")
        if name == "numpy.core.numeric._frombuffer":
            return self.array_of(value, *arguments)
        if name == "builtins.complex":
            return complex(*(expect(part, float) for part in arguments))
        if name in ("builtins.set", "builtins.frozenset") and len(arguments) <= 1:
            return self.set_of(value, *arguments)
        return value

    def set_of(self, value: Object, members: Any = ()) -> Any:
        """A set of texts; of others, whose hash could take for ever, the object."""
        if not all(isinstance(member, str) for member in expect(members, (list, tuple))):
            return value
        kind = set if value.name.endswith(".set") else frozenset
        return self.once((id(members), kind), lambda: kind(members))

    def array_of(self, value: Object, raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
        """NumPy's array; of objects, which stay objects, none."""
        if not isinstance(dtype, np.dtype):
            return value
        raw = self.bytes_of(raw)
        native = lambda: np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="), copy=False)
        flat = self.once((id(raw), dtype.str), native)
        return flat.reshape(counts(shape), order="F" if order == "F" else "C")

    def bytes_of(self, value: Any) -> bytes:
        """Bytes, which protocols before 3 write as text."""
        if isinstance(value, bytes):
            return value
        return self.once((id(value), bytes), lambda: expect(value, str).encode("latin-1"))

    def once(self, identity: Any, make: Callable[[], Any]) -> Any:
        """What is made of one thing is made once, however often the file names it."""
        if identity not in self.made:
            self.made[identity] = make()
        return self.made[identity]


def _dtype(value: Object) -> Any:
    """NumPy's type of plain numbers, in the order of bytes that its state names, or the object."""
    code = value.arguments[0]
    if not isinstance(code, str) or not PLAIN_TYPE.fullmatch(code):
        return value
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    return np.dtype(code).newbyteorder(order) if order in ("<", ">") else np.dtype(code)


def module_state(value: Any) -> dict | None:
    """The attributes of a pickled torch module by name, also of EDM's; None where it is none."""
    if not isinstance(value, Object):
        return None
    first = value.arguments[0] if value.arguments else None
    inner = first.get("state") if isinstance(first, dict) else None
    state = value.state if value.state is not None else inner
    return state if isinstance(state, dict) and "_modules" in state else None


def state_dict(value: Any) -> dict[str, np.ndarray]:
    """The arrays of a pickled torch module, by the names that its state_dict() has.

    Args:
      value: from `read_tree`: an `Object` that `module_state` knows, or a dictionary, of which the
        arrays are taken.

    Raises:
      ValueError: it is neither, or something in it is no module.
    """
    if isinstance(value, dict):
        return {n: a for n, a in value.items() if isinstance(n, str) and isinstance(a, np.ndarray)}
    found: dict[str, np.ndarray] = {}
    _collect(value, "", found)
    return found


def _collect(value: Any, prefix: str, found: dict[str, np.ndarray]) -> None:
    state = module_state(value)
    if state is None:
        raise ValueError(f"{prefix.removesuffix('.') or 'what it holds'} is no torch module")
    passing = state.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        for name, array in _section(state, kind).items():
            skipped = kind == "_buffers" and isinstance(passing, set) and name in passing
            if isinstance(array, np.ndarray) and not skipped:
                found[f"{prefix}{name}"] = array
    for name, module in _section(state, "_modules").items():
        if module is not None:
            _collect(module, f"{prefix}{name}.", found)


def _section(state: dict, name: str) -> dict:
    section = state.get(name)
    return section if isinstance(section, dict) else {}
