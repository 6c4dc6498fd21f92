"""Closed-form scores, as test oracles and as targets: Gaussian mixtures and kernel densities."""

import jax
import jax.numpy as jnp
from jax import Array


def gaussian_mixture_log_density(x: Array, means: Array, std: Array, weights: Array) -> Array:
    """log p(x) of an isotropic mixture: x [B, D], means [K, D], std [K], weights [K] -> [B]."""
    dim = x.shape[-1]
    squared = jnp.sum((x[:, None, :] - means[None]) ** 2, axis=-1)
    log_normal = -0.5 * squared / std[None] ** 2 - dim * jnp.log(std * jnp.sqrt(2 * jnp.pi))[None]
    return jax.nn.logsumexp(log_normal + jnp.log(weights)[None], axis=-1)


def gaussian_mixture_score(x: Array, means: Array, std: Array, weights: Array) -> Array:
    """∇ log p of the same mixture, [B, D]."""
    density = lambda z: jnp.sum(gaussian_mixture_log_density(z, means, std, weights))
    return jax.grad(density)(x)


def kde_score(x: Array, centres: Array, noise_level: Array | float) -> Array:
    """Score of the batch smoothed by N(0, σ²): a softmax over the centres (Flux Matching eq. 7).

    Args:
      x: [B, *D] query points. centres: [N, *D] data points.
      noise_level: σ, scalar or [B], in the units of x.
    Returns:
      (E[centre | x] - x) / σ², [B, *D].
    """
    flat, points = x.reshape(len(x), -1), centres.reshape(len(centres), -1)
    # Far from the origin the products below would lose their digits.
    origin = points.mean(0, keepdims=True)
    flat, points = flat - origin, points - origin
    variance = jnp.broadcast_to(jnp.square(jnp.asarray(noise_level, x.dtype)), (len(x),))
    # |x|² is the same for every centre, so the softmax does not need it.
    product = lambda a, b: jnp.matmul(a, b, precision="highest")
    cross = product(flat, points.T) - 0.5 * jnp.sum(points**2, axis=-1)[None]
    mean = product(jax.nn.softmax(cross / variance[:, None], axis=-1), points)
    return ((mean - flat) / variance[:, None]).reshape(x.shape)
