"""How pictures look, and how they are written."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

# Start black, on the way yellow, end blue, as in the papers' figures.
START, MIDDLE, END, TARGET = "black", "#e6b800", "#1f4fbf", "#e8743b"


def save(figure, path: Path) -> Path:
    """Writes a PNG, its folder made, and forgets the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path


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
    """Axes without ticks, of equal scales; limits: (low, high) of x and of y."""
    axes.set(xlim=limits[0], ylim=limits[1], aspect="equal", title=title)
    axes.set_xticks([]), axes.set_yticks([])


def scatter(axes, points, colour, size=2.0, alpha=0.5, label=None) -> None:
    """The first 3,000 points [N, 2]."""
    axes.scatter(*np.asarray(points)[:3000].T, s=size, color=colour, alpha=alpha, label=label)
