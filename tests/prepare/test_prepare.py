"""Images to shards: the crop, what is stored, and that nothing is lost or repeated."""

import json
import os

import numpy as np
import prepared
import pytest
import tiny_latents
from own_images import fill, picture, tar, write
from PIL import Image

from genfield import pretrained
from genfield.data import shards
from genfield.data.decoding import prepare as read_picture
from genfield.errors import UserError
from genfield.prepare import run, writer
from genfield.prepare.crop import AdmReading

SIZE = 8


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_latents.autoencoder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three synsets, of 8, 5 and 7 images of many sizes."""
    folder, number = tmp_path_factory.mktemp("images"), 0
    for synset, count in (("n02", 8), ("n01", 5), ("n10", 7)):
        for name in range(count):
            side = 9 + (5 * number) % 13
            write(folder / synset / f"{name}.png", picture(number, (side, 30 - side)))
            number += 1
    return folder


# ---- What is stored


def test_latents_are_the_posterior_of_each_crop_and_of_its_mirror(images, weights, tmp_path):
    out = tmp_path / "out"
    options = dict(autoencoder=weights, size=SIZE, flip=True, batch_size=3, shard_size=8)
    assert prepared.prepare(images, out, **options) == 0
    found = shards.open_shards(out)
    assert [len(array) for array in found.arrays] == [8, 8, 4]
    names = sorted(path.relative_to(images) for path in images.rglob("*.png"))
    np.testing.assert_array_equal(found.labels, [0] * 5 + [1] * 8 + [2] * 7)
    assert found.manifest["class_names"] == ["n01", "n02", "n10"]
    crops = [read_picture(Image.open(images / name), AdmReading(SIZE)) for name in names]
    x = np.stack(crops).astype(np.float32) / 127.5 - 1
    encode = pretrained.autoencoder(weights).encode
    values = np.concatenate(found.arrays)
    assert values.dtype == np.float16 and values.shape == (20, 2, 2, 4, 4, 4)
    for copy, seen in ((0, x), (1, x[:, :, ::-1])):
        for moment, expected in zip((0, 1), encode(seen), strict=True):
            np.testing.assert_allclose(values[:, copy, moment], expected, rtol=2e-3, atol=2e-3)
    stored = values.astype(np.float64)
    mean = stored[:, :, 0].mean((0, 1, 2, 3))
    var = (stored[:, :, 0] ** 2 + stored[:, :, 1] ** 2).mean((0, 1, 2, 3)) - mean**2
    np.testing.assert_allclose(found.manifest["statistics"]["mean"], mean, atol=1e-9)
    np.testing.assert_allclose(found.manifest["statistics"]["std"], np.sqrt(var), atol=1e-9)
    assert found.manifest["autoencoder"]["hash"] == pretrained.autoencoder(weights).info.hash
    assert found.manifest["autoencoder"]["scaling_factor"] == 0.5


def test_pixels_are_the_crops(images, tmp_path):
    assert prepared.prepare(images, tmp_path / "out", pixels=True, size=SIZE, shard_size=7) == 0
    found = shards.open_shards(tmp_path / "out")
    names = sorted(images.rglob("*.png"))
    crops = [read_picture(Image.open(name), AdmReading(SIZE)) for name in names]
    np.testing.assert_array_equal(np.concatenate(found.arrays), crops)


def test_an_archive_gives_what_its_folder_gives(images, tmp_path):
    archive = tar(images, tmp_path / "images.tar")
    for name, place in (("folder", images), ("archive", archive)):
        assert prepared.prepare(place, tmp_path / name, pixels=True, size=SIZE) == 0
    a, b = (shards.open_shards(tmp_path / name) for name in ("folder", "archive"))
    np.testing.assert_array_equal(a.arrays[0], b.arrays[0])
    np.testing.assert_array_equal(a.labels, b.labels)


def test_imagenet_lies_as_it_is_published(tmp_path, capsys):
    """Synsets below ILSVRC, a flat val/ and test/, and the file that names the synsets."""
    data = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    fill(data / "train", ["n01000002/a", "n01000001/b"], suffix=".JPEG")
    fill(data, ["val/0", "val/1", "test/0"], suffix=".JPEG", start=10)
    lines = "n01000001 tench, Tinca tinca\nn01000002 goldfish\n"
    (tmp_path / "LOC_synset_mapping.txt").write_text(lines)
    for place, names in (
        (tmp_path, ["tench", "goldfish"]),
        (data, ["n01000001", "n01000002"]),
        (data / "train", ["n01000001", "n01000002"]),
    ):
        out = tmp_path.with_name(f"{tmp_path.name}_{place.name}")
        assert prepared.prepare(place, out, pixels=True, size=SIZE) == 0
        found = shards.open_shards(out)
        assert found.manifest["class_names"] == names and found.labels.tolist() == [0, 1]
    assert "2 images in val/" in capsys.readouterr().out.replace("CLS-LOC/", "")


# ---- Stopped and gone on


class Died(BaseException):
    """Nothing after it is done, as after kill -9."""


def test_whenever_it_dies_nothing_is_lost_or_repeated(images, tmp_path, monkeypatch):
    """Died at each moment at which something reaches the disk, one after the other."""
    options = dict(pixels=True, size=SIZE, batch_size=3, shard_size=8)
    assert prepared.prepare(images, tmp_path / "whole", **options) == 0
    expected, out = prepared.contents(tmp_path / "whole"), tmp_path / "out"
    fsync, deaths = os.fsync, 0

    def dying(file):
        nonlocal left
        left -= 1
        if left < 0:
            raise Died
        fsync(file)

    monkeypatch.setattr(writer.os, "fsync", dying)
    for patience in [0, 1, 2, 1, 3, 0, 1, 2, 4, 1, 2, 100]:
        left = patience
        try:
            assert prepared.prepare(images, out, **options) == 0
            break
        except Died:
            deaths += 1
    assert deaths >= 8 and prepared.contents(out) == expected


@pytest.mark.parametrize("name", run.WRITTEN)
def test_a_death_before_a_file_has_its_name_leaves_nothing_behind(
    name, images, tmp_path, monkeypatch
):
    options, put = dict(pixels=True, size=SIZE, batch_size=3, shard_size=8), run._put

    def dying(unfinished, path):
        if path.name == name:
            raise Died
        put(unfinished, path)

    with monkeypatch.context() as once, pytest.raises(Died):
        once.setattr(run, "_put", dying)
        prepared.prepare(images, tmp_path / "out", **options)
    assert len(list((tmp_path / "out").glob(".*"))) == 1
    assert prepared.prepare(images, tmp_path / "out", **options) == 0
    assert not list((tmp_path / "out").glob(".*"))


def test_half_a_line_and_half_a_batch_are_dropped(images, tmp_path):
    options = dict(pixels=True, size=SIZE, batch_size=3, shard_size=8)
    assert prepared.prepare(images, tmp_path / "whole", **options) == 0
    assert prepared.prepare(images, tmp_path / "out", **options) == 0
    place = tmp_path / "out" / "shards"
    (tmp_path / "out" / shards.FINISHED).unlink()
    whole, journal = place / "00001.npy", place / "00001.jsonl"
    whole.rename(place / "00001.part")
    journal.write_bytes(journal.read_bytes()[:-5])
    with open(place / "00001.part", "ab") as file:
        file.write(b"half a batch")
    (place / "00000.npy").unlink()  # as a damaged shard is mended
    assert prepared.prepare(images, tmp_path / "out", **options) == 0
    assert prepared.contents(tmp_path / "out") == prepared.contents(tmp_path / "whole")


def test_several_processes_write_what_one_writes(images, weights, tmp_path, capsys):
    options = dict(autoencoder=weights, size=SIZE, batch_size=4, shard_size=5)
    assert prepared.prepare(images, tmp_path / "one", **options) == 0
    capsys.readouterr()
    for number in (2, 0, 1):
        share = dict(process_id=number, num_processes=3)
        assert prepared.prepare(images, tmp_path / "three", **options, **share) == 0
        done = (tmp_path / "three" / shards.FINISHED).exists()
        assert done == (number == 1)
    out = capsys.readouterr().out
    assert "3 of 4 shards are still to come, by other processes" in out and "process 2/3" in out
    assert prepared.contents(tmp_path / "three") == prepared.contents(tmp_path / "one")


def test_each_process_has_a_shard_where_none_says_how_large(images, tmp_path):
    share = dict(process_id=0, num_processes=4)
    assert prepared.prepare(images, tmp_path / "out", pixels=True, size=SIZE, **share) == 0
    assert json.loads((tmp_path / "out" / shards.ASKED).read_text())["shard_size"] == 5


def test_two_processes_never_write_one_shard(tmp_path):
    given = (tmp_path, 0, 0, 4, (2,), np.uint8)
    first, second = writer.Shard(*given), writer.Shard(*given)
    first.open()
    with pytest.raises(UserError, match=r"process \d+ on \S+ is at work on .*00000.part, since 2"):
        second.open()
    first.append(np.ones((4, 2)), {"first": 0, "last": 4})
    first.close()
    assert first.done and np.load(tmp_path / "00000.npy").shape == (4, 2)


def test_the_same_command_again_does_nothing(images, tmp_path, capsys):
    options = dict(pixels=True, size=SIZE)
    assert prepared.prepare(images, tmp_path / "out", **options) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert prepared.prepare(images, tmp_path / "out", **options) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    assert "finished before: 20 images of shape (8, 8, 3), 3 classes" in capsys.readouterr().out


def test_sums_for_which_there_was_no_room_are_written_by_the_same_command(images, tmp_path):
    options, out = dict(pixels=True, size=SIZE), tmp_path / "out"
    assert prepared.prepare(images, out, **options) == 0
    sums, unfinished = out / "sums.json", out / ".sums.json.0"
    whole = sums.read_bytes()
    sums.unlink()
    unfinished.touch()
    assert prepared.prepare(images, out, **options) == 0
    assert sums.read_bytes() == whole and not unfinished.exists()


def test_what_is_damaged_in_a_finished_folder_is_told_and_made_anew(images, tmp_path, capsys):
    options, out = dict(pixels=True, size=SIZE, shard_size=8), tmp_path / "out"
    assert prepared.prepare(images, out, **options) == 0
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name, at in (("labels.npy", 140), ("manifest.json", 30), ("shards/00001.npy", 700)):
        bytes_of = bytearray(whole[out / name])
        bytes_of[at] ^= 1
        (out / name).write_bytes(bytes_of)
        capsys.readouterr()
        assert prepared.prepare(images, out, **options) == 0
        told = capsys.readouterr().out
        assert f"{out / name} is damaged" in told and told.count("is damaged") == 1
        assert "done: 20 images" in told
        assert {path: path.read_bytes() for path in whole} == whole


# ---- Damaged and odd images


@pytest.fixture
def damaged(tmp_path):
    folder = fill(tmp_path / "images", [f"{c}/{i}" for c in ("a", "b") for i in range(6)])
    bad = folder / "a" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    (folder / "b" / "0.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("left")
    deep = np.full((8, 8), 30_000, np.uint16)
    Image.fromarray(deep).save(folder / "a" / "deep.png")
    return folder


def test_a_damaged_image_stops_and_what_was_done_stays(damaged, tmp_path, capsys):
    options = dict(pixels=True, size=SIZE, batch_size=2)
    assert prepared.prepare(damaged, tmp_path / "out", **options) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "a/3.png" in err and "--damaged=leave_out" in err
    lines = (tmp_path / "out" / "shards" / "00000.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["last"] == 2
    write(damaged / "a" / "3.png", picture(3))
    assert prepared.prepare(damaged, tmp_path / "out", **options) == 2
    assert "b/0.png" in capsys.readouterr().err
    write(damaged / "b" / "0.png", picture(6))
    assert prepared.prepare(damaged, tmp_path / "out", **options) == 0
    out = capsys.readouterr().out
    assert "6 of 13 images are there already" in out
    assert "1 of 16 bits a channel, scaled to 8, as a/deep.png" in out
    assert "left out 1 file: 1 .txt" in out
    array = shards.open_shards(tmp_path / "out").arrays[0]
    np.testing.assert_array_equal(array[[0, 3, 7]], [picture(i) for i in (0, 3, 6)])


def test_damaged_images_may_be_left_out_and_are_named(damaged, tmp_path, capsys):
    options = dict(pixels=True, size=SIZE, batch_size=2, shard_size=3)
    assert prepared.prepare(damaged, tmp_path / "out", damaged="leave_out", **options) == 0
    assert "11 images of shape (8, 8, 3), 2 classes, 2 left out" in capsys.readouterr().out
    found = shards.open_shards(tmp_path / "out")
    assert [item["image"].split(" in ")[0] for item in found.manifest["left_out"]] == [
        "a/3.png",
        "b/0.png",
    ]
    np.testing.assert_array_equal(found.labels, [0] * 6 + [1] * 5)
    rows = np.concatenate(found.arrays)
    kept = [0, 1, 2, 4, 5]  # and then the grey one of 16 bits
    np.testing.assert_array_equal(rows[:5], [picture(i) for i in kept])
    np.testing.assert_array_equal(rows[6:], [picture(i) for i in (7, 8, 9, 10, 11)])


def test_a_folder_of_nothing_but_damaged_images(tmp_path, capsys):
    for name in ("a/0.png", "b/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        (tmp_path / "images" / name).write_bytes(b"no picture")
    options = dict(pixels=True, size=SIZE, damaged="leave_out")
    assert prepared.prepare(tmp_path / "images", tmp_path / "out", **options) == 2
    assert "no image of 2 could be read" in capsys.readouterr().err


# ---- Mistakes


def line(capsys, code: int) -> str:
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and err.startswith("genfield: error: ")
    return err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "--autoencoder is missing"),
        ({"pixels": True, "autoencoder": "x"}, "leave out --autoencoder"),
        ({"pixels": True, "flip": True}, "--flip is for latents"),
        ({"autoencoder": "nowhere"}, "no autoencoder at nowhere"),
        ({"pixels": True, "size": 0}, "0 is not positive"),
        ({"pixels": True, "sise": 8}, "--sise"),
        ({"pixels": True, "split": "test"}, "no split 'test'"),
        ({"pixels": True, "process_id": 0}, "go together"),
        ({"pixels": True, "process_id": 2, "num_processes": 2}, "must be one of 0"),
        ({"pixels": True, "distributed": True, "process_id": 0, "num_processes": 1}, "leave them"),
        ({"pixels": True, "labels": "maybe"}, "neither True nor False"),
        ({"pixels": True, "images": "gs://bucket/x"}, "not on this machine's disk"),
        ({"pixels": True, "images": "nowhere"}, "--images nowhere does not exist"),
    ],
)
def test_mistakes_are_a_line(options, says, images, tmp_path, capsys):
    place = options.get("images", images)
    rest = {k: v for k, v in options.items() if k != "images"}
    assert says in line(capsys, prepared.prepare(place, tmp_path / "out", **rest))
    assert not (tmp_path / "out").exists()


def test_images_in_no_folder_are_told_the_flag(tmp_path, capsys):
    fill(tmp_path / "flat", ["0", "1"])
    code = prepared.prepare(tmp_path / "flat", tmp_path / "out", pixels=True)
    said = line(capsys, code)
    assert "--labels=False" in said and "data." not in said
    options = dict(pixels=True, labels=False, size=SIZE)
    assert prepared.prepare(tmp_path / "flat", tmp_path / "out", **options) == 0
    assert shards.open_shards(tmp_path / "out").labels is None


def test_a_folder_goes_on_with_what_it_was_begun_with(images, weights, tmp_path, capsys):
    options = dict(autoencoder=weights, size=SIZE, shard_size=8)
    assert prepared.prepare(images, tmp_path / "out", **options) == 0
    other = tiny_latents.autoencoder(tmp_path / "other", layers_per_block=2)
    told = json.loads((weights / "config.json").read_text())
    for change, says in (
        ({"size": 16}, "another --size (8, not 16)"),
        ({"autoencoder": other}, "another --autoencoder ("),
        ({"flip": True}, "another --flip (False, not True)"),
        ({"dtype": "bfloat16"}, "another --dtype (float32, not bfloat16)"),
        ({"shard_size": 9}, "another shard_size (8, not 9)"),
    ):
        code = prepared.prepare(images, tmp_path / "out", **options | change)
        assert says in line(capsys, code)
    code = prepared.prepare(images, tmp_path / "out", pixels=True, size=SIZE)
    assert "another kind (latents, not pixels)" in line(capsys, code)
    (weights / "config.json").write_text(json.dumps(told | {"scaling_factor": 0.5}))
    assert prepared.prepare(images, tmp_path / "out", **options) == 0  # it decides no number
    (weights / "config.json").write_text(json.dumps(told))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("of three years")
    code = prepared.prepare(images, tmp_path / "full", **options)
    assert "holds something else" in line(capsys, code)
    code = prepared.prepare(images, tmp_path / "odd", **options | {"size": 9})
    assert "--size=9 is not a multiple of 2" in line(capsys, code)


def test_images_that_change_between_two_starts_are_told(tmp_path, capsys):
    folder = fill(tmp_path / "images", [f"{c}/{i}" for c in ("a", "b") for i in range(4)])
    options = dict(pixels=True, size=SIZE)
    assert prepared.prepare(folder, tmp_path / "out", **options) == 0
    write(folder / "b" / "2.png", picture(50))
    os.utime(folder / "b" / "2.png", (1, 1))
    assert "images changed" in line(capsys, prepared.prepare(folder, tmp_path / "out", **options))
    write(folder / "b" / "new.png", picture(60))
    said = line(capsys, prepared.prepare(folder, tmp_path / "out", **options))
    assert "another images (8, not 9)" in said


def test_latents_beyond_float16_are_told_with_their_image(images, tmp_path, capsys, monkeypatch):
    from genfield.prepare import encoder

    made = encoder.create

    def huge(options):
        found = made(options)
        blown = lambda levels: np.full((len(levels), *found.inner), np.inf, np.float16)
        return found._replace(kind=shards.LATENTS, dtype=np.float16, encode=blown)

    monkeypatch.setattr(encoder, "create", huge)
    code = prepared.prepare(images, tmp_path / "out", pixels=True, size=SIZE)
    assert "beyond float16 for n01/0.png" in line(capsys, code)
