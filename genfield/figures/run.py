"""Pictures of runs: fields, samples, trajectories, curves, grids; each function writes one file."""

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from PIL import Image

from genfield.data import to_uint8
from genfield.data.pixels import on_white
from genfield.fields import Prediction, direction
from genfield.figures.style import (
    END,
    LEVEL_LINE,
    LEVELS,
    MIDDLE,
    START,
    TARGET,
    bare,
    name_rows,
    save,
    scatter,
    styled,
)

GRIDS = 140, 24  # points a side where a field is drawn: for its levels, for its arrows


def extent_of(*clouds: np.ndarray) -> tuple[float, float, float, float]:
    points = np.concatenate(clouds)
    low, high = points.min(0), points.max(0)
    margin = 0.08 * (high - low).max()
    return low[0] - margin, high[0] + margin, low[1] - margin, high[1] + margin


def _grid(extent, num: int):
    xs, ys = np.linspace(*extent[:2], num), np.linspace(*extent[2:], num)
    mesh = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2).astype(np.float32)
    return xs, ys, jnp.asarray(mesh)


def on_grids(field: Callable, extent, t: float | None = None) -> Callable:
    """What `draw_field` needs of a field, computed now; it is drawn in the field's place."""
    found = {}
    for num in GRIDS:
        points = np.asarray(_grid(extent, num)[-1])
        time = None if t is None else np.full(len(points), t, np.float32)
        found[len(points)] = field(points, time)
    return lambda x, t=None: found[len(x)]


def draw_field(axes, field: Callable, extent, *, t: float | None = None, descend: bool) -> None:
    """Level sets where the field has a scalar, and arrows along which samples move."""
    time = lambda x: None if t is None else jnp.full(x.shape[:1], t)
    xs, ys, mesh = _grid(extent, GRIDS[0])
    output = field(mesh, time(mesh))
    if isinstance(output, Prediction):
        u = np.asarray(output.distance).reshape(len(ys), len(xs))
        axes.contourf(xs, ys, u, levels=24, cmap=LEVELS)
        lines = axes.contour(xs, ys, u, levels=10, colors=LEVEL_LINE, linewidths=0.6)
        axes.clabel(lines, lines.levels[::2], fontsize=7, fmt="%.3g")
    xs, ys, mesh = _grid(extent, GRIDS[1])
    arrows = np.asarray(direction(field(mesh, time(mesh)))) * (-1 if descend else 1)
    points = np.asarray(mesh)
    axes.quiver(*points.T, *arrows.T, color="black", width=0.0022)


def _legend(axes) -> None:
    """A legend whose marks are seen, whatever the points' size and shade."""
    for handle in axes.legend(markerscale=5, loc="upper right").legend_handles:
        handle.set_alpha(1)


@styled
def level_sets(
    path: Path, field: Callable, samples, target, source, *, descend: bool, t=None, title=""
) -> Path:
    """The field with its level sets beside the samples over the target; clouds are [N, 2]."""
    extent = extent_of(samples, target, source)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2))
    draw_field(left, field, extent, t=t, descend=descend)
    scatter(left, target[:2000], TARGET)
    bare(left, (extent[:2], extent[2:]), f"{title}: field and target")
    scatter(right, target, TARGET, label="target")
    scatter(right, samples, END, label="samples")
    _legend(right)
    bare(right, (extent[:2], extent[2:]), "samples")
    return save(figure, path)


def draw_trajectories(axes, trace: np.ndarray, extent, title: str, num_lines: int = 300) -> None:
    """trace [K, N, 2]: lines in yellow, starts black, ends blue."""
    ways = np.swapaxes(trace[:, :num_lines], 0, 1)
    axes.add_collection(
        LineCollection(ways, colors=MIDDLE, linewidths=0.4, alpha=0.7, zorder=1, rasterized=True)
    )
    for points, colour in ((trace[0], START), (trace[-1], END)):
        scatter(axes, points, colour, alpha=0.8)
    bare(axes, (extent[:2], extent[2:]), title)


@styled
def trajectories(path: Path, trace: np.ndarray, *, title="") -> Path:
    """Sampling paths of points, [K, N, 2]."""
    figure, axes = plt.subplots(figsize=(5.6, 5.6))
    draw_trajectories(axes, trace, extent_of(trace[0], trace[-1]), title)
    return save(figure, path)


@styled
def side_by_side(path: Path, columns: dict[str, dict], target: np.ndarray) -> Path:
    """One column a method: field above, trajectories below.

    Args:
      columns: title -> {"field", "descend", "t", "trace"} as for the two pictures above.
    """
    extent = extent_of(target, *(c["trace"][0] for c in columns.values()))
    size = (3.2 * len(columns), 6.6)
    figure, axes = plt.subplots(2, len(columns), figsize=size, squeeze=False, layout="constrained")
    for (top, bottom), (title, column) in zip(axes.T, columns.items(), strict=True):
        draw_field(top, column["field"], extent, t=column["t"], descend=column["descend"])
        scatter(top, target[:2000], TARGET, 1.5)
        bare(top, (extent[:2], extent[2:]), title)
        draw_trajectories(bottom, column["trace"], extent, "")
    name_rows(axes, ("field", "trajectories"))
    return save(figure, path)


@styled
def curves(path: Path, rows: list[dict], names=("loss",)) -> Path:
    """Training and held-out figures against the step, from the lines of metrics.jsonl."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for split, style in (("train", "-"), ("eval", "o-")):
        for name in names:
            points = [(r["step"], r[name]) for r in rows if r["split"] == split and name in r]
            if points:
                axes.plot(*np.array(points).T, style, markersize=3, label=f"{split} {name}")
    positive = all(r[n] > 0 for r in rows for n in names if n in r)
    axes.set(xlabel="step", yscale="log" if positive else "linear")
    axes.grid()
    if axes.lines:
        axes.legend()
    return save(figure, path)


@styled
def series(path: Path, samples: np.ndarray, real: np.ndarray) -> Path:
    """Sequences [N, T, C] against their index, samples above and real ones below."""
    n = len(samples)
    figure, axes = plt.subplots(
        2, n, figsize=(1.6 * n, 3.2), sharex=True, sharey=True, squeeze=False
    )
    for row, title, sequences in zip(axes, ("samples", "data"), (samples, real), strict=True):
        for ax, sequence in zip(row, np.asarray(sequences), strict=True):
            ax.plot(sequence, linewidth=0.8)
            ax.grid()
        row[0].set_ylabel(title)
    return save(figure, path)


def image_grid(path: Path, images: np.ndarray, columns: int | None = None) -> Path:
    """Images [N, H, W, C], uint8 or in [-1, 1], as one PNG, row by row; small ones enlarged.

    uint8 of four channels have transparency, and lie on white; of other four the first three show.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8 and images.shape[-1] == 4:
        images = np.asarray(on_white(images))
    images = images if images.dtype == np.uint8 else to_uint8(images)
    n, h, w, c = images.shape
    scale = max(1, 64 // h)
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    sheet = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, c), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + 1), i % columns * (w + 1)
        sheet[top : top + h, left : left + w] = image
    picture = Image.fromarray(sheet[..., 0] if c == 1 else sheet[..., :3])
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.new")
    picture.save(unfinished, format="PNG")
    return unfinished.replace(path)
