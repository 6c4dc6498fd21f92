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


def odd_shapes(root: Path, count: int = 200) -> Path:
    """Pictures as people have them, in four classes: discs, squares, triangles and crosses.

    Of many sizes; as JPEG, also turned by EXIF, PNG with transparency, WebP, grey and palette; and
    two files that are none.
    """
    generator = np.random.default_rng(0)
    kinds = ("disc", "square", "triangle", "cross")
    for number in range(count):
        kind, (width, height) = kinds[number % 4], generator.integers(40, 200, 2)
        levels, inside = _shape(kind, int(width), int(height), generator)
        image, name = Image.fromarray(levels), root / kind / f"{number:03}"
        match number // 4 % 6:
            case 0:
                write(name.with_suffix(".jpg"), image, quality=90)
            case 1:  # stored on its side
                block = Image.Exif()
                block[0x0112] = 6
                turned = image.transpose(Image.Transpose.ROTATE_90)
                write(name.with_suffix(".JPG"), turned, quality=90, exif=block)
            case 2:  # what lies beneath is noise
                hidden = np.where(
                    inside[..., None], levels, generator.integers(0, 256, levels.shape)
                )
                alpha = np.where(inside, 255, 0)[..., None]
                both = np.concatenate([hidden, alpha], -1).astype(np.uint8)
                write(name.with_suffix(".png"), both)
            case 3:
                write(name.with_suffix(".webp"), image, quality=90)
            case 4:
                write(name.with_suffix(".png"), image.convert("L"))
            case 5:
                write(name.with_suffix(".gif"), image.quantize(32))
    (root / "notes.txt").write_text("drawn")
    (root / "disc" / "list.csv").write_text("name")
    return root


def _shape(kind: str, width: int, height: int, generator) -> tuple[np.ndarray, np.ndarray]:
    """A shape of one colour on white, [H, W, 3], and where it is."""
    y, x = np.mgrid[:height, :width].astype(float)
    centre, radius = generator.uniform(-0.1, 0.1, 2), generator.uniform(0.25, 0.42)
    scale = min(width, height)
    x, y = (x - width / 2) / scale - centre[0], (y - height / 2) / scale - centre[1]
    inside = {
        "disc": x**2 + y**2 < radius**2,
        "square": np.maximum(abs(x), abs(y)) < 0.85 * radius,
        "triangle": (y < 0.6 * radius) & (y > 2 * abs(x) - radius),
        "cross": (np.minimum(abs(x), abs(y)) < 0.3 * radius)
        & (np.maximum(abs(x), abs(y)) < radius),
    }[kind]
    colour = generator.integers(0, 200, 3)
    return np.where(inside[..., None], colour, 255).astype(np.uint8), inside
