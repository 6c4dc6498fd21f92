"""Couplings of noise and data, fields that circulate, distances against the truth, straightness."""

from pathlib import Path

import controllable
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from gallery_pictures import plane
from gallery_pictures.fields import Budget, draw_ways, head, legend
from gallery_pictures.plane import BOX, METHODS
from genfield import couplings, rng, sampling
from genfield.figures import style
from genfield.metrics import path_geometry, point_cloud

# Couplings

PAIRED, SHOWN = 1_024, 200  # noises and samples; pairs that are drawn, of all turns
WAYS = {  # title: (what it does, the coupling)
    "independent": ("as they were drawn", couplings.independent),
    "greedy, 64": ("DANSM, match size 64", lambda a, b: couplings.greedy(a, b, group_size=64)),
    "greedy, 1,024": ("DANSM, match size 1,024", couplings.greedy),
    "assignment, 1,024": ("optimal transport", couplings.exact_assignment),
}


@style.styled
def coupled(path: Path, budget: Budget) -> Path:
    """The same noises and samples, paired four ways, and how long the pairs are."""
    x0, x1 = plane.source(PAIRED, False), jnp.asarray(plane.target(PAIRED))
    figure, axes = plt.subplots(1, len(WAYS), figsize=(10, 3.25), layout="constrained")
    for panel, (title, (note, couple)) in zip(axes, WAYS.items(), strict=True):
        matched = np.asarray(jax.jit(couple)(x0, x1))
        pairs = np.stack([matched, np.asarray(x1)], axis=1)[:: PAIRED // min(SHOWN, budget.lines)]
        panel.add_collection(
            LineCollection(pairs, colors=style.MIDDLE, linewidths=0.8, zorder=1, rasterized=True)
        )
        style.scatter(panel, pairs[:, 0], style.START, 9, 1)
        style.scatter(panel, pairs[:, 1], style.TARGET, 9, 1)
        style.bare(panel, (BOX, BOX), f"{title}\n{note}")
        panel.set_xlabel(f"mean length {path_geometry.lengths(matched, x1).mean():.2f}")
    legend(figure, {"noise": style.START, "data": style.TARGET}, "pair")
    return style.save(figure, path)


# Circulation

TURNS = {  # family, θ of the rotation, what it is
    "the score": ("preserving", 0.0, "no circulation"),
    "turned left": ("preserving", 2.5, "the same law"),
    "turned right": ("preserving", -2.5, "the same law"),
    "the score, longer": ("violating", 2.5, "another law"),
}
SPAN = (-5.0, 5.0)
STEP, STEPS = 0.01, 600


def _turned(family: str, theta: float):
    """s + θ c of controllable.py, c scaled to a mean square of one."""
    scale = np.sqrt(np.diag(controllable.gram(num=200)))
    mix = jnp.asarray(controllable.mixed(np.array([theta, 0.0, 0.0]), family, scale))
    return lambda x, t=None, cond=None: controllable.score(x) + controllable.perturbation(x, mix)


@style.styled
def circulation(path: Path, budget: Budget) -> Path:
    """Streamlines of fields with one law, and of one without; Langevin samples below."""
    figure, axes = plt.subplots(2, len(TURNS), figsize=(10, 5.7), layout="constrained")
    side = np.linspace(*SPAN, 40)
    mesh = np.stack(np.meshgrid(side, side), -1)
    p = np.exp(controllable.evaluate(controllable.log_density, mesh))
    start = controllable.draw(np.random.default_rng(1), budget.points).astype(np.float32)
    steps = min(STEPS, budget.steps)
    for (top, bottom), (title, (family, theta, note)) in zip(axes.T, TURNS.items(), strict=True):
        field = _turned(family, theta)
        flow = controllable.evaluate(field, mesh)
        top.contourf(side, side, p, levels=10, cmap=style.LEVELS.reversed())
        top.streamplot(side, side, *flow.transpose(2, 0, 1), color="black", density=0.9,
                       linewidth=0.8, arrowsize=0.9)  # fmt: skip
        style.bare(top, (SPAN, SPAN), f"{title}\n{note}")
        downhill = lambda x, t=None, cond=None, field=field: -field(x)
        go = jax.jit(
            lambda key, x, downhill=downhill: (
                sampling.sample(key, downhill, x, sampling.langevin(STEP), num_steps=steps).x
            )
        )
        x = go(rng.stream(0, "circulation"), jnp.asarray(start))
        style.scatter(bottom, controllable.draw(np.random.default_rng(2), budget.points),
                      style.TARGET, 2, 0.35)  # fmt: skip
        style.scatter(bottom, x, style.END, 2, 0.5)
        style.bare(bottom, (SPAN, SPAN), "")
        far = float(np.sqrt(np.mean(np.sum(np.asarray(x) ** 2, 1))))
        bottom.set_xlabel(f"root mean square radius {far:.2f}")
    style.name_rows(axes, ("field over the density", "Langevin samples"))
    legend(figure, {"the law": style.TARGET, "samples": style.END}, None)
    return style.save(figure, path)


# Distance against the truth

SMOOTHED = 0.01  # c0 of the model of Distance Marching


@style.styled
def distance(path: Path, budget: Budget) -> Path:
    """What Distance Marching says is the distance to the data, beside the distance; and EqM."""
    data = plane.target(20_000)
    side = np.linspace(*BOX, budget.side)
    mesh = np.stack(np.meshgrid(side, side), -1).astype(np.float32)
    points = mesh.reshape(-1, 2)
    r = cKDTree(data).query(points)[0]
    true = np.sqrt(r**2 + SMOOTHED)
    said = {
        title: np.asarray(plane.field_of(title)(jnp.asarray(points)).distance)
        for title in ("Distance Marching", "Equilibrium Matching")
    }
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained")
    shape = mesh.shape[:2]
    for panel, values, title in zip(
        axes,
        (said["Distance Marching"], true),
        ("learned distance u", "true distance"),
        strict=False,
    ):
        levels = np.arange(0, 8, 0.5)
        panel.contourf(side, side, values.reshape(shape), levels=levels, cmap=style.LEVELS,
                       extend="both")  # fmt: skip
        lines = panel.contour(side, side, values.reshape(shape), levels=levels[::2],
                              colors=style.LEVEL_LINE, linewidths=0.7)  # fmt: skip
        panel.clabel(lines, fontsize=8, fmt="%.0f")
        style.scatter(panel, data[:1_500], style.TARGET, 2, 0.4)
        style.bare(panel, (BOX, BOX), title)
    thin = np.random.default_rng(0).permutation(len(points))[:3_000]
    for panel, (title, values), what in zip(
        axes[2:], said.items(), ("learned distance u", "learned energy"), strict=True
    ):
        style.scatter(panel, np.stack([true, values], 1)[thin], METHODS[title].colour, 4, 0.6)
        rank = spearmanr(values, true).statistic
        panel.set(xlabel="true distance", ylabel=what)
        panel.set_title(f"{title}\nrank correlation {rank:.2f}")
        panel.grid()
    end = float(true.max())
    axes[2].plot([0, end], [0, end], color="black", linewidth=1, label="as it should be")
    axes[2].legend()
    return style.save(figure, path)


# Straightness

JUDGED = 1_000  # samples whose W2 to the data is told
ROADS = ("Flow matching", "DANSM", "EDM", "Lines Matching")


@style.styled
def straightness(path: Path, budget: Budget) -> Path:
    """Ways of four samplers in one plane, and how far they are from straight lines."""
    figure, axes = plt.subplots(
        1, len(ROADS) + 1, figsize=(11.5, 2.85), layout="constrained", width_ratios=[1] * 4 + [1.1]
    )
    bent, data = {}, plane.target(JUDGED)
    for panel, title in zip(axes, ROADS, strict=False):
        walk = METHODS[title].march(METHODS[title].model, budget.points)
        draw_ways(panel, walk.trace, min(60, budget.lines), 60)
        head(panel, title, f"{walk.nfe:.0f} evaluations")
        found = path_geometry.straightness(jnp.asarray(walk.trace), walk.times)
        far = point_cloud.wasserstein2(walk.trace[-1, :JUDGED], data[: budget.points])
        bent[title] = float(np.nanmean(np.asarray(found.relative))), far
    last = axes[-1]
    for row, (title, (value, far)) in enumerate(bent.items()):
        last.barh(row, value, color=METHODS[title].colour, height=0.6)
        last.annotate(f" {value:.2f}, W2 {far:.2f}", (value, row), va="center")
    widest = max(value for value, _ in bent.values())
    last.set(yticks=range(len(bent)), yticklabels=list(bent), xlim=(0, 1.75 * widest))
    last.invert_yaxis()
    last.set_xlabel("deviation over length")
    legend(figure)
    return style.save(figure, path)
