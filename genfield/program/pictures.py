"""Which pictures a state gets: level sets, trajectories, curves, grids, series."""

from collections.abc import Callable

import jax
import numpy as np

from genfield import rng
from genfield.data.pixels import to_uint8
from genfield.figures import run as figures
from genfield.machine import logbook, preemption
from genfield.program import evaluate as evaluation
from genfield.program import generate
from genfield.program.experiment import Experiment
from genfield.program.parts import one_level

TRACED = 2_000  # points of a scatter plot and its trajectories
SERIES = 8  # sequences in a picture


def draw(exp: Experiment, params, step: int, samples=None) -> list:
    """Pictures of parameters: points get level sets and trajectories, images a grid.

    `samples` are images that are there already.
    """
    folder, seed = exp.workdir, exp.config.seed + exp.config.sample.seed
    poll = lambda done, note="": preemption.poll()

    def curves() -> list:
        if exp.weights is not None:  # trained elsewhere
            return []
        return [figures.curves(folder / "figures" / "loss.png", logbook.read_metrics(folder))]

    if len(exp.data.shape) < 3 and exp.data.draw is None and exp.data.shape != (2,):
        if len(exp.data.shape) != 2:
            return curves()
        samples = generate.make_drawer(exp)(params, SERIES, seed, poll).x
        real = exp.data.examples["train"].gather(np.arange(SERIES))["x1"]
        return [figures.series(folder / "samples" / f"step_{step}.png", samples, real), *curves()]
    if len(exp.data.shape) != 1:
        if samples is None:
            count = evaluation.pictured(exp.config)
            samples = drawn(exp, generate.make_drawer(exp), params, count, seed, poll)
        if jax.process_index() != 0:
            return []
        grid = figures.image_grid(folder / "samples" / f"step_{step}.png", samples)
        return [grid, *curves()]
    out = generate.make_drawer(exp, trace=1)(params, TRACED, seed, poll)
    if jax.process_index() != 0:
        return []
    target = evaluation.target_points(exp, exp.config.seed + 1, 4_000)
    method, clock = exp.objective.method, exp.objective.clock
    name = method.name.replace("_", " ")
    paths = curves()
    if exp.data.shape == (2,):
        field = jax.jit(exp.objective.field(params))
        paths.append(
            figures.level_sets(
                folder / "figures" / "level_sets.png",
                field,
                out.x,
                target,
                source_points(exp),
                descend=method.teaches == "gradient",
                t=_time_of_picture(exp) if clock else None,
                title=name,
            )
        )
        if out.trace is not None:
            path = folder / "figures" / "trajectories.png"
            paths.append(figures.trajectories(path, out.trace, title=name))
    return paths


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
