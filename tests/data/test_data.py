"""Data: moments of the 2-D problems, equal pixels from every container, order by (seed, step)."""

import io
import json
import subprocess
import sys
import tarfile
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from genfield import data
from genfield.data import containers, decoding, pipeline, pixels, splits
from genfield.data.decoding import Reading
from genfield.errors import UserError


def create(batch_size=4, seed=0, process_index=0, process_count=1, log=None, **section):
    return data.create(
        ml_collections.ConfigDict(section),
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        log=log,
    )


def batches(dataset, count, start=0):
    iterator = dataset.train(start)
    taken = [next(iterator) for _ in range(count)]
    iterator.close()
    return taken


def picture(number, size=(8, 8)):
    """An RGB image that only `number` has."""
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_image(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes, PNG: 6 + 4 training images and 3 + 2 test images."""
    root, number = tmp_path / "images", 0
    for split, counts in (("train", (6, 4)), ("test", (3, 2))):
        for name, count in zip(("cat", "dog"), counts, strict=True):
            for i in range(count):
                write_image(root / split / name / f"{i:02d}.png", picture(number))
                number += 1
    return root


def pack(folder, archive, mode, prefix="."):
    with tarfile.open(archive, mode) as tar:
        tar.add(folder, arcname=prefix)
    return archive


def all_train(dataset, batch_size):
    """One epoch's images by label, in an order that depends on their pixels only."""
    epoch = batches(dataset, dataset.sizes["train"] // batch_size)
    images = np.concatenate([b["x1"] for b in epoch])
    labels = np.concatenate([b["label"] for b in epoch])
    order = np.lexsort(images.reshape(len(images), -1)[:, :4].T)
    return images[order], labels[order]


def as_set(images):
    return {image.tobytes() for image in images}


# ---------------------------------------------------------------- 2-D problems

N = 40_000
# Closed forms of E|x|^2 for each problem; the standard error below is estimated from the draw.
SECOND_MOMENT = {
    "eight_gaussians": 25.0 + 2.0 * 0.1**0.5,
    "checkerboard": 2.0 * 64.0 / 12.0,
    "spirals": np.pi**2 / 2 + 2 * 0.1**2,
    "rings": 0.75**2 * (1 + 4 + 9 + 16) / 4 + 2 * 0.08**2,
    "pinwheel": 4 * (1 + 0.3**2 + 0.1**2),
    "swiss_roll": (9.75 * np.pi**2 + 2) / 25,
}
# Point symmetric, or in five-fold symmetry: the mean is 0.
CENTRED = ("eight_gaussians", "checkerboard", "spirals", "rings", "pinwheel")


@pytest.mark.parametrize("name", SECOND_MOMENT)
def test_second_moment_is_the_closed_form(name):
    x = np.asarray(data.DISTRIBUTIONS[name](jax.random.key(1), N), np.float64)
    square = (x**2).sum(-1)
    assert abs(square.mean() - SECOND_MOMENT[name]) < 4 * square.std() / N**0.5


@pytest.mark.parametrize("name", CENTRED)
def test_mean_is_zero(name):
    x = np.asarray(data.DISTRIBUTIONS[name](jax.random.key(2), N), np.float64)
    assert np.all(np.abs(x.mean(0)) < 4 * x.std(0) / N**0.5)


def test_eight_gaussians_have_equal_modes_of_the_right_width():
    x = np.asarray(data.DISTRIBUTIONS["eight_gaussians"](jax.random.key(3), N), np.float64)
    mode = np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8
    angle = np.pi / 4 * np.arange(8)
    centres = 5 * np.stack([np.cos(angle), np.sin(angle)], -1)
    share = np.bincount(mode, minlength=8) / N
    assert np.all(np.abs(share - 1 / 8) < 4 * (7 / 64 / N) ** 0.5)
    np.testing.assert_allclose((x - centres[mode]).var(0), 0.1**0.5, rtol=0.04)


@pytest.mark.parametrize("n", [1000, 1001])
def test_two_moons_lie_on_the_grid_up_to_one_offset_a_point(n):
    x = (np.asarray(data.DISTRIBUTIONS["two_moons"](jax.random.key(4), n), np.float64) + 1) / 3
    outer_angle, inner_angle = np.linspace(0, np.pi, n // 2), np.linspace(0, np.pi, n - n // 2)
    curve = np.concatenate(
        [
            np.stack([np.cos(outer_angle), np.sin(outer_angle)], -1),
            np.stack([1 - np.cos(inner_angle), 0.5 - np.sin(inner_angle)], -1),
        ]
    )
    # Both coordinates get the same offset, so their difference is that of the exact curve.
    np.testing.assert_allclose(
        np.sort(x[:, 0] - x[:, 1]), np.sort(curve[:, 0] - curve[:, 1]), atol=2e-6
    )
    # The offsets sum up to n times their mean of 0.1; their variance is 0.2^2 / 12.
    offset = (x.sum() - curve.sum()) / 2
    assert abs(offset / n - 0.1) < 4 * (0.04 / 12 / n) ** 0.5
    assert x.min() >= -1 - 1e-6 and x[:, 1].max() <= 1.2 + 1e-6


def test_two_moons_come_in_random_order():
    """Without the permutation the first half of a draw would be the first moon."""
    x = (np.asarray(data.DISTRIBUTIONS["two_moons"](jax.random.key(5), 1000)) + 1) / 3
    left = (x[:500, 0] < -0.25).mean(), (x[500:, 0] < -0.25).mean()
    assert min(left) > 0.1  # 0.2 of the points, all on the first moon


def test_checkerboard_fills_only_every_second_square():
    x = np.asarray(data.DISTRIBUTIONS["checkerboard"](jax.random.key(6), N))
    square = np.floor((x + 4) / 2).astype(int)
    assert np.all(square.sum(-1) % 2 == 0) and square.min() == 0 and square.max() == 3
    assert len(np.unique(square, axis=0)) == 8


@pytest.mark.parametrize("name", data.DISTRIBUTIONS)
def test_draws_depend_on_the_key_alone(name):
    draw = data.DISTRIBUTIONS[name]
    first = draw(jax.random.key(7), 65)
    assert first.shape == (65, 2) and first.dtype == jnp.float32
    np.testing.assert_array_equal(first, draw(jax.random.key(7), 65))
    assert np.abs(first - draw(jax.random.key(8), 65)).max() > 0.1
    jitted = jax.jit(draw, static_argnums=1)(jax.random.key(7), 65)
    np.testing.assert_allclose(jitted, first, atol=2e-6)


def test_toy_data_set():
    moons = create(name="two_moons", source="eight_gaussians", seed=3)
    assert moons.shape == (2,) and moons.train is None and moons.num_classes == 0
    assert moons.draw is data.DISTRIBUTIONS["two_moons"]
    assert moons.draw_source is data.DISTRIBUTIONS["eight_gaussians"]
    assert create(name="two_moons").draw_source is None
    first = moons.heldout(0, 10)["x1"]
    assert isinstance(first, np.ndarray) and first.shape == (10, 2)
    np.testing.assert_array_equal(first, create(name="two_moons", seed=9).heldout(0, 10)["x1"])
    assert np.abs(first - moons.heldout(1, 10)["x1"]).max() > 0.1
    assert json.loads(json.dumps(moons.state(5)))["step"] == 5
    with pytest.raises(UserError, match="unknown source 'moons'"):
        create(name="two_moons", source="moons")


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("xp", [np, jnp])
def test_scaling_round_trip_is_exact(xp):
    levels = xp.arange(256).astype(xp.uint8)
    unit = data.to_unit(levels)
    assert unit.dtype == np.float32 and float(unit[0]) == -1 and float(unit[-1]) == 1
    back = data.to_uint8(unit)
    assert back.dtype == np.uint8 and type(back) is type(levels)
    np.testing.assert_array_equal(back, levels)
    # Out of range is clipped; a half (127.5 at 0) goes to the even neighbour.
    x = xp.asarray([-9.0, 9.0, 0.0], xp.float32)
    np.testing.assert_array_equal(data.to_uint8(x), [0, 255, 128])


def encoded(image, **options):
    stream = io.BytesIO()
    image.save(stream, **{"format": "PNG", **options})
    return stream.getvalue()


def test_grayscale_transparent_and_palette_files():
    rgb = Image.fromarray(picture(0))
    gray = rgb.convert("L")
    as_rgb = decoding.decode(encoded(gray), Reading(None, 3), "gray")
    np.testing.assert_array_equal(as_rgb, np.repeat(np.asarray(gray)[..., None], 3, -1))
    luma = decoding.decode(encoded(rgb), Reading(None, 1), "rgb")
    np.testing.assert_array_equal(luma[..., 0], np.asarray(gray))
    opaque = np.concatenate([picture(0), np.full((8, 8, 1), 255, np.uint8)], -1)
    as_rgb = decoding.decode(encoded(Image.fromarray(opaque)), Reading(), "rgba")
    np.testing.assert_array_equal(as_rgb, picture(0))
    palette = rgb.quantize(16)
    np.testing.assert_array_equal(
        decoding.decode(encoded(palette), Reading(), "palette"), np.asarray(palette.convert("RGB"))
    )


def test_resize_crops_the_centre_and_averages():
    """A wide image of three flat blocks: only the middle one survives the crop."""
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, :8], wide[:, 8:16], wide[:, 16:] = 10, 100, 200
    np.testing.assert_array_equal(
        decoding.decode(encoded(Image.fromarray(wide)), Reading(4), "wide"), np.full((4, 4, 3), 100)
    )
    # An antialiased filter sees all columns of a fine stripe pattern: about the mean, 127.5.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = decoding.decode(encoded(Image.fromarray(stripes)), Reading(8), "stripes")
    assert np.abs(small[:, 1:-1].astype(float) - 127.5).max() < 8


# ---------------------------------------------------------------- containers


def test_folder_archives_and_npz_give_the_same_pixels(folder, tmp_path):
    arrays = {}
    for split in ("train", "test"):
        files = sorted((folder / split).rglob("*.png"))
        arrays[f"{split}_images"] = np.stack([np.asarray(Image.open(f)) for f in files])
        arrays[f"{split}_labels"] = np.array([int(f.parent.name == "dog") for f in files])
    np.savez(tmp_path / "a.npz", **arrays)
    paths = [
        folder,
        pack(folder, tmp_path / "a.tar", "w:"),
        pack(folder, tmp_path / "a.tar.gz", "w:gz", prefix="deep/inside"),
        pack(folder, tmp_path / "a.tar.xz", "w:xz", prefix="./"),
        tmp_path / "a.npz",
    ]
    made = [
        create(name="images", path=str(p), labels=True, flip=False, batch_size=2, in_memory=m)
        for p in paths
        for m in (True, False)
    ]
    for dataset in made:
        assert dataset.shape == (8, 8, 3) and dataset.sizes == {"train": 10, "test": 5}
        assert dataset.num_classes == 2
    assert made[0].class_names == ("cat", "dog")
    reference, held = all_train(made[0], 2), made[0].heldout(0, 5)
    np.testing.assert_array_equal(np.bincount(reference[1]), [6, 4])
    assert as_set(reference[0]) == as_set(arrays["train_images"])
    assert as_set(held["x1"]) == as_set(arrays["test_images"])
    for image, label in zip(held["x1"], held["label"], strict=True):
        row = np.flatnonzero((arrays["test_images"] == image).all((1, 2, 3)))
        assert label == arrays["test_labels"][row].item()
    for dataset in made[1:]:
        for ours, theirs in zip(all_train(dataset, 2), reference, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        other = dataset.heldout(0, 5)
        np.testing.assert_array_equal(other["x1"], held["x1"])
        np.testing.assert_array_equal(other["label"], held["label"])
        assert other["label"].dtype == np.int32


def test_jpeg_is_decoded_as_pillow_does(tmp_path):
    for split, number in (("train", 0), ("test", 1)):
        write_image(tmp_path / split / "a" / "x.JPG", picture(number), format="JPEG", quality=90)
    dataset = create(name="images", path=str(tmp_path), batch_size=1, flip=False)
    expected = np.asarray(Image.open(tmp_path / "train" / "a" / "x.JPG"))
    np.testing.assert_array_equal(batches(dataset, 1)[0]["x1"][0], expected)


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("arr_0", "labels")])
def test_npz_without_splits(tmp_path, keys):
    images = np.stack([picture(i) for i in range(20)])
    np.savez(tmp_path / "a.npz", **{keys[0]: images, keys[1]: np.arange(20) % 3})
    lines = []
    dataset = create(
        name="images", path=str(tmp_path / "a.npz"), labels=True, flip=False, log=lines.append
    )
    assert dataset.sizes == {"train": 18, "test": 2} and dataset.class_names == ("0", "1", "2")
    assert lines == ["images: 3 classes in its labels, 18 to train on, 2 held out (10% of them)"]
    train = np.concatenate([b["x1"] for b in batches(dataset, 9)])
    held = dataset.heldout(0, 2)["x1"]
    assert not as_set(train) & as_set(held)
    assert as_set(train) | as_set(held) == as_set(images)


def test_npz_is_converted_and_resized(tmp_path):
    gray = np.stack([picture(i)[..., 0] for i in range(6)])
    np.savez(tmp_path / "a.npz", images=gray)
    plain = create(name="images", path=str(tmp_path / "a.npz"), channels=1)
    assert plain.shape == (8, 8, 1)
    small = create(name="images", path=str(tmp_path / "a.npz"), channels=3, size=4)
    x = small.heldout(0, 1)["x1"]
    assert x.shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(x[..., 0], x[..., 2])
    expected = {
        np.asarray(Image.fromarray(g).resize((4, 4), Image.Resampling.BICUBIC)).tobytes()
        for g in gray
    }
    assert x[0, ..., 0].tobytes() in expected


def test_held_out_fallback_is_disjoint_and_the_same_for_every_seed(folder):
    options = dict(name="images", path=str(folder), heldout_split=None, heldout_fraction=0.3)
    dataset = create(**options, flip=False, seed=1)
    assert dataset.sizes == {"train": 7, "test": 3}
    held = as_set(dataset.heldout(0, 3)["x1"])
    train = as_set(np.concatenate([b["x1"] for b in batches(dataset, 7)]))
    assert len(train) == 7 and len(held) == 3 and not train & held
    assert as_set(create(**options, seed=2).heldout(0, 3)["x1"]) == held


def test_held_out_batches_wrap_around_and_mix_the_classes(folder):
    dataset = create(name="images", path=str(folder), labels=True)
    whole = dataset.heldout(0, 5)
    assert len(as_set(whole["x1"])) == 5
    wrapped = dataset.heldout(1, 3)["x1"]  # rows 3, 4, 0
    np.testing.assert_array_equal(wrapped, whole["x1"][[3, 4, 0]])
    np.testing.assert_array_equal(dataset.heldout(0, 12)["x1"][5:10], whole["x1"])
    assert list(whole["label"]) != sorted(whole["label"])


def test_training_images_can_be_the_held_out_ones(folder):
    dataset = create(name="images", path=str(folder), heldout_split="train", flip=False)
    assert dataset.sizes == {"train": 10, "test": 10}
    assert len(as_set(dataset.heldout(0, 10)["x1"])) == 10


def test_max_images_keeps_a_fixed_mixed_subset(folder):
    kept = [
        create(name="images", path=str(folder), labels=True, max_images=4, flip=False, in_memory=m)
        for m in (True, False)
    ]
    images, labels = all_train(kept[0], 4)
    assert kept[0].sizes == {"train": 4, "test": 4} and len(set(labels)) == 2
    np.testing.assert_array_equal(images, all_train(kept[1], 4)[0])


def test_unlabelled_files_may_lie_in_the_split_itself(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for i in range(count):
            write_image(tmp_path / split / f"{i}.png", picture(i))
    assert create(name="images", path=str(tmp_path)).sizes == {"train": 4, "test": 2}
    with pytest.raises(UserError, match=r"train/0\.png .* no class folder"):
        create(name="images", path=str(tmp_path), labels=True)


def test_hidden_and_foreign_files_are_left_out(folder, tmp_path):
    (folder / "train" / "cat" / "._00.png").write_bytes(b"resource fork")
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    (folder / "train" / ".thumbs").mkdir()
    archive = pack(folder, tmp_path / "a.tar", "w:")
    for path in (folder, archive):
        lines = []
        assert create(name="images", path=str(path), log=lines.append).sizes["train"] == 10
        assert lines[1:] == ["images: left out 1 file: 1 .txt"]


def test_cache_gives_the_same_and_needs_no_decoding(folder, tmp_path, monkeypatch):
    archive = pack(folder, tmp_path / "a.tar.gz", "w:gz")
    options = dict(name="images", path=str(archive), labels=True, cache=str(tmp_path / "cache"))
    first = create(**options)
    monkeypatch.setattr("genfield.data.places.decode", None)
    monkeypatch.setattr("genfield.data.places.open_files", None)
    second = create(**options)
    assert (first.class_names, first.sizes, first.fingerprint, first.shape) == (
        second.class_names,
        second.sizes,
        second.fingerprint,
        second.shape,
    )
    for ours, theirs in zip(batches(second, 4), batches(first, 4), strict=True):
        np.testing.assert_array_equal(ours["x1"], theirs["x1"])
        np.testing.assert_array_equal(ours["label"], theirs["label"])
    np.testing.assert_array_equal(second.heldout(1, 3)["x1"], first.heldout(1, 3)["x1"])
    # Another size is another cache, which must be decoded.
    with pytest.raises(TypeError):
        create(**options, size=4)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match=r"cache .* damaged: delete it"):
        create(**options)


def test_fingerprint_sees_other_files(folder, tmp_path):
    archives = [tmp_path / "a.tar", tmp_path / "b.tar"]
    pack(folder, archives[0], "w:")
    before = create(name="images", path=str(folder)).fingerprint
    assert create(name="images", path=str(folder), seed=5).fingerprint == before
    write_image(folder / "train" / "dog" / "99.png", picture(99))
    pack(folder, archives[1], "w:")
    assert create(name="images", path=str(folder)).fingerprint != before
    assert len({create(name="images", path=str(a)).fingerprint for a in archives}) == 2


# ---------------------------------------------------------------- order, resume, processes


def test_digits():
    dataset = create(name="digits", labels=True, batch_size=500)
    assert dataset.shape == (8, 8, 1) and dataset.num_classes == 10
    assert dataset.sizes == {"train": 1500, "test": 297}
    images, labels = all_train(dataset, 500)
    held = dataset.heldout(0, 297)
    everything = np.concatenate([images, held["x1"]])
    # scikit-learn's 1,797 digits are 16 levels; the sum of all pixels is that of the raw data.
    from sklearn.datasets import load_digits

    raw = load_digits()
    np.testing.assert_array_equal(
        np.bincount(np.concatenate([labels, held["label"]])), np.bincount(raw.target)
    )
    expected = np.round(raw.images * 255 / 16).astype(np.uint8)
    assert everything.max() == 255
    assert sorted(x.tobytes() for x in everything) == sorted(x.tobytes() for x in expected)
    assert "label" not in batches(create(name="digits"), 1)[0]
    assert create(name="digits").num_classes == 0


@pytest.fixture
def numbered(tmp_path):
    """Ten images whose first pixel is their number; asymmetric, so that a mirror shows."""
    images = np.zeros((10, 2, 3, 3), np.uint8)
    images[:, 0, 0] = np.arange(10)[:, None]
    images[:, 1, 0] = 255
    np.savez(tmp_path / "n.npz", train_images=images, test_images=images)
    return str(tmp_path / "n.npz")


def numbers(batch):
    """The images' numbers, mirrored or not."""
    return batch["x1"][:, 0, :, 0].max(-1)


def mirrored(batch):
    return batch["x1"][:, 1, 0, 0] == 0


def test_every_epoch_is_a_new_permutation(numbered):
    """Batches of 4 from 10 images straddle the epochs."""
    stream = np.concatenate(
        [numbers(b) for b in batches(create(name="images", path=numbered, channels=3), 10)]
    ).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(stream, -1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in stream}) == 4


def test_batches_depend_on_seed_and_step_alone(numbered):
    first = batches(create(name="images", path=numbered), 12)
    again = batches(create(name="images", path=numbered), 12)
    other = batches(create(name="images", path=numbered, seed=1), 12)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a["x1"], b["x1"])
    assert any((a["x1"] != b["x1"]).any() for a, b in zip(first, other, strict=True))
    for start in (1, 7):
        for a, b in zip(
            first[start:],
            batches(create(name="images", path=numbered), 12 - start, start),
            strict=True,
        ):
            np.testing.assert_array_equal(a["x1"], b["x1"])


@pytest.mark.parametrize("in_memory", [True, False])
def test_processes_share_one_global_batch(folder, in_memory):
    options = dict(name="images", path=str(folder), labels=True, in_memory=in_memory)
    whole = batches(create(**options), 8)
    halves = [batches(create(**options, process_index=r, process_count=2), 8) for r in (0, 1)]
    for step, batch in enumerate(whole):
        for key in ("x1", "label"):
            joined = np.concatenate([half[step][key] for half in halves])
            np.testing.assert_array_equal(joined, batch[key])


def test_flips_mirror_half_of_the_images(numbered):
    seen = batches(create(name="images", path=numbered), 500)
    flips = np.concatenate([mirrored(b) for b in seen])
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / len(flips) ** 0.5
    with np.load(numbered) as file:
        originals = file["train_images"]
    for batch in seen[:5]:
        for image, number, flip in zip(batch["x1"], numbers(batch), mirrored(batch), strict=True):
            expected = originals[number][:, ::-1] if flip else originals[number]
            np.testing.assert_array_equal(image, expected)
    # Flips neither leak into the stored images nor into the held-out ones, and can be off.
    dataset = create(name="images", path=numbered, flip=False)
    assert not any(mirrored(b).any() for b in batches(dataset, 20))
    flipping = create(name="images", path=numbered)
    batches(flipping, 20)
    assert not mirrored(flipping.heldout(0, 10)).any()


def test_state_is_json(numbered):
    dataset = create(name="images", path=numbered, seed=7)
    state = json.loads(json.dumps(dataset.state(np.int64(3))))
    assert state == {"step": 3, "seed": 7, "fingerprint": dataset.fingerprint}


def test_an_open_iterator_does_not_hang_the_interpreter(numbered):
    script = f"""
from genfield import data
d = data.create(dict(name="images", path={numbered!r}), batch_size=4, seed=0)
it = d.train(0); next(it); print("first")
"""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "first\n" and done.returncode == 0, done.stderr
    assert time.monotonic() - start < 30


# ---------------------------------------------------------------- what a user can get wrong


def refuses(match, **options):
    with pytest.raises(UserError, match=match) as caught:
        create(**{"name": "images", **options})
    assert "\n" not in str(caught.value)


def test_bad_paths(tmp_path):
    refuses(r"--config\.data\.path=", path=None)
    refuses("absent does not exist", path=str(tmp_path / "absent"))
    for name in ("notes.txt", "empty.tar", "broken.tar.xz"):
        (tmp_path / name).write_bytes(b"" if name == "empty.tar" else b"no archive" * 100)
        refuses(f"{name} is damaged, or neither", path=str(tmp_path / name))
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    refuses(r"bad\.npz is not a readable \.npz", path=str(tmp_path / "bad.npz"))


def test_truncated_archives(folder, tmp_path):
    for name, mode in (
        ("a.tar", "w:"),
        ("a.tar.xz", "w:xz"),
        ("a.tgz", "w:gz"),
        ("a.tbz", "w:bz2"),
    ):
        archive = pack(folder, tmp_path / name, mode)
        content = archive.read_bytes()
        for cut in (len(content) // 1024 * 512, len(content) // 2 + 100):
            archive.write_bytes(content[:cut])
            refuses(f"{name} is damaged", path=str(archive), batch_size=1)


def test_bad_splits(folder):
    (folder / "empty").mkdir()
    refuses(
        r"no split 'training' in .*expected training/<class>", path=str(folder), split="training"
    )
    refuses(
        "unknown split of .* 'tset'.*Known: test, train", path=str(folder), heldout_split="tset"
    )
    refuses("folder empty of .* holds no", path=str(folder), split="empty")
    refuses("folder empty of .* holds no", path=str(folder), heldout_split="empty")
    refuses("heldout_fraction=1.5 must", path=str(folder), heldout_fraction=1.5)


def test_empty_class(folder, tmp_path):
    (folder / "train" / "emu").mkdir()
    refuses("folder train/emu of .* holds no", path=str(folder))
    refuses("folder train/emu of .* holds no", path=str(pack(folder, tmp_path / "a.tgz", "w:gz")))


def test_held_out_class_without_training_images(folder):
    write_image(folder / "test" / "emu" / "0.png", picture(0))
    refuses(r"class of test/emu/0\.png .* no training image", path=str(folder), labels=True)
    assert create(name="images", path=str(folder)).sizes["test"] == 6


@pytest.mark.parametrize("pack_mode", [None, "w:", "w:xz"])
def test_unreadable_images_are_named(folder, tmp_path, pack_mode):
    def refused(match):
        path = pack(folder, tmp_path / "b.tar", pack_mode) if pack_mode else folder
        refuses(rf"cannot read the image {match}", path=str(path))

    text = folder / "train" / "dog" / "01.png"
    original = text.read_bytes()
    text.write_text("this is text")
    refused(r"train/dog/01\.png in .*: not an image")
    text.write_bytes(original)
    big = np.kron(picture(1), np.ones((8, 8, 1), np.uint8))
    jpeg = folder / "train" / "cat" / "77.jpg"
    write_image(jpeg, big, quality=95)
    jpeg.write_bytes(jpeg.read_bytes()[:-1000])
    refused(r"train/cat/77\.jpg in .*: .*truncated")


def test_unreadable_image_met_in_training(folder):
    """Decoded on demand, it stops the run with the same message."""
    dataset = create(name="images", path=str(folder), in_memory=False)
    (folder / "train" / "dog" / "01.png").write_text("this is text")
    with pytest.raises(UserError, match=r"cannot read the image train/dog/01\.png"):
        batches(dataset, 3)


def test_images_of_several_sizes(folder):
    write_image(folder / "train" / "dog" / "02.png", picture(0, (8, 9)))
    refuses(
        r"cat/00\.png .* is 8x8x3, train/dog/02\.png .* is 8x9x3: set data\.size", path=str(folder)
    )
    assert create(name="images", path=str(folder), size=8).shape == (8, 8, 3)


def test_splits_of_different_sizes(folder):
    for file in (folder / "test").rglob("*.png"):
        write_image(file, picture(0, (5, 5)))
    refuses(r"\(8, 8, 3\), held-out ones \(5, 5, 3\): set data\.size", path=str(folder))


def test_bad_npz(tmp_path):
    good = np.zeros((4, 2, 2, 3), np.uint8)
    cases = {
        "it has pictures": dict(pictures=good),
        r"images .* \(float32\) has values outside \[0, 1\]": dict(images=good - np.float32(1)),
        r"uint8 \[4, 2, 2, 5\]": dict(images=np.zeros((4, 2, 2, 5), np.uint8)),
        "is empty": dict(images=good[:0]),
        "no labels in": dict(images=good),
        r"labels in .* is int64 \[3\]: expected 4": dict(images=good, labels=np.arange(3)),
        r"labels in .* is float64": dict(images=good, labels=np.ones(4)),
        "not a readable": dict(images=np.array([None, {}])),
    }
    for match, arrays in cases.items():
        np.savez(tmp_path / "a.npz", **arrays)
        refuses(match, path=str(tmp_path / "a.npz"), labels=True)


def test_bad_options(folder):
    path = str(folder)
    refuses("unknown field 'sise'.*did you mean 'size'", path=path, sise=3)
    refuses("unknown field 'feed'", path=path, feed=3)
    refuses("unknown data 'image'.*did you mean 'images'", name="image")
    refuses("channels=2 must be 1", path=path, channels=2)
    refuses("size=0 must be", path=path, size=0)
    refuses("in_memory='yes' must be", path=path, in_memory="yes")
    refuses("max_images=0 must be", path=path, max_images=0)
    refuses("batch_size 11 exceeds the 10 training", path=path, batch_size=11)
    refuses("batch_size 4 does not divide among 3", path=path, batch_size=4, process_count=3)
    refuses("seed -1 must not", path=path, seed=-1)
    refuses("batch_size 0 does not divide", path=path, batch_size=0)


def test_batch_is_checked_before_the_images_are_decoded(folder):
    (folder / "train" / "dog" / "01.png").write_text("this is text")
    refuses("batch_size 11 exceeds", path=str(folder), batch_size=11)


def test_broken_links_and_a_cache_in_a_file(folder, tmp_path):
    (tmp_path / "file").touch()
    cache = str(tmp_path / "file" / "cache")
    refuses(r"cannot make the folder data\.cache=", path=str(folder), cache=cache)
    (folder / "train" / "cat" / "link.png").symlink_to(tmp_path / "absent.png")
    refuses(r"cannot read .*link\.png .*No such file", path=str(folder))


def test_image_that_vanishes_is_named(folder):
    dataset = create(name="images", path=str(folder), in_memory=False)
    (folder / "train" / "dog" / "03.png").unlink()
    with pytest.raises(UserError, match=r"cannot read the image train/dog/03\.png .*No such file"):
        batches(dataset, 3)


def test_memory_limit(folder, tmp_path):
    """Past the limit a folder is read on demand; a compressed archive has to be extracted."""
    tight = dict(name="images", memory_limit_gb=1e-6)  # 1 kB: less than the decoded images
    assert create(**tight, path=str(folder)).shape == (8, 8, 3)
    archive = str(pack(folder, tmp_path / "a.tar.xz", "w:xz"))
    refuses("memory_limit_gb.*extract it", **tight, path=archive)
    assert create(**tight, path=archive, in_memory=True).sizes["train"] == 10
    assert create(**tight, path=str(pack(folder, tmp_path / "a.tar", "w:"))).sizes["train"] == 10


def test_auto_decodes_into_memory_only_what_fits(folder):
    names = containers.open_files(folder / "train", 0).names
    read = []

    def examples():
        def one(row):
            read.append(row)
            return picture(row), None, names[row]

        return pixels.on_demand(len(names), one)

    feed = pipeline.Feed(4, 0, 0, 1, print)

    def settled(limit):
        chosen = splits.Splits("train", "train", 0.1, "auto", limit, None)
        return chosen.settle({"train": examples}, "here", feed)[0]

    assert settled((10 * 8 * 8 * 3 + 0.5) / 1e9).arrays["x1"].shape == (10, 8, 8, 3)
    read.clear()
    assert settled((10 * 8 * 8 * 3 - 0.5) / 1e9).arrays is None
    assert set(read) == {0}


def test_progress_is_told_only_when_it_takes_long(monkeypatch):
    clock = iter(range(0, 10_000, 3))
    slow = pixels.on_demand(4 * pixels.CHUNK, lambda row: (picture(0), None, "x"))
    lines = []
    monkeypatch.setattr(pixels.time, "monotonic", lambda: 0)
    pixels.load(slow, "here", lines.append)
    assert lines == []
    monkeypatch.setattr(pixels.time, "monotonic", lambda: next(clock))
    pixels.load(slow, "here", lines.append)  # 3, 6, 9 and 12 s: past 2, 4 and 8
    assert len(lines) == 4 - 1 and lines[0] == "decoding here: 256 of 1,024 images"


def test_missing_packages_name_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refuses(r"genfield\[digits\]", name="digits")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    refuses(r"genfield\[tfds\]", name="tfds", dataset="cifar10")


# ---------------------------------------------------------------- TFDS


def write_records(file, chosen):
    """A file of ArrayRecord with these pictures, of two classes by turns."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    writer = ArrayRecordWriter(str(file), "group_size:1")
    for i, number in enumerate(chosen):
        image = encoded(Image.fromarray(picture(number)))
        values = {
            "image": tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[image])),
            "label": tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[i % 2])),
        }
        example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=values))
        writer.write(example.SerializeToString())
    writer.close()


@pytest.fixture
def prepared(tmp_path):
    """A TFDS data set as `download_and_prepare` would leave it, written without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    ).save_config(folder)
    counts = {"train": 10, "test": 4}
    for split, count in counts.items():
        file = folder / f"tiny-{split}.array_record-00000-of-00001"
        write_records(file, range(100, 104) if split == "test" else range(count))
    info = {
        "name": "tiny",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "splits": [
            {
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(count)],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, count in counts.items()
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return tmp_path


def test_tfds(prepared):
    options = dict(name="tfds", dataset="tiny", data_dir=str(prepared), flip=False)
    made = [create(**options, labels=True, in_memory=m, batch_size=5) for m in (True, False)]
    for dataset in made:
        assert dataset.class_names == ("cat", "dog") and dataset.shape == (8, 8, 3)
        assert dataset.sizes == {"train": 10, "test": 4}
        images, labels = all_train(dataset, 5)
        for image, label in zip(images, labels, strict=True):
            (number,) = [i for i in range(10) if (picture(i) == image).all()]
            assert label == number % 2
        assert as_set(dataset.heldout(0, 4)["x1"]) == as_set([picture(i) for i in range(100, 104)])
    assert "label" not in create(**options).heldout(0, 1)
    assert create(**options, size=4, channels=1).shape == (4, 4, 1)
    sliced = create(**options, split="train[:60%]", heldout_split="train[60%:]")
    assert sliced.sizes == {"train": 6, "test": 4}
    assert sliced.fingerprint != made[0].fingerprint == made[1].fingerprint
    lines = []
    create(**options, log=lines.append)
    assert lines == ["TFDS tiny: 10 to train on, 4 held out (test)"]
    # Another image in the same place of a file of the same size.
    (file,) = (prepared / "tiny" / "1.0.0").glob("tiny-test*")
    write_records(file, range(101, 105))
    other = create(**options, labels=True)
    assert other.fingerprint != made[0].fingerprint and other.older == made[0].older


def test_tfds_mistakes(prepared):
    folder = str(prepared)
    options = dict(name="tfds", dataset="tiny", data_dir=folder)
    refuses(r"--config\.data\.dataset=", name="tfds")
    refuses("TFDS knows no 'tinny'", **{**options, "dataset": "tinny"})
    refuses("not prepared in .*array_record", name="tfds", dataset="cifar10", data_dir=folder)
    refuses("unknown split .*'training'.*Known: test, train", **options, split="training")
    refuses("unknown feature .*'picture'.*Known: image, label", **options, image_key="picture")
    refuses("unknown feature .*'class'", **options, label_key="class", labels=True)
    info = prepared / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    refuses("prepared as tfrecord in .*array_record", **options)


# ---------------------------------------------------------------- real images


@pytest.mark.slow
def test_cifar10(real_data):
    path = real_data / "cifar10_jpeg.tar.xz"
    dataset = create(name="images", path=str(path), labels=True, flip=False, batch_size=500)
    assert dataset.sizes == {"train": 50_000, "test": 10_000}
    assert dataset.class_names[0] == "airplane" and dataset.num_classes == 10
    train = batches(dataset, 100)
    held = [dataset.heldout(i, 500) for i in range(20)]
    for epoch, count in ((train, 5_000), (held, 1_000)):
        labels = np.concatenate([b["label"] for b in epoch])
        np.testing.assert_array_equal(np.bincount(labels), [count] * 10)
    # Of the training images; made with Pillow alone, -0.053426 and 0.250834.
    levels = sum(np.bincount(b["x1"].ravel(), minlength=256) for b in train)
    value = np.arange(256) / 127.5 - 1
    mean = (levels * value).sum() / levels.sum()
    variance = (levels * (value - mean) ** 2).sum() / levels.sum()
    assert abs(mean + 0.0534) < 5e-5 and abs(variance - 0.2508) < 5e-5


def test_hold_out_needs_two_examples():
    one = pipeline.from_arrays({"x1": np.zeros((1, 2, 2, 3), np.uint8)})
    with pytest.raises(UserError, match="leaves none to train on"):
        splits.hold_out(one, 0.1)


# ---------------------------------------------------------------- classes left out of training


def test_digits_of_some_classes():
    whole = create(name="digits", labels=True)
    some = create(name="digits", labels=True, classes=(7, 3), batch_size=16)
    assert some.num_classes == 2 and some.class_names == ("7", "3")
    for split in ("train", "test"):
        x, label = whole.examples[split].arrays["x1"], whole.examples[split].arrays["label"]
        kept = some.examples[split].gather(np.arange(some.sizes[split]))
        for number, digit in enumerate((7, 3)):
            np.testing.assert_array_equal(kept["x1"][kept["label"] == number], x[label == digit])
        assert some.sizes[split] == np.isin(label, (7, 3)).sum()
    others = some.examples["other_classes"]
    rest = others.gather(np.arange(others.size))
    np.testing.assert_array_equal(rest["x1"], x[~np.isin(label, (7, 3))])
    assert list(rest) == ["x1"] and set(some.sizes) == {"train", "test"}
    batch, held = batches(some, 1)[0], some.heldout(0, some.sizes["test"])
    assert set(batch["label"]) == set(held["label"]) == {0, 1}
    assert as_set(batch["x1"]) <= as_set(some.examples["train"].arrays["x1"])
    assert as_set(held["x1"]) == as_set(some.examples["test"].arrays["x1"])


def test_all_classes_leave_no_others():
    turned = create(name="digits", labels=True, classes=tuple(reversed(range(10))))
    assert set(turned.examples) == {"train", "test"} and turned.class_names[0] == "9"
    whole = create(name="digits", labels=True)
    assert turned.sizes == whole.sizes and turned.num_classes == 10
    label = whole.examples["train"].arrays["label"]
    np.testing.assert_array_equal(turned.examples["train"].arrays["label"], 9 - label)
    np.testing.assert_array_equal(turned.heldout(0, 20)["x1"], whole.heldout(0, 20)["x1"])


@pytest.fixture
def three(folder):
    """`folder` with a third class: 3 training and 2 test images."""
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            write_image(folder / split / "emu" / f"{i}.png", picture(100 + i + 10 * len(split)))
    return folder


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("source", ["memory", "on demand", "archive", "npz", "cache"])
def test_images_of_some_classes(three, tmp_path, source, labels):
    options = dict(name="images", path=str(three), labels=labels, flip=False, batch_size=2)
    if source == "npz":
        arrays = {}
        for split in ("train", "test"):
            files = sorted((three / split).rglob("*.png"))
            arrays[f"{split}_images"] = np.stack([np.asarray(Image.open(f)) for f in files])
            names = [f.parent.name for f in files]
            arrays[f"{split}_labels"] = np.array([("cat", "dog", "emu").index(n) for n in names])
        np.savez(tmp_path / "a.npz", **arrays)
        options["path"] = str(tmp_path / "a.npz")
    elif source == "archive":
        options["path"] = str(pack(three, tmp_path / "a.tar", "w:"))
    elif source == "cache":
        options["cache"] = str(tmp_path / "cache")
        create(**{**options, "labels": True})  # the cache holds all classes: others read it too
    options["in_memory"] = False if source == "on demand" else "auto"
    dataset = create(**options, classes=(2, 0))
    assert dataset.sizes == {"train": 9, "test": 5} and dataset.num_classes == 2 * labels
    names = ("emu", "cat") if source != "npz" else ("2", "0")
    assert dataset.class_names == (names if labels else ())
    if source == "cache":
        assert len(list((tmp_path / "cache").iterdir())) == 1

    def of(split, *names):
        files = [f for name in names for f in (three / split / name).iterdir()]
        return as_set(np.stack([np.asarray(Image.open(f)) for f in files]))

    held = dataset.heldout(0, 5)
    assert as_set(held["x1"]) == of("test", "emu", "cat") and ("label" in held) == labels
    epoch = {k: np.concatenate([b[k] for b in batches(dataset, 9)]) for k in held}
    assert as_set(epoch["x1"]) == of("train", "emu", "cat")
    if labels:
        assert as_set(held["x1"][held["label"] == 0]) == of("test", "emu")
        assert as_set(epoch["x1"][epoch["label"] == 1]) == of("train", "cat")
    others = dataset.examples["other_classes"]
    rest = others.gather(np.arange(others.size))
    assert list(rest) == ["x1"] and as_set(rest["x1"]) == of("test", "dog")


def test_classes_of_data_that_are_their_own_heldout(three):
    options = dict(name="images", path=str(three), heldout_split="train", classes=(1,))
    dataset = create(**options)
    assert dataset.sizes == {"train": 4, "test": 4}
    assert dataset.examples["other_classes"].size == 9


def test_fingerprint_sees_the_classes(three):
    chosen = (None, (0, 1), (1, 0), (0, 2))
    folder = dict(name="images", path=str(three), batch_size=1)
    for options in ({"name": "digits"}, folder):
        assert len({create(**options, classes=c).fingerprint for c in chosen}) == 4
        assert create(**options, classes=None).fingerprint == create(**options).fingerprint


def test_bad_classes(three, tmp_path):
    for options in (dict(name="digits"), dict(path=str(three)), dict(path=str(three), labels=True)):
        refuses(r"classes=\(\) leaves nothing to train on.*Known: 0", **options, classes=())
        refuses(r"classes=\(1, 1\) names a label twice", **options, classes=(1, 1))
        refuses(r"classes=3 must be a tuple or None", **options, classes=3)
        for wrong in (10, -1, 1.0, True, "dog"):
            refuses(f"{wrong!r} is no label of this data", **options, classes=(0, wrong))
    refuses(r"Known: 0, 1, 2, .*, 9$", name="digits", classes=(10,))
    refuses(r"Known: 0 \(cat\), 1 \(dog\), 2 \(emu\)$", path=str(three), classes=(3,))
    refuses("batch_size 4 exceeds the 3 training", path=str(three), classes=(2,))
    refuses("unknown field 'classes'", name="two_moons", classes=(0,))
    images = np.stack([picture(i) for i in range(30)])
    np.savez(tmp_path / "many.npz", images=images, labels=np.arange(30))
    refuses(r"Known: 0, .*, 19, …, 29$", path=str(tmp_path / "many.npz"), classes=(30,))
    np.savez(tmp_path / "bare.npz", images=images)
    refuses(r"no labels in .*data\.classes=None", path=str(tmp_path / "bare.npz"), classes=(0,))
    arrays = dict(train_images=images, train_labels=np.arange(30) % 2 * 2)
    arrays |= dict(test_images=images[:1], test_labels=np.zeros(1, int))
    np.savez(tmp_path / "gap.npz", **arrays)
    refuses(r"no training example has the label 1", path=str(tmp_path / "gap.npz"), classes=(0, 1))
    refuses(r"no held-out example has one", path=str(tmp_path / "gap.npz"), classes=(2,))


def test_classes_are_checked_before_the_images_are_decoded(three):
    (three / "train" / "dog" / "01.png").write_text("this is text")
    refuses("3 is no label", path=str(three), classes=(3,))


def test_unlabelled_files_have_no_classes(tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / split / "0.png", picture(0))
    refuses(r"no class folder: .*data\.classes=None", path=str(tmp_path), classes=(0,))
