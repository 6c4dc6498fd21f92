"""Arrays of images that are too large for the memory: read by memory map, to the same batches."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from genfield import data
from genfield.data import npz
from genfield.data.sets import open_images

DRAW = np.random.default_rng(0)
LEVELS = DRAW.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
LABELS = DRAW.integers(0, 3, 40)


@pytest.fixture
def on_disk(monkeypatch):
    """From the call on, all arrays count as large."""
    return lambda: monkeypatch.setattr(npz, "MAPPED", 0)


def batches(dataset) -> list[dict]:
    return list(itertools.islice(dataset.train(0), 12))


def check_same(whole, mapped) -> None:
    assert whole.fingerprint == mapped.fingerprint and whole.sizes == mapped.sizes
    for a, b in zip(batches(whole), batches(mapped), strict=True):
        assert a.keys() == b.keys()
        for name, values in a.items():
            assert values.dtype == b[name].dtype and type(b[name]) is np.ndarray
            np.testing.assert_array_equal(b[name], values)
    held = [dataset.heldout(0, 4) for dataset in (whole, mapped)]
    np.testing.assert_array_equal(*[batch["x1"] for batch in held])


def images(path: Path, **fields):
    fields = dict(name="images", path=str(path), labels=True, size=6) | fields
    return data.create(fields, batch_size=8, seed=3)


@pytest.mark.parametrize(
    "levels", [LEVELS, (LEVELS / 255).astype(np.float32), LEVELS.repeat(2, 1).repeat(2, 2)]
)
@pytest.mark.parametrize("fields", [{}, {"classes": (2, 0)}, {"max_images": 20}])
def test_images_of_an_npz_stay_on_the_disk(levels, fields, on_disk, tmp_path):
    """Also floats, and images that are resized when they are read."""
    np.savez(tmp_path / "images.npz", train_images=levels, train_labels=LABELS)
    whole = images(tmp_path / "images.npz", **fields)
    on_disk()
    mapped = images(tmp_path / "images.npz", in_memory=False, **fields)
    assert whole.examples["train"].arrays is not None
    assert mapped.examples["train"].arrays is None
    check_same(whole, mapped)
    asked = images(tmp_path / "images.npz", in_memory=True, **fields)
    assert asked.examples["train"].arrays is not None
    check_same(whole, asked)


def test_a_cache_of_decoded_images_stays_on_the_disk(on_disk, tmp_path):
    np.savez(tmp_path / "images.npz", train_images=LEVELS, train_labels=LABELS)
    whole = images(tmp_path / "images.npz", cache=str(tmp_path / "cache"))
    on_disk()
    mapped = images(tmp_path / "images.npz", cache=str(tmp_path / "cache"))
    assert mapped.examples["train"].arrays is None
    check_same(whole, mapped)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64])
def test_arrays_of_an_npz_stay_on_the_disk(dtype, on_disk, tmp_path):
    file = tmp_path / "arrays.npz"
    np.savez(file, x1=LEVELS.astype(dtype), labels=LABELS)
    create = lambda: data.create(
        dict(name="arrays", path=str(file), labels=True, scale=0.3), batch_size=8, seed=3
    )
    whole = create()
    on_disk()
    check_same(whole, create())
    [batch, *_] = batches(whole)  # the scale is of floats alone, as float32
    factor = 1 if dtype == np.uint8 else np.float32(0.3)
    scaled = np.asarray(LEVELS.astype(dtype) * factor, batch["x1"].dtype)
    known = {image.tobytes() for image in scaled}
    assert all(image.tobytes() in known for image in batch["x1"])


def test_sets_of_several_arrays_are_joined_where_they_lie(on_disk, tmp_path):
    """Measured images: all arrays of a file, in the order of their names."""
    np.savez(tmp_path / "images.npz", train_images=LEVELS[:30], test_images=LEVELS[30:])
    on_disk()
    found = open_images(str(tmp_path / "images.npz"))
    rows = np.array([39, 0, 10, 9, 38])
    np.testing.assert_array_equal(found.read(rows), np.roll(LEVELS, 10, 0)[rows])
