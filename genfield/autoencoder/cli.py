"""The command line of python -m genfield.autoencoder; see `train` for what it does."""

import argparse
from pathlib import Path

from genfield import errors
from genfield.errors import UserError, local, tell

PERCEPTUAL = ("auto", "vgg16", "efficientnet_lite0", "none")


def positive(text: str) -> int:
    """A positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def widths(text: str) -> tuple[int, ...]:
    """Positive whole numbers, with commas between them."""
    return tuple(positive(part) for part in text.split(","))


def weight(text: str) -> float:
    """A number that is not negative."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is negative or not finite")
    return value


def parser() -> errors.Parser:
    """The flags."""
    mend = "genfield autoencoder --help lists the flags"
    what = "Trains a small autoencoder on your images, in the layout of Stable Diffusion's."
    made = errors.Parser("genfield autoencoder", mend, description=what)
    add = made.add_argument
    add("--images", required=True, help="a folder, an archive or an .npz, as docs/images.md says")
    add("--out", required=True, help="folder of the result; the same command again resumes")
    add("--size", type=positive, help="crop the centre square and resize it; default: as they are")
    add("--max_images", type=positive, help="of each split")
    add("--crop", type=positive, help="side of the random square that a step sees; default: whole")
    levels = "channels of each level, with commas; each but the last halves the sides"
    add("--widths", type=widths, default=(32, 64, 128), help=levels)
    add("--layers", type=positive, default=1, help="residual blocks a level")
    add("--groups", type=positive, default=8, help="of the norms; they divide all widths")
    add("--latent_channels", type=positive, default=4, help="of the latents")
    add("--pixels", choices=("l1", "l2"), default="l1", help="distance of pixels")
    add("--kl", type=weight, default=1e-6, help="weight of the divergence from a normal")
    where = "network of the perceptual distance; auto: the first of them whose weights are here"
    add("--perceptual", choices=PERCEPTUAL, default="auto", help=where)
    add("--perceptual_weight", type=weight, default=1.0, help="of that distance")
    add("--steps", type=positive, default=20_000)
    add("--batch_size", type=positive, default=16)
    add("--learning_rate", type=weight, default=5e-4, help="the highest; it ends at zero")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the layers")
    add("--seed", type=int, default=0)
    add("--eval_every", type=positive, default=1000, help="steps from one look to the next")
    add("--save_every", type=positive, default=500, help="steps between checkpoints")
    return made


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of a command line; raises UserError for what cannot work, without JAX."""
    options = parser().parse_args(argv[1:])
    factor = 2 ** (len(options.widths) - 1)
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed={options.seed} must be a whole number from 0 to 2^32 - 1")
    for flag in ("size", "crop"):
        side = getattr(options, flag)
        if side is not None and side % factor:
            raise UserError(
                f"--{flag}={side} must be a multiple of {factor}: {len(options.widths)} --widths "
                f"halve it {len(options.widths) - 1} times"
            )
    if options.size and options.crop and options.crop > options.size:
        raise UserError(f"--crop={options.crop} is larger than --size={options.size}")
    for width in options.widths:
        if width % options.groups:
            raise UserError(f"--groups={options.groups} does not divide {width} of --widths")
    options.images = local(options.images, "--images").resolve()
    options.out = local(options.out, "--out").resolve()
    if not options.images.exists():
        raise UserError(f"--images={options.images} does not exist")
    _make(options.out)
    return options


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder --out={folder}: {error.strerror}") from error


def run(argv: list[str]) -> None:
    """Runs a command line to its end."""
    options = parse(argv)
    tell(f"genfield: autoencoder of {options.images} in {options.out}")
    # Only now, with the simple mistakes told at once, the slow imports.
    from genfield.autoencoder import train
    from genfield.machine import compiled
    from genfield.program import command

    command.check_devices()
    compiled.keep(None)
    train.run(options)
