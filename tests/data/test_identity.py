"""Identity is content: an edit is noticed, by caches and by what is remembered; old runs go on."""

import json
import os
import time

import numpy as np
import pytest
from own_images import create, everything, numbers, picture, tar, told, tree, write, zipped
from PIL import Image

from genfield import data
from genfield.data import identity, pipeline, sets
from genfield.errors import UserError


@pytest.fixture(autouse=True)
def remembers(tmp_path, monkeypatch):
    """A cache folder of the test's own, and no wait before a hash is kept."""
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "identities"))
    monkeypatch.setattr(identity, "SETTLED_NS", 0)


def kept(tmp_path):
    return list((tmp_path / "identities").rglob("*.json"))


def replace(file, number):
    """Another picture in a file of the same name, size and time of writing."""
    before, size = file.stat(), file.stat().st_size
    write(file, picture(number), compress_level=0)
    assert file.stat().st_size == size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def flat(root, count=8):
    for i in range(count):
        write(root / "train" / f"{i}.png", picture(i), compress_level=0)
    return root


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("cache", [True, False])
def test_an_edit_of_the_same_size_and_time_is_noticed(in_memory, cache, tmp_path):
    folder = flat(tmp_path / "a")
    options = dict(in_memory=in_memory, heldout_split="train")
    options |= dict(cache=str(tmp_path / "cache")) if cache else {}
    before = create(folder, **options)
    assert create(folder, **options).fingerprint == before.fingerprint
    replace(folder / "train" / "3.png", 99)
    after = create(folder, **options)
    assert after.fingerprint != before.fingerprint
    assert numbers(after) == [0, 1, 2, 99, 4, 5, 6, 7]
    replace(folder / "train" / "3.png", 3)
    assert create(folder, **options).fingerprint == before.fingerprint


def test_an_edit_of_a_held_out_image_is_noticed(tmp_path):
    folder = tree(tmp_path / "a")
    before = create(folder).fingerprint
    write(folder / "test" / "cat" / "00.png", picture(99))
    assert create(folder).fingerprint != before


def test_an_edit_of_a_reference_is_noticed(tmp_path):
    folder = flat(tmp_path / "a")

    def identities():
        places = [folder, tar(folder, tmp_path / "a.tar"), zipped(folder, tmp_path / "a.zip")]
        return [sets.open_images(str(place)).identity for place in places]

    first = identities()
    assert sets.open_images(str(folder)).identity == first[0]
    replace(folder / "train" / "3.png", 99)
    second = identities()
    assert not set(first) & set(second)
    moved = folder.rename(tmp_path / "moved")
    assert sets.open_images(str(moved)).identity == second[0]


def test_a_second_start_reads_nothing_again(tmp_path, monkeypatch):
    folder = flat(tmp_path / "a")
    write(folder / "train" / "8.gif", Image.new("RGB", (8, 8)), save_all=True,
          append_images=[Image.new("RGB", (8, 8), "red")])  # fmt: skip
    lines = told(folder, in_memory=False)
    assert any("first is taken" in line for line in lines)
    assert len(kept(tmp_path)) == 1
    monkeypatch.setattr(identity, "examples_hash", None)
    assert told(folder, in_memory=False) == lines
    (folder / "train" / "0.png").touch()
    with pytest.raises(TypeError):
        create(folder, in_memory=False)


def test_what_changed_just_now_is_not_remembered(tmp_path, monkeypatch):
    """A second edit within a tick of the clock could not be told from the first."""
    monkeypatch.setattr(identity, "SETTLED_NS", 3_000_000_000)
    folder = flat(tmp_path / "a")
    create(folder, in_memory=False)
    assert not kept(tmp_path)
    later = time.time_ns() + 4_000_000_000
    monkeypatch.setattr(identity.time, "time_ns", lambda: later)
    create(folder, in_memory=False)
    assert len(kept(tmp_path)) == 1


def test_a_cache_folder_that_cannot_be_written_or_read_costs_time_alone(tmp_path, monkeypatch):
    folder = flat(tmp_path / "a")
    mark = create(folder, in_memory=False).fingerprint
    (file,) = kept(tmp_path)
    file.write_text("{")
    assert create(folder, in_memory=False).fingerprint == mark
    (tmp_path / "file").touch()
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "file"))
    assert create(folder, in_memory=False).fingerprint == mark


def test_the_cache_tells_again_what_was_left_out(tmp_path):
    folder = flat(tmp_path / "a")
    (folder / "notes.txt").write_text("x")
    lines = told(folder, cache=str(tmp_path / "cache"))
    assert lines[1] == "images: left out 1 file: 1 .txt"
    assert told(folder, cache=str(tmp_path / "cache")) == lines


def test_the_cache_is_of_the_background_too(tmp_path):
    clear = np.zeros((8, 8, 4), np.uint8)
    for i in range(4):
        write(tmp_path / "a" / f"{i}.png", clear)
    of = lambda level: create(tmp_path / "a", cache=str(tmp_path / "c"), background=level)
    for level in (0, 255, 0):
        assert (everything(of(level))["x1"] == level).all()


def old_fingerprint(place, split="train", wanted=("train", "test"), size=10, classes=None):
    """As versions before this one computed it, written down anew: names and sizes, or both ends."""
    if place.is_dir():
        files = sorted(p for name in wanted for p in (place / name).rglob("*.png"))
        rows = [(p.relative_to(place).as_posix(), p.stat().st_size) for p in files]
        mark = pipeline.short_hash(rows)
    else:
        import hashlib

        content = place.read_bytes()
        ends = content[: 1 << 20] + content[max(0, len(content) - (1 << 20)) :]
        mark = pipeline.short_hash(len(content), hashlib.sha256(ends).hexdigest())
    mark = pipeline.short_hash(mark, split)
    mark = mark if classes is None else pipeline.short_hash(mark, classes)
    return pipeline.short_hash(mark, size)


def test_fingerprints_of_earlier_versions_are_accepted(tmp_path):
    folder = tree(tmp_path / "a")
    assert create(folder).older == (old_fingerprint(folder),)
    archive = tar(folder, tmp_path / "a.tar")
    assert create(archive).older == (old_fingerprint(archive),)
    one = create(folder, classes=(1,))
    assert one.older == (old_fingerprint(folder, size=4, classes=(1,)),)
    # What the old rule saw as a change still is one; so is what is read now and was not then.
    write(folder / "train" / "cat" / "99.webp", picture(99), lossless=True)
    assert create(folder).older != (old_fingerprint(folder),)


def test_an_edit_of_pairs_is_noticed_and_runs_on_older_ones_go_on(tmp_path):
    folder, generator = tmp_path / "pairs", np.random.default_rng(0)
    folder.mkdir()
    for name in ("x0", "x1"):
        np.save(folder / f"{name}.npy", generator.standard_normal((20, 8, 8, 3), np.float32))
    settings = {"num_classes": 0, "class_names": [], "pixels": True}
    (folder / "manifest.json").write_text(json.dumps({"num": 20, "settings": settings}))
    real = flat(tmp_path / "real")
    section = {"name": "pairs", "path": str(folder)}
    beside = section | {"real": {"name": "images", "path": str(real), "heldout_split": "train"}}
    of = lambda section: data.create(section, batch_size=1, seed=0)
    alone, both = of(section), of(beside)
    old = pipeline.short_hash(pipeline.short_hash("pairs", settings), 18)
    assert alone.older == (old,)
    assert pipeline.short_hash(old, old_fingerprint(real, wanted=("train",), size=8)) in both.older
    np.save(folder / "x1.npy", generator.standard_normal((20, 8, 8, 3), np.float32))
    assert of(section).fingerprint != alone.fingerprint
    replace(real / "train" / "3.png", 99)
    assert len({of(beside).fingerprint, both.fingerprint}) == 2


def test_a_file_that_is_written_to_while_a_run_reads_it_is_told(tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, np.zeros((64, 3), np.float32))
    section = {"name": "arrays", "path": str(file)}
    data.create(section, batch_size=4, seed=0)
    identity.check_unchanged()
    with file.open("r+b") as stream:
        stream.seek(512)
        stream.write(b"\1")
    with pytest.raises(UserError, match=r"x\.npy was changed since this run started"):
        identity.check_unchanged()
    data.create(section, batch_size=4, seed=0)
    file.rename(tmp_path / "y.npy")  # what was opened is read on
    np.save(file, np.ones((64, 3), np.float32))
    identity.check_unchanged()
