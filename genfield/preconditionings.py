"""Denoisers D(x, σ) of x = x1 + σ ε from networks that were trained in other terms.

D(x, σ) = c_skip x + c_out F(c_in x, c_noise), as in Table 1 of EDM (Karras et al. 2022,
arXiv:2206.00364), whose columns these are, and DiT's.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from genfield.fields import Field, expand, precondition

VP_SLOPE, VP_START = 19.9, 0.1  # β_d, β_min (Song et al., arXiv:2011.13456)
VP_FIRST = 1e-5  # ε_t: the smallest time of training
VP_RANGE = tuple(math.sqrt(math.expm1(0.5 * VP_SLOPE * t**2 + VP_START * t)) for t in (1e-5, 1))
VP_STEPS = 1000  # M: times that the network is told are up to M - 1
VE_RANGE = (0.02, 100.0)  # σ_min, σ_max
IDDPM_STEPS, IDDPM_LEAST, IDDPM_OFFSET = 1000, 0.001, 0.008  # M, C_1, C_2 (arXiv:2102.09672)
DDPM_STEPS, DDPM_BETAS = 1000, (1e-4, 0.02)  # Ho et al. (arXiv:2006.11239), section 4; DiT
TIMES = np.arange(DDPM_STEPS) * 1.0


def ddpm_levels(num_steps: int = DDPM_STEPS, betas: tuple[float, float] = DDPM_BETAS) -> np.ndarray:
    """The noise levels of the times 0, 1, …: σ² = (1 - ᾱ) / ᾱ, ᾱ = Π (1 - β), β linear; float64."""
    alpha = np.cumprod(1 - np.linspace(*betas, num_steps))
    return np.sqrt((1 - alpha) / alpha)


def ddpm(network: Field, sigma_data: float = 0.5) -> Field:
    """D(x, σ) = x - σ ε(x / √(1 + σ²), t(σ)) of a network that predicts the noise, as DiT's.

    It was trained on √ᾱ x1 + √(1 - ᾱ) ε at the whole times 0 … 999 of `ddpm_levels`; between their
    levels t is interpolated in ln σ, beyond them it stays the first or the last.

    Args:
      network: ε, called with its time input [B]. sigma_data: not used.
    """
    levels = np.log(ddpm_levels()).astype(np.float32)
    return _of_noise(network, lambda level: jnp.interp(jnp.log(level), levels, TIMES))


def vp_level(time):
    """σ(t) of the variance-preserving process, t in [0, 1], any shape."""
    return jnp.sqrt(jnp.expm1(0.5 * VP_SLOPE * time**2 + VP_START * time))


def vp_time(level):
    """The inverse of `vp_level`."""
    root = jnp.sqrt(VP_START**2 + 2 * VP_SLOPE * jnp.log1p(jnp.square(level)))
    return (root - VP_START) / VP_SLOPE


def vp(network: Field, sigma_data: float = 0.5) -> Field:
    """D(x, σ) = x - σ F(x / √(1 + σ²), (M - 1) t(σ)): variance preserving, DDPM++'s own.

    Args:
      network: F, called with its time input [B]. sigma_data: not used.
    """
    return _of_noise(network, lambda level: (VP_STEPS - 1) * vp_time(level))


def ve(network: Field, sigma_data: float = 0.5) -> Field:
    """D(x, σ) = x + σ F(x, ln(σ / 2)): variance exploding, NCSN++'s own.

    Args:
      network: F, called with its time input [B]. sigma_data: not used.
    """
    return lambda x, t=None, cond=None: x + expand(t, x) * network(x, jnp.log(0.5 * t), cond)


@functools.cache
def iddpm_levels() -> np.ndarray:
    """u_0 … u_M, from the highest down to 0, of the cosine schedule; float64 [M + 1]."""
    share = np.arange(IDDPM_STEPS + 1) / IDDPM_STEPS
    alpha = np.sin(0.5 * np.pi * share / (IDDPM_OFFSET + 1)) ** 2
    levels = np.zeros(IDDPM_STEPS + 1)
    for j in range(IDDPM_STEPS, 0, -1):
        ratio = max(alpha[j - 1] / alpha[j], IDDPM_LEAST)
        levels[j - 1] = math.sqrt((levels[j] ** 2 + 1) / ratio - 1)
    return levels


def iddpm_index(level):
    """j of the u_j nearest to each level [B], int32: 0 at the highest."""
    levels = jnp.asarray(iddpm_levels(), jnp.float32)
    return jnp.argmin(jnp.abs(level[:, None] - levels[None]), axis=1)


def iddpm(network: Field, sigma_data: float = 0.5) -> Field:
    """D(x, σ) = x - σ F(x / √(1 + σ²), M - 1 - j), u_j the level of the table nearest to σ.

    Args:
      network: F, called with its time input [B]. sigma_data: not used.
    """
    return _of_noise(network, lambda level: IDDPM_STEPS - 1.0 - iddpm_index(level))


def _of_noise(network: Field, time: Callable) -> Field:
    """x - σ F(x / √(1 + σ²), time(σ)): F tells the noise."""

    def denoiser(x, t=None, cond=None):
        scaled = x / expand(jnp.sqrt(1 + jnp.square(t)), x)
        return x - expand(t, x) * network(scaled, time(t), cond)

    return denoiser


def uedm(network: Field, sigma_data: float = 0.5) -> Field:
    """EDM's denoiser without the noise level: F is told 0 at all of them (Sun et al.,
    arXiv:2502.13129; Distance Marching, Table 2). c_in, c_skip and c_out are EDM's.

    Args:
      network: F, called with its time input [B]. sigma_data: standard deviation of the data.
    """
    told = lambda x, t=None, cond=None: network(x, jnp.zeros_like(t), cond)
    return precondition(told, sigma_data)


class Preconditioning(NamedTuple):
    """A way from a network to a denoiser.

    Attributes:
      denoiser: (network, sigma_data) -> the denoiser, which is called with the noise level.
      lowest, highest: noise levels that the network was trained at.
      time: the config's section of the law of noise levels in training.
      weighting: of the loss in training, of losses.denoising.
    """

    denoiser: Callable[[Field, float], Field]
    lowest: float
    highest: float
    time: Mapping[str, object]
    weighting: str


def _ends(levels: np.ndarray) -> tuple[float, float]:
    return float(levels.min()), float(levels.max())


PRECONDITIONINGS: Mapping[str, Preconditioning] = {
    "edm": Preconditioning(precondition, 0.0, math.inf, {"name": "log_normal"}, "edm"),
    "uedm": Preconditioning(uedm, 0.0, math.inf, {"name": "log_normal"}, "edm"),
    "vp": Preconditioning(
        vp,
        *VP_RANGE,
        {"name": "variance_preserving"},
        "inverse_variance",
    ),
    "ve": Preconditioning(
        ve,
        *VE_RANGE,
        {"name": "log_uniform", "low": VE_RANGE[0], "high": VE_RANGE[1]},
        "inverse_variance",
    ),
    "iddpm": Preconditioning(
        iddpm, *_ends(iddpm_levels()[:-1]), {"name": "iddpm"}, "inverse_variance"
    ),
    "ddpm": Preconditioning(
        ddpm, *_ends(ddpm_levels()), {"name": "log_normal"}, "inverse_variance"
    ),
}
