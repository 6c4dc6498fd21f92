"""Pictures of the editing studies; each function writes one file."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from genfield.figures.style import END, MIDDLE, START, TARGET, bare, grid, save, scatter, styled


@styled
def conditionals(path: Path, data: np.ndarray, held: list[tuple], known: int) -> Path:
    """Points inpainted at known values over the data [N, 2], and their laws beside the true ones.

    Args:
      held: (value, drawn [n], true [n]) of the number that was hidden. known: which one is not.
    """
    figure, axes = grid(1 + len(held), 3.4, 3.4, in_a_row=5)
    scatter(axes[0], data, TARGET, 1, 0.25)
    for value, drawn, _ in held:
        points = np.stack([np.full(len(drawn), value), drawn], axis=1)
        scatter(axes[0], points if known == 0 else points[:, ::-1], END, 4, 0.3)
    axes[0].set(aspect="equal", title="known " + ("x, painted y" if known == 0 else "y, painted x"))
    for (value, drawn, true), panel in zip(held, axes[1:], strict=True):
        low, high = (f(data[:, 1 - known]) for f in (np.min, np.max))
        margin = 0.15 * (high - low)
        edges = np.linspace(low - margin, high + margin, 40)
        share = lambda values, edges=edges: np.histogram(values, edges)[0] / len(values)
        panel.stairs(share(true), edges, fill=True, alpha=0.5, color=TARGET, label="true")
        panel.stairs(share(drawn), edges, color=END, label="inpainted")
        panel.set(title=f"given {'xy'[known]} = {value:.2f}", xlabel="yx"[known])
    axes[1].legend()
    return save(figure, path)


@styled
def curves(path: Path, noise: np.ndarray, x: np.ndarray, target: np.ndarray) -> Path:
    """Lines through noises [N, W, 2] between two, and through their samples, over the data."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4))
    for panel, lines, title in zip(axes, (noise, x), ("noises", "their samples"), strict=True):
        scatter(panel, target, TARGET, 1, 0.25)
        for number, line in enumerate(lines[:8]):
            panel.plot(*line.T, ".-", color=f"C{number}", markersize=4, linewidth=0.8)
        panel.scatter(*lines[:8, 0].T, color=START, s=14, zorder=3)
        both = np.concatenate([target, lines[:8].reshape(-1, 2)])
        low, high = both.min(0), both.max(0)
        margin = 0.06 * (high - low).max()
        bare(panel, list(zip(low - margin, high + margin, strict=True)), title)
    return save(figure, path)


@styled
def orders(path: Path, rows: list[dict]) -> Path:
    """The error of there and back against the number of steps, with slopes of orders 1 to 3."""
    steps, rmse = (np.array([row[name] for row in rows]) for name in ("num_steps", "rmse"))
    figure, axes = plt.subplots(figsize=(5.2, 3.8))
    axes.plot(steps, rmse, "o-", color=END, label="reconstruction")
    for order, style in ((1, ":"), (2, "--"), (3, "-.")):
        slope = rmse[0] * (steps / steps[0]) ** float(-order)
        axes.plot(steps, slope, style, color=MIDDLE, label=f"order {order}")
    axes.set(xscale="log", yscale="log", xlabel="steps", title="root mean squared error")
    axes.grid()
    axes.legend()
    return save(figure, path)
