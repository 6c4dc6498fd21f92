"""Classes are those that have training examples; bad values are called bad data, by their row."""

import numpy as np
import pytest
from programs import ROOT, SMALL, arguments, run

from genfield import data
from genfield.data import pipeline
from genfield.data.own import own
from genfield.errors import UserError
from genfield.main import main

EQM = ROOT / "configs" / "equilibrium_matching_two_moons.py"


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)


def create(section: dict, batch_size: int = 4):
    """(the data set, the lines that it said)."""
    said = []
    return data.create(section, batch_size=batch_size, seed=0, log=said.append), said


def npz(folder, **arrays) -> dict:
    np.savez(folder / "images.npz", **arrays)
    return {"name": "images", "path": str(folder / "images.npz"), "labels": True, "flip": False}


class Table:
    """A source of one's own, with labels."""

    shape = (2,)

    def __init__(self, given, /, **attributes):
        self.points = np.random.default_rng(1).standard_normal((len(given), 2))
        self.given = np.asarray(given)
        vars(self).update(attributes)

    def __len__(self):
        return len(self.points)

    def gather(self, rows):
        return {"x1": self.points[rows], "label": self.given[rows]}


def feed(said: list, batch_size: int = 4):
    return pipeline.Feed(batch_size, 0, 0, 1, said.append)


# Labels with gaps, starting at 1, of the test split alone: (train, test, names left, said)
LABELS = [
    ([1, 2, 3] * 8, [1, 2, 3], ("1", "2", "3"), "1 of 4 classes have no training example"),
    ([0, 5, 9] * 8, [0, 5, 9], ("0", "5", "9"), "7 of 10 classes"),
    ([0, 1] * 12, [0, 1, 2], ("0", "1"), "(2)"),
    ([0, 1, 2] * 8, [0, 1, 2], ("0", "1", "2"), None),
]


@pytest.mark.parametrize(("train", "test", "names", "line"), LABELS)
def test_classes_are_those_with_training_examples(train, test, names, line, tmp_path):
    arrays = {"train_images": pixels(len(train)), "test_images": pixels(len(test), 1)}
    found, said = create(npz(tmp_path, **arrays, train_labels=train, test_labels=test))
    assert found.class_names == names and found.num_classes == len(names)
    batches = [next(iter(found.train(0))) for _ in range(1)]
    labels = found.examples["train"].labels
    assert set(labels) == set(range(len(names)))
    assert all(batch["label"].max() < len(names) for batch in batches)
    first = np.flatnonzero(np.asarray(train) == int(names[0]))  # each keeps its own images
    np.testing.assert_array_equal(
        found.examples["train"].gather(np.flatnonzero(labels == 0))["x1"],
        arrays["train_images"][first],
    )
    held = found.examples["test"]
    assert held.size == sum(str(label) in names for label in test)
    told = [row for row in said if "have no training example" in row]
    assert (not told) if line is None else (len(told) == 1 and line in told[0])


def test_a_class_that_dropping_examples_empties_is_left_out(tmp_path):
    labels = [0] * 40 + [1] * 40 + [2]
    arrays = dict(train_images=pixels(81), test_images=pixels(2), test_labels=[0, 1])
    section = npz(tmp_path, **arrays, train_labels=labels) | {"max_images": 40}
    found, said = create(section)
    assert set(np.unique(found.examples["train"].labels)) == set(range(found.num_classes))
    assert found.num_classes == 2 and any("(2)" in line for line in said)


def test_without_labels_nothing_is_left_out(tmp_path):
    section = npz(tmp_path, train_images=pixels(8), test_images=pixels(2), train_labels=[1] * 8)
    found, said = create(section | {"labels": False})
    assert found.num_classes == 0 and found.sizes["train"] == 8
    assert not any("class" in line and "left out" in line for line in said)


def test_latents_with_fewer_classes_than_the_default(tmp_path):
    np.save(tmp_path / "latents.npy", np.ones((60, 2, 2, 4), np.float16))
    np.save(tmp_path / "labels.npy", np.arange(60) % 10)
    found, said = create({"name": "latents", "path": str(tmp_path), "shape": (2, 2, 4)})
    assert found.num_classes == 10
    assert "990 of 1,000 classes have no training example and are left out (10, 11" in said[0]


def test_data_of_one_s_own_with_gaps_and_with_more_classes_than_labels():
    said = []
    found = own("mine", Table([2, 4] * 20), feed(said))
    assert found.class_names == ("2", "4") and "3 of 5 classes" in said[0]
    said.clear()
    found = own("mine", Table([0, 1] * 20, class_names=("cat", "dog", "bat")), feed(said))
    assert found.class_names == ("cat", "dog") and "(bat)" in said[0]


@pytest.mark.parametrize(
    ("labels", "attributes", "line"),
    [
        ([0, 1] * 20, {"num_classes": 1}, "labels go from 0 to 1, and there are 1 classes"),
        ([-1, 1] * 20, {"num_classes": 2}, "labels go from -1 to 1"),
        ([0.5, 1.0] * 20, {}, "labels are float64 [40], not whole numbers"),
        ([0, 1] * 20, {"labels": np.zeros(3, int)}, "labels are 3, and there are 40 examples"),
    ],
)
def test_labels_that_cannot_be(labels, attributes, line):
    with pytest.raises(UserError) as error:
        own("mine", Table(labels, **attributes), feed([]))
    assert line in str(error.value)


def test_labels_of_very_many_examples_are_taken_where_they_are_given(monkeypatch):
    monkeypatch.setattr("genfield.data.own.READ_FOR_LABELS", 10)
    said, labels = [], [0, 2] * 20
    own("mine", Table(labels, num_classes=3), feed(said))
    assert said == ["labels: not checked whether each of 3 classes has a training example"]
    found = own("mine", Table(labels, num_classes=3, labels=np.array(labels)), feed(said))
    assert found.class_names == ("0", "2")


# Values: each reader, a bad value, where it lies.
def write_points(folder, bad: float):
    values = np.random.default_rng(0).standard_normal((50, 2))
    values[17, 1] = bad
    np.save(folder / "points.npy", values)
    return {"name": "arrays", "path": str(folder / "points.npy")}


def write_npz(folder, bad: float):
    values = np.ones((50, 2))
    values[17, 0] = bad
    np.savez(folder / "points.npz", x1=np.ones((50, 2)), x0=values)
    return {"name": "arrays", "path": str(folder / "points.npz")}


def write_latents(folder, bad: float):
    values = np.ones((50, 2, 2, 4), np.float32)
    values[17, 0, 1, 2] = bad
    np.save(folder / "latents.npy", values)
    section = {"name": "latents", "path": str(folder), "shape": (2, 2, 4), "num_classes": 0}
    return section


def write_pairs(folder, bad: float):
    values = np.ones((50, 2), np.float32)
    np.save(folder / "x0.npy", values)
    values[17] = bad
    np.save(folder / "x1.npy", values)
    (folder / "manifest.json").write_text(
        '{"num": 50, "settings": {"num_classes": 0, "class_names": [], "pixels": false}}'
    )
    return {"name": "pairs", "path": str(folder)}


WRITERS = [write_points, write_npz, write_latents, write_pairs]


@pytest.mark.parametrize("cheap", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("write", WRITERS)
def test_a_bad_value_is_named_with_its_file_and_row(write, bad, cheap, tmp_path, monkeypatch):
    section = write(tmp_path, bad)
    if not cheap:  # too much to look at: told when it is read
        monkeypatch.setattr(pipeline, "CHEAP_BYTES", 0)
    with pytest.raises(UserError) as error:
        found, _ = create(section, batch_size=44)
        assert not cheap
        next(found.train(0)), found.examples["test"].gather(np.arange(5))
    assert "of row 17 is NaN or infinite" in str(error.value) and str(tmp_path) in str(error.value)


def test_what_float32_cannot_hold_is_a_bad_value(tmp_path):
    with pytest.raises(UserError, match="of row 17 is NaN or infinite, as float32"):
        create(write_points(tmp_path, 1e200))


@pytest.mark.parametrize("debug", [False, True])
def test_the_program_blames_the_data_before_the_first_step(debug, tmp_path, capsys, monkeypatch):
    import jax

    section = write_points(tmp_path, np.nan)
    jax.config.update("jax_debug_nans", debug)
    try:
        argv = arguments(tmp_path / "run", EQM)
        fields = f"{{'name': 'arrays', 'path': '{section['path']}'}}"
        assert main([*argv, f"--config.data={fields}"]) == 2
    finally:
        jax.config.update("jax_debug_nans", False)
    err = capsys.readouterr().err
    assert "row 17" in err and "learning rate" not in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_option_that_traps_nan_gives_a_line_not_a_traceback(tmp_path, capsys):
    import jax

    jax.config.update("jax_debug_nans", True)
    try:
        small = SMALL | {"train.steps": 30}
        rate = dict(optimizer__name="sgd", optimizer__learning_rate=1e30)
        assert run(tmp_path / "run", small=small, **rate) == 2
    finally:
        jax.config.update("jax_debug_nans", False)
    err = capsys.readouterr().err
    assert "JAX_DEBUG_NANS" in err and "Traceback" not in err


def change_points(folder) -> None:
    values = np.load(folder / "points.npy")
    values[13] += 1
    np.save(folder / "points.npy", values)


def change_latents(folder) -> None:
    values = np.load(folder / "latents.npy")
    values[13] += 1
    np.save(folder / "latents.npy", values)


@pytest.mark.parametrize(
    ("write", "change"), [(write_points, change_points), (write_latents, change_latents)]
)
def test_an_edited_file_is_other_data_and_an_older_run_still_goes_on(write, change, tmp_path):
    section = write(tmp_path, 0.0)
    before, again = create(section)[0], create(section)[0]
    assert before.fingerprint == again.fingerprint not in before.older
    change(tmp_path)
    after = create(section)[0]
    assert after.fingerprint != before.fingerprint and after.sizes == before.sizes


def test_any_example_of_one_s_own_data_counts():
    marks = set()
    for row in (None, 3, 131):
        table = Table([0, 1] * 100)
        if row is not None:
            table.points[row] += 1
        marks.add(own("mine", table, feed([])).fingerprint)
    assert len(marks) == 3
