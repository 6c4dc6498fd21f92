"""Shards of latents and of pixels as data: draws, copies, what is held out, what is refused."""

import json

import numpy as np
import prepared
import pytest

from genfield import data
from genfield.data import latents as latents_file
from genfield.data import pipeline, shards
from genfield.errors import UserError

SHAPE = (3, 3, 2)
COUNT = 50
SCALE = 0.25
MEAN = np.float32([2.0, -3.0])


def moments(seed: int = 0):
    """Means and standard deviations that float16 holds exactly."""
    random = np.random.default_rng(seed)
    mean = 4 * random.standard_normal((COUNT, *SHAPE)) + MEAN
    std = random.uniform(0.5, 2.0, (COUNT, *SHAPE))
    return tuple(np.float16(a).astype(np.float32) for a in (mean, std))


LABELS = np.arange(COUNT) % 5


@pytest.fixture
def folder(tmp_path):
    return prepared.latents(tmp_path / "once", *moments(), LABELS)


@pytest.fixture
def twice(tmp_path):
    return prepared.latents(tmp_path / "twice", *moments(), LABELS, mirrored=moments(1))


def section(folder, **fields) -> dict:
    fixed = dict(name="latents", path=str(folder), shape=SHAPE, num_classes=5, scale=SCALE)
    return fixed | fields


def create(folder, *, seed=0, batch_size=10, rank=0, ranks=1, log=None, **fields):
    return data.create(
        section(folder, **fields),
        batch_size=batch_size,
        seed=seed,
        process_index=rank,
        process_count=ranks,
        log=log,
    )


def batches(dataset, steps, start: int = 0) -> list[dict]:
    stream = dataset.train(start)
    try:
        return [next(stream) for _ in range(steps)]
    finally:
        stream.close()


def rows_of(folder, batch) -> np.ndarray:
    """Which examples a batch of means holds."""
    mean = moments()[0] * SCALE
    far = abs(batch["x1"][:, None] - mean[None]).max((2, 3, 4))
    assert (far.min(1) == 0).all()
    return far.argmin(1)


# ---- What is drawn


def test_an_epoch_of_means_holds_each_example_once(folder):
    found = create(folder, posterior="mean", heldout_fraction=0.0)
    assert found.heldout is None and found.sizes == {"train": COUNT, "test": 0}
    assert list(found.examples) == ["train"]
    seen = batches(found, 5)
    rows = np.concatenate([rows_of(folder, batch) for batch in seen])
    assert sorted(rows) == list(range(COUNT))
    labels = np.concatenate([batch["label"] for batch in seen])
    np.testing.assert_array_equal(labels, LABELS[rows])


def test_samples_are_the_posterior_s(folder):
    """Mean and variance of many draws of each example, to their standard errors."""
    means = create(folder, posterior="mean", heldout_fraction=0.0)
    samples = create(folder, heldout_fraction=0.0)
    std, errors = moments()[1], []
    for a, b in zip(batches(means, 600), batches(samples, 600), strict=True):
        rows = rows_of(folder, a)
        errors.append((b["x1"] - a["x1"]) / (SCALE * std[rows]))
        np.testing.assert_array_equal(a["label"], b["label"])
    noise = np.concatenate(errors)  # 6,000 draws of 18 numbers
    size = noise.size
    assert abs(noise.mean()) < 5 / np.sqrt(size)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / size)
    assert abs((noise**4).mean() - 3) < 5 * np.sqrt(96 / size)
    pairs = noise[:, 0, 0, 0] * noise[:, 0, 0, 1]  # and apart from each other
    assert abs(pairs.mean()) < 5 / np.sqrt(len(noise))
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 5 / np.sqrt(size)


def test_an_example_is_drawn_anew_each_time_and_alike_when_it_is_held_out(folder):
    found = create(folder, heldout_fraction=0.2, batch_size=40)
    first, second = batches(found, 2)
    sort = lambda batch: batch["x1"][np.lexsort(batch["x1"][:, 0, 0].T)]
    assert abs(sort(first) - sort(second)).max() > 0.01
    for index in (0, 1):
        a, b = (create(folder, seed=s, heldout_fraction=0.2).heldout(index, 7) for s in (0, 9))
        np.testing.assert_array_equal(a["x1"], b["x1"])
    examples = found.examples["test"]
    together = examples.gather(np.arange(examples.size))["x1"]
    alone = np.concatenate([examples.gather(np.array([row]))["x1"] for row in range(examples.size)])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_any_number_of_processes_and_a_resume_draw_the_same(twice, ranks):
    whole = batches(create(twice), 6)
    parts = [batches(create(twice, rank=r, ranks=ranks), 3, start=3) for r in range(ranks)]
    for number, expected in enumerate(whole[3:]):
        for key in ("x1", "label"):
            joined = np.concatenate([part[number][key] for part in parts])
            np.testing.assert_array_equal(joined, expected[key])
    other = batches(create(twice, seed=1), 1)
    assert abs(other[0]["x1"] - whole[0]["x1"]).max() > 0


def test_mirrored_copies_are_taken_by_half(twice):
    mean, mirror = moments()[0] * SCALE, moments(1)[0] * SCALE
    flips = []
    for batch in batches(create(twice, posterior="mean"), 200):
        far = [abs(batch["x1"][:, None] - m[None]).max((2, 3, 4)).min(1) for m in (mean, mirror)]
        assert (np.minimum(*far) == 0).all()
        flips.append(far[1] == 0)
    flips = np.concatenate(flips)
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(flips))
    unflipped = batches(create(twice, posterior="mean", flip=False), 5)
    assert len(np.concatenate([rows_of(twice, batch) for batch in unflipped])) == COUNT
    held = create(twice, posterior="mean", heldout_fraction=0.2).heldout(0, 10)
    rows_of(twice, held)  # never mirrored


def test_shift_and_scale(folder):
    plain = create(folder, scale=1.0).examples["train"].gather(np.arange(4))["x1"]
    moved = create(folder, scale=0.5, shift=3.0).examples["train"].gather(np.arange(4))["x1"]
    np.testing.assert_allclose(moved, (plain - 3.0) * 0.5, rtol=1e-6)


def test_without_labels(tmp_path):
    place = prepared.latents(tmp_path / "none", *moments())
    found = create(place, num_classes=0)
    assert found.num_classes == 0 and set(batches(found, 1)[0]) == {"x1"}
    with pytest.raises(UserError, match=r"holds 0 classes: set config.data.num_classes=0"):
        create(place)


def test_a_shard_s_rows_in_any_order(folder):
    found = shards.open_shards(folder)
    rows = np.array([49, 0, 16, 15, 16, 31, 32, 48])
    np.testing.assert_array_equal(found.read(rows)[:, 0], moments()[0][rows])
    np.testing.assert_array_equal(found.read(rows)[:, 1], moments()[1][rows])


# ---- The scale


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "data.shift=-0.4"),
        ({"scale": 1.0, "shift": -0.5}, "data.scale=0.1"),
        ({"scale": 0.2, "shift": -0.5}, None),
    ],
)
def test_statistics_far_from_the_scale_are_told(tmp_path, fields, said):
    mean, std = moments()
    mean = mean - MEAN + np.float32([-0.5 * 8, 0.3 * 8]) / 1.0 - 4 * ("shift" not in fields)
    place = prepared.latents(tmp_path / "x", mean, std, LABELS)
    lines = []
    create(place, log=lines.append, **fields)
    lines = [line for line in lines if line.startswith("latents: ")]
    stored = json.loads((place / shards.FINISHED).read_text())["statistics"]
    centre = np.mean(stored["mean"])
    total = np.sqrt(np.mean(np.square(stored["std"]) + np.square(stored["mean"] - centre)))
    if said is None:
        assert not lines
        return
    assert len(lines) == 1
    if "scale" in said:
        assert f"data.scale={1 / total:.4g} would make it 1 (the autoencoder's own is" in lines[0]
    else:
        assert f"data.shift={centre:.4g} would make the mean 0" in lines[0]


def test_the_suggested_scale_fits(folder):
    lines = []
    create(folder, log=lines.append, scale=3.0)
    scale = float(lines[0].split("data.scale=")[2].split(" ")[0])
    lines.clear()
    found = create(folder, log=lines.append, scale=scale)
    assert not lines
    values = np.concatenate([batch["x1"] for batch in batches(found, 50)])
    assert abs(values.std() - 1) < 0.05


# ---- The old format


def test_the_one_file_format_opens_with_the_same_bits(tmp_path):
    random = np.random.default_rng(0)
    values = random.standard_normal((COUNT, *SHAPE)).astype(np.float16)
    np.save(tmp_path / "latents.npy", values)
    np.save(tmp_path / "labels.npy", LABELS)
    found = create(tmp_path, scale=0.18215)
    rows = np.random.default_rng(pipeline.SPLIT_SEED).permutation(COUNT)
    assert found.sizes == {"train": 45, "test": 5}
    expected = values.astype(np.float32) * np.float32(0.18215)
    for split, kept in (("test", rows[:5]), ("train", rows[5:])):
        batch = found.examples[split].gather(np.arange(len(kept)))
        np.testing.assert_array_equal(batch["x1"], expected[kept])
    order = np.random.default_rng((0, 0)).permutation(45)
    batch = batches(found, 1)[0]
    np.testing.assert_array_equal(batch["x1"], expected[rows[5:][order[:10]]])
    assert create(tmp_path, heldout_fraction=0.0).heldout is None
    assert create(tmp_path, heldout_fraction=0.5).sizes == {"train": 25, "test": 25}
    for field, value in (("flip", True), ("posterior", "mean")):
        with pytest.raises(UserError, match=f"config.data.{field} is of what"):
            create(tmp_path, **{field: value})


# ---- What is refused


def test_what_does_not_fit_is_a_line(folder, tmp_path):
    for fields, says in (
        ({"shape": (4, 4, 2)}, r"latents of shape \(3, 3, 2\): set config.data.shape"),
        ({"num_classes": 1000}, "holds 5 classes: set config.data.num_classes=5"),
        ({"flip": True}, "no latents of mirrored images: prepare it with --flip"),
        ({"posterior": "mode"}, "mode"),
        ({"scale": 0.0}, "must be positive"),
        ({"heldout_fraction": 1.0}, "must be in"),
        ({"heldout_fraction": 0.995}, "leaves none to train on"),
        ({"name": "images", "labels": True}, "data"),
    ):
        with pytest.raises(UserError, match=says):
            create(folder, **fields)
    (folder / shards.FINISHED).rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"is not finished: run the same"):
        create(folder)
    (folder / shards.FINISHED).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        create(folder)
    (tmp_path / "aside").rename(folder / shards.FINISHED)
    (folder / "shards" / "00001.npy").rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"00001.npy"):
        create(folder)


def test_a_damaged_shard_is_named(folder):
    path = folder / "shards" / "00002.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"00002.npy is damaged: its hash is"):
        create(folder)


def test_latents_of_a_wrong_source_are_told(folder, tmp_path):
    with pytest.raises(UserError, match=r"holds latents, not images: config.data reads"):
        data.create({"name": "images", "path": str(folder)}, batch_size=2, seed=0)
    levels = np.zeros((4, 8, 8, 3), np.uint8)
    place = prepared.pixels(tmp_path / "pixels", levels, [0, 1, 0, 1])
    with pytest.raises(UserError, match=r"holds pixels: set config.data"):
        create(place)


def test_a_folder_without_latents_is_told_how_they_are_made(tmp_path):
    (tmp_path / "images" / "n01531178").mkdir(parents=True)
    with pytest.raises(UserError, match=r"images holds no latents: name a folder that .*prepare"):
        create(tmp_path / "images")
    with pytest.raises(UserError, match=r"typo is not there: name a folder"):
        create(tmp_path / "typo")


def test_the_fingerprint_is_of_the_contents(folder, twice, tmp_path):
    mark = create(folder).fingerprint
    assert create(folder).fingerprint == mark != create(twice).fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    assert create(moved).fingerprint == mark
    mean, std = moments()
    mean[7, 0, 0, 0] += 1
    other = prepared.latents(tmp_path / "other", mean, std, LABELS)
    assert create(other).fingerprint != mark
    assert create(moved, scale=0.3).fingerprint != mark
    assert latents_file.METHOD.holds == "latents"


# ---- Pixels


def images(place, **fields):
    fields = {"name": "images", "path": str(place), "flip": False} | fields
    return data.create(fields, batch_size=4, seed=0)


def test_prepared_pixels_are_images(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    place = prepared.pixels(tmp_path / "pixels", levels, np.arange(40) % 4, tuple("abcd"))
    loaded = images(place, labels=True, in_memory=True)
    mapped = images(place, labels=True, in_memory=False)
    assert loaded.fingerprint == mapped.fingerprint and loaded.pixels
    assert loaded.class_names == ("a", "b", "c", "d") and loaded.sizes == {"train": 36, "test": 4}
    for a, b in zip(batches(loaded, 3), batches(mapped, 3), strict=True):
        np.testing.assert_array_equal(a["x1"], b["x1"])
        known = {image.tobytes(): i for i, image in enumerate(levels)}
        rows = [known[image.tobytes()] for image in a["x1"]]
        np.testing.assert_array_equal(a["label"], np.array(rows) % 4)
    assert images(place, size=4).shape == (4, 4, 3)
    assert images(place, channels=1).shape == (8, 8, 1)
    with pytest.raises(UserError, match=r"without classes: set data.labels=False"):
        images(prepared.pixels(tmp_path / "bare", levels), labels=True)


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_may_hold_nothing_out(tmp_path, in_memory):
    levels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    place = prepared.pixels(tmp_path / "pixels", levels, np.arange(40) % 4)
    fields = dict(labels=True, in_memory=in_memory, heldout_fraction=0.0)
    found = images(place, **fields)
    assert found.heldout is None and list(found.examples) == ["train"]
    assert found.sizes == {"train": 40, "test": 0}
    some = images(place, **fields, classes=(3, 1))
    assert some.class_names == ("3", "1") and some.sizes["train"] == 20
    with pytest.raises(UserError, match="must lie between"):
        images(place, **fields | {"heldout_fraction": 1.0})


def test_prepared_pixels_are_a_reference(tmp_path):
    from genfield.data import sets

    levels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    opened = sets.open_images(str(prepared.pixels(tmp_path / "pixels", levels)))
    assert opened.size == 40 and opened.shape == (8, 8, 3)
    np.testing.assert_array_equal(opened.read(np.array([39, 0])), levels[[39, 0]])
