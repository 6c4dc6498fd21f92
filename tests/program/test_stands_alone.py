"""A run stands on its own: it samples where its data are not, and the classes asked for."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from programs import TINY_DIGITS, run

import genfield
from genfield.data import pipeline, recorded
from genfield.errors import UserError
from genfield.main import main
from genfield.program import config_io, experiment, generate
from genfield.study.cli import run as study

CLASSES = ("cat", "polar bear", "owl")
CONFIG = """
import importlib.util

def get_config():
    spec = importlib.util.spec_from_file_location("tiny_digits", {digits!r})
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    config = tiny.get_config()
    config.data = dict(name="images", path="animals", cache="decoded", labels=True)
    config.sampler.num_steps = 3
    return config
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the images of a run and the run, which was started there, with its paths."""
    folder = tmp_path_factory.mktemp("home")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for name in CLASSES:
            place = folder / "animals" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                levels = random.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(levels).save(place / f"{number}.png")
    (folder / "config.py").write_text(CONFIG.format(digits=str(TINY_DIGITS)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(folder / "run", folder / "config.py", small={"train.steps": 2}) == 0
    return folder


@pytest.fixture
def moved(home, tmp_path):
    """The run alone, elsewhere, with its data and their cache out of reach."""
    away = home.with_name("away")
    home.rename(away)
    yield shutil.copytree(away / "run", tmp_path / "elsewhere")
    away.rename(home)


def sample(workdir, *extra: str, mode="sample") -> int:
    return main(["genfield", f"--workdir={workdir}", f"--mode={mode}", *extra])


def test_recorded_paths_do_not_hang_on_the_folder_of_the_start(home):
    config = json.loads((home / "run" / "config.json").read_text())
    assert config["data"]["path"] == str(home / "animals")
    assert config["data"]["cache"] == str(home / "decoded")
    assert config["initial_parameters"] is None


def test_a_moved_run_samples_as_it_did_at_home(home, tmp_path, request):
    at_home = genfield.open_run(home / "run").sample(8).x
    moved = request.getfixturevalue("moved")
    opened = genfield.open_run(moved)
    np.testing.assert_array_equal(opened.sample(8).x, at_home)
    assert opened.experiment.data.class_names == tuple(sorted(CLASSES))
    assert opened.field(at_home[:2], None, np.zeros(2, np.int32)).direction.shape == (2, 8, 8, 3)
    assert sample(moved) == 0
    with np.load(moved / "samples" / "step_2.npz") as file:
        assert file["arr_0"].shape == (8, 8, 8, 3) and file["arr_0"].dtype == np.uint8


def test_a_moved_run_draws_pairs_and_is_studied(moved, capsys):
    assert sample(moved, "--config.sample.num=4", mode="pairs") == 0
    manifest = json.loads((moved / "pairs" / "step_2" / "manifest.json").read_text())
    assert manifest["settings"]["class_names"] == sorted(CLASSES)
    study(["study", "sweep", f"--workdir={moved}", "--num=4", "--num_steps=2", "--step_sizes=0.1"])
    assert "sweep.json" in capsys.readouterr().out


def test_what_reads_data_says_in_a_line_where_they_were_and_how_to_say_where_they_are(
    home, moved, capsys
):
    assert sample(moved, mode="evaluate") == 2
    [line] = [row for row in capsys.readouterr().err.splitlines() if row]
    assert str(home / "animals") in line
    with pytest.raises(UserError) as caught:
        study(["study", "denoise", f"--workdir={moved}"])
    line = str(caught.value)
    assert str(home / "animals") in line and "--config.data.path=" in line and "\n" not in line
    opened = genfield.open_run(moved)
    with pytest.raises(UserError, match=r"config\.json"):
        opened.experiment.data.heldout(0, 2)


def test_data_that_moved_are_found_and_others_are_not_taken_for_them(home, tmp_path, request):
    animals = shutil.copytree(home / "animals", tmp_path / "animals")
    moved = request.getfixturevalue("moved")
    flags = [f"--config.data.path={animals}", f"--config.data.cache={tmp_path / 'decoded'}"]
    assert sample(moved, *flags, mode="evaluate") == 0
    config = config_io.override(config_io.from_file(moved / "config.json"), flags)
    exp = experiment.prepare(config, moved, reads_data=False)
    assert exp.data.heldout(0, 4)["x1"].shape == (4, 8, 8, 3)
    assert exp.data.examples["train"].size == 24
    with pytest.raises(UserError, match="differ"):
        other = recorded.dataset(
            recorded.read(moved), lambda: exp.data._replace(fingerprint="another"), 0
        )
        other.heldout(0, 1)


def test_a_run_that_recorded_nothing_still_needs_its_data(moved):
    (moved / recorded.FILE).unlink()
    with pytest.raises(UserError, match="animals does not exist"):
        genfield.open_run(moved)


def test_a_damaged_record_is_one_line(moved):
    (moved / recorded.FILE).write_text('{"shape": [8')
    with pytest.raises(UserError, match=r"data\.json cannot be read .* delete it"):
        genfield.open_run(moved)


def test_samples_that_start_at_examples_need_them(moved):
    """Image to image: the line says so; nothing else of the run asks for data."""
    known = recorded.read(moved) | {"starts": True, "num_classes": 0, "class_names": []}

    def gone():
        raise UserError("data.path x does not exist")

    data = recorded.dataset(known, gone, 0)
    exp = genfield.open_run(moved).experiment._replace(data=data)
    draw = generate.make_generator(exp)
    with pytest.raises(UserError, match=r"data\.path x does not exist"):
        draw(None, 1, np.arange(2))


def test_points_that_are_drawn_record_nothing_and_need_nothing(tmp_path):
    assert run(tmp_path / "run", train__steps=1) == 0
    assert not (tmp_path / "run" / recorded.FILE).exists()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert sample(moved, "--config.sample.num=8") == 0


# Chosen classes


def labels_of(workdir, name: str) -> tuple[list[int], list[str]]:
    with np.load(workdir / "samples" / f"{name}.npz") as file:
        return file["arr_1"].tolist(), file["class_names"].tolist()


def test_chosen_classes_are_drawn_in_turn_and_stand_with_the_samples(home, tmp_path):
    workdir = shutil.copytree(home / "run", tmp_path / "run")
    assert sample(workdir, "--config.sample.labels=('owl',0)", "--config.sample.name=two") == 0
    labels, names = labels_of(workdir, "two")
    assert names == ["cat", "owl", "polar bear"] and labels == [1, 0] * 4
    formats = "--config.sample.formats=('png',)"
    asked = "--config.sample.labels=(2,1,1,1,0,0,0,0)"
    assert sample(workdir, asked, formats, "--config.sample.name=listed") == 0
    pictures = sorted(p.name for p in (workdir / "samples" / "listed").iterdir())
    assert pictures[:2] == ["000000_polar-bear.png", "000001_owl.png"] and len(pictures) == 8
    opened = genfield.open_run(workdir)
    listed = opened.sample(8, labels=["polar bear", *["owl"] * 3, *["cat"] * 4])
    np.testing.assert_array_equal(listed.x, opened.sample(8, labels=[2, 1, 1, 1, 0, 0, 0, 0]).x)
    assert not np.array_equal(listed.x, opened.sample(8).x)
    assert sample(workdir, asked, formats, "--config.sample.name=listed") == 0  # already drawn
    assert sample(workdir, formats, "--config.sample.name=listed") == 2  # of other labels


def test_one_class_alone_and_one_that_is_not_known(home, tmp_path, capsys):
    workdir = shutil.copytree(home / "run", tmp_path / "run")
    assert sample(workdir, "--config.sample.labels=owl", "--config.sample.num=2") == 0
    assert labels_of(workdir, "step_2")[0] == [1, 1]
    for wrong in ("3", "dog", "(0,-1)"):
        assert sample(workdir, f"--config.sample.labels={wrong}") == 2
        line = capsys.readouterr().err.strip()
        assert "\n" not in line and "Known: 0 (cat), 1 (owl), 2 (polar bear)" in line
    opened = genfield.open_run(workdir)
    with pytest.raises(UserError, match=r"'dog' is no class of this run"):
        opened.sample(2, labels="dog")


def test_labels_of_a_run_without_classes_are_refused(tmp_path, capsys):
    assert run(tmp_path, train__steps=1) == 0
    assert sample(tmp_path, "--config.sample.labels=3") == 2
    assert "knows no classes" in capsys.readouterr().err


def labels(num: int, classes: int, **options) -> list[int]:
    data = pipeline.Dataset(*[None] * 12, "", None)._replace(num_classes=classes)
    exp = experiment.Experiment(*[None] * 12)._replace(data=data)
    return generate.labels_of(exp, np.arange(num), num, **options).tolist()


def test_fewer_samples_than_classes_are_spread_over_them():
    assert labels(4, 1000) == [0, 250, 500, 750]
    assert labels(8, 10) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert labels(10, 10) == list(range(10))
    assert labels(23, 10) == [i % 10 for i in range(23)]
    assert labels(5, 10, chosen=[7, 2]) == [7, 2, 7, 2, 7]


def test_a_picture_shows_all_classes_where_there_is_room():
    turn = np.arange(640) % 10
    np.testing.assert_array_equal(generate.shown(turn, 640, 64), np.arange(64))
    assert generate.shown(None, 3, 64).tolist() == [0, 1, 2]
    many = np.arange(50_000) % 1000
    rows = generate.shown(many, 50_000, 64)
    assert len(set(many[rows])) == 64 and np.ptp(np.diff(many[rows])) <= 1
    blocks = np.repeat([4, 9], 100)
    assert np.bincount(blocks[generate.shown(blocks, 200, 64)])[[4, 9]].tolist() == [32, 32]


# Pieces


def test_progress_shows_within_a_batch_and_a_stop_there_costs_no_bit(
    home, tmp_path, monkeypatch, capsys
):
    workdir = shutil.copytree(home / "run", tmp_path / "run")
    whole = shutil.copytree(home / "run", tmp_path / "whole")
    assert sample(whole) == 0
    capsys.readouterr()
    monkeypatch.setattr("genfield.program.chunks.SECONDS", 0.0)
    monkeypatch.setattr("genfield.machine.logbook.INTERVAL", {True: 0.0, False: 0.0})
    asked = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr("genfield.machine.preemption.reached", lambda: next(asked))
        assert sample(workdir) == 143
    out = capsys.readouterr().out
    assert re.search(r"sample 2/8  step 1/3", out) and re.search(r"sample 5/8  step 2/3", out)
    assert "the same command goes on" in out
    assert not (workdir / "samples" / "step_2.npz").exists()
    assert sample(workdir) == 0
    for name in ("arr_0", "arr_1", "nfe"):
        with (
            np.load(whole / "samples" / "step_2.npz") as one,
            np.load(workdir / "samples" / "step_2.npz") as other,
        ):
            np.testing.assert_array_equal(one[name], other[name])
