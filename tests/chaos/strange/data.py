"""Images and other data that strangers may send: small valid ones, and how they are read."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from genfield import data
from genfield.data import decoding, sets
from genfield.errors import UserError


def read_any(*reads: Callable) -> None:
    """All of these, whether or not one refuses; raises what the first refusal was."""
    said = []
    for read in reads:
        try:
            read()
        except UserError as error:
            said.append(error)
    if said:
        raise said[0]


# ---- Images


def picture(number: int, channels: int = 3) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (6, 6, channels), np.uint8).squeeze())


def bytes_of(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


FORMATS = {
    ".png": {},
    ".jpg": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    ".webp": {},
    ".gif": {"save_all": True, "append_images": [picture(7)]},
    ".tiff": {"compression": "tiff_lzw"},
    ".bmp": {},
    ".ppm": {},
    ".tga": {"compression": "tga_rle"},
    ".ico": {},
    ".pcx": {},
    ".dds": {},
    ".sgi": {},
    ".jp2": {},
    ".icns": {},
    ".avif": {},
    ".im": {},
    ".msp": {},
    ".blp": {},
    ".xbm": {},
    ".spi": {},
    ".qoi": {},
    ".tif": {"compression": "jpeg"},
}


def pictures(folder: Path) -> None:
    """One of each format that Pillow writes; in classes, so that names count too."""
    registered = Image.registered_extensions()
    for number, (ending, options) in enumerate(FORMATS.items()):
        format = registered.get(ending)
        if ending not in decoding.suffixes() or format not in Image.SAVE:
            continue
        image = picture(number)
        image = image.convert("1") if ending in (".msp", ".xbm") else image
        image = image.convert("P") if ending == ".blp" else image
        image = image.resize((16, 16)) if ending in (".icns", ".ico") else image
        (folder / f"p{number}{ending}").write_bytes(bytes_of(image, format, **options))
    grey = Image.fromarray(np.arange(36, dtype=np.uint16).reshape(6, 6) * 1000)
    (folder / "deep.png").write_bytes(bytes_of(grey))
    (folder / "clear.png").write_bytes(bytes_of(picture(9, 4)))


def decode_each(folder: Path) -> None:
    """Each picture of a folder by itself, in colour and grey."""
    for path in sorted(folder.iterdir()):
        for channels in (3, 1):
            raw, notes = path.read_bytes(), decoding.Notes()
            decoding.decode(raw, decoding.Reading(4, channels), path.name, notes)


def tree(folder: Path) -> None:
    """Two classes, in splits."""
    for split in ("train", "test"):
        for number, name in enumerate(("cat/0", "cat/1", "dog/2", "dog/3")):
            path = folder / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes_of(picture(number)))


def archived(ending: str):
    """The tree in an archive."""

    def write(folder: Path) -> None:
        import own_images

        tree(inner := folder / "tree")
        made = own_images.zipped if ending == ".zip" else own_images.tar
        made(inner, folder / f"images{ending}")
        shutil.rmtree(inner)

    return write


def everything(dataset) -> None:
    for examples in dataset.examples.values():
        if examples.size:
            examples.gather(np.arange(examples.size))
    if dataset.heldout is not None:
        dataset.heldout(0, 1)
    batches = dataset.train(0)
    next(batches)
    batches.close()


def source(name: str, place: str = "", **section):
    """Reads the folder, or the one file in it, as a config's section `data` does."""

    def read(folder: Path) -> None:
        path = folder / place if place else folder
        asked = {"name": name, "path": str(path)} | section
        everything(data.create(asked, batch_size=1, seed=0))

    return read


def archive(ending: str):
    """An archive as data with classes, and as a set to be measured."""
    return lambda folder: read_any(
        lambda: source("images", f"images{ending}", labels=True, flip=False)(folder),
        lambda: read_set(folder / f"images{ending}"),
    )


def read_set(path: Path) -> None:
    found = sets.open_images(str(path))
    found.read(np.arange(found.size))


def tables(folder: Path) -> None:
    """Pictures whose classes stand in a table, beside them, and in words."""
    for number in range(4):
        for place in ("csv", "json", "edm", "cls", "beside"):
            (folder / place).mkdir(exist_ok=True)
            (folder / place / f"{number}.png").write_bytes(bytes_of(picture(number)))
        (folder / "cls" / f"{number}.cls").write_text(str(number % 2))
        (folder / "beside" / f"{number}.json").write_text(json.dumps({"label": number % 2}))
    of = {f"{number}.png": f"n0000000{number % 2}" for number in range(4)}
    lines = "\n".join(f"{name},{label}" for name, label in of.items())
    (folder / "csv" / "labels.csv").write_text(f"file,class\n{lines}\n")
    (folder / "csv" / "words.txt").write_text("n00000000 cat, feline\nn00000001 dog\n")
    (folder / "json" / "labels.json").write_text(json.dumps(of))
    listed = [[name, number % 2] for number, name in enumerate(of)]
    (folder / "edm" / "dataset.json").write_text(json.dumps({"labels": listed}))


def read_tables(folder: Path) -> None:
    names = ("csv", "json", "edm", "cls", "beside")
    read_any(*(lambda n=n: source("images", n, labels=True)(folder) for n in names))


# ---- Columns


def rows_of(first: int):
    import datasets

    encoded = [{"bytes": bytes_of(picture(first + i)), "path": None} for i in range(3)]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    held = {"image": encoded, "label": [0, 1, 0]}
    return datasets.Dataset.from_dict(held, features=datasets.Features(kinds))


def parquet(folder: Path) -> None:
    for split, first in (("train", 0), ("test", 5)):
        rows_of(first).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def saved(folder: Path) -> None:
    import datasets

    datasets.DatasetDict(train=rows_of(0), test=rows_of(5)).save_to_disk(str(folder / "saved"))


def records(folder: Path) -> None:
    """A data set of TFDS, as array_record."""
    import tensorflow_datasets as tfds

    from tests.data.test_data import write_records

    inner = folder / "tiny" / "1.0.0"
    inner.mkdir(parents=True)
    kinds = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    tfds.features.FeaturesDict(kinds).save_config(inner)
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    told = {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "splits": []}
    for split, count in (("train", 4), ("test", 2)):
        write_records(inner / f"tiny-{split}.array_record-00000-of-00001", range(count))
        facts = {"name": split, "numBytes": "1", "shardLengths": [str(count)]}
        told["splits"].append(facts | {"filepathTemplate": template})
    (inner / "dataset_info.json").write_text(json.dumps(told))


def read_records(folder: Path) -> None:
    asked = {"name": "tfds", "dataset": "tiny", "data_dir": str(folder), "labels": True}
    everything(data.create(asked, batch_size=1, seed=0))


def cells(folder: Path) -> None:
    import anndata
    import pandas

    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (12, 5)).astype("f4")
    obs = pandas.DataFrame({"clusters": pandas.Categorical(list("abcabcabcabc"))})
    obs.index = [f"c{i}" for i in range(12)]
    layers = {"spliced": counts, "unspliced": counts[::-1].copy()}
    made = anndata.AnnData(counts, obs=obs, layers=layers, obsm={"X_umap": counts[:, :2].copy()})
    made.write_h5ad(folder / "cells.h5ad", compression="gzip")


def read_cells(folder: Path) -> None:
    from genfield.data import cells

    cells.read(folder / "cells.h5ad")
