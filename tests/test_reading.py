"""Damaged files and files that mean harm, whatever reads them: one line, and bounded memory."""

import io
import json
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from own_images import create, encoded, picture
from PIL import Image

from genfield import data, reading
from genfield.data import decoding, npz, own, pairs, recorded, shards
from genfield.data.arrays import Arrays
from genfield.errors import UserError
from genfield.machine import logbook
from genfield.prepare import writer
from genfield.program import config_io, own_files
from genfield.program.sample_files import Shards

DEEP = "[" * 100_000


def refuses(match: str, read, *arguments, **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read(*arguments, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2001


def test_a_line_steers_no_terminal():
    said = str(UserError("no \x1b[2J file\n  called \ud800 é\0" + "x" * 9000 + "end"))
    assert said.startswith("no \\x1b[2J file called \\ud800 é\\x00xxx") and said.endswith("xend")
    assert said.isprintable() and 1900 < len(said) <= 2000


@pytest.mark.parametrize(
    "text, match",
    [
        (DEEP, "deep"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        (b"\xff{}", "utf-8"),
        ("", "Expect"),
    ],
)
def test_json(tmp_path, text, match):
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=match):
        reading.json_file(tmp_path / "a.json")


def header(descr: str, shape: str) -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64)


NPY = {
    "unbalanced": header("'<f4'", "(1,2,"),
    "huge": header("'<f4'", f"({2**62},)"),
    "negative": header("'<f4'", "(-1,)"),
    "of no bytes": header("[]", "(-1,)"),
    "of empty fields": header("'|V0'", "(3, 2)"),
    "beyond its end": header("'<f4'", "(99, 3)"),
    "of objects": header("'|O'", "(3,)"),
    "one number": header("'<f4'", "()"),
    "no version": b"\x93NUMPY\x09\x00" + bytes(99),
    "empty": b"",
}


@pytest.mark.parametrize("case", NPY)
def test_npy(tmp_path, case):
    (tmp_path / "a.npy").write_bytes(NPY[case])
    refuses("cannot read .*a.npy: .*again", reading.npy, tmp_path / "a.npy", ". Draw it again")
    refuses("cannot read .*a.npy", data.create, section("arrays", tmp_path / "a.npy"), **FED)


FED = dict(batch_size=1, seed=0)


def section(name, path, **more) -> dict:
    return {"name": name, "path": str(path)} | more


def test_npz_under_another_name_and_members_that_are_no_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", x1=np.ones((3, 2)))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    refuses("npz", reading.npy, tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x1", b"no array")
    refuses("x1 is no array", npz.read_npz, tmp_path / "b.npz", "bad")
    np.savez(tmp_path / "c.npz", x1=np.ones((3, 2)), x0=np.float32(1))
    refuses("one number under x0", data.create, section("arrays", tmp_path / "c.npz"), **FED)


def test_labels_that_are_no_classes(tmp_path):
    levels = np.zeros((3, 4, 4, 3), np.uint8)
    labels = np.array([0, 1, 1 << 55])
    np.savez(tmp_path / "a.npz", x1=levels, labels=labels)
    refuses("labels reach", data.create, section("arrays", tmp_path / "a.npz", labels=True), **FED)
    np.savez(tmp_path / "b.npz", train_images=levels, train_labels=labels)
    refuses("whole numbers from 0 on", create, tmp_path / "b.npz", labels=True)


def test_names_beyond_the_labels_are_not_read(tmp_path):
    levels, labels = np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 1, 0])
    names = np.zeros(30_000_000, np.uint8)
    splits = {"train_images": levels, "train_labels": labels}
    np.savez_compressed(tmp_path / "a.npz", **splits, class_names=names)
    begun = time.process_time()
    made = create(tmp_path / "a.npz", labels=True, heldout_fraction=0.4)
    assert made.class_names == ("0", "0") and time.process_time() - begun < 2


def test_bombs_of_npz(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x1=np.zeros((1000, 1000), "u1"))
    assert npz.read_npz(tmp_path / "a.npz", "bad")["x1"].shape == (1000, 1000)
    monkeypatch.setattr(reading, "ROOM", 100)
    refuses("bomb", npz.read_npz, tmp_path / "a.npz", "bad")
    assert npz.read_npz(tmp_path / "a.npz", "bad", lambda name: False) == {"x1": None}


def chunk(kind: bytes, body: bytes) -> bytes:
    import zlib

    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def test_a_picture_of_more_pixels_than_its_bytes_may_hold():
    size = (13_000).to_bytes(4, "big") * 2  # 169 million, which Pillow itself allows
    head = chunk(b"IHDR", size + b"\x08\x02\0\0\0")
    raw = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    refuses("13,000 x 13,000 pixels: a bomb", decoding.decode, raw, decoding.Reading(), "a.png")


def tar_of(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, raw in members.items():
            entry = tarfile.TarInfo(f"{name}.png")
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    return stream.getvalue()


def with_size(raw: bytes, field: bytes) -> bytes:
    """The first header of an archive says another size."""
    out = bytearray(raw)
    out[124:136] = field
    total = 256 + sum(out[:148]) + sum(out[156:512])
    out[148:156] = f"{total:06o}\0 ".encode()
    return bytes(out)


@pytest.mark.parametrize("size", [b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11])
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_tar_of_a_false_size(tmp_path, size, ending):
    import gzip

    good = encoded(Image.fromarray(picture(0)))
    raw = with_size(tar_of(a=good, b=good), size)
    (tmp_path / f"a.{ending}").write_bytes(gzip.compress(raw) if ending == "tar.gz" else raw)
    refuses("damaged, or neither", create, tmp_path / f"a.{ending}")


def test_bombs_in_archives(tmp_path, monkeypatch):
    import lzma

    good = encoded(Image.fromarray(picture(0)))
    raw = tar_of(a=good, b=good, c=bytes(3_000_000))
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(raw))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", good + bytes(3_000_000))
    assert create(tmp_path / "a.zip", heldout_fraction=0.0).shape == (8, 8, 3)
    monkeypatch.setattr(reading, "ROOM", 100_000)
    refuses("too large", create, tmp_path / "a.tar.xz")
    refuses("bomb", create, tmp_path / "a.zip")


def test_what_lies_sparse_in_a_tar_is_left_out(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, more in (("a", {}), ("b", {}), ("c", {"GNU.sparse.map": "0,9"})):
            raw, entry = encoded(Image.fromarray(picture(1))), tarfile.TarInfo(f"{name}.png")
            entry.size, entry.pax_headers = len(raw), more
            tar.addfile(entry, io.BytesIO(raw))
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    assert create(tmp_path / "a.tar", heldout_fraction=0.0).sizes["train"] == 2


def test_columns_name_no_file_elsewhere(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "secret.png").write_bytes(encoded(Image.fromarray(picture(0))))
    place = tmp_path / "set"
    place.mkdir()
    for where, match in (("../secret.png", "outside"), (str(tmp_path / "secret.png"), "outside")):
        held = {"image": [{"bytes": None, "path": where}] * 3}
        kinds = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path":
                                             datasets.Value("string")}})  # fmt: skip
        table = datasets.Dataset.from_dict(held, features=kinds)
        table.to_parquet(str(place / "train.parquet"))
        refuses(match, create, place)


def test_parquet_larger_than_its_file(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    good = encoded(Image.fromarray(picture(0)))
    held = {"image": [{"bytes": good, "path": None}] * 3000}
    datasets.Dataset.from_dict(held).to_parquet(str(tmp_path / "train.parquet"))
    assert create(tmp_path, max_images=3, heldout_fraction=0.0).sizes["train"] == 3
    monkeypatch.setattr(reading, "ROOM", 1000)
    monkeypatch.setattr(reading, "TIMES", 1)
    refuses("bomb", create, tmp_path)


def test_manifests_of_shards(tmp_path):
    import prepared

    levels = np.zeros((4, 4, 4, 3), np.uint8)
    prepared.pixels(tmp_path / "p", levels, [0, 1, 0, 1])
    good = shards.read_manifest(tmp_path / "p")
    bad = {"shape": 3, "count": -1, "class_names": [1], "kind": "x", "copies": 1.5}
    bad["shards"] = [{"file": "../../x.npy", "count": 4, "hash": "0"}]
    for name, value in bad.items():
        (tmp_path / "p" / "manifest.json").write_text(json.dumps(good | {name: value}))
        refuses(f"its {name} is", shards.read_manifest, tmp_path / "p")
    (tmp_path / "p" / "manifest.json").write_text(json.dumps(good))
    np.save(tmp_path / "p" / "labels.npy", np.array([0, 1, 0, 7], np.int32))
    refuses("no labels below 2", shards.open_shards, tmp_path / "p")


def test_pairs_of_other_types(tmp_path):
    settings = {"num_classes": 2, "class_names": ["a", "b"], "pixels": False}
    (tmp_path / "manifest.json").write_text(json.dumps({"num": 12, "settings": settings}))
    for name in ("x0", "x1"):
        np.save(tmp_path / f"{name}.npy", np.zeros((12, 2), "f4"))
    for labels in (np.full(12, 9), np.zeros(12, "f4")):
        np.save(tmp_path / "labels.npy", labels)
        refuses("draw the pairs again", data.create, section("pairs", tmp_path), **FED)
    np.save(tmp_path / "x0.npy", np.zeros((12, 2), "U3"))
    refuses("draw the pairs again", data.create, section("pairs", tmp_path), **FED)
    for name, value in (("source", []), ("class_names", "ab"), ("num_classes", "2")):
        told = {"num": 12, "settings": settings | {name: value}}
        (tmp_path / "manifest.json").write_text(json.dumps(told))
        refuses("manifest.json cannot be read", pairs._manifest, tmp_path / "manifest.json")


def test_metrics_that_cannot_be_read_are_told(tmp_path, capsys):
    lines = ['{"step": 1, "split": "train", "loss": 2}', DEEP, '{"step": "x", "split": 3}', "5"]
    text = "\n".join(lines).encode() + b'\n\xff\n{"step": 2, "sp'
    (tmp_path / "metrics.jsonl").write_bytes(text)
    assert [row["step"] for row in logbook.read_metrics(tmp_path)] == [1]
    assert "metrics.jsonl is damaged: 4 of its lines" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text(lines[0] + '\n{"step": 2, "sp')  # a kill's
    assert len(logbook.read_metrics(tmp_path)) == 1
    assert not capsys.readouterr().out


def test_records_of_a_run(tmp_path):
    for name in ("config.json", "data.json", "own/files.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(DEEP)
    refuses("cannot be read", config_io.from_file, tmp_path / "config.json")
    refuses("cannot be read", recorded.read, tmp_path)
    refuses("cannot be read", own_files.methods_of, tmp_path)
    for found in ([], {"../x.py": {"origin": "a", "sha256": "b"}}, {"a.py": {"origin": 3}}):
        (tmp_path / "own" / "files.json").write_text(json.dumps(found))
        refuses("cannot be read", own_files.methods_of, tmp_path)


def test_a_journal_of_strange_numbers(tmp_path):
    line = {"first": 0, "last": 3, "count": 3, "mark": "", "left_out": []}
    for name, value in (("count", 1e300), ("count", True), ("last", 2.0), ("first", float("nan"))):
        (tmp_path / "a.jsonl").write_text(json.dumps(line | {name: value}) + "\n")
        assert writer.read_journal(tmp_path / "a.jsonl", 0, 8) == []
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    assert writer.read_journal(tmp_path / "a.jsonl", 0, 8) == [line]


def test_shards_of_samples_that_are_others(tmp_path):
    files = Shards(tmp_path, "s", {"num": 4, "shard_size": 2}, ("npz",))
    files.begin()
    rows = lambda n, **more: {"arr_0": np.zeros((n, 2), "f4"), "nfe": np.ones(n)} | more
    for bad in (rows(3), rows(1, index=np.array([7])), rows(1, index=np.array([0.5])), {}):
        name = "000000_000000000.npz" if "index" in bad else "000000.npz"
        np.savez(files.shards / name, **bad)
        assert list(files.missing()) == [0, 1, 2, 3] and not (files.shards / name).exists()
    files.write(0, rows(2))
    files.write(1, {"arr_0": np.zeros((2, 2), "f4")})
    refuses("do not belong together", files.finish)
    assert files.shards.exists()


def test_arrays_of_words_are_told_as_they_are():
    words = Arrays({"x1": np.full((4, 3, 1), "abc")}, Path("a.npz"), 0.5)
    with pytest.raises(UserError, match=r"<U3 .* not uint8 or floats"):
        own.check("arrays", words)


def test_text_of_letters_that_are_none_is_refused(tmp_path):
    """NumPy makes an array of it, and Python no string."""
    text = np.array([2**30], np.uint32).view("<U1")
    np.savez(tmp_path / "a.npz", names=text)
    with pytest.raises(UserError, match="bad: names holds text that is none"):
        npz.read_npz(tmp_path / "a.npz", "bad")


def test_a_library_that_reserves_what_a_file_says_meets_its_bound():
    with pytest.raises(MemoryError), reading.room_for(1 << 28):
        np.ones(1 << 31, np.uint8)
    assert np.ones(1 << 28, np.uint8).all()  # and not behind it
