"""Pictures of studies; each function writes one file."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from genfield.data import to_uint8
from genfield.figures.style import END, MIDDLE, START, TARGET, bare, grid, save, scatter, styled


@styled
def image_rows(path: Path, rows: dict[str, np.ndarray], columns: int, *, title: str = "") -> Path:
    """One labelled row of images [N, H, W, C] in [-1, 1] a name, the first `columns` of each."""
    strips = []
    for images in rows.values():
        finite = np.nan_to_num(np.asarray(images)[:columns], nan=1.0)
        levels = np.pad(to_uint8(finite), ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
        strips.append(np.concatenate(list(levels), axis=1))
    height, width = strips[0].shape[:2]
    figure, axes = plt.subplots(
        len(strips), 1, figsize=(9, 9 * len(strips) * height / width + 0.1), squeeze=False
    )
    for label, strip, row in zip(rows, strips, axes[:, 0], strict=True):
        shown = strip[..., 0] if strip.shape[-1] == 1 else strip
        row.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        row.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        row.set_xticks([]), row.set_yticks([])
        for spine in row.spines.values():
            spine.set_visible(False)
    axes[0, 0].set_title(title, fontsize=10)
    figure.subplots_adjust(hspace=0.05)
    return save(figure, path)


def _box(*clouds: np.ndarray) -> tuple:
    """Limits that hold the middle 99.8% of each cloud [N, 2], whatever strays."""
    finite = [c[np.isfinite(c).all(1)] for c in clouds]
    ends = np.concatenate([np.quantile(c, (0.001, 0.999), axis=0) for c in finite if len(c)])
    low, high = ends.min(0), ends.max(0)
    margin = 0.08 * (high - low).max()
    return (low[0] - margin, high[0] + margin), (low[1] - margin, high[1] + margin)


@styled
def moves(path: Path, panels: dict[str, tuple], target: np.ndarray, *more: np.ndarray) -> Path:
    """For each name, where samples started (black) and ended (blue), over the target; 2-D.

    more: further points that the pictures have room for.
    """
    figure, axes = grid(len(panels), 3.4, 3.6)
    limits = _box(target, *more, *(start for start, _ in panels.values()))
    for (title, (start, end)), panel in zip(panels.items(), axes, strict=True):
        scatter(panel, target, TARGET, 1, 0.25)
        lines = np.stack([start, end])[:, :200]
        panel.plot(lines[..., 0], lines[..., 1], color=MIDDLE, linewidth=0.4, alpha=0.6)
        scatter(panel, start, START)
        scatter(panel, end, END)
        bare(panel, limits, title)
    return save(figure, path)


@styled
def clouds(path: Path, samples: dict[str, np.ndarray], targets: list[np.ndarray]) -> Path:
    """One panel of points [N, 2] a name, over the targets."""
    figure, axes = grid(len(samples), 3.8, 4.0)
    limits = _box(*targets, *samples.values())
    for (title, points), panel in zip(samples.items(), axes, strict=True):
        for target, colour in zip(targets, (TARGET, MIDDLE), strict=False):
            scatter(panel, target, colour, 1, 0.25)
        scatter(panel, points, END, 3)
        bare(panel, limits, title)
    return save(figure, path)


@styled
def against(path: Path, rows: list[dict], x: str, names: tuple[str, ...]) -> Path:
    """Figures of rows against one of them, a panel each."""
    figure, axes = grid(len(names), 4.2, 3.2)
    for name, panel in zip(names, axes, strict=True):
        panel.plot([r[x] for r in rows], [r[name] for r in rows], "o-", color=END, label="output")
        if f"{name}_of_input" in rows[0]:
            before = [r[f"{name}_of_input"] for r in rows]
            panel.plot([r[x] for r in rows], before, "o--", color=MIDDLE, label="input")
            panel.legend()
        panel.set(xlabel=x, title=name.replace("_", " "))
        panel.grid()
    return save(figure, path)


@styled
def sweeps(path: Path, rows: list[dict], name: str) -> Path:
    """One figure against the step size, a line for each number of steps."""
    figure, axes = plt.subplots(figsize=(5.6, 3.8))
    for steps in dict.fromkeys(r["num_steps"] for r in rows):
        found = [(r["step_size"], r.get(name, np.nan)) for r in rows if r["num_steps"] == steps]
        axes.plot(*np.array(sorted(found)).T, "o-", label=f"{steps} steps")
    values = [r[name] for r in rows if name in r]
    positive = all(v > 0 for v in values if np.isfinite(v))
    axes.set(xscale="log", yscale="log" if positive else "linear", xlabel="step size")
    axes.set_title(name.replace("_", " "))
    axes.grid()
    axes.legend()
    return save(figure, path)


@styled
def evaluations(path: Path, rows: list[dict], names: list[str]) -> Path:
    """Figures against the evaluations of a sample, a panel each."""
    figure, axes = grid(len(names), 4.4, 3.4)
    for name, panel in zip(names, axes, strict=True):
        panel.plot([r["nfe"] for r in rows], [r[name] for r in rows], "o-")
        panel.set(xscale="log", xlabel="evaluations", ylim=(0, None), title=name.replace("_", " "))
        panel.grid()
    return save(figure, path)


@styled
def histograms(path: Path, sets: dict[str, dict[str, np.ndarray]]) -> Path:
    """One panel a score, one outline a set: {set: {score: [N]}}; the first set is filled."""
    names = list(next(iter(sets.values())))
    figure, axes = grid(len(names), 4.6, 3.4)
    for name, panel in zip(names, axes, strict=True):
        values = {label: np.asarray(scores[name], np.float64) for label, scores in sets.items()}
        ends = np.quantile(np.concatenate(list(values.values())), (0.002, 0.998))
        edges = np.linspace(*ends, 50) if ends[1] > ends[0] else ends[0] + np.linspace(-1, 1, 50)
        for number, (label, found) in enumerate(values.items()):
            share = np.histogram(found, edges)[0] / len(found)
            panel.stairs(share, edges, label=label, fill=not number, alpha=0.7, color=f"C{number}")
        panel.set(title=name.replace("_", " "), ylim=(0, None))
        panel.tick_params(labelsize=7)
    axes[0].legend()
    return save(figure, path)


@styled
def errors(path: Path, found: dict[str, dict]) -> Path:
    """Relative errors with their standard deviation in bins of t and of r (DM Fig. 14).

    Args:
      found: {target: {axis: {"distance" | "displacement": {"edges", "mean", "std", "count"}}}}.
    """
    titles = {"distance": "u against √(r² + c0)", "displacement": "|u v| against r"}
    panels = [(target, axis) for target, each in found.items() for axis in each]
    figure, axes = grid(len(panels), 4.0, 3.2)
    for (target, axis), panel in zip(panels, axes, strict=True):
        for (name, title), colour in zip(titles.items(), (END, TARGET), strict=True):
            bins = found[target][axis][name]
            middle = (bins["edges"][1:] + bins["edges"][:-1]) / 2
            panel.plot(middle, bins["mean"], "o-", markersize=3, color=colour, label=title)
            low = np.maximum(bins["mean"] - bins["std"], 0)
            panel.fill_between(middle, low, bins["mean"] + bins["std"], color=colour, alpha=0.2)
        tops = [found[target][axis][name]["mean"] for name in titles]
        panel.set_ylim(0, min(1.5, 1.3 * float(np.nanmax(np.concatenate(tops)))))
        panel.set(xlabel=axis, title=f"MAPE, r to {target}")
        panel.grid()
    axes[0].legend()
    return save(figure, path)


@styled
def descent(path: Path, curves: dict[str, np.ndarray], end: float) -> Path:
    """Means and quantile bands of curves [steps, B] along sampling (DM Fig. 30, 31)."""
    figure, axes = grid(len(curves), 3.6, 3.0)
    for (name, values), panel in zip(curves.items(), axes, strict=True):
        steps = np.arange(len(values))
        for low, high, alpha in ((0.05, 0.95, 0.15), (0.25, 0.75, 0.3)):
            band = np.quantile(values, (low, high), axis=1)
            panel.fill_between(steps, *band, color=END, alpha=alpha, linewidth=0)
        panel.plot(steps, values.mean(1), color=END)
        if name == "distance":
            panel.axhline(end, color=TARGET, linestyle="--", linewidth=1, label="√c0")
            panel.legend()
        panel.set(xlabel="step", title=name.replace("_", " "))
        panel.grid()
    return save(figure, path)
