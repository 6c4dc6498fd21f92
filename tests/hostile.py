"""Files that mean harm, made by hand: what test_hostile_files.py holds a table of."""

import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pickled import (
    EMPTY,
    items,
    named,
    program,
    state_dict,
    storage,
    tensor,
    text,
    whole,
    wholes,
    write_zip,
)

from genfield.features import pickles

DATA = "data"  # in place of words: it is read
MERSENNE = 2**61 - 1  # Python's hash of it is 0


def binary(raw: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(raw)) + raw


def long(value: int) -> bytes:
    raw = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def written(folder: Path, raw: bytes, name: str = "bad.pth") -> Path:
    (folder / name).write_bytes(raw)
    return folder / name


def pickled(body: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    """A zip file of torch.save; `body` is given an argument that would make the marker."""

    def make(folder: Path, marker: Path) -> Path:
        content = program(body(text(f"touch {marker}")))
        return write_zip(folder / "bad.pth", content, {"0": np.zeros(4, "f4")})

    return make


def plain(body: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    """A pickle and nothing else."""
    return lambda folder, marker: written(folder, program(body(text(f"touch {marker}"))), "bad.pkl")


def zipped(**entries: bytes) -> Callable[[Path, Path], Path]:
    def make(folder: Path, marker: Path) -> Path:
        with zipfile.ZipFile(folder / "bad.pth", "w") as archive:
            for name, raw in entries.items():
                archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), raw)
        return folder / "bad.pth"

    return make


def bytes_of(raw: bytes, name: str = "bad.pth") -> Callable[[Path, Path], Path]:
    return lambda folder, marker: written(folder, raw, name)


SYSTEM = named("posix", "system")
BY_STACK = text("posix") + text("system") + b"\x93"
POPEN = named("subprocess", "Popen")
OF_TYPE = named("torch._tensor", "_rebuild_from_type_v2")
OF_NUMPY = named("numpy.core.multiarray", "_reconstruct")
INNER = named("torch.storage", "_load_from_bytes")
IDENTITY = items(text("storage"), SYSTEM, text("0"), text("cpu"), whole(4))
ACTING = {  # pickles that act where they are loaded, given a command; what `read` names
    "global": (lambda a: SYSTEM + items(a) + b"R", "posix.system"),
    "stack global": (lambda a: BY_STACK + items(a) + b"R", "posix.system"),
    "instance": (lambda a: b"(" + a + b"iposix\nsystem\n", "INST"),
    "object": (lambda a: b"(" + SYSTEM + a + b"o", "posix.system"),
    "object unnamed": (lambda a: b"(" + EMPTY + a + b"o", "OBJ"),
    "new": (lambda a: POPEN + items(a) + b"\x81", "subprocess.Popen"),
    "new with keywords": (lambda a: POPEN + items(a) + b"}\x92", "subprocess.Popen"),
    "state": (lambda a: named("my", "Class") + b")\x81" + SYSTEM + items(a) + b"Rb", "my.Class"),
    "set state": (lambda a: SYSTEM + b")\x81" + items(a) + b"b", "posix.system"),
    "extension 1": (lambda a: b"\x82\x01", "EXT1"),
    "extension 2": (lambda a: b"\x83\x01\x00", "EXT2"),
    "extension 4": (lambda a: b"\x84\x01\x00\x00\x00", "EXT4"),
    "text reference": (lambda a: b"Pposix\n", "PERSID"),
    "nested name": (lambda a: named("os", "path.os.system") + items(a) + b"R", "os.path.os.system"),
    "attribute": (lambda a: named("builtins", "getattr") + items(SYSTEM, a) + b"R", "getattr"),
    "called twice": (lambda a: named("functools", "partial") + items(a) + b"R)R", "partial"),
    "reconstructor": (
        lambda a: named("copyreg", "_reconstructor") + items(POPEN, SYSTEM, a) + b"R",
        "copyreg._reconstructor",
    ),
    "new by function": (
        lambda a: named("copyreg", "__newobj__") + items(POPEN, a) + b"R",
        "copyreg.__newobj__",
    ),
    "tensor of a type": (
        lambda a: OF_TYPE + items(SYSTEM, POPEN, items(a), b"N") + b"R",
        "_rebuild_from_type_v2",
    ),
    "array of a type": (lambda a: OF_NUMPY + items(POPEN, a, b"N") + b"R", "numpy.core"),
    "in torch": (lambda a: named("torch.hub", "load") + items(a) + b"R", "torch.hub.load"),
    "a storage's type": (lambda a: IDENTITY + b"Q", "posix.system"),
}
# What a tree refuses too: by which word. Of others it holds the names.
REFUSED = dict.fromkeys(("instance", "object", "extension", "text reference"), "refused")
REFUSED["a storage's type"] = ""


def doubled(levels: int, begin: bytes = b"]", pair: bytes = b"\x86") -> bytes:
    """Each level holds the one before it twice."""
    return begin + b"q\x00" + (b"h\x00h\x00" + pair + b"q\x00") * levels


def repeated(first: bytes, again: bytes, count: int) -> bytes:
    """A list of the first, which is memorised as 0, and of what is made of it so often."""
    return b"](" + first + put(0) + again * count + b"e"


def numbers(raw: bytes, dtype: str = "f4", shape=(4,)) -> bytes:
    """NumPy's array of bytes."""
    made = named("numpy.core.multiarray", "_reconstruct")
    made += items(named("numpy", "ndarray"), wholes((0,)), binary(b"b")) + b"R"
    kind = named("numpy", "dtype") + items(text(dtype), b"\x89", b"\x88") + b"R"
    return made + items(whole(1), wholes(shape), kind, b"\x89", raw) + b"b"


def inner_stream(body: bytes) -> bytes:
    """Bytes of the early format, whose object is `body`."""
    head = (pickles.LEGACY_MAGIC, pickles.LEGACY_PROTOCOL, {})
    raw = b"".join(pickle.dumps(thing, 2) for thing in head) + program(body)
    return raw + pickle.dumps([], 2)


def loaded(raw: bytes) -> bytes:
    return INNER + items(binary(raw)) + b"R"


COLLIDING = b"}(" + b"".join(long(k * MERSENNE) + b"N" for k in range(1, 20_002)) + b"u"
NEAR = b"}(" + b"".join(long(k << 32) + b"N" for k in range(1, 20_003)) + b"u"
LIST = b"](" + b"N" * 10_000 + b"e"
TEXTS = b"](" + b"".join(text(f"n{i}") for i in range(5_000)) + b"e"
AS_BYTES = named("_codecs", "encode") + get(0) + text("latin1") + b"\x86R"
AS_SET = named("builtins", "set") + get(0) + b"\x85R"
NAMES = b"".join(get(0) + text(f"b{i}") + b"\x93" for i in range(10_100))
LONG_NAME = get(0) * 2 + b"\x93"
BOMBS = {  # small pickles that ask for much, and what is said of the tree
    "memo far away": (b"}r\xff\xff\xff\x7f", DATA),
    "nested twice a level": (doubled(60), "memory"),
    "nested as a key": (b"}" + doubled(60) + b"Ns", "damaged"),
    "a long text again and again": (repeated(text("x" * 50_000), get(0), 6_000), "memory"),
    "a long list again and again": (repeated(LIST, get(0), 500), "memory"),
    "a text as bytes again and again": (repeated(text("x" * 50_000), AS_BYTES, 6_000), "memory"),
    "a set of a list again and again": (repeated(TEXTS, AS_SET, 900), "memory"),
    "names put together": (repeated(text("a" * 400), NAMES, 1), "too many names"),
    "a long name again and again": (repeated(text("a" * 90_000), LONG_NAME, 900), "names"),
    "text of 2^60": (b"\x8d" + struct.pack("<Q", 2**60), "damaged"),
    "bytes of 2^60": (b"\x8e" + struct.pack("<Q", 2**60), "damaged"),
    "byte array of 2^60": (b"\x96" + struct.pack("<Q", 2**60), "damaged"),
    "a number of 2^31 bytes": (b"\x8b\xff\xff\xff\x7f", "damaged"),
    "a number of many digits as a key": (
        b"}\x8b" + struct.pack("<i", 9_000) + b"\x01" * 9_000 + b"Ns",
        "damaged",
    ),
    "numbers that meet": (COLLIDING, "damaged"),
    "large numbers as keys": (NEAR, "too many keys"),
    "deep": (b"]" * 3_000 + b"a" * 2_999, "in one another"),
    "deep tuples": (b")" + b"\x85" * 3_000, "in one another"),
    "holds itself": (b"]q\x00h\x00a", DATA),
    "bytes in bytes": (loaded(inner_stream(loaded(inner_stream(b"N")))), "damaged"),
    "harm in bytes": (loaded(inner_stream(SYSTEM + items(text("true")) + b"R")), "damaged"),
    "many operations in bytes": (loaded(inner_stream(b"N0" * 9_000 + b"N")), "operations"),
    "array of a subarray": (numbers(binary(bytes(16)), "(1000000,1000000)f4"), DATA),
    "array of records": (numbers(binary(bytes(16)), "f4,f4"), DATA),
    "array of objects": (numbers(b"]", "O8"), DATA),
    "array without end": (numbers(binary(bytes(16)), shape=(1 << 40,)), "damaged"),
    "array of a negative size": (numbers(binary(bytes(16)), shape=(-1, -4)), "damaged"),
    "state given twice": (named("a", "B") + b")\x81}b}b", "damaged"),
    "reference beside": (storage("0", 4), "BINPERSID"),
}


def oversized(shape, strides, offset=0, count=4):
    content = state_dict(a=tensor(storage("0", count), shape, strides, offset))
    return lambda folder, marker: write_zip(folder / "bad.pth", content, {"0": np.zeros(4, "f4")})


def many_views(folder: Path, marker: Path) -> Path:
    """Two hundred tensors that are all of one storage, 2 MB."""
    one = tensor(storage("0", 500_000), (500_000,), (1,))
    content = state_dict(**{f"n{i}": one for i in range(200)})
    return write_zip(folder / "bad.pth", content, {"0": np.zeros(500_000, "f4")})


def outside(folder: Path, marker: Path) -> Path:
    (folder / "secret").write_bytes(bytes(16))
    content = state_dict(a=tensor(storage("../../secret", 4), (4,), (1,)))
    return write_zip(folder / "bad.pth", content, {"0": np.zeros(4, "f4")})


def link_in_archive(folder: Path, marker: Path) -> Path:
    """The storage is a symbolic link to a file outside."""
    content = state_dict(a=tensor(storage("0", 4), (4,), (1,)))
    path = write_zip(folder / "bad.pth", content, {})
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("archive/data/0")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "../../../secret0")  # 16 bytes, as the tensor wants
    return path


def bomb(folder: Path, marker: Path) -> Path:
    """100 MB of zeros, compressed."""
    content = state_dict(a=tensor(storage("0", 25_000_000), (25_000_000,), (1,)))
    with zipfile.ZipFile(folder / "bad.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), content)  # stored
        with archive.open("archive/data/0", "w", force_zip64=True) as file:
            for _ in range(100):
                file.write(bytes(1_000_000))
    return folder / "bad.pth"


def compressed_pickle(folder: Path, marker: Path) -> Path:
    with zipfile.ZipFile(folder / "bad.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program(b"}" + text("a" * 9_000_000) + b"Ns"))
    return folder / "bad.pth"


def overlapping(folder: Path, marker: Path) -> Path:
    """Two hundred entries of the directory name one record's bytes."""
    count = 200
    names = {f"n{i}": tensor(storage(f"{i:03}", 4096), (4096,), (1,)) for i in range(count)}
    zeros = {f"{i:03}": np.zeros(1, "f4") for i in range(count - 1)}
    path = write_zip(
        folder / "bad.pth", state_dict(**names), {**zeros, f"{count - 1:03}": np.zeros(4096, "f4")}
    )
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        large, begin = archive.infolist()[-1], archive.start_dir
    at, out = begin, bytearray(raw)
    for _ in range(count + 1):
        name, extra, comment = struct.unpack("<HHH", raw[at + 28 : at + 34])
        if b"/data/" in raw[at + 46 : at + 46 + name]:
            out[at + 16 : at + 28] = struct.pack("<III", large.CRC, 16384, 16384)
            out[at + 42 : at + 46] = struct.pack("<I", large.header_offset)
        at += 46 + name + extra + comment
    return written(folder, bytes(out))


def twice(folder: Path, marker: Path) -> Path:
    path = write_zip(folder / "bad.pth", state_dict(), {})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", program(b"}"))
    return path


def cut(at: float) -> Callable[[Path, Path], Path]:
    def make(folder: Path, marker: Path) -> Path:
        raw = oversized((4,), (1,))(folder, marker).read_bytes()
        return written(folder, raw[: int(at * len(raw))])

    return make


def flipped(folder: Path, marker: Path) -> Path:
    """One bit of a tensor."""
    path = write_zip(
        folder / "bad.pth",
        state_dict(a=tensor(storage("0", 4), (4,), (1,))),
        {"0": np.full(4, 7.0, "f4")},
    )
    raw = path.read_bytes()
    return written(folder, raw.replace(np.full(4, 7.0, "f4").tobytes(), bytes(15) + b"\x01"))


def safetensors_file(header: bytes, data: bytes = bytes(16), length: int | None = None):
    size = struct.pack("<Q", len(header) if length is None else length)
    return bytes_of(size + header + data, "bad.safetensors")


def described(dtype="F32", shape="[4]", offsets="[0,16]", name="a") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def header(*entries: str) -> bytes:
    return ("{" + ",".join(entries) + "}").encode()


def object_arrays(folder: Path, marker: Path) -> Path:
    np.savez(folder / "bad.npz", a=np.array([1, "x"], dtype=object))
    return folder / "bad.npz"


def tar_with_links(folder: Path, marker: Path) -> Path:
    with tarfile.open(folder / "bad.tar", "w") as archive:
        entry = tarfile.TarInfo("weights.pth")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    return folder / "bad.tar"


def pipe(folder: Path, marker: Path) -> Path:
    os.mkfifo(folder / "bad.pth")
    return folder / "bad.pth"


def loop(folder: Path, marker: Path) -> Path:
    (folder / "bad.pth").symlink_to(folder / "bad.pth")
    return folder / "bad.pth"


def sharded(folder: Path, marker: Path) -> Path:
    places = {"weight_map": {"a": "../../etc/passwd"}}
    return written(folder, json.dumps(places).encode(), "model.safetensors.index.json")


def quantised(folder: Path, marker: Path) -> Path:
    stored = storage("0", 4, kind="QInt8Storage")
    return write_zip(folder / "bad.pth", program(stored), {"0": np.zeros(4, "i1")})


def other_order(folder: Path, marker: Path) -> Path:
    content = state_dict(a=tensor(storage("0", 4), (4,), (1,)))
    return write_zip(folder / "bad.pth", content, {"0": np.zeros(4, "f4")}, byteorder=b"middle")
