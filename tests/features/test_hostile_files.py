"""Files that mean harm, or were never weights: one line each, nothing run, memory and time bounded.

The table holds of each file how it is made, what `read` says of it, and what `read_tree` says; a
tree that is no mistake (names and arguments of what nobody calls) is DATA.
"""

import contextlib
import os
import pickle
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hostile import (
    ACTING,
    BOMBS,
    DATA,
    REFUSED,
    bomb,
    bytes_of,
    compressed_pickle,
    cut,
    described,
    flipped,
    header,
    link_in_archive,
    loop,
    many_views,
    object_arrays,
    other_order,
    outside,
    overlapping,
    oversized,
    pickled,
    pipe,
    plain,
    quantised,
    safetensors_file,
    sharded,
    tar_with_links,
    twice,
    zipped,
)
from pickled import (
    program,
    state_dict,
    text,
    write_zip,
)

from genfield import pretrained
from genfield.errors import UserError
from genfield.features import pickles, torch_files

TREES = Path(__file__).parents[1] / "golden" / "trees"
SECONDS, BYTES = 8, 60_000_000


class Row(NamedTuple):
    """A file: how it is made in a folder, given the marker that it would touch; what is said."""

    make: Callable[[Path, Path], Path]
    read: str
    tree: str


ROWS = {
    **{
        f"{format}: {name}": Row(make(body), words if format == "zip" else "", tree)
        for format, make in (("zip", pickled), ("plain", plain))
        for name, (body, words) in ACTING.items()
        for tree in (next((REFUSED[r] for r in REFUSED if name.startswith(r)), DATA),)
    },
    **{
        f"bomb: {name}": Row(plain(lambda _, body=body: body), "", words)
        for name, (body, words) in BOMBS.items()
    },
    "a tensor larger than its storage": Row(oversized((5,), (1,)), "damaged", "damaged"),
    "a tensor of negative strides": Row(oversized((2,), (-1,), 1), "damaged", "damaged"),
    "a tensor of repeated numbers": Row(oversized((1 << 40,), (0,)), "damaged", "damaged"),
    "a tensor beyond the file": Row(oversized((9,), (1,), count=9), "damaged", "damaged"),
    "a tensor of many axes": Row(oversized((1,) * 99, (1,) * 99), "damaged", "damaged"),
    "all tensors share a storage": Row(many_views, "damaged", "memory"),
    "a storage outside of the archive": Row(outside, "damaged", "damaged"),
    "a link in the archive": Row(link_in_archive, "is a link", "is a link"),
    "zip: bomb": Row(bomb, "compressed", "compressed"),
    "zip: compressed pickle": Row(compressed_pickle, "compressed", "compressed"),
    "zip: records that overlap": Row(overlapping, "overlap", "overlap"),
    "zip: a name twice": Row(twice, "same name", "same name"),
    "zip: one bit flipped": Row(flipped, "damaged", "damaged"),
    "zip: unknown order": Row(other_order, "damaged", "damaged"),
    **{f"zip: cut at {at}": Row(cut(at), "damaged", "damaged") for at in (0.2, 0.5, 0.9, 0.99)},
    "TorchScript": Row(
        zipped(a__data_pkl=program(b"}"), a__constants_pkl=b""), "program", "program"
    ),
    "a zip without weights": Row(zipped(readme=b""), "without weights", "without weights"),
    "arrays of objects": Row(object_arrays, "without weights", "without weights"),
    "quantised": Row(quantised, "QInt8Storage", "QInt8Storage"),
    "safetensors: header of 2^60": Row(safetensors_file(b'{"', length=2**60), "damaged", "damaged"),
    "safetensors: negative offset": Row(
        safetensors_file(header(described(offsets="[-16,0]"))), "damaged", "damaged"
    ),
    "safetensors: beyond the file": Row(
        safetensors_file(header(described(shape="[400]", offsets="[0,1600]"))), "damaged", "damaged"
    ),
    "safetensors: huge": Row(
        safetensors_file(header(described(shape=f"[{2**62},8]", offsets=f"[0,{2**63}]"))),
        "damaged",
        "damaged",
    ),
    "safetensors: overlapping": Row(
        safetensors_file(header(described(), described(name="b"))), "damaged", "damaged"
    ),
    "safetensors: a name twice": Row(
        safetensors_file(header(described(), described())), "twice", "twice"
    ),
    "safetensors: unknown type": Row(
        safetensors_file(header(described("F33"))), "damaged", "damaged"
    ),
    "safetensors: type of another width": Row(
        safetensors_file(header(described("F64"))), "damaged", "damaged"
    ),
    "safetensors: type without numbers": Row(
        safetensors_file(header(described("F8_E4M3", "[16]"))), "damaged", "damaged"
    ),
    "safetensors: deep header": Row(
        safetensors_file(b'{"a":' + b"[" * 90_000), "damaged", "damaged"
    ),
    "safetensors: bytes left over": Row(
        safetensors_file(header(described()), bytes(99)), "damaged", "damaged"
    ),
    "a web page": Row(bytes_of(b"<!DOCTYPE html><html>"), "a web page", "a web page"),
    "a pointer of Git LFS": Row(
        bytes_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "git lfs",
        "git lfs",
    ),
    "gzip": Row(bytes_of(b"\x1f\x8b\x08\x00"), "gzip", "gzip"),
    "a tar with links": Row(tar_with_links, "not a weights file", "not a weights file"),
    "an index that points outside": Row(sharded, "not a weights file", "not a weights file"),
    "empty": Row(bytes_of(b""), "empty", "empty"),
    "a folder": Row(lambda folder, marker: folder, "cannot read", "cannot read"),
    "nothing": Row(lambda folder, marker: folder / "no.pth", "No such file", "No such file"),
    "a pipe": Row(pipe, "pipe", "pipe"),
    "a device": Row(lambda folder, marker: Path("/dev/zero"), "device", "device"),
    "a link to itself": Row(loop, "cannot read", "cannot read"),
    "a NUL in the path": Row(lambda folder, marker: folder / "a\0b", "cannot read", "cannot read"),
}


def said(reader: Callable, path: Path) -> tuple[str, float, int]:
    """What a reader says of a file, nothing where it reads it; its seconds; its peak of bytes."""
    tracemalloc.start()
    begun = time.process_time()
    try:
        reader(path)
        words = ""
    except UserError as error:
        words = str(error)
        assert words
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return words, time.process_time() - begun, peak


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices")
@pytest.mark.parametrize("case", ROWS)
def test_one_line_each_and_nothing_run(tmp_path, case):
    marker = tmp_path / "marker"
    row = ROWS[case]
    path = row.make(tmp_path, marker)
    large = path.stat().st_size if path.is_file() else 0
    for reader, words in ((torch_files.read, row.read), (torch_files.read_tree, row.tree)):
        message, seconds, peak = said(reader, path)
        assert not marker.exists()
        assert seconds < SECONDS and peak < BYTES + 4 * large
        if words == DATA:
            assert not message
        else:
            assert message and words in message, message
            assert "\n" not in message and len(message) < 700
    assert not marker.exists()


@pytest.mark.parametrize("reader", [torch_files.read, torch_files.read_tree])
def test_a_pickle_of_too_many_operations(tmp_path, monkeypatch, reader):
    # What may be asked of a million operations: 216 MB, all of them empty sets.
    path = write_zip(tmp_path / "bad.pth", program(b"]" * 500 + b"a" * 499), {})
    monkeypatch.setattr(pickles.Machine, "operations", 900)
    assert "more than 900 operations" in said(reader, path)[0]


def test_no_permission(tmp_path):
    path = write_zip(tmp_path / "bad.pth", state_dict(), {})
    path.chmod(0)
    root = os.geteuid() == 0
    if root:  # who may read anything
        os.seteuid(65534)
    try:
        for reader in (torch_files.read, torch_files.read_tree):
            assert "Permission denied" in said(reader, path)[0]
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["global", "stack global", "instance", "object"])
def test_these_files_would_act(tmp_path, name):
    pickle.loads(program(ACTING[name][0](text(f"touch {tmp_path / 'marker'}"))))
    assert (tmp_path / "marker").exists()


FORMATS = {
    "zip": lambda folder: TREES / "checkpoint_zip.pt",
    "legacy": lambda folder: TREES / "checkpoint_legacy.pt",
    "pickle": lambda folder: TREES / "edm_4.pkl",
    "early pickle": lambda folder: TREES / "edm_2.pkl",
    "safetensors": lambda folder: safetensors_file(header(described()))(folder, folder),
    "module": lambda folder: TREES / "module.pt",
}


def mutated(raw: bytes, rng: np.random.Generator, kind: int) -> bytes:
    """A change of bytes: others, an end too early, a part twice, a part left out, one bit."""
    begin, length, at = rng.integers(len(raw)), rng.integers(1, 40), rng.integers(len(raw))
    return (
        raw[:begin] + rng.bytes(length % 4 + 1) + raw[begin + length % 4 + 1 :],
        raw[:begin],
        raw[:at] + raw[begin : begin + length] + raw[at:],
        raw[:begin] + raw[begin + length :],
        raw[:begin] + bytes([raw[begin] ^ (1 << rng.integers(8))]) + raw[begin + 1 :],
    )[kind]


@pytest.mark.parametrize("format", FORMATS)
def test_mutations_are_read_or_refused(tmp_path, format):
    source = FORMATS[format](tmp_path)
    raw, rng = source.read_bytes(), np.random.default_rng(0)
    path = tmp_path / f"mutated{source.suffix}"
    for number in range(300):
        path.write_bytes(mutated(raw, rng, number % 5))
        for reader in (torch_files.read, torch_files.read_tree):
            with contextlib.suppress(UserError):
                found = reader(path)
                for value in found.values() if isinstance(found, dict) else ():
                    with contextlib.suppress(ValueError):
                        torch_files.state_dict(value)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices")
@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("opener", ["load", "autoencoder"])
def test_published_weights_of_none_of_these(tmp_path, opener, case):
    path = ROWS[case].make(tmp_path, tmp_path / "marker")
    message, seconds, peak = said(getattr(pretrained, opener), path)
    assert message and "\n" not in message and len(message) < 900
    assert seconds < SECONDS and peak < BYTES + 4 * (path.stat().st_size if path.is_file() else 0)
    assert not (tmp_path / "marker").exists()
