"""How pictures look, and how they are written: one style for all of the package's figures.

Colours are of Okabe and Ito's palette, which stays apart for the colour-blind; the fonts come with
matplotlib, so a picture looks the same on every machine. A file's ending says its format.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito, "Color universal design" (2008); their yellow is left out, too light for a line.
BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
# Start black, on the way yellow, end blue, as in the papers' figures; this yellow stays apart from
# the target's vermilion where orange does not (deuteranopia).
START, MIDDLE, END, TARGET = BLACK, "#e6c000", BLUE, VERMILION
# Of level sets: dark where the scalar is low, and never darker than black arrows can lie on.
LEVELS = LinearSegmentedColormap.from_list("levels", ["#8fbfdf", "#c9dfef", "#f4f8fb"])
LEVEL_LINE = "#24506e"
MANY = 500  # points or lines above which SVG and PDF hold them as pixels, and stay small

styled = plt.rc_context(  # of a function that draws: others' settings come back after it
    {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "figure.titlesize": 12,
        "mathtext.fontset": "dejavusans",
        "text.color": "black",
        "axes.labelcolor": "black",
        "axes.edgecolor": "black",
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=PALETTE),
        "contour.negative_linestyle": "solid",
        "grid.color": "#d0d0d0",
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.4,
        "legend.framealpha": 0.9,
        "legend.edgecolor": "#b0b0b0",
        "image.cmap": "gray",
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "savefig.dpi": 150,
        "svg.fonttype": "path",
        "svg.hashsalt": "genfield",  # the same picture is the same file
        "pdf.fonttype": 42,  # text stays text
    }
)


@styled
def save(figure, path: Path) -> Path:
    """Writes the figure whole, as the path's ending says, its folder made, and forgets it.

    Raises:
      ValueError: an ending that is none of FORMATS.
    """
    form = path.suffix.removeprefix(".")
    if form not in FORMATS:
        raise ValueError(f"pictures are written as {', '.join(FORMATS)}, not as {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    dateless = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]
    unfinished = path.with_name(f"{path.name}.new")
    figure.savefig(unfinished, format=form, bbox_inches="tight", metadata=dateless)
    plt.close(figure)
    return unfinished.replace(path)


def grid(num: int, width: float, height: float, in_a_row: int = 4):
    """A figure with `num` axes of this size in inches, at most so many in a row."""
    columns = min(num, in_a_row)
    rows = -(-num // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False
    )
    for unused in axes.ravel()[num:]:
        unused.axis("off")
    figure.subplots_adjust(hspace=0.45, wspace=0.3)
    return figure, axes.ravel()[:num]


def bare(axes, limits, title: str) -> None:
    """Axes without ticks, of equal scales, in a frame; limits: (low, high) of x and of y."""
    axes.set(xlim=limits[0], ylim=limits[1], aspect="equal", title=title)
    axes.set_xticks([]), axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.6)


def name_rows(axes, names) -> None:
    """Names the rows of a table of axes [R, C], at its left."""
    for first, name in zip(axes[:, 0], names, strict=True):
        first.set_ylabel(name, fontsize=10)


def scatter(axes, points, colour, size=2.0, alpha=0.5, label=None) -> None:
    """The first 3,000 points [N, 2]."""
    points = np.asarray(points)[:3000]
    look = dict(s=size, color=colour, alpha=alpha, linewidths=0, rasterized=len(points) > MANY)
    axes.scatter(*points.T, label=label, **look)
