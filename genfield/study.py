"""Studies of a trained run: python -m genfield.study NAME --workdir=… [--option=…] [--config.a.b=…]

They write studies/NAME.json and PNGs into the workdir; `--help` lists them. What they compute is in
`genfield.abilities`, of fields and arrays; claims and figures are in docs/abilities.md.
"""

import sys

from genfield import preemption

if __name__ == "__main__":
    preemption.install()  # before the slow imports: a signal never goes unheard

import inspect
import math
import re
import traceback
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from genfield import (
    abilities,
    card,
    configuration,
    couplings,
    data,
    experiment,
    generate,
    guidance,
    jobs,
    logbook,
    objectives,
    paths,
    rng,
    sampling,
    sharding,
    study_figures,
)
from genfield import evaluate as evaluation
from genfield import main as program
from genfield.data import pixels, sets
from genfield.errors import UserError, bind, choose
from genfield.experiment import Experiment
from genfield.fields import Field
from genfield.logbook import say
from genfield.metrics import detection, images, point_cloud
from genfield.objectives import KIND, has_clock

PER_DRAWN = 20_000  # points that stand for a distribution that is drawn, not listed
SHOWN = 8  # images in a row of a picture
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Subject(NamedTuple):
    """A trained run to study."""

    exp: Experiment
    params: Any
    step: int
    seed: int  # of noise and samples: config.seed + config.sample.seed
    picture: Callable[[str], Path]  # tail of a name ("" or "_x") -> a PNG's path


class Findings(NamedTuple):
    """What a study found: JSON-able figures, a table (the first row its head), pictures."""

    figures: dict
    table: list[tuple]
    pictures: list[Path]


# Held-out data, noise, and fields on batches of them


def heldout(exp: Experiment, num: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Up to `num` held-out examples as the network sees them, and their labels where there are."""
    size = exp.data.sizes["test"]
    if size and size < num:
        say(f"{size:,} held-out examples, fewer than the {num:,} asked for")
    batch = exp.data.heldout(0, min(num, size) if size else num)
    return _to_unit(batch["x1"]), batch.get("label")


def training(exp: Experiment, num: int, part: int = 1024):
    """Blocks of up to `num` training examples, as the network sees them; of drawn data, draws."""
    if exp.data.draw is not None:
        yield drawn(exp.data.draw, rng.stream(exp.config.seed + 1, "reference"), PER_DRAWN)
        return
    examples = exp.data.examples["train"]
    for first in range(0, min(num, examples.size), part):
        rows = np.arange(first, min(first + part, num, examples.size))
        yield _to_unit(examples.gather(rows)["x1"])


def drawn(draw: Callable, key, num: int) -> np.ndarray:
    """draw(key, num), compiled."""
    return np.asarray(jax.jit(draw, static_argnums=1)(key, num))


def source(subject: Subject, num: int) -> np.ndarray:
    """Noise 0 … num - 1 of the sampling seed: where samples of these indices start."""
    shape, draw = subject.exp.data.shape, subject.exp.data.draw_source
    one = (lambda k: jax.random.normal(k, shape)) if draw is None else lambda k: draw(k, 1)[0]
    key = rng.stream(subject.seed, "start")
    return np.asarray(jax.jit(lambda: rng.per_index(key, jnp.arange(num), one))())


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
            placed = evaluation.put_global((rows.astype(np.int32), batch), exp.mesh)
            out = jax.device_get(run(params, *placed))
            parts.append(jax.tree.map(lambda a, count=count: a[:count], out))
            tick(count)
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    return over


def sampler_from(subject: Subject) -> Callable:
    """over(params, start, cond) -> {"x", "nfe"}: the run's sampler from given points."""
    config = subject.exp.config.copy_and_resolve_references()
    config.sample.slots = 0
    exp, key = _with_sampler(subject.exp, config), rng.stream(subject.seed, "sampler")

    def call(field, index, start, cond):
        keys = rng.per_index(key, index, lambda k: k)
        out = exp.sampler(keys, field, start, cond)
        return {"x": out.x, "nfe": out.nfe}

    return on_batches(exp, call)


def scorer(exp: Experiment) -> Callable:
    """over(params, x, cond) -> {name: [N]}, the `abilities.scores`; a clock is set to the data."""
    flip = KIND[exp.config.loss.name] == "velocity"
    energy = exp.config.loss.name == "equilibrium_matching"

    def call(field, index, x, cond):
        out = abilities.scores(field, x, jnp.ones(len(x)), cond)
        if "dot_energy" in out and flip:  # a velocity points down
            out["dot_energy"] = -out["dot_energy"]
        if energy and "distance" in out:  # u is an energy here, and u v says nothing
            out["energy"] = out.pop("distance")
            del out["displacement"]
        return out

    return on_batches(exp, call)


def counter(what: str, total: int, unit: str = "samples") -> Callable[[int], None]:
    """tick(n): n more are done; shows progress and stops at a signal."""
    tell, done = jobs.told(logbook.Progress(what, total, unit=unit)), 0

    def tick(n: int) -> None:
        nonlocal done
        done += n
        tell(done)

    return tick


def make_frechet(exp: Experiment) -> Callable:
    """frechet(x) -> {"fid" or its kind: value} of images against the config's reference.

    Raises:
      UserError: no images, or no feature network to be had.
    """
    if not exp.data.pixels:
        raise UserError("--metric=frechet needs image data")
    judge = images.create_judge(exp.config.evaluate, exp.mesh, ("frechet",))
    opened = evaluation.open_reference(exp.config.evaluate, judge, exp.config, exp.data)
    known = evaluation.load_reference(opened, judge)

    def frechet(x) -> dict[str, float]:
        return images.compare(judge, _statistics(judge, pixels.to_uint8(x)), known)

    return frechet


def make_metric(exp: Experiment, name: str, seed: int, num: int) -> Callable:
    """metric(x) -> {figure: value}; the same target for every x."""
    points = len(exp.data.shape) == 1 and exp.data.draw is not None
    if name == "auto":
        name = "point_cloud" if points else "none"
    choose("--metric", name, dict.fromkeys(("auto", "frechet", "none", "point_cloud")))
    if name == "frechet":
        return make_frechet(exp)
    if name == "none":
        return lambda x: {}
    if not points:
        raise UserError("--metric=point_cloud needs a point problem such as two_moons")
    target = drawn(exp.data.draw, rng.stream(seed, "target"), num)
    return lambda x: point_cloud.compare(x, target, exp.config.evaluate.transport_points)


def _statistics(judge: images.Judge, levels: np.ndarray) -> images.Statistics:
    held = sets.ImageSet("", "", len(levels), levels.shape[1:], lambda rows: levels[rows])
    return images.statistics(judge, images.blocks(held, judge.mesh, judge.batch_size))


def _to_unit(x: np.ndarray) -> np.ndarray:
    return pixels.to_unit(x) if x.dtype == np.uint8 else np.asarray(x)


def _labels(exp: Experiment, num: int) -> np.ndarray | None:
    """Those of samples 0 … num - 1."""
    count = exp.data.num_classes
    return (np.arange(num) % count).astype(np.int32) if count else None


def _quantiles(values) -> dict[str, float]:
    return {f"q{round(100 * q):02}": float(np.quantile(values, q)) for q in QUANTILES}


# The studies


def denoise(
    subject: Subject,
    *,
    times: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9),
    num: int = 256,
    metric: str = "auto",
    max_train: int = 50_000,
) -> Findings:
    """The run's sampler from partially noised held-out data (EqM Fig. 10).

    times: t of (1-t) noise + t data. num: held-out examples. metric: of the samples: frechet,
    point_cloud, none, or auto (point_cloud for points). max_train: training examples among which
    the nearest is looked for.
    """
    exp, path = subject.exp, paths.PATHS[subject.exp.config.path]
    for t in times:
        if not 0 <= t <= 1:
            raise UserError(f"--times must lie between 0 and 1, got {t:g}")
    x1, labels = heldout(exp, num)
    x0, measure = source(subject, len(x1)), make_metric(exp, metric, subject.seed, PER_DRAWN)
    reference = list(training(exp, max_train))
    distance = lambda x: float(abilities.nearest(x, reference).distance.mean())
    run, tick = sampler_from(subject), counter("samples", len(times) * len(x1))
    noised = jax.jit(lambda t: abilities.partially_noised(x0, x1, t, path))
    rows, shown = [], {}
    for t in times:
        start = np.asarray(noised(t))
        out = run(subject.params, start, labels, tick=tick)
        row = {
            "t": t,
            "mse_of_input": float(np.mean((start - x1) ** 2)),
            "mse": float(np.mean((out["x"] - x1) ** 2)),
            "to_data": distance(out["x"]) if np.isfinite(out["x"]).all() else math.nan,
            "nfe": float(out["nfe"].mean()),
        }
        if np.isfinite(out["x"]).all():
            row |= measure(out["x"])
        rows.append(row)
        shown[t] = start, out["x"]
    heldout_row = {"to_data": distance(x1)} | measure(x1)  # what the best samples would have
    clock = has_clock(exp.config.loss)
    figures = {
        "rows": rows,
        "heldout": heldout_row,
        "examples": len(x1),
        "labels": "the examples' own" if labels is not None else "none",
        "start": "each start is taken for noise: the clock runs from 0 to 1, as in the paper's "
        "flow-matching baseline"
        if clock
        else "the sampler is not told t; all its steps are taken from each start",
    }
    pictures = [study_figures.against(subject.picture("_curves"), rows, "t", ("mse", "to_data"))]
    if exp.data.pixels:
        grid = {"original": x1}
        for t, (start, x) in shown.items():
            grid |= {f"t = {t:g}, input": start, f"t = {t:g}, output": x}
        pictures.append(study_figures.image_rows(subject.picture(""), grid, SHOWN))
    elif exp.data.shape == (2,):
        panels = {f"t = {t:g}": pair for t, pair in shown.items()}
        pictures.append(study_figures.moves(subject.picture(""), panels, reference[0]))
    return Findings(figures, _table([*rows, {"t": "data"} | heldout_row]), pictures)


def ood(
    subject: Subject, *, num: int = 512, other: str | None = None, blur: float = 1.0
) -> Findings:
    """AUROC of scores: held-out data against other sets (EqM Table 6, DM Table 5).

    num: examples of each set. other: images of another kind: a folder, .npz or tar archive.
    blur: standard deviation of the Gaussian filter, in pixels.
    """
    exp, key = subject.exp, rng.stream(subject.seed, "ood")
    if blur <= 0:
        raise UserError(f"--blur must be positive, got {blur:g}")
    others = {} if other is None else {"other": _other_images(exp, other, num)}
    x1, labels = heldout(exp, num)
    outside = _points_outside(exp, key, x1) if x1.ndim == 2 else _images_outside(key, x1, blur)
    if x1.ndim != 2 or exp.data.draw_source is not None:
        outside["noise"] = source(subject, len(x1))
    outside |= others
    cond, condition = _unlabelled(exp)
    whole = lambda x: None if cond is None else cond(len(x))
    score = scorer(exp)
    wrong = exp.data.num_classes > 1
    total = len(x1) * (1 + 2 * wrong) + sum(map(len, outside.values()))
    tick = counter("scores", total, "examples")
    inside = score(subject.params, x1, whole(x1), tick=tick)
    found = {n: (inside, score(subject.params, x, whole(x), tick=tick)) for n, x in outside.items()}
    if wrong:
        shift = 1 + np.arange(len(x1)) % (exp.data.num_classes - 1)
        other_class = ((labels + shift) % exp.data.num_classes).astype(labels.dtype)
        own = score(subject.params, x1, labels, tick=tick)
        found["wrong_label"] = own, score(subject.params, x1, other_class, tick=tick)
    rows = []
    for name, (within, without) in found.items():
        for values in (*within.values(), *without.values()):
            if not np.isfinite(values).all():
                raise UserError(f"scores of {name!r} are not finite: the network diverges there")
        rows.append({"set": name} | {s: detection.auroc(within[s], without[s]) for s in inside})
    averaged = [row for row in rows if row["set"] != "wrong_label"]
    mean = lambda s: float(np.mean([row[s] for row in averaged]))
    rows.append({"set": "average"} | {s: mean(s) for s in inside})
    told = lambda scores: {
        s: {"mean": float(v.mean()), "std": float(v.std())} | _quantiles(v)
        for s, v in scores.items()
    }
    figures = {
        "auroc": rows,
        "heldout": told(inside),
        "sets": {name: told(without) for name, (_, without) in found.items()},
        "examples": len(x1),
        "condition": condition,
        "wrong_label": "held-out images under their own label against the same under another one, "
        "left out of the average"
        if wrong
        else "none",
        "time": 1.0 if has_clock(exp.config.loss) else None,
        "settings": {"blur": blur, "other": other},
    }
    told_apart = {"held-out": inside} | {name: each for name, (_, each) in found.items()}
    pictures = [study_figures.histograms(subject.picture(""), told_apart)]
    if exp.data.pixels:
        shown = {"held-out": x1, **outside}
        pictures.append(study_figures.image_rows(subject.picture("_sets"), shown, SHOWN))
    return Findings(figures, _table(rows), pictures)


def _points_outside(exp: Experiment, key, x1: np.ndarray) -> dict[str, np.ndarray]:
    """The other 2-D problems, and uniform points on a box half as wide again as the data."""
    out = {}
    if x1.shape[1:] == (2,):
        out = {
            name: drawn(draw, jax.random.fold_in(key, i), len(x1))
            for i, (name, draw) in enumerate(sorted(data.DISTRIBUTIONS.items()))
            if name != exp.config.data.name
        }
    low, high = x1.min(0), x1.max(0)
    margin = (high - low) / 4
    box = low - margin, high + margin
    return out | {"uniform": np.asarray(abilities.uniform_like(key, jnp.asarray(x1), *box))}


def _images_outside(key, x1: np.ndarray, blur: float) -> dict[str, np.ndarray]:
    """Sets made of nothing, and of the held-out images themselves."""
    low, high = float(x1.min()), float(x1.max())

    @jax.jit
    def made(key, x):
        keys = jax.random.split(key, 3)
        return {
            "constant": abilities.constant_like(keys[0], x, low, high),
            "uniform": abilities.uniform_like(keys[1], x, low, high),
            "shuffled": abilities.shuffled(keys[2], x),
            "blurred": abilities.blurred(x, blur),
        }

    out = {name: np.asarray(values) for name, values in made(key, x1).items()}
    return {name: out[name] for name in ("constant", "uniform", "shuffled", "blurred")}


def _other_images(exp: Experiment, path: str, num: int) -> np.ndarray:
    """Images from elsewhere in the size and channels of the data, [n, H, W, C]."""
    if not exp.data.pixels:
        raise UserError("--other names images, and this run was trained on none")
    height, width, channels = exp.data.shape
    place = Path(path).expanduser()
    if place.is_dir() or place.suffix == ".npz" or not place.exists():
        opened = sets.open_images(path)
        read, size = opened.read, opened.size
    else:
        section = {"name": "images", "path": path, "size": height, "channels": channels}
        section |= {"flip": False, "max_images": num}
        held = data.create(section, batch_size=1, seed=0, log=say).examples["test"]
        read, size = (lambda rows: held.gather(rows)["x1"]), held.size
    levels = read(np.random.default_rng(0).permutation(size)[:num])
    if levels.shape[1:] != exp.data.shape:
        if height != width:
            raise UserError(f"{path} has images of {levels.shape[1:]}, not {exp.data.shape}")
        sheets = (Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in levels)
        levels = np.stack([pixels.prepare(sheet, height, channels) for sheet in sheets])
    return pixels.to_unit(levels)


def _unlabelled(exp: Experiment) -> tuple[Callable | None, str]:
    """What stands for a label where there is none to give: n -> [n], and in words."""
    classes = exp.data.num_classes
    if not classes:
        return None, "none"
    if exp.config.label_dropout > 0:
        return lambda n: np.full(n, classes, np.int32), "the null class"
    draw = lambda n: np.random.default_rng(0).integers(0, classes, n).astype(np.int32)
    return draw, "labels drawn at random, held-out data included: no null class was trained"


def compose(
    subject: Subject,
    *,
    with_: str | None = None,
    classes: tuple[int, ...] = (),
    weights: tuple[float, ...] = (1.0, 1.0),
    on: str = "auto",
    num: int = 64,
    max_train: int = 10_000,
) -> Findings:
    """Samples of A, of B and of their sum (EqM section 5.4): two classes, or two checkpoints.

    with: the workdir of another run, whose newest checkpoint is B. classes: one label a model.
    weights: of A and B. on: direction or displacement (see abilities.compose); auto takes
    displacement under sphere tracing alone. max_train: training images that name a class.
    """
    exp = subject.exp
    runs = [(exp, subject.params, subject.step)]
    if with_ is not None:
        runs.append(_open_other(exp, with_))
    else:
        runs.append(runs[0])
        if len(classes) != 2:
            raise UserError("compose needs two classes of this run, as --classes=3,5, or --with=…")
    if len(weights) != 2:
        raise UserError(f"--weights needs two numbers, got {len(weights)}")
    names = [s.name for s in _stages(exp.config.sampler)]
    if on == "auto":
        on = "displacement" if set(names) == {"sphere_tracing"} else "direction"
    choose("--on", on, dict.fromkeys(("auto", "direction", "displacement")))
    if on == "displacement" and "hamiltonian" in names:
        raise UserError("--on=displacement has no energy for HMC: leave it out, or change sampler")
    parts = _parts(runs, classes)
    params = [p for _, p, _ in runs]
    alone = [_composed(exp, [part], [1.0], on) for part in parts]
    both = _composed(exp, parts, weights, on)
    x0, tick = source(subject, num), counter("samples", 3 * num)
    labels = ["A", "B", "A + B"]
    samples, nfe = {}, {}
    for label, one in zip(labels, [*alone, both], strict=True):
        out = sampler_from(subject._replace(exp=one))(params, x0, None, tick=tick)
        samples[label], nfe[label] = out["x"], float(out["nfe"].mean())
    rows = [{"samples": label, "nfe": nfe[label]} for label in labels]
    for which, part in zip(labels, parts, strict=False):
        score = scorer(exp._replace(objective=exp.objective._replace(field=part)))
        for row in rows:
            found = score(params, samples[row["samples"]], None)
            row |= {f"{name} of {which}": float(np.mean(v)) for name, v in found.items()}
    if exp.data.pixels and classes and with_ is None:
        voted = _nearest_classes(exp, samples, max_train)
        for row in rows:
            for which, number in zip(labels, classes, strict=False):
                row[f"nearest is {which}"] = float(np.mean(voted[row["samples"]] == number))
    figures = {
        "rows": rows,
        "A": {"step": runs[0][2], "class": classes[0] if classes else None},
        "B": {"workdir": with_, "step": runs[1][2], "class": classes[1] if classes else None},
        "weights": weights,
        "on": on,
        "samples": num,
        "guidance": "of each part" if exp.config.sample.guidance_scale != 1 else "none",
    }
    pictures = []
    if exp.data.pixels:
        pictures.append(study_figures.image_rows(subject.picture(""), samples, 2 * SHOWN))
    elif exp.data.shape == (2,):
        targets = [next(iter(training(e, PER_DRAWN))) for e, _, _ in runs]
        pictures.append(study_figures.clouds(subject.picture(""), samples, targets))
    return Findings(figures, _table(rows), pictures)


def _open_other(exp: Experiment, workdir: str) -> tuple[Experiment, Any, int]:
    """Another run's experiment, parameters and step; raises UserError where it does not fit."""
    folder = Path(workdir).expanduser().resolve()
    if not (folder / "checkpoints").exists() or not (folder / "config.json").exists():
        raise UserError(f"--with {folder} holds no checkpoints: name the workdir of a trained run")
    config = configuration.from_file(folder / "config.json")
    configuration.check(config)
    other = experiment.prepare(config, folder)
    for what, of in (
        ("the shape of the data", lambda e: e.data.shape),
        ("what the loss teaches", lambda e: KIND[e.config.loss.name]),
        ("the clock", lambda e: has_clock(e.config.loss)),
        ("whether there is a distance", lambda e: e.objective.output != "vector"),
    ):
        if of(exp) != of(other):
            raise UserError(
                f"--with {folder} cannot be added to this run: {what} differs ({of(exp)} here, "
                f"{of(other)} there)"
            )
    state, step = jobs.load_state(other, None, False)
    return other, generate.parameters(other, state), step


def _parts(runs: list, classes: tuple[int, ...]) -> list[Callable]:
    """For each of the runs: [params of each] -> its field, guided and under its class."""
    if classes and len(classes) != len(runs):
        raise UserError(f"--classes needs {len(runs)} labels, got {len(classes)}")
    section, parts = runs[0][0].config.sample, []
    scale, on = section.guidance_scale, section.guidance_on
    for i, (exp, _, _) in enumerate(runs):
        count = exp.data.num_classes
        if classes and not count:
            raise UserError(f"--classes: {exp.workdir} was trained without labels")
        if classes and not 0 <= classes[i] < count:
            raise UserError(
                f"--classes: {exp.workdir} has labels 0 to {count - 1}, not {classes[i]}"
            )
        if count and not classes and not exp.config.label_dropout:
            raise UserError(f"--classes is missing: {exp.workdir} knows no null class")
        label = jnp.int32(classes[i] if classes else count)

        def part(params, i=i, exp=exp, count=count, label=label) -> Field:
            field = exp.objective.field(params[i])
            if count and classes and scale != 1:
                field = guidance.classifier_free(field, scale, count, on=on)
            return abilities.conditioned(field, label) if count else field

        parts.append(part)
    return parts


def _composed(exp: Experiment, parts: list[Callable], weights, on: str) -> Experiment:
    """The experiment whose field is the sum of parts; its sampler guides no further."""

    def field(params) -> Field:
        return abilities.compose([part(params) for part in parts], weights, on=on)

    config = exp.config.copy_and_resolve_references()
    config.sample.guidance_scale = 1.0
    return _with_sampler(exp, config)._replace(objective=exp.objective._replace(field=field))


def _with_sampler(exp: Experiment, config) -> Experiment:
    """The experiment with the sampler of another config."""
    sampler = objectives.create_sampler(config, exp.data.num_classes, exp.objective.output)
    return exp._replace(config=config, sampler=sampler)


def _stages(section) -> list:
    """A sampler section and those nested in its `then`."""
    return [] if section is None else [section, *_stages(section.get("then"))]


def _nearest_classes(exp: Experiment, samples: dict, num: int) -> dict[str, np.ndarray]:
    """The label of the nearest training image of each sample."""
    examples = exp.data.examples["train"]
    batch = examples.gather(np.arange(min(num, examples.size)))
    points = _to_unit(batch["x1"])
    finite = lambda x: np.nan_to_num(x, posinf=1e6, neginf=-1e6)
    index = {name: abilities.nearest(finite(x), points).index[:, 0] for name, x in samples.items()}
    return {name: batch["label"][rows] for name, rows in index.items()}


def sweep(
    subject: Subject,
    *,
    step_sizes: tuple[float, ...] = (),
    num_steps: tuple[int, ...] = (),
    num: int = 256,
    metric: str = "auto",
    figure: str | None = None,
) -> Findings:
    """Step sizes and numbers of steps of the sampler's first stage (EqM Fig. 7).

    step_sizes: left out, 1/4 to 4 times the config's; of Euler and Heun they replace the length of
    each update, 1/num_steps, while the clock goes on as it was. num: samples of each. metric:
    frechet, point_cloud, none or auto (point_cloud for points). figure: the one that is plotted.
    """
    exp, section = subject.exp, subject.exp.config.sampler
    if section.name in sampling.SOLVERS:
        raise UserError(f"sampler {section.name!r} chooses its own steps: set config.sampler")
    num_steps = num_steps or (section.num_steps,)
    measure = make_metric(exp, metric, subject.seed, num)
    total = len(num_steps) * (len(step_sizes) or 5) * num
    rows, tick = [], counter("samples", total)
    for steps in num_steps:
        base = _step_size(section, steps)
        sizes = step_sizes or tuple(base * f for f in (0.25, 0.5, 1.0, 2.0, 4.0))
        run = _swept(subject, steps, base)
        for size in sizes:
            x, nfe, last = run(size, num, tick)
            fine = np.isfinite(x).reshape(len(x), -1).all(1)
            row = {"num_steps": steps, "step_size": size, "nfe": float(nfe.mean())}
            row["diverged"] = float(1 - fine.mean())
            row |= {f"final_{name}": float(v.mean()) for name, v in last.items()}
            if fine.all():
                row |= measure(x)
                choose("--figure", figure or "nfe", row)
            rows.append(row)
    known = dict.fromkeys(name for row in rows for name in row)
    preferred = [n for n in known if n == "chamfer" or n.startswith(("fid", "fd_"))]
    figure = figure or (*preferred, "final_gradient_norm")[0]
    choose("--figure", figure, known)
    figures = {
        "rows": rows,
        "plotted": figure,
        "samples": num,
        "noise": f"the same for all, of seed {subject.seed}",
        "configured": {"num_steps": section.num_steps, "step_size": _step_size(section, None)},
    }
    pictures = [study_figures.sweeps(subject.picture(""), rows, figure)]
    return Findings(figures, _table(rows), pictures)


# Samplers whose step is linear in the field: a scaled field has a scaled step.
LINEAR = ("gradient_descent", "nesterov", "sphere_tracing", "euler", "heun")


def _step_size(section, num_steps: int | None) -> float:
    """The step of a sampler section; of a clock, its share of [0, 1]."""
    if "step_size" in section:
        return float(section.step_size)
    parameters = inspect.signature(sampling.SAMPLERS[section.name]).parameters
    if "step_size" in parameters:
        return float(parameters["step_size"].default)
    return 1 / (num_steps or section.num_steps)


def _swept(subject: Subject, num_steps: int, base: float) -> Callable:
    """run(step_size, num, tick) -> (x, nfe, scores at x), with one program where that can be."""
    exp, section = subject.exp, subject.exp.config.sampler
    by_norm = (section.get("stop") or {}).get("name") == "gradient_norm"
    linear = section.name in LINEAR and section.get("then") is None and not by_norm
    score = scorer(exp)

    def configured(objective=exp.objective, **fields) -> Callable:
        config = exp.config.copy_and_resolve_references()
        config.sampler.update(num_steps=num_steps, **fields)
        return sampler_from(subject._replace(exp=exp._replace(config=config, objective=objective)))

    def field(held) -> Field:
        return abilities.scaled(exp.objective.field(held["params"]), held["factor"])

    once = configured(exp.objective._replace(field=field)) if linear else None

    def run(step_size: float, num: int, tick: Callable):
        start, cond = source(subject, num), _labels(exp, num)
        if linear:
            held = {"params": subject.params, "factor": np.float32(step_size / base)}
            out = once(held, start, cond, tick=tick)
        else:
            out = configured(step_size=step_size)(subject.params, start, cond, tick=tick)
        return out["x"], out["nfe"], score(subject.params, out["x"], cond)

    return run


def neighbours(
    subject: Subject,
    *,
    num: int = 256,
    k: int = 3,
    features: str = "auto",
    max_train: int = 50_000,
    shown: int = 8,
) -> Findings:
    """The training examples nearest to samples, beside those nearest to held-out data (EqM Fig. 5).

    num: samples, and held-out examples at most. k: neighbours. features: a feature network, none,
    or auto (config.evaluate.features; left out where its weights cannot be had).
    max_train: training examples that are searched. shown: samples in the picture.
    """
    exp = subject.exp
    if exp.data.train is None:
        raise UserError(f"data {exp.config.data.name!r} are drawn anew each step: nothing to find")
    x1, _ = heldout(exp, num)
    draw = generate.make_drawer(exp)
    made = draw(subject.params, num, subject.seed, _from_zero(counter("samples", num))).x
    if exp.data.pixels:  # as they are written to files
        made = pixels.to_unit(pixels.to_uint8(made, exp.config.sample.rounding))
    size = min(max_train, exp.data.examples["train"].size)
    tick = lambda what: jobs.told(logbook.Progress(what, size, unit="examples"))
    spaces = {"pixels" if exp.data.pixels else "data": (made, x1, training(exp, max_train))}
    network = None
    if exp.data.pixels and features != "none":
        network, extract = _extractor(exp, features)
        if network is not None:
            blocks = (extract(x) for x in training(exp, max_train))
            spaces[network["network"]] = extract(made), extract(x1), blocks
    rows, figures, found = [], {}, {}
    for name, (ours, held, points) in spaces.items():
        both = abilities.nearest(np.concatenate([ours, held]), points, k, on_block=tick(name))
        mine, theirs = (abilities.Neighbours(*(a[i] for a in both)) for i in _cut(len(ours)))
        near, usual = mine.distance[:, 0], theirs.distance[:, 0]
        close = float(np.quantile(usual, 0.01))
        row = {
            "space": name,
            "samples": float(np.median(near)),
            "heldout": float(np.median(usual)),
            "ratio": float(np.median(near) / np.median(usual)),
            "closest_sample": float(near.min()),
            "closest_heldout": float(usual.min()),
            "closer_than_1%": float((near < close).mean()),
            "auroc": detection.auroc(near, usual),
        }
        rows.append(row)
        found[name] = mine, near, usual
        figures[name] = {
            "samples": _quantiles(near),
            "heldout": _quantiles(usual),
            "nearest": [
                {
                    "sample": i,
                    "index": mine.index[i].tolist(),
                    "distance": mine.distance[i].tolist(),
                }
                for i in range(min(shown, num))
            ],
        }
    figures |= {
        "rows": rows,
        "columns": "medians of the distance to the nearest training example; closer_than_1%: share "
        "of samples nearer than 99% of held-out examples; auroc: P(a held-out example is further "
        "from the training set than a sample), 0.5 where they are alike",
        "samples": num,
        "heldout": len(x1),
        "training_examples": size,
        "k": k,
        "network": network,
    }
    distances = {
        label: {f"distance to the nearest in {name}": each[i] for name, each in found.items()}
        for i, label in ((2, "held-out"), (1, "samples"))
    }
    pictures = [study_figures.histograms(subject.picture("_distances"), distances)]
    if exp.data.pixels:
        examples = exp.data.examples["train"]
        for name, (mine, *_) in found.items():
            columns = {"samples": made[:shown]}
            for rank in range(k):
                rows_of = mine.index[:shown, rank]
                columns[f"nearest {rank + 1}"] = _to_unit(examples.gather(rows_of)["x1"])
            tail = "" if name == "pixels" else "_features"
            title = f"nearest training images in {name}"
            pictures.append(
                study_figures.image_rows(subject.picture(tail), columns, shown, title=title)
            )
    return Findings(figures, _table(rows), pictures)


def _cut(n: int) -> tuple[slice, slice]:
    return slice(0, n), slice(n, None)


def _from_zero(tick: Callable[[int], None]) -> Callable[[int], None]:
    """`tick(n)` as an `on_batch(done)`."""
    last = 0

    def on_batch(done: int) -> None:
        nonlocal last
        tick(done - last)
        last = done

    return on_batch


def _extractor(exp: Experiment, name: str) -> tuple[dict | None, Callable | None]:
    """What the network is, and images in [-1, 1] -> pool features; None where it has no weights.

    Raises:
      UserError: a network that was asked for by name cannot be had.
    """
    config = exp.config.copy_and_resolve_references()
    if name != "auto":
        config.evaluate.features = name
    try:
        judge = images.create_judge(config.evaluate, exp.mesh, ("precision_recall",))
    except UserError as error:
        if name != "auto" or config.evaluate.features != "auto":
            raise
        say(f"no neighbours in features: {error}")
        return None, None
    facts = card.of_features(judge)
    return facts, lambda x: _statistics(judge, pixels.to_uint8(x)).features["pool"]


def diagnose(
    subject: Subject, *, num: int = 2048, bins: int = 10, num_samples: int = 64
) -> Findings:
    """How right a distance is, and how it falls along sampling (DM Fig. 14, 30, 31).

    num: pairs of noise and held-out data, each at a time of its own, uniform on [0, 1). bins: of t
    and of r. num_samples: whose sampling is followed.
    """
    exp = subject.exp
    if exp.config.loss.name != "distance_marching":
        raise UserError(f"diagnose needs distance_marching, not {exp.config.loss.name!r}")
    c0, path = float(exp.config.loss.c0), paths.PATHS[exp.config.path]
    x1, labels = heldout(exp, num)
    n = len(x1)
    couple = bind("coupling", couplings.COUPLINGS, exp.config.coupling, ("x0", "x1"))
    x0 = jnp.asarray(source(subject, n))
    t = ((np.random.default_rng(subject.seed).permutation(n) + 0.5) / n).astype(np.float32)
    try:
        x = np.asarray(jax.jit(lambda x0: paths.interpolate(path, couple(x0, x1), x1, t).x)(x0))
    except ValueError as error:
        raise UserError(f"config.coupling cannot pair --num={n}: {error}") from error

    def errors(field, index, x, x1, cond):
        output = field(x, None, cond)
        return abilities.distance_errors(output, x, x1, c0) | {"u": output.distance}

    over, targets = on_batches(exp, errors), {"x1 of the pair": x1}
    if exp.data.draw is not None:  # training may rematch: the nearest point is what u can know
        [points] = training(exp, PER_DRAWN)
        targets["the nearest data"] = points[abilities.nearest(x, points).index[:, 0]]
    tick = counter("pairs", n * len(targets), "pairs")
    rows, figures = [], {}
    for name, target in targets.items():
        out = over(subject.params, x, target, labels, tick=tick)
        edges = {"t": np.linspace(0, 1, bins + 1), "r": np.linspace(0, out["r"].max(), bins + 1)}
        by = {"t": t, "r": out["r"]}
        row = {"r_to": name}
        for which in ("distance", "displacement"):
            row |= {f"{which}_mape": float(out[which].mean())}
            row |= {f"{which}_median": float(np.median(out[which]))}
        row["distance_below_5%"] = float((out["distance"] < 0.05).mean())
        row["u_over_r"] = float(np.median(out["u"] / np.sqrt(out["r"] ** 2 + c0)))
        rows.append(row)
        figures[name] = {
            axis: {
                which: {"edges": edges[axis]} | abilities.binned(out[which], by[axis], edges[axis])
                for which in ("distance", "displacement")
            }
            for axis in by
        }
    curves = _follow(subject, num_samples)
    last = {name: values[-1] for name, values in curves.items()}
    figures |= {
        "rows": rows,
        "c0": c0,
        "pairs": n,
        "r": f"|x_t - x1|; the nearest data: of {PER_DRAWN:,} drawn points. distance: u against "
        "sqrt(r² + c0); displacement: |u v| against r. u_over_r: median of u / sqrt(r² + c0)",
        "sampling": {
            name: {"mean": values.mean(1)}
            | {f"q{round(100 * q):02}": np.quantile(values, q, axis=1) for q in QUANTILES}
            for name, values in curves.items()
        },
        "samples": num_samples,
        "end": {name: _quantiles(values) for name, values in last.items()},
        "sqrt_c0": math.sqrt(c0),
    }
    pictures = [
        study_figures.errors(subject.picture(""), {name: figures[name] for name in targets}),
        study_figures.descent(subject.picture("_sampling"), curves, math.sqrt(c0)),
    ]
    return Findings(figures, _table(rows), pictures)


def _follow(subject: Subject, num: int) -> dict[str, np.ndarray]:
    """`abilities.along` of samples 0 … num - 1: {name: [steps + 1, num]}."""
    exp = subject.exp
    draw = generate.make_drawer(exp, trace=1)
    out = draw(subject.params, num, subject.seed, _from_zero(counter("followed", num)))
    over = on_batches(
        exp,
        lambda field, index, trace, cond: {
            name: values.T
            for name, values in abilities.along(field, jnp.swapaxes(trace, 0, 1), cond).items()
        },
    )
    curves = over(subject.params, np.swapaxes(out.trace, 0, 1), _labels(exp, num))
    return {name: np.asarray(values).T for name, values in curves.items()}


STUDIES: dict[str, Callable[..., Findings]] = {
    "compose": compose,
    "denoise": denoise,
    "diagnose": diagnose,
    "neighbours": neighbours,
    "ood": ood,
    "sweep": sweep,
}

# The command


def options(study: Callable) -> dict[str, inspect.Parameter]:
    """The options of a study by flag: its keyword-only arguments."""
    parameters = inspect.signature(study).parameters.values()
    return {p.name.rstrip("_"): p for p in parameters if p.kind is p.KEYWORD_ONLY}


def _value(flag: str, text: str, wanted) -> Any:
    """The text of an option as `wanted`: a number, a string, or several numbers with commas."""
    if typing.get_origin(wanted) is tuple:
        kind = typing.get_args(wanted)[0]
        return tuple(_value(flag, part, kind) for part in text.split(",") if part.strip())
    if wanted not in (int, float):
        return text
    try:
        value = wanted(text)
    except ValueError:
        says = "a whole number" if wanted is int else "a number"
        raise UserError(f"--{flag}={text} must be {says}") from None
    if not math.isfinite(value):
        raise UserError(f"--{flag} must be finite, got {value}")
    return value


# Options where zero, or less, means something.
ANY_NUMBER = ("times", "classes", "weights")


def parse(argv: list[str]) -> tuple[str, dict[str, Any], Any, list[str]]:
    """A command line: the study, its options, main's flags, and the overrides of the config.

    Raises:
      UserError: unknown study or flag, a value of the wrong type.
    """
    if len(argv) < 2 or argv[1].startswith("-"):
        raise UserError(f"name a study first: {', '.join(STUDIES)}. --help says what they do")
    name = argv[1]
    known, chosen, rest = options(choose("study", name, STUDIES)), {"name": name}, argv[:1]
    given = iter(argv[2:])
    for argument in given:
        flag, equals, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or flag not in (*known, "name"):
            rest.append(argument)
            continue
        text = text if equals else next(given, "-")
        if not equals and text.startswith("-"):
            raise UserError(f"--{flag} needs a value, as --{flag}=…")
        chosen[flag] = text if flag == "name" else _value(flag, text, known[flag].annotation)
        values = chosen[flag] if isinstance(chosen[flag], tuple) else [chosen[flag]]
        if not len(values):
            raise UserError(f"--{flag} is empty: give one value or several, with commas")
        for value in values:
            if isinstance(value, int | float) and flag not in ANY_NUMBER and value <= 0:
                raise UserError(f"--{flag} must be positive, got {value}")
    flags = [*program.parse(argv[:1])[0], *known, "name", "config.<section>.<field>"]
    for argument in rest[1:]:
        flag = re.match(r"--?(?:no)?([a-z_]\w*)(?!\w|\.)", argument)
        if flag:
            choose(f"flag of {name}", flag[1], dict.fromkeys(flags))
    return name, chosen, *program.parse(rest)


def usage() -> str:
    """What --help prints: a line a study, and its options with their defaults."""
    lines = [__doc__, "Studies:"]
    for name, study in STUDIES.items():
        first, *rest = inspect.getdoc(study).split("\n\n")
        lines.append(f"\n  {name}: {first}")
        shown = {flag: p.default for flag, p in options(study).items()}
        plain = lambda v: ",".join(f"{x:g}" for x in v) if isinstance(v, tuple) else v
        lines.append("    " + " ".join(f"--{flag}={plain(v)}" for flag, v in shown.items()))
        lines += [f"    {line}" for part in rest for line in part.splitlines()]
    lines += [
        "",
        "Each takes --name (of its files; the study's own where left out), --step=N or --best",
        "(which checkpoint), and overrides of the config, as --config.sampler.num_steps=100;",
        "--config.sample.seed sets the noise.",
    ]
    return "\n".join(lines)


def run(argv: list[str]) -> None:
    """Runs a command line to its end."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(usage())
        return
    name, chosen, values, overrides = parse(argv)
    for flag in ("mode", "samples", "distributed", "coordinator"):  # a study is of one process
        if values[flag].present:
            raise UserError(f"--{flag} is not for studies: leave it out")
    if not values.workdir:
        raise UserError("--workdir is missing: the folder of the run to study")
    workdir = Path(values.workdir).expanduser().resolve()
    values["mode"].value = "evaluate"  # what a study needs of a workdir is what evaluation needs
    program.check_flags(values, workdir)
    config = program.load_config(values, overrides, workdir)
    print(f"genfield: study {name} of {config.loss.name} in {workdir}", flush=True)
    program.check_devices()
    exp = experiment.prepare(config, workdir)
    jobs.check(exp)
    program.describe(exp)
    preemption.begin()
    state, step = jobs.load_state(exp, values.step, values.best)
    file = chosen.pop("name")
    if not re.fullmatch(r"[\w.-]+", file):
        raise UserError(f"--name={file} must be a plain file name, without its ending")
    folder = workdir / "studies"
    jobs.make_folder(folder)
    seed = config.seed + config.sample.seed
    picture = lambda tail: folder / f"{file}{tail}.png"
    params = generate.parameters(exp, state)
    arguments = {
        known.name: chosen.get(flag, known.default)
        for flag, known in options(STUDIES[name]).items()
    }
    found = STUDIES[name](Subject(exp, params, step, seed, picture), **arguments)
    path = folder / f"{file}.json"
    written = {
        "study": name,
        "figures": found.figures,
        "options": {known: arguments[p.name] for known, p in options(STUDIES[name]).items()},
        "seed": seed,
        "training": card.of_training(exp, step, params),
        "parameters": "ema" if generate.averaged(exp) else "raw",
        "sampler": configuration.to_dict(config.sampler),
        "sample": configuration.to_dict(config.sample),
        "versions": logbook.versions(),
        "device": jax.devices()[0].device_kind,
    }
    logbook.write_json(path, _plain(written))
    say("\n" + evaluation.columns(found.table))
    say("\n".join([f"figures: {path}", *(f"picture: {p}" for p in found.pictures)]))


def _table(rows: list[dict]) -> list[tuple]:
    """Rows with names as cells of text under one head."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cell = lambda v: "-" if v is None else v if isinstance(v, str) else f"{v:.4g}"
    return [tuple(names), *(tuple(cell(row.get(name)) for name in names) for row in rows)]


def _plain(value):
    """As JSON has it; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def main(argv: list[str]) -> int:
    """Runs a command line; returns the exit code."""
    return program.main(argv, run)


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"genfield: warning: {message}\n"
    try:
        code = main(sys.argv)
    except Exception:
        traceback.print_exc()
        code = 1
    sys.exit(code)
