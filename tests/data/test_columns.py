"""Hugging Face data sets: saved to disk, and parquet files."""

import sys

import numpy as np
import pytest
from own_images import arrays, create, encoded, everything, numbers, picture, told, tree
from PIL import Image

from genfield.data import columns, sets
from genfield.errors import UserError

datasets = pytest.importorskip("datasets", reason="needs genfield[hf]")
pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def table(first, count, labels=("cat", "dog"), **more):
    """Pictures from `first` on, of two classes by turns."""
    files = [
        {"bytes": encoded(Image.fromarray(picture(first + i))), "path": None} for i in range(count)
    ]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(labels))}
    held = {"image": files, "label": [i % 2 for i in range(count)]}
    kinds |= {name: kind for name, (kind, _) in more.items()}
    held |= {name: values for name, (_, values) in more.items()}
    return datasets.Dataset.from_dict(held, features=datasets.Features(kinds))


def saved(place, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(place))
    return place


def parquet(place, **splits):
    """As the hub stores them: several files a split."""
    (place / "data").mkdir(parents=True)
    for name, rows in splits.items():
        for i in range(2):
            rows.shard(2, i, contiguous=True).to_parquet(
                str(place / "data" / f"{name}-{i:05}-of-00002.parquet")
            )
    return place


def refuses(match, path, **section):
    with pytest.raises(UserError, match=match) as caught:
        create(path, **section)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [saved, parquet])
@pytest.mark.parametrize("name", ["test", "validation"])
def test_splits_classes_and_pixels(write, name, tmp_path):
    place = write(tmp_path / "a", train=table(0, 10), **{name: table(10, 4)})
    for in_memory in (True, False):
        dataset = create(place, labels=True, in_memory=in_memory)
        assert numbers(dataset) == list(range(10)) and numbers(dataset, "test") == [10, 11, 12, 13]
        assert dataset.class_names == ("cat", "dog")
        np.testing.assert_array_equal(everything(dataset)["label"], np.arange(10) % 2)
    line = f"images: 2 classes in column 'label', 10 to train on, 4 held out ({name})"
    assert told(place, labels=True) == [line]
    judged = sets.open_images(str(place))
    rows = judged.read(np.arange(14))
    expected = [*range(10, 14), *range(10)] if name == "test" else [*range(14)]
    np.testing.assert_array_equal(rows, np.stack([picture(i) for i in expected]))


def test_the_same_images_elsewhere_are_the_same_data_set(tmp_path):
    folder = tree(tmp_path / "images")
    by_class = lambda split: create(folder, labels=True).examples[split].arrays
    rows = {}
    for split in ("train", "test"):
        held = by_class(split)
        files = [{"bytes": encoded(Image.fromarray(x)), "path": None} for x in held["x1"]]
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        rows[split] = datasets.Dataset.from_dict(
            {"image": files, "label": list(map(int, held["label"]))},
            features=datasets.Features(kinds),
        )
    places = [folder, arrays(folder, tmp_path / "a.npz"), saved(tmp_path / "s", **rows)]
    places.append(parquet(tmp_path / "p", **rows))
    assert len({create(place, labels=True).fingerprint for place in places}) == 1


def test_one_table_without_splits(tmp_path):
    table(0, 10).save_to_disk(str(tmp_path / "a"))
    assert create(tmp_path / "a", labels=True).sizes == {"train": 9, "test": 1}
    table(0, 10).to_parquet(str(tmp_path / "b.parquet"))
    dataset = create(tmp_path / "b.parquet", labels=True, heldout_split="train")
    assert numbers(dataset) == list(range(10))


def test_bytes_and_texts_of_other_programs(tmp_path):
    """Columns without Hugging Face's own marks; classes by name, in the order of the names."""
    import pyarrow

    held = {
        "image": [encoded(Image.fromarray(picture(i))) for i in range(6)],
        "label": ["dog", "cat"] * 3,
    }
    pq.write_table(pyarrow.table(held), tmp_path / "a.parquet")
    dataset = create(tmp_path / "a.parquet", labels=True, heldout_split="train")
    assert dataset.class_names == ("cat", "dog") and numbers(dataset) == list(range(6))
    np.testing.assert_array_equal(everything(dataset)["label"], [1, 0] * 3)


def test_columns_that_are_not_clear(tmp_path):
    kinds = datasets.ClassLabel(names=["x", "y"])
    place = saved(tmp_path / "a", train=table(0, 4, fine=(kinds, [0, 0, 1, 1])))
    refuses(r"several columns of labels \(label, fine\) .*set data\.label_key", place, labels=True)
    dataset = create(place, labels=True, label_key="fine", heldout_split="train")
    np.testing.assert_array_equal(everything(dataset)["label"], [0, 0, 1, 1])
    refuses(r"unknown column of .*'coarse'", place, labels=True, label_key="coarse")
    bare = saved(tmp_path / "b", train=table(0, 4).remove_columns("image"))
    refuses(r"no column of images among label: set data\.image_key", bare)
    unlabelled = saved(tmp_path / "c", train=table(0, 4).remove_columns("label"))
    refuses(r"no labels among image: set data\.label_key", unlabelled, labels=True)
    hidden = table(0, 4)
    hidden = hidden.remove_columns("label").add_column("label", [-1] * 4)
    hidden = saved(tmp_path / "d", train=table(0, 4), test=hidden)
    refuses(
        r"row 0 of 'test' in .* has no 'label': set data\.heldout_split=None", hidden, labels=True
    )
    assert create(hidden).sizes == {"train": 4, "test": 4}


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet")
    refuses(r"a\.parquet is not a readable Hugging Face data set", tmp_path / "a.parquet")
    place = parquet(tmp_path / "b", train=table(0, 10))
    refuses(r"exceed data\.memory_limit_gb, and parquet", place, memory_limit_gb=1e-6)
    assert create(place, memory_limit_gb=1e-6, in_memory=True).sizes["train"] == 9
    table(0, 4).to_parquet(str(place / "more.parquet"))
    refuses(r"some files of .* say their split and more\.parquet does not", place)

    monkeypatch.setitem(sys.modules, "datasets", None)
    refuses(r"need datasets: pip install 'genfield\[hf\]'", place)
    assert columns.files_of(tmp_path / "absent") is None


def test_offsets_that_lead_elsewhere_are_refused(tmp_path):
    """Arrow maps a file and believes its offsets: to follow them ended the process."""
    place = saved(tmp_path / "a", train=table(0, 4), test=table(4, 4))
    [file] = (place / "train").glob("*.arrow")
    raw, whole = file.read_bytes(), pyarrow.ipc.open_stream(file.read_bytes()).read_all()
    lengths = [len(value.as_py()["bytes"]) for value in whole["image"]]
    ends = np.cumsum([0, *lengths]).astype(np.int32).tobytes()
    assert raw.count(ends) == 1
    file.write_bytes(raw.replace(ends, np.array([0, *[2**30] * 4], np.int32).tobytes()))
    refuses("not a readable Hugging Face data set: .*offsets", place)
