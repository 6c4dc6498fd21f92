"""Any pickle as data: what is not known becomes the name of what the file wants made, and nothing
is made. For checkpoints that hold more than a state dict.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from genfield.errors import UserError
from genfield.features.pickles import (
    BFLOAT16,
    ORDERED_DICT,
    REBUILD,
    STORAGES,
    Global,
    Machine,
    Storage,
    Tensor,
    counts,
    expect,
    read_stream,
)

# Beside those of state dicts; an untyped storage counts bytes.
MORE_STORAGES = {"ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16", "UntypedStorage": "u1"}
RAW = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CODECS = ("latin1", "latin-1")
MAX_KEY_PARTS = 64
TYPES = {
    "torch.float64": "f8",
    "torch.float32": "f4",
    "torch.float16": "f2",
    "torch.bfloat16": BFLOAT16,
    **{f"torch.int{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"torch.uint{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)},
    "torch.bool": "?",
    "torch.complex64": "c8",
    "torch.complex128": "c16",
}


@dataclass(eq=False, slots=True)
class Object:
    """What a pickle wants made: the name of a class or function, and what it is to be given.

    `arguments` are those of the call (keywords last, as a dict), `state` is what an instance's
    attributes are set to (a dict as a rule), `items` and `elements` are what is put into a mapping
    or a list of its own class. The name is "()" where the first argument is what is called.
    """

    name: str
    arguments: tuple = ()
    state: Any = None
    items: dict = field(default_factory=dict)
    elements: list = field(default_factory=list)


class FreeMachine(Machine):
    """The interpreter for any pickle that a program writes."""

    KEYS = (str, bytes, int, float, type(None), Global)
    inner = False  # whether such bytes may not stand in it

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.loaded: dict[int, tuple[bytes, Storage]] = {}  # by the identity of the bytes
        self.embedded: dict[str, bytes] = {}  # of storages within the pickle, their bytes
        self.encoded: dict[int, tuple[str, bytes]] = {}  # by the identity of the text

    def other(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in RAW:
            stack.append(bytes(argument))
        elif opcode == "EMPTY_SET":
            stack.append(set())
        elif opcode == "FROZENSET":
            stack.append(frozenset(map(self.key, self.take_marked())))
        elif opcode == "ADDITEMS":
            items = [self.key(item) for item in self.take_marked()]
            expect(stack[-1], set).update(items)
        elif opcode in ("NEWOBJ", "NEWOBJ_EX"):
            begin = len(stack) - (3 if opcode == "NEWOBJ_EX" else 2)
            function, arguments, *keywords = self.take(begin)
            stack.append(self.call(function, (*expect(arguments, tuple), *keywords)))
        elif opcode == "POP":  # as after a tuple that holds itself
            self.take(len(stack) - 1)
        elif opcode == "POP_MARK":
            self.take_marked()
        else:
            super().other(opcode, argument)

    def named(self, name: str) -> Global:
        return self.kept(name)

    def numbers(self, kind: str) -> str:
        found = (STORAGES | MORE_STORAGES).get(kind.rpartition(".")[2])
        if found is None:
            raise UserError(
                f"{self.path} holds numbers of the kind {kind!r}, quantised or others that are "
                "not read here: save the weights anew as float32"
            )
        return found

    def referred(self, identity: Any) -> Any:
        if expect(identity, tuple)[:1] == ("module",):  # a class with its source, in early files
            return expect(identity[1], Global)
        return super().referred(identity)

    def key(self, value: Any) -> Any:
        if type(value) is not tuple:
            return super().key(value)
        if len(value) > MAX_KEY_PARTS:
            raise ValueError("a key has too many parts")
        self.made_up_keys += 1
        for part in value:
            super().key(part)
        return value

    def put(self, target: Any, pairs) -> None:
        super().put(target.items if isinstance(target, Object) else target, pairs)

    def extend(self, target: Any, items: list) -> None:
        super().extend(target.elements if isinstance(target, Object) else target, items)

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, dict):
            return super().build(target, state)
        if expect(target, Object).state is not None:
            raise ValueError(f"the state of {target.name} is given twice")
        target.state = state

    def call(self, function: Any, arguments: tuple) -> Any:
        if not isinstance(function, Global):
            return Object("()", (expect(function, Object), *arguments))
        name = function.name
        if name == ORDERED_DICT or name in REBUILD:
            return super().call(function, arguments)
        known = FUNCTIONS.get(name)
        return known(self, *arguments) if known else Object(name, arguments)

    def load(self, raw: Any) -> Storage:
        """The storage that bytes describe which torch.save wrote."""
        if self.inner:
            raise ValueError("bytes of torch.save within such bytes")
        if id(expect(raw, bytes)) not in self.loaded:
            storage, held = read_stream(self.path, io.BytesIO(raw), InnerMachine)
            kept = expect(storage, Storage)._replace(key=f"embedded {len(self.loaded)}")
            self.embedded[kept.key] = held[storage.key]
            self.loaded[id(raw)] = raw, kept
        return self.loaded[id(raw)][1]

    def encode(self, text: Any) -> bytes:
        """Bytes that stand as text, as protocols before 3 write them; those of one text once."""
        if id(expect(text, str)) not in self.encoded:
            self.encoded[id(text)] = text, text.encode("latin-1")
        return self.encoded[id(text)][1]


class StreamMachine(FreeMachine):
    """For the pickles of a stream with storages behind them."""

    inner = True


class InnerMachine(StreamMachine):
    """For those of one storage, as bytes within a pickle."""

    operations = 1_000


def _constructed(machine: FreeMachine, kind: Any, base: Any = None, state: Any = None) -> Object:
    """`copyreg._reconstructor`: an instance, and what its built-in base is made of."""
    return Object(expect(kind, Global).name, () if state is None else (state,))


def _new(machine: FreeMachine, kind: Any, *arguments: Any) -> Any:
    return machine.call(kind, arguments)


def _parameter(machine: FreeMachine, tensor: Any, *ignored: Any) -> Tensor:
    """A parameter with attributes, which are of no use here."""
    return expect(tensor, Tensor)


def _of_type(machine: FreeMachine, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor of a class of its own, as a tensor."""
    return machine.call(function, expect(arguments, tuple))


def _of_untyped(machine: FreeMachine, *arguments: Any) -> Any:
    """A tensor whose storage is bytes; what its numbers are stands beside it."""
    storage, offset, shape, strides, _, _, dtype, *_ = arguments
    found = TYPES.get(expect(dtype, Global).name)
    if found is None:
        return Object("torch._utils._rebuild_tensor_v3", arguments)
    numbers = *counts((offset,)), counts(shape), counts(strides)
    return Tensor(expect(storage, Storage), *numbers, found)


def _load(machine: FreeMachine, raw: Any) -> Storage:
    return machine.load(raw)


def _encoded(machine: FreeMachine, text: Any, codec: Any) -> Any:
    return machine.encode(text) if codec in CODECS else Object("_codecs.encode", (text, codec))


def _bytes(machine: FreeMachine, *arguments: Any) -> Any:
    return Object("builtins.bytes", arguments) if arguments else b""


FUNCTIONS: dict[str, Callable] = {
    "copyreg._reconstructor": _constructed,
    "copy_reg._reconstructor": _constructed,
    "copyreg.__newobj__": _new,
    "copy_reg.__newobj__": _new,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_tensor_v3": _of_untyped,
    "torch.storage._load_from_bytes": _load,
    "_codecs.encode": _encoded,
    "builtins.bytes": _bytes,
    "__builtin__.bytes": _bytes,
}
