"""What the devices of a compiled program send each other."""

import math
import re
from typing import NamedTuple

import numpy as np

from genfield.plan import hlo
from genfield.plan.hlo import Array, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all")
KINDS += ("collective-permute", "collective-broadcast")
TWICE = ("all-reduce",)  # a ring reduces and then gathers


class Collective(NamedTuple):
    """One of them.

    Attributes:
      bytes: of the whole that is gathered, reduced or exchanged, on a device, each time.
      times: how often it runs in a step. groups: [groups, members], places in the mesh.
      arrays: what a device holds afterwards. label: what of the program it is of.
    """

    kind: str
    bytes: float
    times: float
    groups: np.ndarray
    arrays: tuple[Array, ...]
    label: str

    def sent(self) -> float:
        """Bytes that leave a device, in all, by the algorithm of a ring."""
        n = self.groups.shape[1]
        if self.kind == "collective-permute":
            return self.times * self.bytes
        return self.times * self.bytes * (2 if self.kind in TWICE else 1) * (n - 1) / n

    def crosses(self, domain: int) -> bool:
        """Whether a group lies in more than one domain of fast links."""
        return bool(np.any(self.groups // domain != self.groups[:, :1] // domain))


def find(program: Program, devices: int) -> list[Collective]:
    """The collectives of a program; those of a single device are none."""
    out = []
    for region in hlo.regions(program):
        seen: dict[str, Collective] = {}
        for where, one in _candidates(program, region.name):
            kind = one.opcode.removesuffix("-start")
            if kind not in KINDS or _goes_on(program.computations[where]):
                continue
            body = program.computations[where]
            found = _of(kind, one, body, region.times, devices)
            chain = re.search(r'chain_id="(\w+)"', one.rest)
            # Stages of an asynchronous one make a chain; others may share a channel.
            seen.setdefault(f"chain {chain[1]}" if chain else one.name, found)
        out += [found for found in seen.values() if found.groups.shape[1] > 1]
    return out


def _candidates(program: Program, name: str):
    for one in program.computations[name].values():
        yield name, one
        yield from hlo.within(program, one)


def _goes_on(body: dict[str, Instruction]) -> bool:
    """Whether a computation is a later stage of an asynchronous collective of a TPU.

    Its first stage takes an array; those that follow take the state of the one before too.
    """
    chained = any("chain_id" in one.rest for one in body.values() if one.opcode in KINDS)
    begins = any('"AsyncCollectiveStart"' in one.rest for one in body.values())
    return chained and not begins


def _of(kind: str, one: Instruction, body: dict, times: float, devices: int) -> Collective:
    groups = _groups(one.rest, devices)
    given = [body[name] for name in one.operands if name in body]
    size = sum(part.bytes for part in given)
    # A reduction that is sliced at once, inside one fusion, is a scatter.
    users = [part for part in body.values() if one.name in part.operands]
    if kind == "all-reduce" and users and all(u.opcode == "dynamic-slice" for u in users):
        kind = "reduce-scatter"
    gathers = groups.shape[1] if kind == "all-gather" else 1
    return Collective(kind, size * gathers, times, groups, one.arrays, one.label)


def _groups(rest: str, devices: int) -> np.ndarray:
    """[groups, members] of replica_groups or source_target_pairs, in any of their notations."""
    pairs = re.search(r"source_target_pairs=\{(\{[^=]*?\})\}", rest)
    if pairs:
        return np.array(
            [[int(n) for n in g.split(",")] for g in re.findall(r"\{([^{}]*)\}", pairs[1])]
        )
    text = rest.split("replica_groups=", 1)[-1]
    if text.startswith("mesh["):
        return _of_mesh(text)
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    whole = lambda part: tuple(int(n) for n in part.split(","))
    if iota:
        places = np.arange(math.prod(whole(iota[2]))).reshape(whole(iota[2]))
        places = places.transpose(whole(iota[3])) if iota[3] else places
        return places.reshape(whole(iota[1]))
    listed = re.match(r"\{(\{[^=]*?\})\}", text)
    if listed:
        return np.array([whole(g) for g in re.findall(r"\{([\d,]+)\}", listed[1])])
    return np.arange(devices)[None]


def _of_mesh(text: str) -> np.ndarray:
    """mesh['a'=2,'b'=4] {'b'}: groups along b. Sizes may be split: {'b':(2)2}."""
    head, names = re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text).groups()
    axes = [(n, int(size)) for n, size in re.findall(r"'([^']+)'=(\d+)", head)]
    ids = re.search(r"device_ids=\(?\[?([\d,]+)", text.split("{", 1)[0])
    places = np.arange(math.prod(size for _, size in axes))
    if ids and ids[1].count(",") + 1 == len(places):
        places = np.array([int(n) for n in ids[1].split(",")])
    sizes, over = [], []
    wanted = dict(re.findall(r"'([^']+)'(?::\((\d+)\)\d+)?", names))
    parts = {n: int(size) for n, size in re.findall(r"'([^']+)':\(\d+\)(\d+)", names)}
    for name, size in axes:
        if name in parts:  # a part of an axis: what is before it, itself, what is after it
            before, part = int(wanted[name]), parts[name]
            sizes += [before, part, size // before // part]
            over += [len(sizes) - 2]
        else:
            sizes.append(size)
            over += [len(sizes) - 1] if name in wanted else []
    kept = [i for i in range(len(sizes)) if i not in over]
    members = math.prod(sizes[i] for i in over)
    return places.reshape(sizes).transpose(*kept, *over).reshape(-1, members)


def totals(found: list[Collective]) -> dict[str, dict[str, float]]:
    """{kind: {count, bytes}}: how many run in a step, and their bytes in all, on a device."""
    out: dict[str, dict[str, float]] = {}
    for one in found:
        kind = out.setdefault(one.kind, {"count": 0, "bytes": 0})
        kind["count"] += int(one.times)
        kind["bytes"] += int(one.times * one.bytes)
    return out
