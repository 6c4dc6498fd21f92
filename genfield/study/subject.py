"""What the studies share: held-out data, noise, fields on batches of them, metrics, tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield import registry, rng
from genfield.data import sets, to_uint8, to_unit
from genfield.errors import UserError, local
from genfield.machine import logbook, preemption, sharding
from genfield.machine.logbook import say
from genfield.metrics import images
from genfield.program import decoder, generate, sampler
from genfield.program import evaluate as evaluation
from genfield.program.experiment import Experiment
from genfield.registry import choose
from genfield.study import measures

PER_DRAWN = 20_000  # points that stand for a distribution that is drawn, not listed
SHOWN = 8  # images in a row of a picture
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Subject(NamedTuple):
    """A trained run to study."""

    exp: Experiment
    params: Any
    step: int
    seed: int  # of noise and samples: config.seed + config.sample.seed
    picture: Callable[[str], Path]  # tail of a name ("" or "_x") -> its path


class Study(NamedTuple):
    """A study: run(subject, *, options) -> Findings.

    straight: whether it sets its field's time, and so is for fields on straight paths alone.
    """

    run: Callable
    straight: bool


class Findings(NamedTuple):
    """What a study found: JSON-able figures, a table (the first row its head), pictures, arrays."""

    figures: dict
    table: list[tuple]
    pictures: list[Path]
    arrays: dict[str, np.ndarray] | None = None


# Data and noise


def heldout(exp: Experiment, num: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Up to `num` held-out examples as the network sees them, and their labels where there are."""
    if exp.data.heldout is None:
        start = "train with" if exp.weights is None else "pass"
        raise UserError(
            f"this study wants held-out examples, and the run's data {exp.config.data.name!r} hold "
            f"none out: {start} --config.data.heldout_fraction=0.01 or so, in a new workdir"
        )
    size = exp.data.sizes["test"]
    if size and size < num:
        say(f"{size:,} held-out examples, fewer than the {num:,} asked for")
    batch = exp.data.heldout(0, min(num, size) if size else num)
    return to_unit(batch["x1"]), batch.get("label")


def images_elsewhere(
    exp: Experiment, path: str, num: int, flag: str, *, shuffle: bool = True
) -> np.ndarray:
    """Up to `num` images of a folder, .npz or archive in the size and channels of the data.

    Args:
      flag: what named the path, for messages. shuffle: chosen at random, or the first.
    Returns:
      [n, *shape], as the network sees them; of a run on latents they are encoded.
    """
    if not exp.pictures:
        mend = f": {decoder.HOW}" if exp.data.latents is not None else ""
        raise UserError(f"{flag} names images, and this run was trained on none{mend}")
    shape = exp.data.shape if exp.decoder is None else exp.decoder.shape
    height, width, channels = shape
    local(path, flag)
    reading = sets.reading_of(exp.config.data)
    reading = reading._replace(size=height if height == width else None, channels=channels)
    opened = sets.open_images(path, say, reading)
    rows = np.random.default_rng(0).permutation(opened.size) if shuffle else np.arange(opened.size)
    levels = opened.read(rows[:num])
    if levels.shape[1:] != shape:
        raise UserError(f"{path} has images of {levels.shape[1:]}, not {shape}")
    return to_unit(levels) if exp.decoder is None else exp.decoder.encode(to_unit(levels))


def training(exp: Experiment, num: int = PER_DRAWN, part: int = 1024):
    """Blocks of up to `num` training examples, as the network sees them.

    Where data are drawn, one block of PER_DRAWN draws.
    """
    if exp.data.draw is not None:
        yield drawn(exp.data.draw, rng.stream(exp.config.seed + 1, "reference"), PER_DRAWN)
        return
    examples = exp.data.examples["train"]
    for first in range(0, min(num, examples.size), part):
        rows = np.arange(first, min(first + part, num, examples.size))
        yield to_unit(examples.gather(rows)["x1"])


def drawn(draw: Callable, key, num: int) -> np.ndarray:
    """draw(key, num), compiled."""
    return np.asarray(jax.jit(draw, static_argnums=1)(key, num))


def source(subject: Subject, num: int) -> np.ndarray:
    """Noise 0 … num - 1 of the sampling seed: where samples of these indices start."""
    shape, draw = subject.exp.data.shape, subject.exp.data.draw_source
    one = (lambda k: jax.random.normal(k, shape)) if draw is None else lambda k: draw(k, 1)[0]
    key = rng.stream(subject.seed, "start")
    return np.asarray(jax.jit(lambda: rng.per_index(key, jnp.arange(num), one))())


def labels(exp: Experiment, num: int) -> np.ndarray | None:
    """Those of samples 0 … num - 1."""
    return generate.labels_of(exp, np.arange(num), num)


def viewed(exp: Experiment, rows: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The first `count` examples [N, *D] of each name as images, decoded where they are latents."""
    if exp.decoder is None:
        return rows
    finite = lambda x: np.nan_to_num(np.asarray(x)[:count], posinf=0.0, neginf=0.0)
    tick = lambda done: preemption.poll()
    return {name: exp.decoder.on_host(finite(x), tick=tick) for name, x in rows.items()}


# Fields on batches


def on_batches(exp: Experiment, call: Callable) -> Callable:
    """over(params, *arrays, tick=…) -> call(field, index, *arrays) for all rows, as numpy.

    Batches are split over the mesh; arrays are [N, …] or None; `tick(n)` after each batch.
    """

    def one(params, index, arrays):
        return call(exp.objective.field(params), index, *arrays)

    run = jax.jit(one, out_shardings=sharding.replicated(exp.mesh))

    def over(params, *arrays, tick: Callable[[int], None] = lambda n: None):
        parts, n = [], len(arrays[0])
        for rows, count in generate.batches(np.arange(n), generate.batch_size(exp, n)):
            batch = jax.tree.map(lambda a, rows=rows: a[rows], arrays)
            placed = sharding.put_whole((rows.astype(np.int32), batch), exp.mesh)
            out = jax.device_get(run(params, *placed))
            parts.append(jax.tree.map(lambda a, count=count: a[:count], out))
            tick(count)
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    return over


def with_sampler(exp: Experiment, config) -> Experiment:
    """The experiment with the sampler of another config."""
    sizes = exp.data.num_classes, exp.objective.output
    return exp._replace(config=config, sampler=sampler.create_sampler(config, *sizes, exp.methods))


def sampler_from(subject: Subject) -> Callable:
    """over(params, start, cond, number=None) -> {"x", "nfe"}: the run's sampler from given points.

    number: [N], whose sampler's own noise each takes; None: its own.
    """
    config = subject.exp.config.copy_and_resolve_references()
    config.sample.slots = 0
    exp, key = with_sampler(subject.exp, config), rng.stream(subject.seed, "sampler")

    def call(field, index, start, cond, number=None):
        keys = rng.per_index(key, index if number is None else number, lambda k: k)
        out = exp.sampler(keys, field, start, cond)
        return {"x": out.x, "nfe": out.nfe}

    return on_batches(exp, call)


def scorer(exp: Experiment) -> Callable:
    """over(params, x, cond) -> {name: [N]}, the `measures.scores`; a clock is set to the data."""
    method = exp.objective.method
    flip, energy = method.teaches == "velocity", method.scalar == "energy"

    def call(field, index, x, cond):
        out = measures.scores(field, x, jnp.ones(len(x)), cond)
        if "dot_energy" in out and flip:  # a velocity points down
            out["dot_energy"] = -out["dot_energy"]
        if energy and "distance" in out:  # u is an energy here, and u v says nothing
            out["energy"] = out.pop("distance")
            del out["displacement"]
        return out

    return on_batches(exp, call)


def counter(what: str, total: int, unit: str = "samples") -> Callable[[int], None]:
    """tick(n): n more are done; shows progress and stops at a signal."""
    tell, done = preemption.told(logbook.Progress(what, total, unit=unit)), 0

    def tick(n: float, note: str = "") -> None:
        nonlocal done
        done += n
        tell(done, note)

    return tick


def from_zero(tick: Callable[[int], None]) -> Callable[[int], None]:
    """`tick(n)` as an `on_batch(done)`."""
    last = 0

    def on_batch(done: float, note: str = "") -> None:
        nonlocal last
        tick(done - last)
        last = done

    return on_batch


# Metrics and tables


def make_metric(exp: Experiment, name: str, seed: int, num: int | None = None) -> Callable:
    """metric(x) -> {figure: value}; the same target for every x, of `num` points or PER_DRAWN.

    name: of a metric of samples or of features; "none"; or "auto", point_cloud for points.
    Raises:
      UserError: an unknown metric, or one that these data cannot have.
    """
    holds = exp.methods[registry.DataSource][exp.config.data.name].holds
    points = len(exp.data.shape) == 1 and (holds == "pairs" or exp.data.draw is not None)
    if name == "auto":
        name = "point_cloud" if points else "none"
    known = [m.name for m in exp.methods[registry.Metric].values() if m.reads != "run"]
    choose("--metric", name, ("auto", "none", *known))
    if name == "none":
        return lambda x: {}
    [metric] = evaluation.metrics_of((name,), exp.methods)
    if metric.reads == "features":
        return make_features(exp, metric)
    if not points:
        raise UserError(f"--metric={name} needs a point problem such as two_moons")
    target = evaluation.target_points(exp, seed, num or PER_DRAWN)
    return lambda x: metric.compute(x, target, exp.config.evaluate)


def make_features(exp: Experiment, metric: registry.Metric) -> Callable:
    """measure(x) -> {figure: value} of images against the config's reference, in features.

    Raises:
      UserError: no images, or no feature network to be had.
    """
    if not exp.pictures:
        mend = f": {decoder.HOW}" if exp.data.latents is not None else ""
        raise UserError(f"--metric={metric.name} needs image data{mend}")
    judge = images.create_judge(exp.config.evaluate, exp.mesh, (metric,))
    opened = evaluation.open_reference(exp.config.evaluate, judge, exp.config, exp.data)
    known = evaluation.load_reference(opened, judge)
    return lambda x: images.compare(judge, statistics(exp, judge, x), known)


def statistics(exp: Experiment, judge: images.Judge, x: np.ndarray) -> images.Statistics:
    """What a judge knows of examples: images [N, H, W, C] in [-1, 1], or latents, decoded."""
    if exp.decoder is None:
        levels = to_uint8(x)
    else:
        levels = exp.decoder.on_host(x, levels=True, tick=lambda done: preemption.poll())
    held = sets.ImageSet("", "", len(levels), levels.shape[1:], lambda rows: levels[rows])
    return images.statistics(judge, images.blocks(held, judge.mesh, judge.batch_size))


def quantiles(values, axis: int | None = None) -> dict[str, Any]:
    """The QUANTILES of values along an axis, or of all of them, by name: "q05" and so on."""
    return {f"q{round(100 * q):02}": np.quantile(values, q, axis=axis) for q in QUANTILES}


def table(rows: list[dict]) -> list[tuple]:
    """Rows with names as cells of text under one head."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cell = lambda v: "-" if v is None else v if isinstance(v, str) else f"{v:.4g}"
    return [tuple(names), *(tuple(cell(row.get(name)) for name in names) for row in rows)]
