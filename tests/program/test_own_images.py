"""From a folder of odd pictures to a grid, judged and resumed: images of one's own."""

import json

import numpy as np
import pytest
import tiny_network
from own_images import arrays, create, odd_shapes, picture, tar, tree, write, zipped
from PIL import Image
from programs import ROOT, SMALL, arguments

from genfield import features
from genfield.data import identity
from genfield.main import main

CONFIG = """
from ml_collections import ConfigDict, config_dict
from genfield import configuration

def get_config():
    config = configuration.base()
    config.data = ConfigDict({"name": "images", "path": config_dict.placeholder(str)})
    config.net = ConfigDict({"name": "mlp", "width": 8, "depth": 1, "time_input": True})
    config.sampler.num_steps = 2
    return config
"""
SHORT = {"batch_size": 8, "train.steps": 2, "checkpoint.every": 1, "sampler.num_steps": 2}
SHORT |= {"sample.num": 8, "evaluate.num_samples": 8, "evaluate.figures": True}


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    return file


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """The tiny network in place of the real ones, and a cache folder of the test's own."""
    monkeypatch.setattr(features, "create", tiny_network.create)
    monkeypatch.setattr(features, "default", lambda: "inception_v3")
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "cache"))


def started(workdir, config, path, **overrides):
    """The exit code of a short run on images at a path."""
    small = {name: value for name, value in (SMALL | SHORT).items() if not name.startswith("net.")}
    fields = {"data.path": path} | overrides
    return main(arguments(workdir, config, small=small | fields))


def test_from_a_folder_of_odd_pictures_to_a_grid(tmp_path, capsys):
    folder = odd_shapes(tmp_path / "odd", 48)
    page = f"{ROOT / 'configs' / 'images.py'}:small"
    tiny_unet = {"net.channels": 8, "net.channel_multipliers": "(1,1)", "data.labels": True}
    tiny_unet |= {"train.eval_every": 0, "train.eval_samples": 0, "data.size": 16}
    assert started(tmp_path / "run", page, folder, **tiny_unet) == 0
    out = capsys.readouterr().out
    assert "images: 4 classes in folders, 43 to train on, 5 held out (10% of them)\n" in out
    assert "images: left out 2 files: 1 .csv, 1 .txt\n" in out
    with Image.open(tmp_path / "run" / "samples" / "step_2.png") as grid:
        assert min(grid.size) > 64


def test_odd_pictures_are_what_was_drawn(tmp_path):
    """Each on white, upright: the four corners of every picture are white, whatever its kind."""
    dataset = create(odd_shapes(tmp_path / "odd", 48), size=32, heldout_split="train")
    images = dataset.examples["train"].gather(np.arange(48))["x1"]
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 235
    dark = (images.min(-1) < 215).mean((1, 2))
    assert dark.min() > 0.02 and dark.max() < 0.75


def test_images_with_transparency_train_sample_and_are_judged_on_white(config, tmp_path):
    generator = np.random.default_rng(0)
    levels = generator.integers(0, 256, (12, 8, 8, 4), dtype=np.uint8)
    for i, image in enumerate(levels):
        write(tmp_path / "a" / f"{i:02}.png", image)
    judged = {"data.channels": 4, "evaluate.metrics": "('frechet',)", "sample.formats": "('png',)"}
    assert started(tmp_path / "run", config, tmp_path / "a", **judged) == 0
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert np.isfinite(card["metrics"]["fid"]["value"])
    assert main(["genfield", f"--workdir={tmp_path / 'run'}", "--mode=sample"]) == 0
    (first, *_) = sorted((tmp_path / "run" / "samples" / "step_2").glob("*.png"))
    with Image.open(first) as image:
        assert image.mode == "RGBA"
    # As judged: the same pictures with their transparency, and flat on white.
    share = levels[..., 3:] / 255
    flat = np.round(levels[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    np.savez(tmp_path / "flat.npz", arr_0=flat)
    assert fid(tmp_path / "x", tmp_path / "a", tmp_path / "flat.npz")[0] < 1e-2


def test_samples_and_references_lie_on_the_background_of_the_data(config, tmp_path):
    clear = np.zeros((12, 8, 8, 4), np.uint8)
    clear[..., 3] = np.arange(12)[:, None, None] * 20
    for i, image in enumerate(clear):
        write(tmp_path / "a" / f"{i:02}.png", image)
    share = clear[..., 3:] / 255
    np.savez(tmp_path / "flat.npz", arr_0=np.round(90 * (1 - share)).repeat(3, -1).astype(np.uint8))
    more = [f"--config={config}", "--config.data.background=90", "--config.data.path=unused"]
    places = (tmp_path / "a", tmp_path / "flat.npz")
    for samples, reference in (places, reversed(places)):
        assert abs(fid(tmp_path / "run", samples, reference, *more)[0]) < 1e-2
        assert fid(tmp_path / "run", samples, reference)[0] > 1


def fid(workdir, samples, reference, *more):
    argv = ["genfield", "--mode=evaluate", f"--workdir={workdir}", f"--samples={samples}"]
    argv += [f"--config.evaluate.reference={reference}", "--config.evaluate.metrics=('frechet',)"]
    assert main([*argv, *more]) == 0
    card = json.loads((workdir / "card.json").read_text())
    return card["metrics"]["fid"]["value"], card


def test_samples_and_references_in_every_place_are_the_same_and_say_what_is_left_out(
    tmp_path, capsys
):
    """Half of the files WebP: all count, in the order of their names, whatever holds them."""
    folder = tmp_path / "images"
    for i in range(12):
        suffix, more = [(".png", {}), (".webp", {"lossless": True})][i % 2]
        write(folder / f"{i:02}{suffix}", picture(i), **more)
    (folder / "notes.txt").write_text("x")
    np.savez(tmp_path / "other.npz", images=np.stack([picture(100 + i) for i in range(12)]))
    np.savez(tmp_path / "same.npz", x=np.stack([picture(i) for i in range(12)]))
    places = [folder, tar(folder, tmp_path / "a.tgz"), zipped(folder, tmp_path / "a.zip")]
    hashes, values = set(), set()
    for place in [*places, tmp_path / "same.npz"]:
        value, card = fid(tmp_path / "run", tmp_path / "other.npz", place)
        hashes.add(card["reference"]["pixels"])
        values.add(value)
        assert card["reference"]["count"] == 12
        line = "images: left out 1 file: 1 .txt"
        assert (line in capsys.readouterr().out) == (place.suffix != ".npz")
        value, card = fid(tmp_path / "run", place, tmp_path / "other.npz")
        assert card["samples"]["count"] == 12
        assert (line in capsys.readouterr().out) == (place.suffix != ".npz")
    assert len(hashes) == len(values) == 1


def test_a_run_goes_on_where_its_data_lie_now(config, tmp_path, capsys):
    """The folder becomes an archive, and an .npz: the same data set; an edit of it is another."""
    folder = tree(tmp_path / "images")
    whole = {"data.labels": True}
    assert started(tmp_path / "run", config, folder, **whole) == 0
    places = [tar(folder, tmp_path / "a.tar.gz"), zipped(folder, tmp_path / "a.zip")]
    places.append(arrays(folder, tmp_path / "a.npz"))
    for steps, place in enumerate(places, 3):
        assert started(tmp_path / "run", config, place, **whole, **{"train.steps": steps}) == 0
    write(folder / "train" / "cat" / "00.png", picture(99))
    capsys.readouterr()
    assert started(tmp_path / "run", config, folder, **whole, **{"train.steps": 9}) == 2
    assert "the data differ from what the run was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("held", ["test", "val"])
def test_a_run_of_an_earlier_version_resumes(held, config, tmp_path, monkeypatch, capsys):
    """A run whose checkpoint holds the fingerprint of names and sizes, as it was written then."""
    folder = tree(tmp_path / "images", (("train", 6, 4), (held, 3, 2)))
    before = {} if held == "test" else {"data.heldout_split": None}
    (older,) = create(folder, heldout_split=None if held == "val" else "test").older
    from genfield.data import images

    original = images.assemble

    def as_it_was(*args, **kwargs):
        made = original(*args, **kwargs)
        state = lambda step: made.state(step) | {"fingerprint": older}
        return made._replace(fingerprint=older, state=state, older=())

    monkeypatch.setattr(images, "assemble", as_it_was)
    assert started(tmp_path / "run", config, folder, **before) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    if held == "val":  # which earlier versions did not look for, nor write down
        saved["data"].pop("heldout_split")
        (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
    monkeypatch.setattr(images, "assemble", original)
    more = before | {"train.steps": 4}
    capsys.readouterr()
    assert started(tmp_path / "run", config, folder, **more) == 0
    assert "data: this run knew them by names and sizes" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4
    # From here on it knows its data by their contents.
    write(folder / "train" / "cat" / "00.png", picture(99))
    assert started(tmp_path / "run", config, folder, **more | {"train.steps": 6}) == 2
    assert identity.SETTLED_NS > 0
