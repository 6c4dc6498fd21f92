"""The text of a compiled program: computations, instructions, and how often each one runs."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,<=]*)\](\{[^}]*\})?")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
NAMED = re.compile(r'op_name="([^"]*)"')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Free: nothing is read or written for them.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "while"}
FREE |= {"conditional", "call", "partition-id", "replica-id", "optimization-barrier"}


class Array(NamedTuple):
    """A shape in a program's text; `near`: kept in a TPU core's own memory."""

    dtype: str
    dims: tuple[int, ...]
    near: bool

    @property
    def bytes(self) -> float:
        bits = re.search(r"\d+", self.dtype)
        size = SIZES.get(self.dtype, int(bits[0]) / 8 if bits else 0)
        return math.prod(self.dims) * size


class Instruction(NamedTuple):
    """One line: name = arrays opcode(operands), rest."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    inside: str  # what stood between the brackets
    root: bool

    @property
    def bytes(self) -> float:
        return sum(array.bytes for array in self.arrays)

    @property
    def far(self) -> float:
        """Bytes of them in the chip's memory."""
        return sum(array.bytes for array in self.arrays if not array.near)

    @property
    def label(self) -> str:
        """What of the program it is of, as JAX names it."""
        found = NAMED.search(self.rest)
        return found[1] if found else self.name

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that it calls, where they run as often as it does."""
        names = CALLED.findall(self.rest)
        for group in BRANCHES.findall(self.rest):
            names += [part.strip().lstrip("%") for part in group.split(",")]
        return tuple(names)


class Program(NamedTuple):
    """Computations by name, and the name of the one that is run."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


def parse(text: str) -> Program:
    """The program that `compiled.as_text()` shows."""
    computations, entry, body = {}, "", None
    for line in text.splitlines():
        if body is None or not line.startswith(" "):
            head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
            if head and not line.startswith("HloModule"):
                body = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
            continue
        one = _instruction(line)
        if one is not None:
            body[one.name] = one
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    cut = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:cut], rest[cut:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = re.findall(r"%([\w.\-]+)", inside)
    return Instruction(
        head[2], _arrays(shape), rest[:opening], tuple(operands), rest[closing + 1 :], inside,
        bool(head[1]),
    )  # fmt: skip


def _closing(text: str, opening: int) -> int:
    """Where the bracket at `opening` is closed."""
    depth = 0
    for i in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return len(text) - 1


def _arrays(shape: str) -> tuple[Array, ...]:
    sides = lambda dims: tuple(int(d.strip("<=")) for d in dims.split(",") if d)
    found = ARRAY.findall(shape)
    return tuple(Array(dtype, sides(dims), "S(1)" in layout) for dtype, dims, layout in found)


class Region(NamedTuple):
    """A computation that is run by itself (the program, the body of a loop), and how often."""

    name: str
    times: float
    known: bool  # whether all loops around it have a known length


def regions(program: Program) -> list[Region]:
    """The program, the bodies of its loops and the branches of its choices."""
    out: list[Region] = []

    def visit(name: str, times: float, known: bool) -> None:
        out.append(Region(name, times, known))
        body = program.computations[name]
        for one in body.values():
            if one.opcode == "while":
                trips = trip_count(program, body, one)
                target = re.search(r"body=%?([\w.\-]+)", one.rest)[1]
                visit(target, times * (trips or 1), known and trips is not None)
            elif one.opcode in ("call", "conditional", "async-start"):
                for target in one.called:
                    visit(target, times, known)

    visit(program.entry, 1.0, True)
    return out


def trip_count(program: Program, body: dict[str, Instruction], loop: Instruction) -> int | None:
    """How often a loop runs: as it is said, or as its condition compares a counter; else None."""
    said = TRIPS.search(loop.rest)
    if said:
        return int(said[1])
    condition = program.computations[re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]]
    root = _root(condition)
    compared = _root(program.computations[root.called[0]]) if root.opcode == "fusion" else root
    if compared.opcode != "compare" or "direction=LT" not in compared.rest:
        return None
    counter, last = (condition[name] for name in root.operands)
    last = _constant(condition, last)
    place = re.search(r"index=(\d+)", counter.rest)
    if last is None or place is None:
        return None
    start = body.get(loop.operands[0])
    if start is None or start.opcode != "tuple":
        return None
    first = _constant(body, body[start.operands[int(place[1])]])
    return None if first is None else max(last - first, 0)


def _root(body: dict[str, Instruction]) -> Instruction:
    """What a computation gives."""
    return next(one for one in body.values() if one.root)


def _constant(body: dict[str, Instruction], one: Instruction) -> int | None:
    """The whole number that an instruction gives, through copies."""
    while one.opcode in ("copy", "bitcast") and one.operands[0] in body:
        one = body[one.operands[0]]
    whole = one.opcode == "constant" and re.fullmatch(r"-?\d+", one.inside.strip())
    return int(one.inside) if whole else None


def within(program: Program, one: Instruction) -> Iterator[tuple[str, Instruction]]:
    """The instructions of the fusions that an instruction calls, with their computation."""
    if one.opcode != "fusion":
        return
    for name in one.called:
        for inner in program.computations[name].values():
            yield name, inner
            yield from within(program, inner)


def traffic(program: Program) -> float:
    """Bytes that the instructions read from memory and write to it, times the trips of loops.

    What a fusion reads of a stack by a dynamic slice, or writes into it, counts as that part.
    """
    total = 0.0
    for region in regions(program):
        body = program.computations[region.name]
        for one in body.values():
            if one.opcode not in FREE and not one.opcode.endswith("-done"):
                total += region.times * _moved(program, body, one)
    return total


def _moved(program: Program, body: dict[str, Instruction], one: Instruction) -> float:
    read = lambda name: body[name].far if name in body else 0.0
    if one.opcode in ("dynamic-slice", "gather", "slice"):
        return one.far + min(one.bytes, read(one.operands[0]))
    if one.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * read(one.operands[1])
    if one.opcode in ("copy-start", "slice-start"):  # its arrays are source and target
        return sum(array.bytes for array in one.arrays[:2] if not array.near)
    if one.opcode != "fusion" or not one.called:
        return one.far + sum(map(read, one.operands))
    inner = program.computations[one.called[0]]
    holds = _parameters(inner)
    taken = sum(
        min(_taken(program, inner, holds[i]), read(name)) if i in holds else read(name)
        for i, name in enumerate(one.operands)
    )
    return taken + (one.far if one.far < one.bytes else _new(program, inner, _root(inner)))


def _parameters(body: dict[str, Instruction]) -> dict[int, str]:
    """The names of a computation's parameters, by their places."""
    return {int(one.inside): one.name for one in body.values() if one.opcode == "parameter"}


def _taken(program: Program, body: dict[str, Instruction], name: str) -> float:
    """Bytes that a fusion reads of a value within it: of what is only sliced, the slices."""
    total, used = 0.0, False
    for one in body.values():
        for i in (i for i, operand in enumerate(one.operands) if operand == name):
            used = True
            if one.opcode == "dynamic-slice" and i == 0:
                total += one.bytes
            elif one.opcode == "bitcast":
                total += _taken(program, body, one.name)
            elif one.opcode == "fusion" and one.called:
                inner = program.computations[one.called[0]]
                total += _taken(program, inner, _parameters(inner)[i])
            elif one.opcode != "dynamic-update-slice" or i > 0:  # else it is written in place
                return math.inf
    return total if used else math.inf


def _new(program: Program, body: dict[str, Instruction], one: Instruction) -> float:
    """Bytes that a fusion writes of what it gives: of an updated stack the part that is new."""
    while one.opcode in ("bitcast", "copy") and one.operands[0] in body:
        one = body[one.operands[0]]
    if one.opcode == "tuple":
        return sum(_new(program, body, body[n]) for n in one.operands if n in body)
    if one.opcode == "fusion" and one.called:
        inner = program.computations[one.called[0]]
        return _new(program, inner, _root(inner))
    if one.opcode == "dynamic-update-slice" and one.operands[1] in body:
        return body[one.operands[1]].bytes
    return one.bytes
