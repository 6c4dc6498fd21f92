"""The pictures of docs/gallery.md, of the models that come with the package.

    python reproduce/gallery.py [--out=docs/images/gallery] [--only=fields,digits] [--format=svg]

Each picture goes to --out, with a thumbnail in its folder thumbs and, in gallery.json, the
processor's seconds that it took. What is there is left as it is; --again draws it anew. All of them
take about three minutes of a core, and need scikit-learn (genfield[digits]).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gallery_pictures import fields, images, laws
from gallery_pictures.fields import Budget
from PIL import Image

from genfield.figures import style

ROOT = Path(__file__).resolve().parent.parent
PICTURES: dict[str, Callable[[Path, Budget], Path]] = {
    "opening": fields.opening,
    "fields": fields.fields,
    "marching": fields.marching,
    "couplings": laws.coupled,
    "circulation": laws.circulation,
    "distance": laws.distance,
    "straightness": laws.straightness,
    "adaptive": images.adaptive,
    "composition": images.composition,
    "inpainting": images.inpainting,
    "digits": images.digits,
}
ANIMATED = ("marching",)
COLOURS, WIDTH, THUMB_COLOURS = 255, 480, 64  # of a PNG; pixels and colours of its thumbnail
NEAR = 40  # levels within which a colour of the palette is taken for one of the style


def place(out: Path, name: str, form: str) -> Path:
    """Where a picture goes."""
    return out / f"{name}.{'gif' if name in ANIMATED else form}"


def fewer(image: Image.Image, colours: int) -> Image.Image:
    """The image in so many colours, those of the style among them as they are."""
    image = image.convert("RGB")
    found = image.quantize(colours, dither=Image.Dither.NONE)
    held = np.array(found.getpalette(), np.int64).reshape(-1, 3)
    for colour in (*style.PALETTE, style.MIDDLE, "#ffffff"):
        exact = np.array(list(bytes.fromhex(colour[1:])))
        away = np.abs(held - exact).max(1)
        if away.min() < NEAR:
            held[away.argmin()] = exact
    found.putpalette(held.astype(np.uint8).tobytes())
    return found


def thumbnail(picture: Path) -> Path:
    """WIDTH pixels of a PNG, or of the middle of an animation, beside it."""
    path = picture.parent / "thumbs" / f"{picture.stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as image:
        image.seek(getattr(image, "n_frames", 1) // 2)
        small = image.convert("RGB")
    size = (WIDTH, round(small.height * WIDTH / small.width))
    fewer(small.resize(size, Image.Resampling.LANCZOS), THUMB_COLOURS).save(path, optimize=True)
    return path


def draw(out: Path, name: str, form: str, budget: Budget) -> Path:
    """Draws a picture, its thumbnail, and notes what it took."""
    begun = time.process_time()
    path = PICTURES[name](place(out, name, form), budget)
    seconds = time.process_time() - begun
    if path.suffix == ".png":
        with Image.open(path) as image:
            fewer(image, COLOURS).save(path, optimize=True)
    if path.suffix in (".png", ".gif"):
        thumbnail(path)
    note = out / "gallery.json"
    taken = json.loads(note.read_text()) if note.exists() else {}
    taken[name] = round(seconds, 1)
    order = {name: taken[name] for name in PICTURES if name in taken}
    note.write_text(json.dumps(order, indent=1) + "\n")
    return path


def chosen(text: str) -> list[str]:
    """Names of pictures, separated by commas."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PICTURES]
    if unknown or not names:
        known = ", ".join(PICTURES)
        raise argparse.ArgumentTypeError(f"no picture is called {text!r}; there are {known}")
    return names


def main(argv: list[str] | None = None, budget: Budget | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "gallery")
    parser.add_argument("--only", type=chosen, default=list(PICTURES), help="names, with commas")
    parser.add_argument("--format", choices=style.FORMATS, default="png", help="but of animations")
    parser.add_argument("--again", action="store_true", help="draw what is there as well")
    args = parser.parse_args(argv)
    for name in args.only:
        path = place(args.out, name, args.format)
        if path.exists() and not args.again:
            print(f"{path} is there")
            continue
        print(draw(args.out, name, args.format, budget or Budget()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
