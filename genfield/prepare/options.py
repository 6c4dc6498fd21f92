"""The command line of `python -m genfield.prepare`."""

import argparse
from pathlib import Path
from typing import NamedTuple

from genfield import errors
from genfield.data.layouts import LABELS_FROM, LAYOUTS, Asked
from genfield.errors import UserError, local

DAMAGED = ("stop", "leave_out")
MEND = "genfield prepare --help lists the flags"
SHARD = 4096  # examples: 64 MiB of Stable Diffusion's latents, twice that with flips


class Options(NamedTuple):
    """What was asked for; `parse` says what each field does."""

    images: Path
    out: Path
    autoencoder: str | None
    sha256: str | None
    dtype: str
    tile: int | None
    pixels: bool
    size: int
    flip: bool
    asked: Asked
    damaged: str
    batch_size: int
    shard_size: int | None
    memory_limit_gb: float
    process_id: int
    num_processes: int
    distributed: bool


def parse(argv: list[str], doc: str) -> Options:
    """The options of a command line.

    Raises:
      UserError: unknown, missing or wrong ones.
    """
    parser = errors.Parser("genfield prepare", MEND, description=doc.splitlines()[0])
    add = parser.add_argument
    add("--images", required=True, help="a folder, an archive, an .npz, Hugging Face's columns")
    add("--out", required=True, help="folder of the shards")
    add("--autoencoder", help="its weights: a file, a folder, or sd-vae-ft-ema")
    add("--sha256", help="of the file of weights")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="inside the encoder")
    add("--tile", type=_positive, help="side in pixels of tiles, where memory is short")
    add("--pixels", action="store_true", help="store the images themselves, as uint8")
    add("--size", type=_positive, help="of the images; default: 256, with --pixels 64")
    add("--flip", action="store_true", help="store the latents of mirrored images as well")
    add("--split", default="train", help="of the images")
    add("--labels", type=_flag, default=True, help="False: without classes")
    add("--layout", choices=LAYOUTS, default="auto", help="what folders mean (docs/images.md)")
    add("--labels_from", choices=LABELS_FROM, default="auto", help="what says the classes")
    add("--image_key", help="column of images, of Hugging Face's data sets")
    add("--label_key", help="column of labels")
    help = "what a damaged image does; leave_out: it is counted, and named in the manifest"
    add("--damaged", choices=DAMAGED, default="stop", help=help)
    add("--batch_size", type=_positive, default=32, help="images encoded at once")
    help = f"images in a file; default: {SHARD:,}, or fewer so that each process has one"
    add("--shard_size", type=_positive, help=help)
    help = "of a compressed archive, which cannot be read in place"
    add("--memory_limit_gb", type=float, default=8.0, help=help)
    add("--process_id", type=int, help="of several processes, each on its own shards")
    add("--num_processes", type=_positive, help="number of processes; they do not talk")
    help = "find number and count of the processes (Slurm, TPU pods)"
    add("--distributed", action="store_true", help=help)
    return _checked(parser.parse_args(argv))


def _checked(found: argparse.Namespace) -> Options:
    if found.pixels and (found.autoencoder or found.sha256 or found.tile):
        raise UserError("--pixels stores images as they are: leave out --autoencoder and its flags")
    if found.pixels and found.flip:
        raise UserError("--flip is for latents; pixels are mirrored when they are read (data.flip)")
    if not (found.pixels or found.autoencoder):
        raise UserError(
            "--autoencoder is missing: its file or folder, or sd-vae-ft-ema; or --pixels, which "
            "stores the images themselves"
        )
    given = found.process_id, found.num_processes
    if (None in given) != (given == (None, None)):
        raise UserError("--process_id and --num_processes go together")
    if found.distributed and given != (None, None):
        raise UserError("--distributed finds --process_id and --num_processes: leave them out")
    number, count = (0, 1) if None in given else given
    if not 0 <= number < count:
        raise UserError(f"--process_id {number} must be one of 0 to --num_processes - 1")
    asked = Asked(
        split=found.split,
        heldout_split=None,
        labels=found.labels,
        layout=found.layout,
        labels_from=found.labels_from,
        image_key=found.image_key,
        label_key=found.label_key,
    )
    known = {name: value for name, value in vars(found).items() if name in Options._fields}
    return Options(
        **known
        | {
            "images": local(found.images, "--images"),
            "out": local(found.out, "--out"),
            "size": found.size or (64 if found.pixels else 256),
            "asked": asked,
            "process_id": number,
            "num_processes": count,
        }
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"
