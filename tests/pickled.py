"""PyTorch's files assembled by hand, opcode by opcode, for tests of what reads them."""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from genfield.features import pickles


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def items(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def wholes(values) -> bytes:
    return items(*map(whole, values))


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


EMPTY = named("collections", "OrderedDict") + b")R"


def storage(key: str, count: int, kind: str = "FloatStorage", view: bytes = b"") -> bytes:
    identity = text("storage"), named("torch", kind), text(key), text("cpu"), whole(count)
    return items(*identity, *([view] if view else [])) + b"Q"


def tensor(stored: bytes, shape, strides, offset: int = 0) -> bytes:
    described = stored, whole(offset), wholes(shape), wholes(strides), b"\x89", EMPTY
    return named("torch._utils", "_rebuild_tensor_v2") + items(*described) + b"R"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def state_dict(**values: bytes) -> bytes:
    pairs = b"".join(text(name) + value for name, value in values.items())
    return program(EMPTY + b"(" + pairs + b"u")


def write_zip(path: Path, pickled: bytes, storages: dict, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, record in records.items():
            archive.writestr(f"archive/{name.replace('_pkl', '.pkl')}", record)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_legacy(path: Path, pickled: bytes, storages: dict) -> Path:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = (pickles.LEGACY_MAGIC, pickles.LEGACY_PROTOCOL, system)
    with open(path, "wb") as file:
        for thing in head:
            pickle.dump(thing, file, protocol=2)
        file.write(pickled)
        pickle.dump(list(storages), file, protocol=2)
        for array in storages.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())
    return path


WRITERS = {"zip": write_zip, "legacy": write_legacy}


def write(format: str, path: Path, state: dict[str, np.ndarray]) -> Path:
    """A float32 state dict in a format."""
    if format == "safetensors":
        safetensors.numpy.save_file(state, path)
        return path
    strides = lambda a: [s // a.itemsize for s in a.strides]
    tensors = {n: tensor(storage(n, a.size), a.shape, strides(a)) for n, a in state.items()}
    return WRITERS[format](path, state_dict(**tensors), state)
