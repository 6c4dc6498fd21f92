"""Changes of files, drawn from a seed: of their bytes, and of what their format means by them.

`mutate(name, raw, rng)` changes one file. Half of the changes are of bytes alone; the others know
the format by the name's ending, so that the file stays readable up to the place that is hostile.
"""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

MARKER = "GENFIELD_FUZZ_MARKER"  # what every hostile program would make, in the working folder
NAMES = (
    "../../escaped.png",
    "/tmp/escaped_from_fuzz.png",
    "..",
    "a/../../../b.png",
    "\x1b[2Jx\n\ny.png",
    "x" * 3000 + ".png",
    "\ud800.png",
    "CON.png",
    "",
    "a\0b.png",
)
WHOLE = (0, 1, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63, -1)
ODD = (
    float("nan"),
    float("inf"),
    -float("inf"),
    10**400,
    -(10**30),
    2**63,
    -1,
    0,
    1.5,
    None,
    True,
    [],
    {},
    [[]],
    "",
    "nan",
    "../../../etc/passwd",
    "/etc/passwd",
    "\ud800\x00\x1b[31m\nTraceback",
    "x" * 5000,
    [0] * 3000,
    {"name": "x", "": {"": []}},
)


class Runs:
    """Makes the marker where it is unpickled."""

    def __reduce__(self):
        return exec, (f"open({MARKER!r}, 'w').close()",)


# ---- Of bytes


def _flip(raw: bytearray, rng) -> bytes:
    for _ in range(1 + rng.integers(4)):
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    return bytes(raw)


def _cut(raw: bytearray, rng) -> bytes:
    return bytes(raw[: rng.integers(len(raw))])


def _splice(raw: bytearray, rng) -> bytes:
    begin, to, length = rng.integers(len(raw)), rng.integers(len(raw)), 1 + rng.integers(64)
    return bytes(raw[:to] + raw[begin : begin + length] + raw[to:])


def _leave_out(raw: bytearray, rng) -> bytes:
    begin = rng.integers(len(raw))
    return bytes(raw[:begin] + raw[begin + 1 + rng.integers(64) :])


def _blow_up(raw: bytearray, rng) -> bytes:
    """A number of 1, 2, 4 or 8 bytes becomes an extreme one, in either order."""
    width = int(rng.choice([1, 2, 4, 8]))
    at, value = rng.integers(max(1, len(raw) - width + 1)), int(rng.choice(len(WHOLE)))
    order = "little" if rng.integers(2) else "big"
    raw[at : at + width] = (WHOLE[value] % (1 << 8 * width)).to_bytes(width, order)
    return bytes(raw)


def _repeat(raw: bytearray, rng) -> bytes:
    begin, length = rng.integers(len(raw)), 1 + rng.integers(256)
    return bytes(
        raw[:begin] + raw[begin : begin + length] * int(rng.integers(2, 200)) + raw[begin:]
    )


def _noise(raw: bytearray, rng) -> bytes:
    at = rng.integers(len(raw))
    return bytes(raw[:at] + rng.bytes(int(rng.integers(1, 9))) + raw[at + rng.integers(9) :])


BYTES = (_flip, _cut, _splice, _leave_out, _blow_up, _repeat, _noise)


# ---- Of JSON


def _leaves(value, path=()) -> list[tuple]:
    """The paths of all values in a tree, its own too."""
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    found = [path]
    for key, part in inner:
        found += _leaves(part, (*path, key))
    return found


def _odd(rng):
    return ODD[rng.integers(len(ODD))]


def changed_tree(tree, rng):
    """A tree of JSON with one value changed, left out, wrapped, or under another name."""
    path = (paths := _leaves(tree))[rng.integers(len(paths))]
    if not path:
        return _odd(rng)
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    last, kind = path[-1], rng.integers(6)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[str(_odd(rng))] = holder.pop(last)
    elif kind == 2:
        holder[last] = [holder[last]]
    elif kind == 3 and isinstance(holder[last], int | float):
        holder[last] = holder[last] * float(rng.choice([-1, 1e9, 1e-9, 1e300])) + 1
    else:
        holder[last] = _odd(rng)
    return tree


def json_changes(raw: bytes, rng) -> bytes:
    """Values, names twice, and depth without end."""
    kind = rng.integers(12)
    if kind == 0:
        return b'{"a":' * 100_000 if rng.integers(2) else b"[" * 100_000
    if kind == 1:
        return b"[" * 3000 + b"]" * 3000
    tree = json.loads(raw)
    if kind == 2 and isinstance(tree, dict) and tree:
        name = list(tree)[rng.integers(len(tree))]
        return raw[:-1].rstrip(b"}\n ") + f', "{name}": {json.dumps(_odd(rng))}}}'.encode()
    text = json.dumps(changed_tree(tree, rng))
    return text.encode() + (b"\n" if raw.endswith(b"\n") else b"")


def lines_changes(raw: bytes, rng) -> bytes:
    """One of the lines of a file of JSON lines."""
    lines = raw.splitlines(keepends=True)
    at = rng.integers(len(lines))
    lines[at] = json_changes(lines[at], rng)
    return b"".join(lines)


# ---- Of arrays


def npy_changes(raw: bytes, rng) -> bytes:
    """Another header over the same numbers, objects, or another array."""
    kind, array = rng.integers(5), np.load(io.BytesIO(raw))
    stream = io.BytesIO()
    if kind == 0:
        np.save(stream, np.array([Runs()], dtype=object), allow_pickle=True)
        return stream.getvalue()
    if kind == 1:
        shapes = ((), (0,), (3,), (1,) * 40, (0, *array.shape[1:]), (*array.shape, 1))
        shape, dtypes = (
            shapes[rng.integers(len(shapes))],
            "f2 f8 i1 u8 c16 U3 S5 M8[s] ? V4".split(),
        )
        dtype = dtypes[rng.integers(len(dtypes))]
        np.save(stream, np.zeros(shape, dtype))
        return stream.getvalue()
    if kind == 2 and array.dtype.kind == "f" and array.size:
        array = array.copy()
        array.reshape(-1)[rng.integers(array.size)] = _number(rng)
        np.save(stream, array)
        return stream.getvalue()
    described = [
        "'<f4'", "'|O'", "'<f8'", "[('a','<f4',(1000000,))]", "'<U1000000000'", "('<f4',(2,2))",
        "'<i8'", "None", "[]", "'|V0'", "'f4,f4'",
    ]  # fmt: skip
    shapes = [
        "(4611686018427387904,)", "(-1,)", "()", "(1,2,", "(1e3,)", "(0,)", "(True,)", "[2]",
        "(99999999999,99999999999)", "(" * 300, "(1L,)", f"({10**30},)", str(array.shape),
    ]  # fmt: skip
    pick = lambda options: options[rng.integers(len(options))]
    head = f"{{'descr': {pick(described)}, 'fortran_order': {pick(['False', 'True', '1', 'None'])}"
    head = f"{head}, 'shape': {pick(shapes)}}}\n".encode()
    version = pick([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"])
    size = struct.pack("<H" if version[0] == 1 else "<I", len(head))
    return b"\x93NUMPY" + version + size + head + raw[128:]


def _number(rng) -> float:
    return float(rng.choice([np.nan, np.inf, -np.inf, 3e38, -1e-45]))


# ---- Of archives


def zip_changes(raw: bytes, rng) -> bytes:
    """A member changed as its own format allows, another name, a bomb, a link, a name twice."""
    stream, kind = io.BytesIO(), rng.integers(8)
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(stream, "w") as new:
        members = [(entry.filename, old.read(entry)) for entry in old.infolist()]
        at = int(rng.integers(len(members)))
        for number, (name, content) in enumerate(members):
            entry = zipfile.ZipInfo(name)
            if number == at and kind < 3:
                content = mutate(name, content, rng, rounds=1)
            elif number == at and kind == 3:
                entry.filename = NAMES[rng.integers(len(NAMES) - 4)]
            elif number == at and kind == 4:
                entry.compress_type, content = zipfile.ZIP_DEFLATED, bomb_of(name, content)
            elif number == at and kind == 5:
                entry.external_attr, content = 0o120777 << 16, b"../../../../etc/passwd"
            elif kind == 6:
                entry.compress_type = int(rng.choice([8, 12, 14]))
            new.writestr(entry, content)
        if kind == 7:
            new.writestr(zipfile.ZipInfo(f"{members[at][0]}."), members[at][1])
    out = stream.getvalue()
    if kind == 7:  # the same length, so that no other byte moves
        out = out.replace(f"{members[at][0]}.".encode(), f"{members[at][0]}x".encode())
    return out


def bomb_of(name: str, content: bytes) -> bytes:
    """1 GB is what these would become; they are zeros, and 10 MB where nothing says more."""
    if name.endswith(".npy"):
        head = "{'descr': '|u1', 'fortran_order': False, 'shape': (16, 1000, 1000, 3)}"
        head = head.ljust(117).encode() + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(48_000_000)
    return content + bytes(10_000_000)


def tar_changes(raw: bytes, rng) -> bytes:
    """Members of hostile names, links, kinds, sizes and headers."""
    stream, kind = io.BytesIO(), rng.integers(7)
    with (
        tarfile.open(fileobj=io.BytesIO(raw)) as old,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        members = [(m, old.extractfile(m).read() if m.isfile() else b"") for m in old]
        at = int(rng.integers(len(members)))
        for number, (member, content) in enumerate(members):
            if number == at and kind < 2:
                content = mutate(member.name, content, rng, rounds=1) if content else content
                member.size = len(content)
            elif number == at and kind == 2:
                member.name = NAMES[rng.integers(len(NAMES) - 4)]
            elif number == at and kind == 3:
                member.type = (b"1", b"2", b"3", b"5", b"6", b"S", b"x", b"g", b"L", b"7")[
                    rng.integers(10)
                ]
                member.linkname = ("/etc/passwd", "../../x", member.name)[rng.integers(3)]
            elif number == at and kind == 4:
                keys = ("size", "path", "GNU.sparse.map", "GNU.sparse.realsize", "uid", "linkpath")
                values = ("-1", str(2**62), "x", "0,9999999999", "../../y.png", "1e9", "")
                key, value = keys[rng.integers(6)], values[rng.integers(7)]
                member.pax_headers = {key: value, "GNU.sparse.major": "0", "GNU.sparse.minor": "1"}
            new.addfile(member, io.BytesIO(content) if content else None)
    out = bytearray(stream.getvalue())
    if kind >= 5:  # a size of a header, and its checksum, as a reader wants them
        place = 512 * int(rng.integers(len(out) // 512))
        sizes = (b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"00000000000\0")
        out[place + 124 : place + 136] = sizes[rng.integers(4)]
        total = 256 + sum(out[place : place + 148]) + sum(out[place + 156 : place + 512])
        out[place + 148 : place + 156] = f"{total:06o}\0 ".encode()
    return bytes(out)


# ---- Of pickles and of text


def pickle_changes(raw: bytes, rng) -> bytes:
    """A program in the place of data, or before its end."""
    program = pickle.dumps(Runs(), protocol=int(rng.integers(2, 5)))
    return program if rng.integers(2) else raw[:-1] + program[2:]


def text_changes(raw: bytes, rng) -> bytes:
    """Hostile names and quotes in the lines of a table."""
    lines = raw.split(b"\n")
    at = rng.integers(len(lines))
    texts = [name.encode("utf-8", "surrogatepass") for name in NAMES]
    texts += [
        b'"',
        b'"' * 1001,
        b",,,",
        b"\0",
        b"\xff\xfe",
        b"a,b\rc,d",
        b'"' + b"x" * 200_000 + b'"',
    ]
    lines[at] = texts[rng.integers(len(texts))] + lines[at][rng.integers(2) * 3 :]
    return b"\n".join(lines)


CHANGES: dict[str, Callable] = {
    ".json": json_changes,
    ".jsonl": lines_changes,
    ".npy": npy_changes,
    ".npz": zip_changes,
    ".zip": zip_changes,
    ".pth": zip_changes,
    ".tar": tar_changes,
    ".pkl": pickle_changes,
    ".csv": text_changes,
    ".txt": text_changes,
    ".cls": text_changes,
}
# JSON without an ending, in a checkpoint.
PLAIN = dict.fromkeys(("_METADATA", "metadata", "metrics", "_CHECKPOINT_METADATA"), json_changes)


def mutate(name: str, raw: bytes, rng: np.random.Generator, rounds: int = 3) -> bytes:
    """A file's bytes after one to `rounds` changes."""
    change = CHANGES.get(Path(name).suffix) or PLAIN.get(Path(name).name)
    for number in range(1 + int(rng.integers(rounds))):
        if not raw:
            return rng.bytes(8)
        if change and number == 0 and rng.integers(2):
            raw = change(raw, rng)
        else:
            raw = BYTES[rng.integers(len(BYTES))](bytearray(raw), rng)
    return raw
