"""Samplers of few steps for models that go from any noise level to the data at once."""

import jax
import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.paths import TimeSampler
from genfield.registry import Positive
from genfield.rng import normal
from genfield.sampling.core import Sampler, advance, start
from genfield.sampling.diffusion import RHO, SIGMA_MAX, SIGMA_MIN, noise_levels

NOISES = ("fresh", "line")


def schedule(
    indices: tuple[int, ...] | None = None,
    schedule_steps: int = 18,
    sigma_min: Positive = SIGMA_MIN,
    sigma_max: Positive = SIGMA_MAX,
    rho: Positive = RHO,
) -> TimeSampler:
    """Noise levels to train on: one of EDM's schedule, each as likely.

    indices: None for all of `diffusion.noise_levels`; those that a sampler will use train for them
    alone (LMM's sampling-optimised training).
    """
    chosen = _chosen(range(schedule_steps) if indices is None else indices, schedule_steps)
    levels = noise_levels(schedule_steps, sigma_min, sigma_max, rho)[jnp.asarray(chosen)]
    return lambda key, n: jax.random.choice(key, levels, (n,))


def _chosen(indices, schedule_steps: int) -> list[int]:
    """The indices as a list; ValueError unless they rise from 0 within the schedule."""
    indices = list(indices)
    rising = indices == sorted(set(indices)) and indices[:1] == [0]
    if not rising or indices[-1] >= schedule_steps:
        raise ValueError(
            f"indices of noise levels rise from 0 and stay below {schedule_steps}, unlike {indices}"
        )
    return indices


def multistep(
    indices: tuple[int, ...] = (0,),
    schedule_steps: int = 18,
    sigma_min: Positive = SIGMA_MIN,
    sigma_max: Positive = SIGMA_MAX,
    rho: Positive = RHO,
    noise: str = "fresh",
) -> Sampler:
    """x <- N(x, σ) + σ' η over chosen levels of EDM's schedule (LMM appendix E); for a denoiser.

    As many evaluations as `indices`, which `sample` takes as its number of steps.

    Args:
      indices: of the levels, rising from 0, among the `schedule_steps` of `diffusion.noise_levels`:
        (0,), (0, 1), (0, 1, 2) or (0, 3, 5), and (0, 1, 3, 5) in LMM's tables.
      noise: "fresh": η is drawn anew (LMM, as consistency models do). It shrinks coordinates whose
        pairing is the identity: a variance of v becomes (v + σ'²) / (1 + σ')² in a step. "line": η
        is the noise that x has, (x - N) / σ: x goes along its line, and no variance is lost.
    Raises:
      ValueError: indices that do not rise from 0 within the schedule, or an unknown noise.
    """
    if noise not in NOISES:
        raise ValueError(f"unknown noise {noise!r}; known: {', '.join(NOISES)}")
    chosen = jnp.asarray(_chosen(indices, schedule_steps))
    levels = jnp.append(noise_levels(schedule_steps, sigma_min, sigma_max, rho)[chosen], 0.0)

    def init(x, num_steps):
        if num_steps != len(indices):
            raise ValueError(f"multistep takes {len(indices)} steps, not {num_steps}")
        return start(levels[0] * x, memory=jnp.int32(0))

    def step(key, field, state, cond):
        k = state.memory
        sigma, following = levels[k], levels[k + 1]
        end = field(state.x, jnp.full(state.x.shape[:1], sigma), cond)
        eta = normal(key, state.x) if noise == "fresh" else (state.x - end) / sigma
        return advance(state, end + following * eta, 1, memory=k + 1)

    return Sampler(init=init, step=step)


def _chosen_levels(bound, num_steps: int) -> Array:
    names = ("schedule_steps", "sigma_min", "sigma_max", "rho")
    levels = noise_levels(*(bound[name] for name in names))
    return levels[jnp.asarray([*bound["indices"], -1])]


METHODS = (
    registry.Sampler(
        name="multistep",
        make=multistep,
        follows="denoiser",
        clock=True,
        noisy=lambda b: b["noise"] == "fresh" and len(b["indices"]) > 1,
        needs_output=None,
        product="direction",
        step_scales_field=False,
        levels=_chosen_levels,
        steps=lambda bound: len(bound["indices"]),
        adaptive=False,
    ),
    registry.TimeLaw(name="schedule", make=schedule, noise_levels=True, one=None),
)
