"""A folder, archives, arrays and columns of the same images are the same data set."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from own_images import (
    arrays,
    create,
    encoded,
    everything,
    fill,
    numbers,
    picture,
    tar,
    told,
    tree,
    write,
    zipped,
)
from PIL import Image

from genfield.data import sets
from genfield.errors import UserError


def shards(folder, place):
    """An archive of each split."""
    place.mkdir()
    tar(folder / "train", place / "pets-train.tar")
    zipped(folder / "test", place / "pets-test.zip")
    return place


def halves(folder, place):
    """The files of a folder, half in a zip and half in a compressed tar."""
    place.mkdir()
    names = sorted(p for p in folder.rglob("*.png"))
    with zipfile.ZipFile(place / "0.zip", "w") as one, tarfile.open(place / "1.tgz", "w:gz") as two:
        for i, path in enumerate(names):
            name = path.relative_to(folder).as_posix()
            two.add(path, name) if i % 2 else one.write(path, name)
    return place


PLACES = {
    "folder": lambda folder, tmp: folder,
    "tar": lambda folder, tmp: tar(folder, tmp / "a.tar"),
    "tar.gz": lambda folder, tmp: tar(folder, tmp / "a.tar.gz", prefix="deep/inside"),
    "tar.xz": lambda folder, tmp: tar(folder, tmp / "a.tar.xz", prefix="./"),
    "zip": lambda folder, tmp: zipped(folder, tmp / "a.zip"),
    "stored zip": lambda folder, tmp: zipped(folder, tmp / "a.zip", "a/b/", zipfile.ZIP_STORED),
    "npz": lambda folder, tmp: arrays(folder, tmp / "a.npz"),
    "an archive a split": lambda folder, tmp: shards(folder, tmp / "shards"),
    "two archives": lambda folder, tmp: halves(folder, tmp / "halves"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_every_place_of_the_same_images_is_the_same_data_set(kind, tmp_path):
    folder = tree(tmp_path / "images")
    first = create(folder, labels=True)
    assert numbers(first) == list(range(10)) and numbers(first, "test") == list(range(10, 15))
    assert first.class_names == ("cat", "dog")
    place = PLACES[kind](folder, tmp_path)
    for in_memory in (True, False):
        other = create(place, labels=True, in_memory=in_memory)
        assert (other.fingerprint, other.class_names) == (first.fingerprint, ("cat", "dog"))
        for split in ("train", "test"):
            for key, values in everything(first, split).items():
                np.testing.assert_array_equal(everything(other, split)[key], values)
        for ours, theirs in zip(other.train(0), first.train(0), strict=False):
            np.testing.assert_array_equal(ours["x1"], theirs["x1"])
            break
    bare = [create(p, labels=False).fingerprint for p in (folder, place)]
    assert bare[0] == bare[1] != first.fingerprint
    judged = [sets.open_images(str(p)) for p in (folder, place)]
    rows = [of.read(np.arange(15)) for of in judged]
    np.testing.assert_array_equal(*rows)
    assert judged[1].size == 15


def test_the_fingerprint_is_of_contents_and_their_order(tmp_path):
    names = [f"train/{i}" for i in range(4)]
    marks = {create(fill(tmp_path / "a", names)).fingerprint}
    marks.add(create(fill(tmp_path / "b", names)).fingerprint)
    assert len(marks) == 1
    marks.add(create(fill(tmp_path / "c", reversed(names))).fingerprint)
    marks.add(create(fill(tmp_path / "d", names, start=1)).fingerprint)
    marks.add(create(tmp_path / "a", size=4).fingerprint)
    marks.add(create(tmp_path / "a", channels=1).fingerprint)
    assert len(marks) == 5


def test_a_folder_half_webp_and_bmp_trains_and_is_judged_on_all(tmp_path):
    kinds = {".png": {}, ".webp": {"lossless": True}, ".bmp": {}, ".tiff": {}, ".PNG": {}}
    for i in range(20):
        suffix, options = list(kinds.items())[i % 5]
        write(tmp_path / "a" / f"{i:02}{suffix}", picture(i), **options)
    dataset = create(tmp_path / "a", heldout_split="train")
    assert numbers(dataset) == list(range(20))
    judged = sets.open_images(str(tmp_path / "a"))
    np.testing.assert_array_equal(judged.read(np.arange(20)), everything(dataset)["x1"])


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip", "two archives"])
def test_what_is_not_read_is_counted_in_training_and_in_references(kind, tmp_path):
    folder = tree(tmp_path / "images")
    for name in ("notes.txt", "train/cat/x.txt", "train/y.npy", ".DS_Store", "train/.z.png"):
        (folder / name).write_text("x")
    place = folder
    if kind == "two archives":
        place = tmp_path / "both"
        place.mkdir()
        tar(folder, place / "a.tgz")
        (place / "readme.md").write_text("x")
    elif kind != "folder":
        place = PLACES[kind](folder, tmp_path)
    md = ", 1 .md" * (kind == "two archives")
    line = f"images: left out {3 + bool(md)} files: 2 .txt{md}, 1 .npy"
    assert told(place)[1:] == [line]
    lines = []
    assert sets.open_images(str(place), lines.append).size == 15
    assert lines == [line]


def test_arrays_that_are_not_read_are_named(tmp_path):
    images = np.stack([picture(i) for i in range(4)])
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=np.arange(4) % 2, mu=np.zeros(3))
    line = "images: left out 2 arrays: arr_1, mu"
    assert told(tmp_path / "a.npz")[1:] == [line]
    lines = []
    sets.open_images(str(tmp_path / "a.npz"), lines.append)
    assert lines == [line]
    labelled = told(tmp_path / "a.npz", labels=True, heldout_split="train")
    assert labelled == [
        "images: 2 classes in its labels, 4 to train on, 4 held out (the same)",
        "images: left out 1 array: mu",
    ]


NPZ = [
    ("images", "labels"),
    ("x", "y"),
    ("arr_0", "arr_1"),
    ("samples", "labels"),
    ("train_images", "train_labels"),
    ("x_train", "y_train"),
]


@pytest.mark.parametrize("keys", NPZ, ids=str)
@pytest.mark.parametrize("kind", ["bytes", "floats", "grey"])
def test_both_readers_take_the_same_npz(keys, kind, tmp_path):
    images = np.stack([picture(i) for i in range(6)])
    stored = {"bytes": images, "floats": images / np.float32(255), "grey": images[..., 0]}[kind]
    expected = np.repeat(images[..., :1], 3, -1) if kind == "grey" else images
    np.savez(tmp_path / "a.npz", **{keys[0]: stored, keys[1]: np.arange(6) % 3})
    dataset = create(tmp_path / "a.npz", labels=True, heldout_split="train")
    np.testing.assert_array_equal(everything(dataset)["x1"], expected)
    np.testing.assert_array_equal(everything(dataset)["label"], np.arange(6) % 3)
    judged = sets.open_images(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(judged.read(np.arange(6)), expected)


def test_an_npz_with_several_images_is_refused_by_both(tmp_path):
    images = np.stack([picture(i) for i in range(6)])
    np.savez(tmp_path / "a.npz", images=images, arr_0=images)
    for read in (create, lambda path: sets.open_images(str(path))):
        with pytest.raises(UserError, match=r"images and arr_0, which may all be the images"):
            read(tmp_path / "a.npz")


def test_class_names_of_an_npz(tmp_path):
    images = np.stack([picture(i) for i in range(6)])
    held = dict(images=images, labels=np.arange(6) % 2)
    np.savez(tmp_path / "a.npz", **held, class_names=np.array(["cat", "dog"]))
    assert create(tmp_path / "a.npz", labels=True).class_names == ("cat", "dog")
    np.savez(tmp_path / "a.npz", **held, class_names=np.array(["cat"]))
    with pytest.raises(UserError, match=r"holds 1 class_names and labels up to 1"):
        create(tmp_path / "a.npz", labels=True)


def test_damaged_and_locked_zips_are_one_line(tmp_path):
    folder = tree(tmp_path / "images")
    archive = zipped(folder, tmp_path / "a.zip")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.zip is damaged, or neither .*zip"):
        create(archive)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("train/0.png", encoded(Image.fromarray(picture(0))))
        file.writestr("train/1.png", encoded(Image.fromarray(picture(1))))
    content = bytearray(archive.read_bytes())
    content[60] ^= 255  # inside the first picture: its checksum does not fit
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the image train/0\.png in .*CRC-32"):
        create(archive)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("train/0.png", b"secret")
        file.filelist[0].flag_bits |= 1
    with pytest.raises(UserError, match=r"a\.zip is damaged.*: it is encrypted"):
        create(archive)


def test_a_link_inside_a_tar_is_left_out_and_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for i in range(3):
            content = encoded(Image.fromarray(picture(i)))
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("3.png")
        link.type, link.linkname = tarfile.SYMTYPE, "2.png"
        file.addfile(link)
    assert told(tmp_path / "a.tar")[1:] == ["images: left out 1 file: 1 .png (a link)"]


def test_a_file_in_two_archives_is_refused(tmp_path):
    tree(tmp_path / "images")
    (tmp_path / "both").mkdir()
    tar(tmp_path / "images", tmp_path / "both" / "a.tar")
    zipped(tmp_path / "images", tmp_path / "both" / "b.zip")
    with pytest.raises(UserError, match=r"00\.png is in a\.tar and in b\.zip of .*leave one"):
        create(tmp_path / "both")


def test_an_archive_beside_images_is_left_out_and_counted(tmp_path):
    folder = tree(tmp_path / "images")
    zipped(folder, folder / "backup.zip")
    assert told(folder)[1:] == ["images: left out 1 file: 1 .zip"]


def test_a_place_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.pdf").write_text("x")
    for read in (create, lambda path: sets.open_images(str(path))):
        with pytest.raises(UserError, match=r"holds no image that can be read; it has 1 \.pdf, 1"):
            read(tmp_path)
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    with pytest.raises(UserError, match=r"a\.zip holds no image that can be read; it has nothing"):
        create(tmp_path / "a.zip")
