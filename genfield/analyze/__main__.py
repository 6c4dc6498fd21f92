"""Studies of a set of images that need no training: python -m genfield.analyze --path=… --out=…

Distance Marching, arXiv:2602.02928, sections 4.1 and 4.3, on the images of the training split:

  coverage  which images are nearest to points between noise and data (Fig. 4, 35)
  lengths   how long the pairs of noise and image are (Fig. 10)
  angles    directions that minimise each loss at a noise, and whether their angles add up (Fig. 11)

DANSM (ICLR 2025), sections 3.1 and 5.7, on the same images:

  couplings lengths of paths and distances between them, noises matched or not (Table 2, Fig. 2)

All of it exact: every point meets every image. The figures go to --out as analysis.json, with their
pictures. In memory: 5 bytes a pixel of the whole set, about 1.5 GB beside it; the couplings take 8
bytes more for each pixel of --paths.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import jax

from genfield import errors
from genfield.analyze.studies import MATCH_SIZES, STUDIES, TITLES, check_paths, load
from genfield.errors import UserError, local
from genfield.figures.style import FORMATS
from genfield.machine import lock, logbook
from genfield.machine.tables import columns


def count(text: str) -> int:
    """A positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Positive whole numbers, with commas between them."""
    return tuple(count(part) for part in text.split(","))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options of a command line.

    Raises:
      UserError: unknown, missing or wrong ones.
    """
    mend, what = "genfield analyze --help lists the flags", __doc__.splitlines()[0]
    parser = errors.Parser("genfield analyze", mend, description=what)
    parser.add_argument("--path", required=True, help="images: a folder, an archive or an .npz")
    parser.add_argument("--out", default="runs/analysis", help="folder of the results")
    parser.add_argument("--cache", help="folder of decoded images, for later runs")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the figures")
    parser.add_argument("--seed", type=int, default=0, help="of noise, pairs and times")
    parser.add_argument("--num", type=count, help="points a bin, and pairs; default: one an image")
    parser.add_argument("--bins", type=count, default=20, help="of t, for the coverage")
    parser.add_argument("--points", type=count, default=2048, help="noises, for the angles")
    help = "p_T of the angles; on CIFAR-10 zero takes minutes, the others much longer"
    parser.add_argument("--times", nargs="+", choices=TITLES, default=list(TITLES), help=help)
    default = ",".join(map(str, MATCH_SIZES))
    parser.add_argument("--match_sizes", type=counts, help=f"default: those of {default} that fit")
    parser.add_argument("--paths", type=count, default=10_000, help="to measure distances of")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    options = parser.parse_args(argv)
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed={options.seed} must be a whole number from 0 to 2^32 - 1")
    return options


def run(options: argparse.Namespace) -> dict:
    """Runs the studies, prints their table, writes analysis.json and the figures."""
    out = local(options.out, "--out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder --out={out}: {error.strerror}") from error
    for name in ("path", "cache"):
        local(getattr(options, name) or "", f"--{name}")
    with lock.held(out / lock.FILE, f"analyzes images in {out}", "choose another --out"):
        return _run(options, out)


def _run(options: argparse.Namespace, out: Path) -> dict:
    """The studies, in a folder that no other process writes in."""
    images = load(options.path, options.cache)
    options.num = options.num or len(images.flat)
    if "couplings" in options.only:
        check_paths(options, len(images.flat))
    device = jax.devices()[0]
    logbook.say(f"{len(images.flat):,} training images of shape {images.shape}, {device}")
    result, table = {}, []
    for name in dict.fromkeys(options.only):
        begun = time.monotonic()
        result[name], rows = STUDIES[name](images, options, out)
        result[name]["seconds"] = time.monotonic() - begun
        table += rows
    result |= {
        "options": vars(options),
        "data": {"images": len(images.flat), "shape": images.shape} | {
            "fingerprint": images.fingerprint
        },
        "device": device.device_kind,
        "versions": logbook.versions(),
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }  # fmt: skip
    logbook.write_json(out / "analysis.json", result)
    errors.tell(columns([("", "measured", "paper"), *table], head=False))
    spent = ", ".join(f"{name} {result[name]['seconds']:.0f} s" for name in options.only)
    errors.tell(f"{spent}; {result['peak_memory_gb']:.1f} GB; {out / 'analysis.json'}")
    return result


def main(argv: list[str] | None = None) -> int:
    """0 when done, 2 with one line where the user can mend it."""
    return errors.told(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
