"""The package's models of two moons: their fields in one plane, and how their samples go.

Models of eight Gaussians start there; the others at normal noise. Samplers down noise levels move
x = x1 + σ x0, which starts 80 times as far out: it is shown as z = x / (1 + σ), the same point of
the straight path at t = 1 / (1 + σ).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield import pretrained, rng, sampling
from genfield.data import toys
from genfield.fields import Prediction
from genfield.figures import style
from genfield.metrics import path_geometry
from genfield.sampling.diffusion import noise_levels

BOX = (-7.0, 7.0)
EXTENT = (*BOX, *BOX)
LEVEL = 0.2  # at which the model of Flux Matching knows the score
MIDDLE = 0.5  # of the path: where fields with a clock are shown


class Method(NamedTuple):
    """How a model of the plane is drawn.

    Attributes:
      model: of the zoo. colour: the method's, in every picture. how: its sampler, in a word or
        two. march: (model, num) -> a Walk of `num`
        samples.
    """

    model: str
    colour: str
    how: str
    march: Callable


class Walk(NamedTuple):
    """How samples went.

    Attributes:
      trace: positions, [K+1, N, 2]. nfe: evaluations a sample. times: of the positions, [K+1],
        where they are not even. counts: evaluations up to each, [K+1]; None: as many for each step.
    """

    trace: np.ndarray
    nfe: float
    times: np.ndarray | None = None
    counts: np.ndarray | None = None

    def evaluations(self, place: float) -> float:
        """How many it took up to a place between 0 and K."""
        steps = np.arange(len(self.trace))
        counts = steps * self.nfe / steps[-1] if self.counts is None else self.counts
        return float(np.interp(place, steps, counts))


@functools.cache
def opened(name: str):
    """A model of the zoo; to be opened outside of what is compiled."""
    return pretrained.load(name)


def target(num: int, seed: int = 0) -> np.ndarray:
    """Points of two moons."""
    return np.asarray(jax.jit(toys.two_moons, static_argnums=1)(rng.stream(seed, "target"), num))


def source(num: int, normal: bool, seed: int = 1) -> jax.Array:
    """Where samples start."""
    key = rng.stream(seed, "source")
    if normal:
        return jax.random.normal(key, (num, 2))
    return jax.jit(toys.eight_gaussians, static_argnums=1)(key, num)


def _follow(*stages) -> Callable:
    """A march from eight Gaussians by samplers of x itself: (sampler, steps, calls a step)."""
    counts = np.cumsum([0, *np.concatenate([[calls] * steps for _, steps, calls in stages])])
    stages = [stage[:2] for stage in stages]

    @functools.partial(jax.jit, static_argnums=1)
    def go(key, field, x0):
        return sampling.chain(key, field, x0, stages, trace=1)

    def march(model: str, num: int) -> Walk:
        out = go(rng.stream(2, "sampler"), opened(model).field, source(num, False))
        return Walk(np.asarray(out.trace), float(out.nfe.mean()), counts=counts)

    return march


def _down_levels(sampler, levels, num_steps: int) -> Callable:
    """A march down noise levels, as one of the straight path."""

    @functools.partial(jax.jit, static_argnums=1)
    def go(key, field, x0):
        out = sampling.sample(key, field, x0, sampler, num_steps=num_steps, trace=1)
        trace = out.trace.at[0].multiply(levels[0])  # the noise is traced as it was given
        return path_geometry.on_linear_path(trace, levels), out.nfe

    def march(model: str, num: int) -> Walk:
        (z, times), nfe = go(rng.stream(2, "sampler"), opened(model).field, source(num, True))
        return Walk(np.asarray(z), float(nfe.mean()), np.asarray(times))

    return march


def _langevin(step_size: float, num_steps: int, trace: int) -> Callable:
    """Langevin dynamics along the score of the moons smoothed by LEVEL."""

    @functools.partial(jax.jit, static_argnums=1)
    def go(key, field, x0):
        uphill = lambda x, t=None, cond=None: -field(x, jnp.full(len(x), LEVEL), cond)
        sampler = sampling.langevin(step_size)
        return sampling.sample(key, uphill, x0, sampler, num_steps=num_steps, trace=trace)

    def march(model: str, num: int) -> Walk:
        out = go(rng.stream(2, "sampler"), opened(model).field, source(num, True))
        return Walk(np.asarray(out.trace), float(out.nfe.mean()))

    return march


EDM_STEPS, LINES = 18, (0, 1)
EULER = (sampling.euler(), 100, 1)
METHODS = {
    "Flow matching": Method("two_moons/flow_matching", style.SKY, "Euler", _follow(EULER)),
    "DANSM": Method("two_moons/greedy_matching", style.ORANGE, "Euler", _follow(EULER)),
    "EDM": Method(
        "two_moons/edm",
        style.BLACK,
        "Heun",
        _down_levels(sampling.edm_heun(), noise_levels(EDM_STEPS), EDM_STEPS),
    ),
    "Lines Matching": Method(
        "two_moons/lines",
        style.PURPLE,
        "two jumps",
        _down_levels(
            sampling.multistep(LINES, noise="line"),
            jnp.append(noise_levels(EDM_STEPS)[jnp.asarray(LINES)], 0.0),
            len(LINES),
        ),
    ),
    "Flux Matching": Method(
        "two_moons/flux_matching", style.GREEN, "Langevin", _langevin(0.002, 2_000, 20)
    ),
    "Equilibrium Matching": Method(
        "two_moons/equilibrium_matching",
        style.VERMILION,
        "descent",
        _follow((sampling.gradient_descent(0.0025), 100, 1)),
    ),
    "Distance Marching": Method(
        "two_moons/distance_marching",
        style.BLUE,
        "march, HMC",
        _follow((sampling.sphere_tracing(0.2), 20, 1), (sampling.hamiltonian(), 16, 6)),
    ),
}


def field_of(title: str) -> Callable:
    """(x [B, 2]) -> where samples go at x, with a scalar where the field has one.

    Fields with a clock at the middle of the path, of Flux Matching at its level.
    """
    model = opened(METHODS[title].model)
    info = model.info

    def at(x):
        if info.teaches == "denoiser":  # at z, t: of x = z / t at σ = (1 - t) / t
            clean = model.field(x / MIDDLE, jnp.full(len(x), (1 - MIDDLE) / MIDDLE))
            return (clean - x) / (1 - MIDDLE)
        time = None
        if info.clock:
            time = jnp.full(len(x), LEVEL if info.teaches == "score" else MIDDLE)
        output = model.field(x, time)
        if info.teaches != "gradient":
            return output
        if isinstance(output, Prediction):
            return output._replace(direction=-output.direction)
        return -output

    return jax.jit(at)
