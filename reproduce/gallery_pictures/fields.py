"""All methods on two moons: fields with their level sets, trajectories, samples; an animation."""

import functools
import io
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from PIL import Image

from gallery_pictures import plane
from gallery_pictures.plane import BOX, METHODS
from genfield.fields import Prediction
from genfield.figures import style

PAPERS = (
    "Distance Marching",
    "Equilibrium Matching",
    "Flux Matching",
    "Lines Matching",
    "DANSM",
)
NOTES = {  # what a column shows of its field
    "Flow matching": "velocity at t = 0.5",
    "DANSM": "velocity at t = 0.5",
    "EDM": "velocity at t = 0.5",
    "Lines Matching": "velocity at t = 0.5",
    "Flux Matching": "field at σ = 0.2",
    "Equilibrium Matching": "energy, no clock",
    "Distance Marching": "distance, no clock",
}


class Budget(NamedTuple):
    """How much is drawn."""

    points: int = 2_000  # samples
    lines: int = 250  # trajectories
    side: int = 140  # of the grid of level sets
    frames: int = 36
    steps: int = 10_000  # of a sampler, at most
    digits: int = 200  # samples that are counted
    resample: int = 5  # how often each step of inpainting is taken


ENDS = 250  # samples whose start and end are shown
TINY = Budget(points=20, lines=10, side=12, frames=3, steps=5, digits=10, resample=1)


def head(axes, title: str, note: str, size: float = 10) -> None:
    """A column's title, underlined in the method's colour, with a line on what it shows."""
    axes.annotate(
        title, (0.5, 1), (0, 22), "axes fraction", "offset points", ha="center", fontsize=size + 1,
        fontweight="bold",
    )  # fmt: skip
    axes.annotate(
        note, (0.5, 1), (0, 8), "axes fraction", "offset points", ha="center", fontsize=size
    )
    axes.plot([0, 1], [1.018] * 2, transform=axes.transAxes, clip_on=False, linewidth=3,
              color=METHODS[title].colour, solid_capstyle="butt")  # fmt: skip


def draw_field(axes, title: str, budget: Budget, arrows: int = 15) -> None:
    """Level sets where there is a scalar, and where samples go: arrows of one length."""
    field = plane.field_of(title)
    mesh = lambda n: np.stack(np.meshgrid(*[np.linspace(*BOX, n)] * 2), -1).astype(np.float32)
    points = mesh(budget.side)
    output = field(jnp.asarray(points.reshape(-1, 2)))
    if isinstance(output, Prediction):
        u = np.asarray(output.distance).reshape(points.shape[:2])
        axes.contourf(*points.transpose(2, 0, 1), u, levels=24, cmap=style.LEVELS)
        axes.contour(
            *points.transpose(2, 0, 1), u, levels=8, colors=style.LEVEL_LINE, linewidths=0.7
        )
    style.scatter(axes, plane.target(1_000), style.TARGET, 2, 0.35)
    points = mesh(arrows + 2)[1:-1, 1:-1].reshape(-1, 2)
    output = field(jnp.asarray(points))
    way = np.asarray(output.direction if isinstance(output, Prediction) else output)
    way = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9)
    axes.quiver(*points.T, *way.T, color="black", scale=26, width=0.0045, headwidth=4)
    style.bare(axes, (BOX, BOX), "")


def draw_ways(axes, trace: np.ndarray, lines: int, ends: int = ENDS) -> None:
    """Starts black, ways yellow, ends blue, over the target: so many ways, and starts and ends."""
    style.scatter(axes, plane.target(1_500), style.TARGET, 2, 0.35)
    ways = np.swapaxes(trace[:, :lines], 0, 1)
    axes.add_collection(
        LineCollection(ways, colors=style.MIDDLE, linewidths=0.6, zorder=1, rasterized=True)
    )
    for points, colour, size in ((trace[0], style.START, 3), (trace[-1], style.END, 5)):
        axes.scatter(*points[:ends].T, s=size, color=colour, linewidths=0, zorder=3)
    style.bare(axes, (BOX, BOX), "")


def legend(figure, dots: dict[str, str] | None = None, line: str | None = "way") -> None:
    """What the colours mean, below a figure: name -> colour of points, and the yellow line."""
    if dots is None:
        dots = {"data": style.TARGET, "start": style.START, "end": style.END}
    dot = functools.partial(plt.Line2D, [], [], marker="o", linestyle="none", markersize=5)
    handles = [dot(color=colour, label=name) for name, colour in dots.items()]
    handles += [plt.Line2D([], [], color=style.MIDDLE, label=line)] if line else []
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)


@style.styled
def opening(path: Path, budget: Budget) -> Path:
    """The five papers' methods: field above, trajectories below."""
    figure, axes = plt.subplots(2, len(PAPERS), figsize=(10, 4.75), layout="constrained")
    for (top, bottom), title in zip(axes.T, PAPERS, strict=True):
        draw_field(top, title, budget)
        head(top, title, NOTES[title], 9.5)
        walk = METHODS[title].march(METHODS[title].model, budget.points)
        draw_ways(bottom, walk.trace, _lines(title, budget))
        plural = "" if walk.nfe == 1 else "s"
        bottom.set_xlabel(f"{METHODS[title].how}, {walk.nfe:.0f} evaluation{plural}", fontsize=9)
    style.name_rows(axes, ("field", "trajectories"))
    legend(figure)
    return style.save(figure, path)


def _lines(title: str, budget: Budget) -> int:
    """Langevin's ways are tangles: few of them are shown."""
    return min(budget.lines, 12) if title == "Flux Matching" else budget.lines


@style.styled
def fields(path: Path, budget: Budget) -> Path:
    """All seven methods: field, trajectories, samples over the data."""
    figure, axes = plt.subplots(3, len(METHODS), figsize=(14, 6.5), layout="constrained")
    for (top, middle, bottom), (title, method) in zip(axes.T, METHODS.items(), strict=True):
        draw_field(top, title, budget)
        head(top, title, NOTES[title])
        walk = method.march(method.model, budget.points)
        draw_ways(middle, walk.trace, _lines(title, budget))
        style.scatter(bottom, plane.target(budget.points), style.TARGET, 2, 0.35)
        style.scatter(bottom, walk.trace[-1], style.END, 2, 0.6)
        style.bare(bottom, ((-5, 6), (-3.6, 4)), "")
        bottom.set_xlabel(f"{method.how}, {walk.nfe:.0f} evaluations")
    style.name_rows(axes, ("field and level sets", "trajectories", "samples over the data"))
    legend(figure)
    return style.save(figure, path)


ANIMATED = ("Flow matching", "Equilibrium Matching", "Distance Marching", "Lines Matching")
HOLD = 12  # frames that the end stays


@style.styled
def marching(path: Path, budget: Budget) -> Path:
    """Samples of four methods on their way, as a GIF; each takes as long, whatever its steps."""
    figure, axes = plt.subplots(1, len(ANIMATED), figsize=(8.8, 2.85), layout="constrained")
    moving = []
    for panel, title in zip(axes, ANIMATED, strict=True):
        walk = METHODS[title].march(METHODS[title].model, min(budget.points, 600))
        output = plane.field_of(title)(jnp.zeros((1, 2)))
        if isinstance(output, Prediction):
            _levels_alone(panel, title, budget.side)
        style.scatter(panel, plane.target(1_000), style.TARGET, 1.5, 0.35)
        style.bare(panel, (BOX, BOX), "")
        panel.set_title(title, fontweight="bold")
        dots = panel.scatter(*walk.trace[0].T, s=3, color=style.START, linewidths=0, zorder=3)
        moving.append((panel, dots, walk))
    frames = [_frame(figure, moving, s) for s in np.linspace(0, 1, budget.frames)]
    plt.close(figure)
    palette = frames[-1].quantize(64)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    held = np.array(flat[0].getpalette()).reshape(-1, 3)
    held[flat[0].getpixel((0, 0))] = 255  # white stays white
    for frame in flat:
        frame.putpalette(held.astype(np.uint8).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [70] * (len(flat) - 1) + [70 * HOLD]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=durations, loop=0)
    return path


def _levels_alone(axes, title: str, side: int) -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(*BOX, side)] * 2), -1).astype(np.float32)
    u = np.asarray(plane.field_of(title)(jnp.asarray(grid.reshape(-1, 2))).distance)
    axes.contour(
        *grid.transpose(2, 0, 1), u.reshape(side, side), levels=8, colors="#9db4c6", linewidths=0.7
    )


def _frame(figure, moving, share: float) -> Image.Image:
    """All panels with their samples at a share of their way; straight between positions."""
    for panel, dots, walk in moving:
        place = share * (len(walk.trace) - 1)
        k = min(int(place), len(walk.trace) - 2)
        before, after = walk.trace[k], walk.trace[k + 1]
        dots.set_offsets(before + (place - k) * (after - before))
        dots.set_color([style.START if share == 0 else style.END])
        made = np.ceil(walk.evaluations(place))
        panel.set_xlabel(f"{made:.0f} of {walk.nfe:.0f} evaluations")
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=100)
    return Image.open(held).convert("RGB")
