"""Layouts that people have: where splits and classes are, what is said of it, what is refused."""

import json

import numpy as np
import pytest
from own_images import (
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

from genfield.errors import UserError


def refuses(match, path, **section):
    with pytest.raises(UserError, match=match) as caught:
        create(path, **section)
    assert "\n" not in str(caught.value)


def labels_of(dataset, split="train"):
    """{number of the picture: its class's name}."""
    found = everything(dataset, split)["label"]
    return {n: dataset.class_names[k] for n, k in zip(numbers(dataset, split), found, strict=True)}


# ---- Folders


def test_folders_of_classes_without_splits(tmp_path):
    names = [f"{name}/{i}" for name in ("emu", "cat") for i in range(5)]
    fill(tmp_path, names)
    line = "images: 2 classes in folders, 9 to train on, 1 held out (10% of them)"
    assert told(tmp_path, labels=True) == [line]
    dataset = create(tmp_path, labels=True, heldout_split="train")
    assert labels_of(dataset) == {n: "emu" if n < 5 else "cat" for n in range(10)}
    assert dataset.class_names == ("cat", "emu")
    assert told(tmp_path)[0].startswith("images: no classes, 9 to train on")


def test_a_flat_folder_without_classes(tmp_path):
    fill(tmp_path, map(str, range(10)))
    assert numbers(create(tmp_path, heldout_split="train")) == list(range(10))
    refuses(r"0\.png in .* lies in no class folder: set data\.labels=False", tmp_path, labels=True)


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_val_is_held_out_where_there_is_no_test(name, tmp_path):
    tree(tmp_path, (("train", 6, 4), (name, 3, 2)))
    dataset = create(tmp_path, labels=True)
    assert numbers(dataset) == list(range(10))
    assert numbers(dataset, "test") == list(range(10, 15))
    line = f"images: 2 classes in folders, 10 to train on, 5 held out ({name})"
    assert told(tmp_path, labels=True) == [line]
    # None holds out a tenth, as for runs of before; then what is not read is said.
    assert told(tmp_path, heldout_split=None) == [
        "images: no classes, 9 to train on, 1 held out (10% of them)",
        f"images: left out 5 files: 5 images in {name}/",
    ]


def test_test_goes_before_val_which_is_named(tmp_path):
    tree(tmp_path, (("train", 6, 4), ("val", 3, 2), ("test", 1, 1)))
    assert told(tmp_path) == [
        "images: no classes, 10 to train on, 2 held out (test)",
        "images: left out 5 files: 5 images in val/",
    ]
    assert told(tmp_path, heldout_split="val")[0].endswith("5 held out (val)")


def test_val_of_an_npz_is_held_out(tmp_path):
    images = np.stack([picture(i) for i in range(6)])
    np.savez(tmp_path / "a.npz", train_images=images[:4], val_images=images[4:])
    dataset = create(tmp_path / "a.npz")
    assert numbers(dataset) == [0, 1, 2, 3] and numbers(dataset, "test") == [4, 5]


def test_folders_around_the_layout_do_not_matter(tmp_path):
    tree(tmp_path / "a" / "data" / "pets")
    fill(tmp_path / "b" / "pets", [f"{name}/{i}" for name in ("cat", "dog") for i in range(3)])
    assert create(tmp_path / "a", labels=True).sizes == {"train": 10, "test": 5}
    assert create(tmp_path / "b", labels=True).class_names == ("cat", "dog")
    fill(tmp_path / "c", ["preview", "data/train/0", "data/train/1", "data/test/0"])
    assert create(tmp_path / "c").sizes == {"train": 2, "test": 1}
    assert told(tmp_path / "c")[1:] == ["images: left out 1 file: 1 image in ./"]


def test_what_may_be_read_in_two_ways_is_refused_with_what_to_set(tmp_path):
    fill(tmp_path / "a", [f"{name}/{i}" for name in ("bus", "car", "train") for i in range(3)])
    refuses(
        r"train/ of .* may be a split, or a class beside bus, car: set data\.layout='splits' or "
        "'folders'", tmp_path / "a", labels=True,
    )  # fmt: skip
    classes = create(tmp_path / "a", labels=True, layout="folders")
    assert classes.class_names == ("bus", "car", "train")
    assert told(tmp_path / "a") == [
        "images: no classes, 2 to train on, 1 held out (10% of them)",
        "images: left out 6 files: 3 images in bus/, 3 images in car/",
    ]
    fill(tmp_path / "b", ["x/train/0", "y/train/0", "z/0"])
    refuses(r"several folders 'train' \(x/train, y/train\): point data\.path", tmp_path / "b")
    flat = create(tmp_path / "b", layout="flat", heldout_split="train")
    assert numbers(flat) == [0, 1, 2]


def test_splits_that_are_not_there(tmp_path):
    tree(tmp_path, (("test", 3, 2), ("val", 1, 1)))
    refuses(r"no split 'train' in .*it has test, val: set data\.split", tmp_path)
    assert create(tmp_path, split="test").sizes["train"] == 5
    fill(tmp_path / "c", ["cat/0", "dog/0"])
    refuses(r"no split 'train' in", tmp_path / "c", layout="splits")
    refuses(r"no split 'training' in", tmp_path / "c", split="training")
    refuses(r"unknown data\.layout 'split'.*Known: auto, flat", tmp_path / "c", layout="split")


# ---- Labels from elsewhere


def csv_table(rows):
    return "file,class\n" + "".join(f"{name},{label}\n" for name, label in rows)


TABLES = {
    "labels.csv": csv_table,
    "labels.json": lambda rows: json.dumps(dict(rows)),
    "dataset.json": lambda rows: json.dumps({"labels": [list(row) for row in rows]}),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("named", ["path", "name", "stem"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_classes_of_a_table(table, named, kind, tmp_path):
    folder = fill(tmp_path / "a", [f"{i // 4:05}/img{i:08}" for i in range(8)])
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.png"))]
    short = {"path": str, "name": lambda n: n[6:], "stem": lambda n: n[6:-4]}[named]
    rows = [(short(name), ["cat", "dog", "10"][i % 3]) for i, name in enumerate(names)]
    (folder / table).write_text(TABLES[table](rows))
    place = folder if kind == "folder" else zipped(folder, tmp_path / "a.zip")
    auto = {} if table == "dataset.json" else {"labels_from": "table"}
    dataset = create(place, labels=True, heldout_split="train", **auto)
    assert labels_of(dataset) == {i: ["cat", "dog", "10"][i % 3] for i in range(8)}
    line = f"images: 3 classes in {table}, 8 to train on, 8 held out (the same)"
    assert told(place, labels=True, heldout_split="train", **auto) == [line]
    if not auto:
        return
    refuses(
        r"may be said by folders or table: set data\.labels_from='folders' or 'table'",
        place, labels=True,
    )  # fmt: skip


def test_edm_numbers_are_in_the_order_of_numbers(tmp_path):
    """EDM's zip, as dataset_tool.py writes it, with more than ten classes; and without labels."""
    folder = fill(tmp_path / "a", [f"00000/img{i:08}" for i in range(12)])
    rows = [[f"00000/img{i:08}.png", i] for i in range(12)]
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    dataset = create(zipped(folder, tmp_path / "a.zip"), labels=True, heldout_split="train")
    assert dataset.class_names == tuple(map(str, range(12)))
    np.testing.assert_array_equal(everything(dataset)["label"], np.arange(12))
    (folder / "dataset.json").write_text(json.dumps({"labels": None}))
    refuses(r"dataset\.json in .* is no table of labels", folder, labels=True)
    assert told(folder)[1:] == ["images: left out 1 file: 1 .json"]


def test_a_table_beside_splits_without_class_folders(tmp_path):
    """As in Kaggle's: labels.csv beside train/, names without suffix."""
    folder = fill(tmp_path, [f"{split}/{split}{i}" for split in ("train", "val") for i in range(4)])
    rows = [(f"{split}{i}", "ab"[i % 2]) for split in ("train", "val") for i in range(4)]
    (folder / "labels.csv").write_text(csv_table(rows))
    dataset = create(folder, labels=True)
    assert labels_of(dataset) == {0: "a", 1: "b", 2: "a", 3: "b"}
    assert labels_of(dataset, "test") == {4: "a", 5: "b", 6: "a", 7: "b"}


def test_folders_of_splits_go_before_a_table_which_is_named(tmp_path):
    folder = tree(tmp_path)
    (folder / "labels.csv").write_text(csv_table([("00", "x")]))
    assert create(folder, labels=True).class_names == ("cat", "dog")
    assert told(folder, labels=True)[1:] == ["images: left out 1 file: 1 .csv"]


def test_tables_that_do_not_fit(tmp_path):
    folder = fill(tmp_path, ["a/0", "a/1", "b/1"])

    def refused(match, text, table="labels.csv"):
        (folder / table).write_text(text)
        refuses(match, folder, labels=True, labels_from="table")
        (folder / table).unlink()

    refused(r"labels\.csv in .* has no row for a/1\.png", csv_table([("0", "x")]))
    refused(r"1 of labels\.csv in .* may be any of several", csv_table([("0", "x"), ("1", "y")]))
    refused(r"labels\.json in .* is no table of labels", "[1, 2]", "labels.json")
    refused(r"gives a/0\.png the class \[0, 1\]", '{"a/0.png": [0, 1]}', "labels.json")
    refused(r"labels\.json in .* is no table", "{", "labels.json")
    refuses(r"has no table of labels: expected one of", folder, labels=True, labels_from="table")
    refuses(r"unknown data\.labels_from 'tables'", folder, labels=True, labels_from="tables")
    (folder / "labels.csv").write_text("x,y\n")
    (folder / "labels.json").write_text("{}")
    refuses(r"several tables: labels\.csv, labels\.json", folder, labels=True, labels_from="table")


# ---- webdataset


def shard(folder, first, count, kind=".cls", label=lambda i: str(i % 12)):
    for i in range(first, first + count):
        write(folder / f"{i:06}.jpg", Image.fromarray(picture(i)), format="PNG")
        text = label(i) if kind == ".cls" else json.dumps({"label": i % 12, "caption": "a"})
        (folder / f"{i:06}{kind}").write_text(text)
    return folder


@pytest.mark.parametrize("kind", [".cls", ".json"])
@pytest.mark.parametrize("place", ["one", "many"])
def test_webdataset_shards(kind, place, tmp_path):
    out = tmp_path / "shards"
    out.mkdir()
    if place == "one":
        path = tar(shard(tmp_path / "a", 0, 24, kind), out / "000.tar")
    else:
        for number in range(3):
            source = shard(tmp_path / f"{number}", 8 * number, 8, kind)
            tar(source, out / f"pets-{number:06}.tar")
        path = out
    dataset = create(path, labels=True, heldout_split="train")
    assert numbers(dataset) == list(range(24))
    assert dataset.class_names == tuple(map(str, range(12)))
    np.testing.assert_array_equal(everything(dataset)["label"], np.arange(24) % 12)
    line = f"images: 12 classes in {kind} files, 24 to train on, 24 held out (the same)"
    assert told(path, labels=True, heldout_split="train") == [line]


def test_webdataset_splits_by_the_names_of_shards(tmp_path):
    out = tmp_path / "shards"
    out.mkdir()
    tar(shard(tmp_path / "a", 0, 12), out / "pets-train-0.tar")
    tar(shard(tmp_path / "b", 12, 12), out / "pets-train-1.tar")
    tar(shard(tmp_path / "c", 24, 12), out / "pets-val-0.tar")
    dataset = create(out, labels=True)
    assert numbers(dataset) == list(range(24)) and numbers(dataset, "test") == list(range(24, 36))


def test_files_beside_images_that_do_not_fit(tmp_path):
    folder = shard(tmp_path / "a", 0, 4)
    (folder / "000002.cls").unlink()
    refuses(r"000002\.jpg in .* has no 000002\.cls beside it", folder, labels=True)
    (folder / "000002.cls").write_text("")
    refuses(r"000002\.cls in .* says no class", folder, labels=True)
    (folder / "000002.cls").write_text("3")
    (folder / "000002.seg.png").write_bytes(encoded(Image.fromarray(picture(50))))
    refuses(r"000002\.cls in .* is beside 000002\.jpg and 000002\.seg\.png", folder, labels=True)
    plain = fill(tmp_path / "b", ["0", "1"])
    refuses(r"0\.png .* has no class beside it", plain, labels=True, labels_from="files")


# ---- ImageNet


def test_synsets_have_their_names(tmp_path):
    synsets = ("n01440764", "n02012849", "n03126707")
    root = tmp_path / "ILSVRC" / "Data"
    counts = (("train", 2, 2, 2), ("val", 1, 1, 1))
    tree(root, counts, synsets)
    assert create(tmp_path, labels=True).class_names == synsets
    lines = ["tench, Tinca tinca", "crane", "crane"]
    words = [f"{s} {line}" for s, line in zip(synsets, lines, strict=True)]
    (tmp_path / "LOC_synset_mapping.txt").write_text("\n".join(words))
    expected = ("tench", "crane (n02012849)", "crane (n03126707)")
    dataset = create(tmp_path, labels=True)
    assert dataset.class_names == expected and len(told(tmp_path, labels=True)) == 1
    np.testing.assert_array_equal(everything(dataset)["label"], [0, 0, 1, 1, 2, 2])
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    (root / "words.txt").write_text("\n".join(words).replace(" ", "\t", 1))
    assert create(tmp_path, labels=True).class_names == expected


def test_held_out_images_without_class_folders(tmp_path):
    """ImageNet's val/ as it comes: flat."""
    tree(tmp_path, (("train", 2, 2),))
    fill(tmp_path, ["val/a", "val/b"], start=10)
    refuses(
        r"val/a\.png .* lies in no class folder: .*data\.heldout_split=None", tmp_path, labels=True
    )
    assert create(tmp_path, labels=True, heldout_split=None).sizes == {"train": 3, "test": 1}
    assert create(tmp_path).sizes == {"train": 4, "test": 2}
