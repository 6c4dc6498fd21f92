"""Which pictures a state gets: level sets, trajectories, curves, grids, series."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from genfield import rng
from genfield.data.pixels import to_uint8
from genfield.figures import run as figures
from genfield.machine import logbook, preemption, processes, sharding
from genfield.program import evaluate as evaluation
from genfield.program import generate
from genfield.program.experiment import Experiment
from genfield.program.parts import one_level

TRACED = 2_000  # points of a scatter plot and its trajectories
SERIES = 8  # sequences in a picture


def draw(exp: Experiment, params, step: int, samples=None) -> list:
    """Pictures of parameters: points get level sets and trajectories, images a grid.

    All processes compute what is shown, and process 0 draws it. `samples` are images that are there
    already.
    """
    seed = exp.config.seed + exp.config.sample.seed
    pictures = _pictures(exp, params, step, seed, samples)
    with processes.together():
        return [make() for make in pictures] if jax.process_index() == 0 else []


def _pictures(exp: Experiment, params, step: int, seed: int, samples) -> list[Callable]:
    """What makes each picture, of arrays that are there: no more is computed of parameters."""
    folder, shape = exp.workdir, exp.data.shape
    poll = lambda done, note="": preemption.poll()
    grid = folder / "samples" / f"step_{step}.png"
    curves = []
    if exp.weights is None:  # else trained elsewhere
        rows = lambda: logbook.read_metrics(folder)
        curves = [lambda: figures.curves(named(exp, "loss"), rows())]
    if len(shape) < 3 and exp.data.draw is None and shape != (2,):
        if len(shape) != 2:
            return curves
        samples = generate.make_drawer(exp)(params, SERIES, seed, poll).x
        with processes.together():
            real = exp.data.examples["train"].gather(np.arange(SERIES))["x1"]
        path = grid.with_suffix(f".{exp.config.figures.format}")
        return [lambda: figures.series(path, samples, real), *curves]
    if len(shape) != 1:
        if samples is None:
            count = evaluation.pictured(exp.config)
            samples = drawn(exp, generate.make_drawer(exp), params, count, seed, poll)
        return [lambda: figures.image_grid(grid, samples), *curves]
    out = generate.make_drawer(exp, trace=1)(params, TRACED, seed, poll)
    return [*curves, *(_of_points(exp, params, out) if shape == (2,) else [])]


def _of_points(exp: Experiment, params, out) -> list[Callable]:
    """Level sets of the field, and the ways of samples in the plane."""
    target = evaluation.target_points(exp, exp.config.seed + 1, 4_000)
    method = exp.objective.method
    name, source = method.name.replace("_", " "), source_points(exp)
    time = _time_of_picture(exp) if exp.objective.clock else None
    whole = sharding.replicated(exp.mesh)
    run = jax.jit(lambda params, *at: exp.objective.field(params)(*at), out_shardings=whole)
    field = functools.partial(run, params)  # parameters that are split cannot be closed over
    known = figures.on_grids(field, figures.extent_of(out.x, target, source), time)
    descend = dict(descend=method.teaches == "gradient", t=time, title=name)
    clouds = (known, out.x, target, source)
    pictures = [lambda: figures.level_sets(named(exp, "level_sets"), *clouds, **descend)]
    if out.trace is not None:
        path = named(exp, "trajectories")
        pictures.append(lambda: figures.trajectories(path, out.trace, title=name))
    return pictures


def drawn(
    exp: Experiment, draw: Callable, params, num: int, seed: int, poll: Callable
) -> np.ndarray:
    """`num` samples for a grid, on the host: uint8 where they are images, or are decoded.

    draw: of `generate.make_drawer`. poll: called meanwhile; may raise to stop.
    """
    samples = draw(params, num, seed, poll).x
    if exp.decoder is not None:
        return exp.decoder.on_host(samples, levels=True, tick=poll)
    return to_uint8(samples) if exp.data.pixels else samples


def named(exp: Experiment, name: str) -> Path:
    """Where a figure of a run goes, in the format of its config."""
    return exp.workdir / "figures" / f"{name}.{exp.config.figures.format}"


def _time_of_picture(exp: Experiment) -> float:
    """The time at which a field is drawn: half way, or the one noise level."""
    level = one_level(exp.config, exp.methods)
    return 0.5 if level is None else level


def source_points(exp: Experiment, num: int = 2_000) -> np.ndarray:
    """Points of the source, for the extent of a picture."""
    key = rng.stream(exp.config.seed + 1, "source")
    if exp.data.draw_source is None:
        return np.asarray(jax.random.normal(key, (num, *exp.data.shape)))
    return np.asarray(exp.data.draw_source(key, num))
