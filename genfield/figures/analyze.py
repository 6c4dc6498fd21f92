"""The pictures of the studies; each function writes one file."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from genfield.data import to_uint8
from genfield.figures.style import END, TARGET, save, scatter, styled

MEASURED, PAPER, LINE = END, TARGET, "0.45"


@styled
def coverage(path: Path, bins, rates, first: np.ndarray, shares) -> Path:
    """The coverage rate in each bin of t, and the most frequent images with their shares.

    Args:
      bins: (low, high) of each rate.
      first: images [n, H, W, C] in [-1, 1], n >= 1. shares: of the points that they are nearest to.
    """
    columns = -(-len(first) // 2)
    figure = plt.figure(figsize=(10, 3.2))
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    axes = left.subplots()
    edges = [low for low, _ in bins] + [bins[-1][1]]
    axes.stairs(rates, edges, color=MEASURED, baseline=None)
    axes.set(xlabel="t", ylabel="coverage rate", xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.grid()
    pictures = np.atleast_1d(right.subplots(min(2, len(first)), columns)).ravel()
    for axes in pictures:
        axes.set_axis_off()
    for axes, image, share in zip(pictures, to_uint8(first), shares, strict=False):
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{100 * share:.3g}%", fontsize=9)
    return save(figure, path)


@styled
def lengths(path: Path, pairs: np.ndarray, one: np.ndarray) -> Path:
    """Histograms of the lengths of random pairs, and of those from one noise to all images."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3))
    left.hist(pairs, bins=100, density=True, color=MEASURED)
    left.set(xlabel="‖x1 - x0‖", ylabel="density", title="random pairs")
    right.hist(one, bins=100, color=MEASURED)
    right.set(xlabel="‖x1 - x‖", ylabel="images", title="from one noise x")
    return save(figure, path)


@styled
def ratios(path: Path, exact: dict[str, np.ndarray], single: dict[str, np.ndarray]) -> Path:
    """Histograms of the ratio of angles, a row for each time: exact, and from float32 cosines."""
    figure, axes = plt.subplots(len(exact), 2, figsize=(8.5, 2 * len(exact)), squeeze=False)
    for row, (name, values) in zip(axes, exact.items(), strict=True):
        row[0].hist(values, bins=np.linspace(1, np.quantile(values, 0.99), 60), color=MEASURED)
        row[1].hist(single[name], bins=np.linspace(0.8, 1.2, 81), color=PAPER)
        row[0].set_ylabel(name)
    axes[0, 0].set_title("in float64 (up to the 99% quantile)", fontsize=9)
    axes[0, 1].set_title("by arccos of float32 cosines", fontsize=9)
    for place in axes[-1]:
        place.set_xlabel("(∠(f,h) + ∠(h,g)) / ∠(f,g)")
    figure.tight_layout()
    return save(figure, path)


@styled
def couplings(path: Path, rows: list[dict]) -> Path:
    """Length, average and minimal distance of paths against the match size (DANSM Table 2)."""
    sizes = [row["match_size"] for row in rows]
    names = {"length": "path length", "d_avg": "average distance", "d_min": "minimal distance"}
    figure, places = plt.subplots(1, len(names), figsize=(10, 3))
    for axes, (name, title) in zip(places, names.items(), strict=True):
        axes.plot(sizes, [row[name] for row in rows], "o-", color=MEASURED)
        axes.set(xscale="log", xlabel="match size (1: random pairs)", title=title)
        axes.grid()
    figure.tight_layout()
    return save(figure, path)


@styled
def crossings(path: Path, panels: dict[str, tuple[np.ndarray, np.ndarray]], lines: int) -> Path:
    """Noises and samples in the plane, a panel a pairing; the first `lines` pairs are joined.

    Args:
      panels: title -> (noises [n, 2], samples [n, 2]), as DANSM Fig. 2.
    """
    figure, places = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5), squeeze=False)
    for axes, (title, (noises, samples)) in zip(places[0], panels.items(), strict=True):
        joined = np.stack([noises, samples])[:, :lines]
        axes.plot(joined[..., 0], joined[..., 1], color=LINE, linewidth=0.5, zorder=1)
        scatter(axes, noises, MEASURED, 6, 1, "noises")
        scatter(axes, samples, PAPER, 6, 1, "samples")
        axes.set(title=title, xticks=[], yticks=[])
    places[0, 0].legend()
    figure.tight_layout()
    return save(figure, path)
