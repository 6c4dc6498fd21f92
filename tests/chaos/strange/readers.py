"""The readers of the package, each with a small valid folder of the files that it reads.

`READERS` says of each: how the folder is made, how it is read to the end, and how many of the
files it is worth. Code is none of them: a config page (.py), and the plug-in files that a run keeps
below own/, run when they are opened.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genfield import pretrained
from genfield.features import torch_files, weights

from . import data as of
from . import runs


class Reader(NamedTuple):
    """A reader: `make(folder)` writes what it reads, `read(folder)` reads all of it.

    share: of the files that are drawn. hostile: which files, by their names, may be changed.
    alone: whether the file that is changed is written without the others.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    share: float = 10.0
    hostile: Callable[[str], bool] = lambda name: True
    alone: bool = False


def make(place: Path, reader: Reader) -> None:
    """Writes the seeds of a reader, once."""
    if place.is_dir():
        return
    unfinished = place.with_name(f".{place.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    reader.make(unfinished)
    unfinished.rename(place)


def stored(place: Path) -> dict[str, bytes]:
    """The files below a folder by their names."""
    found = sorted(path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


# ---- Weights

STATE = {
    "conv.weight": np.linspace(-1, 1, 2 * 3 * 3 * 3, dtype="f4").reshape(2, 3, 3, 3),
    "conv.running_var": np.ones(2, "f4"),
    "fc.weight": np.arange(8, dtype="f4").reshape(2, 4),
}
SHAPES = {name: array.shape for name, array in STATE.items()}


def state_file(format: str, ending: str):
    from pickled import write

    return lambda folder: write(format, folder / f"w{ending}", STATE)


def golden(name: str):
    source = runs.GOLDEN / name
    return lambda folder: shutil.copy(source, folder / f"w{source.suffix}")


def read_weights(folder: Path) -> None:
    """As state dict, as a of.tree, and as a feature network's (Inception's are read so)."""
    [path] = folder.glob("w.*")
    torch_files.read_tree(path)
    found = {} if path.suffix == ".pkl" else torch_files.read(path)
    if path.suffix != ".pkl":
        weights.convert("a network", path, found, SHAPES, "fc")


def export(folder: Path) -> None:
    """genfield's own export of a small network."""
    import genfield

    genfield.pretrained.export(runs.RUN, folder / "w.safetensors")


def autoencoder(folder: Path) -> None:
    import tiny_latents

    tiny_latents.autoencoder(folder / "vae")


def sit(folder: Path) -> None:
    shutil.copy(runs.GOLDEN / "published" / "sit.pt", folder / "w.pt")
    (folder / "w.json").write_text(json.dumps({"kind": "sit", "num_heads": 2}))


def there(*packages: str) -> bool:
    return all(importlib.util.find_spec(name) for name in packages)


def _readers() -> list[Reader]:
    all_of = [
        Reader("weights_zip", state_file("zip", ".pth"), read_weights, 60),
        Reader("weights_legacy", state_file("legacy", ".pt"), read_weights, 60),
        Reader("weights_pickle", golden("trees/edm_4.pkl"), read_weights, 40),
        Reader("weights_safetensors", state_file("safetensors", ".safetensors"), read_weights, 60),
        Reader("weights_export", export, lambda f: pretrained.load(f / "w.safetensors"), 4),
        Reader("weights_published", sit, lambda f: pretrained.load(f), 2),
        Reader("autoencoder", autoencoder, lambda f: pretrained.autoencoder(f / "vae"), 4),
        Reader("pictures", of.pictures, of.decode_each, 60, alone=True),
        Reader("folder", of.tree, of.source("images", labels=True, size=4), 20),
        Reader("tar", of.archived(".tar"), of.archive(".tar"), 20),
        Reader("tar_gz", of.archived(".tar.gz"), of.archive(".tar.gz"), 10),
        Reader("tar_xz", of.archived(".tar.xz"), of.archive(".tar.xz"), 10),
        Reader("tar_bz2", of.archived(".tar.bz2"), of.archive(".tar.bz2"), 10),
        Reader("zip", of.archived(".zip"), of.archive(".zip"), 20),
        Reader("tables", of.tables, of.read_tables, 10, lambda name: not name.endswith(".png")),
    ]
    if there("datasets", "pyarrow"):
        all_of += [
            Reader("parquet", of.parquet, of.source("images", labels=True), 6),
            Reader("columns", of.saved, of.source("images", "saved", labels=True), 6),
        ]
    if there("tensorflow_datasets", "array_record"):
        all_of += [Reader("tfds", of.records, of.read_records, 2)]
    if there("anndata", "scanpy", "scvelo"):
        all_of += [Reader("cells", of.cells, of.read_cells, 4)]
    return all_of + [Reader(*row) for row in runs.rows()]


READERS = {reader.name: reader for reader in _readers()}
