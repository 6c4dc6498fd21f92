"""Files of HDF5 from strangers: read in another process, and refused in one line."""

import sys

import numpy as np
import pytest

from genfield import hdf5

h5py = pytest.importorskip("h5py", reason="needs genfield[cells]")


@pytest.fixture
def made(tmp_path):
    """Makes a file of three arrays; `change` is given the open file."""

    def make(change=lambda file: None):
        path = tmp_path / "made.h5ad"
        with h5py.File(path, "w") as file:
            file.attrs["encoding-version"] = "0.1.0"
            file["layers/spliced"] = np.arange(12.0).reshape(4, 3)
            file.create_dataset("X", data=np.ones((40, 3)), compression="gzip")
            file["names"] = np.array(["a", "b"], dtype=object)
            change(file)
        return path

    return make


def flip(path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert raw.count(old) >= 1
    path.write_bytes(raw.replace(old, new, 1))


def test_what_is_whole_is_read(made):
    hdf5.check(made())


def test_a_file_that_ends_hdf5_ends_another_process_alone(made):
    """One bit of the type of a text in the attributes, which h5py 3.16.0 does not survive."""
    path = made()
    flip(path, b"\x19\x01\x01\x00\x10\x00\x00\x00", b"\x19\x05\x01\x00\x10\x00\x00\x00")
    with pytest.raises(ValueError, match=r"damaged: HDF5 ends with SIG|cannot|attribute|type"):
        hdf5.check(path)


@pytest.mark.parametrize(
    ("number", "words"), [("SEGV", "ends with SIGSEGV on it"), ("XCPU", "reads it for ever")]
)
def test_a_reader_that_is_killed_is_told(number, words, made, monkeypatch, tmp_path):
    """Whatever the version of HDF5 does: its process ends by a signal."""
    ends = tmp_path / "ends"
    ends.write_text(f"#!/bin/sh\nkill -{number} $$\n")
    ends.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(ends))
    with pytest.raises(ValueError, match=f"it is damaged: HDF5 {words}"):
        hdf5.check(made())


def link(file):
    file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")


def soft(file):
    file["again"] = h5py.SoftLink("/layers")


def itself(file):
    file["layers/up"] = file["/layers"]


def external(file):
    file.create_dataset("far", (4,), "i1", external=[("/etc/passwd", 0, 4)])


def bomb(file):
    file.create_dataset("large", (1 << 32,), "i1", chunks=(1 << 20,), compression="gzip")


@pytest.mark.parametrize(
    "change, words",
    [
        (link, "elsewhere is a link to elsewhere"),
        (soft, "again is a link to elsewhere"),
        (itself, "holds itself"),
        (external, "/far lies in another file"),
        (bomb, "too large for its size: a bomb"),
    ],
)
def test_what_leads_elsewhere_or_is_a_bomb(made, change, words):
    with pytest.raises(ValueError, match=words):
        hdf5.check(made(change))


def test_bytes_that_are_damaged(made):
    path = made()
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"truncated|open file"):
        hdf5.check(path)
