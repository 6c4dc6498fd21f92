"""A folder like ImageNet's, small enough to try everything on: CIFAR-10 enlarged.

    python reproduce/toy_imagenet.py --cifar10=cifar10.tar.xz --out=toy_imagenet

Ten folders of JPEGs, named by ImageNet's synsets of such things, under train/ and val/, and
LOC_synset_mapping.txt. The images are enlarged by a bicubic filter, and some are wider or taller
than they should be, as ImageNet's are.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from genfield import data
from genfield.errors import tell

SYNSETS = {
    "airplane": "n02690373",
    "automobile": "n04285008",
    "bird": "n01531178",
    "cat": "n02123045",
    "deer": "n02423022",
    "dog": "n02099601",
    "frog": "n01641577",
    "horse": "n02389026",
    "ship": "n03095699",
    "truck": "n04467665",
}
MARGIN = 0.25  # by which every second image is longer on one side


def main(options: argparse.Namespace) -> None:
    """Writes the folders."""
    section = {"name": "images", "path": options.cifar10, "labels": True, "flip": False}
    found = data.create(section, batch_size=1, seed=0, log=tell)
    for split, ours, num in (("train", "train", options.num), ("test", "val", options.heldout)):
        examples = found.examples[split]
        _write(options, examples, found.class_names, Path(options.out) / ours, num)
    lines = [f"{synset} {name}" for name, synset in sorted(SYNSETS.items(), key=lambda i: i[1])]
    (Path(options.out) / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")
    tell(f"{options.num:,} images to train on and {options.heldout:,} more in {options.out}")


def _write(options, examples, names: tuple[str, ...], folder: Path, num: int) -> None:
    """The first images of each class, `num` in all."""
    for label, name in enumerate(names):
        rows = np.flatnonzero(examples.labels == label)[: num // len(names)]
        place = folder / SYNSETS[name]
        place.mkdir(parents=True, exist_ok=True)
        for row, levels in zip(rows, examples.gather(rows)["x1"], strict=True):
            image = Image.fromarray(levels).resize((options.size,) * 2, Image.Resampling.BICUBIC)
            if row % 2:
                image = _longer(image, options.size, tall=row % 4 == 1)
            image.save(place / f"{SYNSETS[name]}_{row}.JPEG", quality=95)


def _longer(image: Image.Image, size: int, tall: bool) -> Image.Image:
    """The image between stripes of its own edges, which a centre crop takes away."""
    more = round(MARGIN * size)
    pad = ((more, more), (0, 0), (0, 0)) if tall else ((0, 0), (more, more), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), pad, mode="edge"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", required=True, help="the archive or folder of CIFAR-10")
    parser.add_argument("--out", default="toy_imagenet")
    parser.add_argument("--size", type=int, default=64, help="of the enlarged images")
    parser.add_argument("--num", type=int, default=2000, help="images to train on")
    parser.add_argument("--heldout", type=int, default=500, help="images in val/")
    main(parser.parse_args())
