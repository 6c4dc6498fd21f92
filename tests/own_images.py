"""Images of one's own on disk, in many kinds of places, and the data sets made of them."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from genfield import data


def create(path, log=None, batch_size=1, **section):
    """The data set of images at a path."""
    section = {"name": "images", "path": str(path), "flip": False} | section
    return data.create(section, batch_size=batch_size, seed=0, log=log)


def told(path, **section) -> list[str]:
    """What the log says of a data set that is made."""
    lines = []
    create(path, log=lines.append, **section)
    return lines


def picture(number: int, size=(8, 8)) -> np.ndarray:
    """An RGB image that only `number` has."""
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def write(path: Path, pixels, **options) -> Path:
    """An image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def encoded(image: Image.Image, **options) -> bytes:
    """The bytes of an image's file, PNG if nothing else is said."""
    stream = io.BytesIO()
    image.save(stream, **{"format": "PNG", **options})
    return stream.getvalue()


def fill(root: Path, names, suffix=".png", start=0) -> Path:
    """Images 0, 1, 2, … under these names."""
    for number, name in enumerate(names, start):
        write(root / f"{name}{suffix}", picture(number))
    return root


def tree(root: Path, counts=(("train", 6, 4), ("test", 3, 2)), classes=("cat", "dog")) -> Path:
    """Images in split/class/."""
    names = [
        f"{split}/{name}/{i:02}"
        for split, *many in counts
        for name, count in zip(classes, many, strict=True)
        for i in range(count)
    ]
    return fill(root, names)


def tar(folder: Path, archive: Path, prefix=".") -> Path:
    """A folder as a tar, compressed as its name says."""
    mode = {".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(archive.suffix, "w:")
    with tarfile.open(archive, mode) as file:
        file.add(folder, arcname=prefix)
    return archive


def zipped(folder: Path, archive: Path, prefix="", method=zipfile.ZIP_DEFLATED) -> Path:
    """A folder as a zip."""
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


def arrays(folder: Path, file: Path, classes=("cat", "dog")) -> Path:
    """The images of split/class/ as an .npz."""
    held = {}
    for split in sorted(p.name for p in folder.iterdir() if p.is_dir()):
        paths = sorted((folder / split).rglob("*.png"))
        held[f"{split}_images"] = np.stack([np.asarray(Image.open(p)) for p in paths])
        held[f"{split}_labels"] = np.array([classes.index(p.parent.name) for p in paths])
    np.savez(file, class_names=np.array(classes), **held)
    return file


def everything(dataset, split="train") -> dict:
    """All examples of a split, in their order."""
    examples = dataset.examples[split]
    return examples.gather(np.arange(examples.size))


def numbers(dataset, split="train", count=200, size=(8, 8)) -> list[int]:
    """Which `picture`s the examples of a split are, in their order."""
    known = {picture(i, size).tobytes(): i for i in range(count)}
    return [known[image.tobytes()] for image in everything(dataset, split)["x1"]]
