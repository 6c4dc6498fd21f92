"""Digits of the package's models: of all methods, composed, inpainted, and how long each takes."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from gallery_pictures import plane
from gallery_pictures.fields import Budget
from gallery_pictures.plane import BOX
from genfield import data, guidance, rng, sampling
from genfield.figures import style

NULL = 10  # the label that means none
# (title, model, sampler, steps), as the models' cards have them
MODELS = {
    "Flow matching": ("digits/flow_matching", sampling.heun(), 50),
    "Equilibrium Matching": ("digits/equilibrium_matching", sampling.nesterov(0.003, 0.35), 250),
    "Distance Marching": ("digits/distance_marching", sampling.sphere_tracing(0.031), 250),
}


@functools.cache
def examples() -> tuple[np.ndarray, np.ndarray]:
    """Held-out digits [N, 8, 8, 1] in [-1, 1], and their classes."""
    section = {"name": "digits", "labels": True}
    held = data.create(section, batch_size=1, seed=0).examples["test"]
    part = held.gather(np.arange(held.size))
    return data.to_unit(part["x1"]), np.asarray(part["label"])


def noise(num: int, seed: int = 0) -> jax.Array:
    """Normal noise, [num, 8, 8, 1]."""
    return jax.random.normal(rng.stream(seed, "source"), (num, 8, 8, 1))


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="steps")
def _drawn(field, sampler, x0, labels, *, steps: int):
    return sampling.sample(jax.random.key(0), field, x0, sampler, num_steps=steps, cond=labels)


def sheet(images, columns: int, below: int = 1) -> np.ndarray:
    """Images [N, 8, 8, 1] as one picture in [0, 1], `columns` a row, white between and below."""
    levels = np.clip((np.asarray(images)[..., 0] + 1) / 2, 0, 1)
    padded = np.pad(levels, [(0, 0), (0, below), (0, 1)], constant_values=1.0)
    rows = [
        np.concatenate(list(padded[i : i + columns]), 1) for i in range(0, len(padded), columns)
    ]
    return np.concatenate(rows, 0)[:, :-1]


def show(axes, images, columns: int, title: str = "", below: int = 1) -> None:
    """A sheet of images without a frame."""
    axes.imshow(sheet(images, columns, below), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


@style.styled
def digits(path: Path, budget: Budget) -> Path:
    """Held-out digits and those of three methods, a class a column."""
    x1, classes = examples()
    rows = 4
    labels = jnp.tile(jnp.arange(10), rows)
    first = [x1[classes == c][:rows] for c in range(10)]
    panels = {"data": np.stack(first, 1).reshape(-1, 8, 8, 1)}
    notes = {"data": "held-out digits"}
    for title, (name, sampler, steps) in MODELS.items():
        steps, field = min(steps, budget.steps), plane.opened(name).field
        out = _drawn(field, sampler, noise(len(labels)), labels, steps=steps)
        panels[title], notes[title] = out.x, f"{float(out.nfe.mean()):.0f} evaluations"
    figure, axes = plt.subplots(1, len(panels), figsize=(11.5, 2.3), layout="constrained")
    for panel, (title, images) in zip(axes, panels.items(), strict=True):
        show(panel, images, 10)
        panel.set_title(title, fontweight="bold")
        panel.set_xticks(4 + 9 * np.arange(10), range(10))
        panel.tick_params(length=0)
        panel.set_xlabel(notes[title])
    return style.save(figure, path)


# Adaptive compute

GOING, PATIENCE, FLAT = 250, 3, 0.7  # steps at most; rises of u in a row; |∇u| at the data


@style.styled
def adaptive(path: Path, budget: Budget) -> Path:
    """Steps until samples stop: in the plane where u is flat, digits where it rises."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(10.5, 3.5), layout="constrained", width_ratios=(1.15, 1, 1.2)
    )
    field = plane.opened("two_moons/distance_marching").field
    stops = sampling.stopping(sampling.gradient_descent(0.05), sampling.gradient_norm(FLAT))
    run = jax.jit(lambda x: sampling.sample(jax.random.key(0), field, x, stops, num_steps=GOING))
    side = np.linspace(*BOX, min(60, budget.side))
    mesh = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    taken = np.asarray(run(jnp.asarray(mesh)).nfe).reshape(len(side), -1)
    shown = left.pcolormesh(side, side, taken, cmap="cividis", rasterized=True)
    figure.colorbar(shown, ax=left, label="evaluations")
    style.scatter(left, plane.target(1_000), style.TARGET, 2, 0.5)
    style.bare(left, (BOX, BOX), "two moons: evaluations by start")
    out = _stopped_digits(budget.digits)
    steps, images = np.asarray(out.nfe), np.asarray(out.x)
    middle.hist(steps, bins=25, color=plane.METHODS["Distance Marching"].colour)
    middle.axvline(GOING, color="black", linestyle="--", linewidth=1, label="without stopping")
    middle.set(xlabel="evaluations", ylabel="digits", title="digits: evaluations a sample")
    middle.set_xlim(0, 1.06 * GOING)
    middle.legend(loc="upper center")
    middle.grid()
    order = np.argsort(steps, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, 24).astype(int)]
    show(right, images[chosen], 6, "from the first to stop to the last", below=4)
    for i, index in enumerate(chosen):
        place = (3.5 + 9 * (i % 6), 12 * (i // 6) + 9.4)
        right.annotate(str(steps[index]), place, ha="center", va="center", fontsize=8)
    return style.save(figure, path)


def _stopped_digits(num: int):
    """Digits of Distance Marching that stop by themselves."""
    field = plane.opened("digits/distance_marching").field
    stops = sampling.stopping(
        sampling.gradient_descent(0.1), sampling.rising_distance(patience=PATIENCE)
    )
    labels = jnp.arange(num) % 10
    run = jax.jit(
        lambda x: sampling.sample(jax.random.key(0), field, x, stops, num_steps=GOING, cond=labels)
    )
    return run(noise(num))


# Composition

PAIRS, EACH = ((0, 2), (3, 8), (1, 7)), 10  # of classes; samples of each


@style.styled
def composition(path: Path, budget: Budget) -> Path:
    """Samples of one class, of another, and of the sum of both fields, from the same noise."""
    titles = ("Equilibrium Matching", "Distance Marching")
    steps = min(250, budget.steps)
    figure, axes = plt.subplots(
        3 * len(PAIRS), len(titles), figsize=(8.6, 6.3), layout="constrained", sharex=True
    )
    labels = [jnp.repeat(jnp.asarray(classes), EACH) for classes in zip(*PAIRS, strict=True)]
    for column, title in zip(axes.T, titles, strict=True):
        for row, given in enumerate(([labels[0]], [labels[1]], labels)):
            name, sampler, _ = MODELS[title]
            on = "displacement" if title == "Distance Marching" else "direction"
            x = _composed(plane.opened(name).field, sampler, given, on=on, steps=steps)
            x = np.asarray(x).reshape(len(PAIRS), EACH, 8, 8, 1)
            for group, pair in enumerate(PAIRS):
                panel, names = column[3 * group + row], (str(pair[0]), str(pair[1]))
                show(panel, x[group], EACH)
                name = (*names, " + ".join(names))[row]
                panel.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    for panel, title in zip(axes[0], titles, strict=True):  # after `show`, which sets its own
        panel.set_title(title, fontweight="bold")
    return style.save(figure, path)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("on", "steps"))
def _composed(field, sampler, labels: list, *, on: str, steps: int):
    """Samples of the sum of a model's fields under each of the labels [N]."""
    parts = [lambda x, t=None, cond=None, label=label: field(x, t, label) for label in labels]
    both = guidance.compose(parts, on=on)
    x0 = jnp.tile(noise(EACH, seed=3), (len(PAIRS), 1, 1, 1))
    return sampling.sample(jax.random.key(0), both, x0, sampler, num_steps=steps).x


# Inpainting

PAINTED = 30  # steps


@style.styled
def inpainting(path: Path, budget: Budget) -> Path:
    """The lower half of held-out digits painted anew, three times each, told their class."""
    x1, classes = examples()
    chosen = np.array([np.flatnonzero(classes == c)[1] for c in range(10)])
    x1, labels = jnp.asarray(x1[chosen]), jnp.asarray(classes[chosen])
    hidden = jnp.zeros((8, 8, 1), bool).at[4:].set(True)
    steps = min(PAINTED, budget.steps)
    field = plane.opened("digits/flow_matching").field

    @jax.jit
    def paint(key, x0):
        times = jnp.linspace(0, 1, steps + 1)
        half = sampling.inpaint(sampling.heun(), x1, hidden, times=times, resample=budget.resample)
        return sampling.sample(key, field, x0, half, num_steps=steps, cond=labels).x

    rows = {"held-out digits": x1, "what is known": jnp.where(hidden, 1.0, x1)}
    for i in range(3):
        rows[f"painted anew, {i + 1}"] = paint(rng.stream(i, "paint"), noise(10, seed=10 + i))
    figure, axes = plt.subplots(len(rows), 1, figsize=(7.5, 3.7), layout="constrained")
    for panel, (name, images) in zip(axes, rows.items(), strict=True):
        show(panel, images, 10)
        panel.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    return style.save(figure, path)
