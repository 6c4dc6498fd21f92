"""Samplers down the noise levels of the variance-exploding process x = x1 + σ ε.

EDM's (Karras et al., arXiv:2206.00364) follow a denoiser D(x, σ) = E[x1 | x]. The others (Song et
al., arXiv:2011.13456; Flux Matching's Algorithm 3) follow a score ∇ log p_σ(x), or a generative
field f(x, σ) in its place. Both are fields called with σ [B] where others take t. `sample` starts
them at x ~ N(0, I), which their `init` scales by sigma_max.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield import registry
from genfield.fields import Field, expand, squared_norm
from genfield.registry import NotNegative, Positive
from genfield.rng import normal, split
from genfield.sampling.core import Sampler, State, advance, start

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # EDM Table 1; Flux Matching Table 4
SIGMA_DATA = 0.5  # EDM Table 1: of images in [-1, 1]
RHO = 7.0  # EDM Table 1: how much closer the steps are at low noise
CORRECTOR_RATIO = 0.16  # signal-to-noise ratio of Algorithm 3, from arXiv:2011.13456, Table 5
MAX_CHURN = math.sqrt(2) - 1  # EDM Algorithm 2: a step at most doubles the noise's variance


def check_noise_levels(sigma_min: float, sigma_max: float, num_steps: int = 1) -> None:
    """Raises ValueError unless 0 < sigma_min < sigma_max < inf and num_steps >= 1."""
    if not 0 < sigma_min < sigma_max < math.inf or num_steps < 1:
        raise ValueError(
            f"noise levels need 0 < sigma_min < sigma_max < inf and num_steps >= 1, got "
            f"sigma_min={sigma_min}, sigma_max={sigma_max}, num_steps={num_steps}"
        )


def noise_levels(
    num_steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Array:
    """EDM's noise levels (eq. 5): σ^(1/ρ) in equal steps, and 0 at the end.

    Returns:
      Float32 [num_steps + 1], from sigma_max down to sigma_min, then 0; [sigma_max, 0] for one.
    Raises:
      ValueError: not 0 < sigma_min < sigma_max, rho or num_steps not positive.
    """
    check_noise_levels(sigma_min, sigma_max, num_steps)
    if not rho > 0:
        raise ValueError(f"rho must be positive, got {rho}")
    roots = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps)
    return jnp.asarray(np.append(roots**rho, 0.0), jnp.float32)


def log_noise_levels(
    num_steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX
) -> Array:
    """Noise levels in equal ratios (Flux Matching, Algorithm 3).

    Returns:
      Float32 [num_steps + 1], from exactly sigma_max down to exactly sigma_min.
    Raises:
      ValueError: not 0 < sigma_min < sigma_max, or num_steps not positive.
    """
    check_noise_levels(sigma_min, sigma_max, num_steps)
    return jnp.asarray(np.geomspace(sigma_max, sigma_min, num_steps + 1), jnp.float32)


def _begin(x: Array, levels: Array) -> State:
    """A State at the first noise level; memory: the step index and the levels."""
    return start(levels[0] * x, memory=(jnp.int32(0), levels))


def _tick(state: State) -> tuple[Array, Array, Array, tuple]:
    """σ and the next σ (scalars), whether this is the last step, and the advanced clock."""
    k, levels = state.memory
    return levels[k], levels[k + 1], k + 2 == len(levels), (k + 1, levels)


def _evaluate(field: Field, x: Array, sigma: Array, cond: Any) -> Array:
    return field(x, jnp.full(x.shape[:1], sigma), cond)


def edm_heun(
    sigma_min: Positive = SIGMA_MIN,
    sigma_max: Positive = SIGMA_MAX,
    rho: Positive = RHO,
    churn: float = 0.0,
    churn_min: NotNegative = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Sampler:
    """EDM's sampler: Heun steps of dx/dσ = (x - D(x, σ)) / σ on `noise_levels`; for a denoiser.

    With `churn` it is the stochastic Algorithm 2, without it the deterministic Algorithm 1, of
    order 2. The last step, to σ = 0, is Euler's, so it takes 2 num_steps - 1 evaluations.

    Args:
      churn: S_churn. While σ is in [churn_min, churn_max] (S_tmin, S_tmax) each step first raises
        σ by the factor 1 + min(churn / num_steps, √2 - 1), with fresh noise.
      churn_noise: S_noise, the standard deviation of that noise.
    Raises:
      ValueError: noise levels as in `noise_levels`; a negative churn or churn_noise.
    """
    levels = _edm_levels(sigma_min, sigma_max, rho)
    raise_noise = _churn(churn, churn_min, churn_max, churn_noise)

    def step(key, field, state, cond):
        _, following, last, clock = _tick(state)
        x, sigma = raise_noise(key, state)
        slope = (x - _evaluate(field, x, sigma, cond)) / sigma
        euler = x + (following - sigma) * slope

        def correct():
            slope_next = (euler - _evaluate(field, euler, following, cond)) / following
            return x + (following - sigma) * 0.5 * (slope + slope_next)

        x = jax.lax.cond(last, lambda: euler, correct)
        return advance(state, x, jnp.where(last, 1, 2), memory=clock)

    return Sampler(init=lambda x, num_steps: _begin(x, levels(num_steps)), step=step)


def edm_euler(
    sigma_min: Positive = SIGMA_MIN,
    sigma_max: Positive = SIGMA_MAX,
    rho: Positive = RHO,
    churn: float = 0.0,
    churn_min: NotNegative = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Sampler:
    """`edm_heun` with Euler's steps only: order 1, one evaluation a step; for a denoiser."""
    levels = _edm_levels(sigma_min, sigma_max, rho)
    raise_noise = _churn(churn, churn_min, churn_max, churn_noise)

    def step(key, field, state, cond):
        _, following, _, clock = _tick(state)
        x, sigma = raise_noise(key, state)
        slope = (x - _evaluate(field, x, sigma, cond)) / sigma
        return advance(state, x + (following - sigma) * slope, 1, memory=clock)

    return Sampler(init=lambda x, num_steps: _begin(x, levels(num_steps)), step=step)


def _edm_levels(sigma_min, sigma_max, rho):
    levels = lambda num_steps: noise_levels(num_steps, sigma_min, sigma_max, rho)
    levels(1)  # says at once what is wrong
    return levels


def _churn(churn, churn_min, churn_max, churn_noise):
    """(key, state) -> x and σ, the noise raised: lines 4-6 of EDM's Algorithm 2."""
    if churn < 0 or churn_noise < 0:
        raise ValueError(f"churn and churn_noise must not be negative: {churn}, {churn_noise}")

    def raised(key, state):
        sigma, *_ = _tick(state)
        if churn == 0:
            return state.x, sigma
        num_steps = len(state.memory[1]) - 1
        inside = (sigma >= churn_min) & (sigma <= churn_max)
        gamma = jnp.where(inside, min(churn / num_steps, MAX_CHURN), 0.0)
        added = sigma * jnp.sqrt(gamma * (2 + gamma))  # sqrt of ((1+γ)² - 1) σ²
        return state.x + churn_noise * added * normal(key, state.x), (1 + gamma) * sigma

    return raised


# Variance of the noise of a step from σ to the next level σ', in units of σ² - σ'².
REVERSE_NOISES = {
    "reverse_diffusion": lambda sigma, following: jnp.ones_like(sigma),
    "ancestral": lambda sigma, following: jnp.square(following / sigma),
}


def reverse_ve(
    sigma_min: Positive = SIGMA_MIN,
    sigma_max: Positive = SIGMA_MAX,
    noise: str = "reverse_diffusion",
) -> Sampler:
    """The reverse of the variance-exploding SDE, on `log_noise_levels`; for a score.

    x <- x + (σ² - σ'²) f(x, σ) + s z, without noise in the last step; one evaluation a step. Flux
    Matching (appendix B.5) names "the reverse VE sampler (Eq. 9 from [59])", and eq. 9 of
    arXiv:2011.13456 is the VE SDE itself, dx = √(dσ²/dt) dw. Its reverse-time SDE, discretised as
    it is forwards, has s² = σ² - σ'²: "reverse_diffusion" (Algorithm 2 there; the predictor of
    Flux Matching's Algorithm 3). "ancestral" (eq. 47 there) has s² = σ'² (σ² - σ'²) / σ², the
    variance of the forward process's posterior; both tend to the same SDE in many steps.

    Raises:
      ValueError: not 0 < sigma_min < sigma_max, or an unknown noise.
    """
    check_noise_levels(sigma_min, sigma_max)
    if noise not in REVERSE_NOISES:
        raise ValueError(f"unknown noise {noise!r}; known: {', '.join(sorted(REVERSE_NOISES))}")

    def step(key, field, state, cond):
        *_, clock = _tick(state)
        return advance(state, _predict(key, field, state, cond, noise), 1, memory=clock)

    return Sampler(
        init=lambda x, num_steps: _begin(x, log_noise_levels(num_steps, sigma_min, sigma_max)),
        step=step,
    )


def _predict(key, field, state, cond, noise):
    """x + Δ f(x, σ) + √(s Δ) z, s of REVERSE_NOISES, without z in the last step; Δ = σ² - σ'²."""
    sigma, following, last, _ = _tick(state)
    delta = (sigma - following) * (sigma + following)
    std = jnp.where(last, 0.0, jnp.sqrt(REVERSE_NOISES[noise](sigma, following) * delta))
    drift = delta * _evaluate(field, state.x, sigma, cond)
    return state.x + drift + std * normal(key, state.x)


def predictor_corrector(
    sigma_min: Positive = SIGMA_MIN,
    sigma_max: Positive = SIGMA_MAX,
    corrector_ratio: float = CORRECTOR_RATIO,
) -> Sampler:
    """Flux Matching's Algorithm 3, on `log_noise_levels`; for a score.

    Each step predicts as `reverse_ve` does, then corrects by a Langevin step at the new level, of
    size ε = 2 (ρ |z| / |f|)², z its noise: each sample's own. The last step has neither noise nor
    corrector, so it takes 2 num_steps - 1 evaluations (the paper's text says 2 num_steps).
    It is for many features: in the plane 1 / |f|² has no finite mean where f has a zero, and
    `reverse_ve` does better.

    Args:
      corrector_ratio: ρ.
    Raises:
      ValueError: not 0 < sigma_min < sigma_max, or corrector_ratio not positive.
    """
    check_noise_levels(sigma_min, sigma_max)
    if not corrector_ratio > 0:
        raise ValueError(f"corrector_ratio must be positive, got {corrector_ratio}")

    def step(key, field, state, cond):
        _, following, last, clock = _tick(state)
        key_predictor, key_corrector = split(key)
        predicted = _predict(key_predictor, field, state, cond, "reverse_diffusion")

        def correct():
            noise = normal(key_corrector, predicted)
            score = _evaluate(field, predicted, following, cond)
            ratio = squared_norm(noise) / squared_norm(score)
            size = expand(2 * corrector_ratio**2 * ratio, predicted)
            return predicted + size * score + jnp.sqrt(2 * size) * noise

        x = jax.lax.cond(last, lambda: predicted, correct)
        return advance(state, x, jnp.where(last, 1, 2), memory=clock)

    return Sampler(
        init=lambda x, num_steps: _begin(x, log_noise_levels(num_steps, sigma_min, sigma_max)),
        step=step,
    )


def _edm_grid(bound, num_steps: int) -> Array:
    return noise_levels(num_steps, bound["sigma_min"], bound["sigma_max"], bound["rho"])


def _log_grid(bound, num_steps: int) -> Array:
    return log_noise_levels(num_steps, bound["sigma_min"], bound["sigma_max"])


def method_of(name: str, make, follows: str, noisy, levels, pieces=None) -> registry.Sampler:
    """The facts that samplers down noise levels share, and what is each one's own."""
    return registry.Sampler(
        name=name,
        make=make,
        follows=follows,
        clock=True,
        noisy=noisy,
        needs_output=None,
        product="direction",
        step_scales_field=False,
        levels=levels,
        steps=None,
        adaptive=pieces is not None,
        pieces=pieces,
    )


def _always(bound) -> bool:
    return True


def _by_churn(bound) -> bool:
    return bound["churn"] > 0


METHODS = (
    method_of("edm_heun", edm_heun, "denoiser", _by_churn, _edm_grid),
    method_of("edm_euler", edm_euler, "denoiser", _by_churn, _edm_grid),
    method_of("reverse_ve", reverse_ve, "score", _always, _log_grid),
    method_of("predictor_corrector", predictor_corrector, "score", _always, _log_grid),
)
