"""Denoisers D(x, σ) of x = x1 + σ ε from networks that were trained in other terms."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from genfield.fields import Field, expand, precondition

DDPM_STEPS, DDPM_BETAS = 1000, (1e-4, 0.02)  # Ho et al. (arXiv:2006.11239), section 4; DiT


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
    levels = np.log(ddpm_levels())

    def denoiser(x, t=None, cond=None):
        times = jnp.interp(jnp.log(t), levels.astype(np.float32), np.arange(DDPM_STEPS) * 1.0)
        noise = network(x / expand(jnp.sqrt(1 + jnp.square(t)), x), times, cond)
        return x - expand(t, x) * noise

    return denoiser


# name -> (network, sigma_data) -> the denoiser, which is called with the noise level.
PRECONDITIONINGS: Mapping[str, Callable[[Field, float], Field]] = {
    "edm": precondition,
    "ddpm": ddpm,
}
