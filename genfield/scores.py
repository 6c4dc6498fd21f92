"""Closed-form scores, as test oracles and as targets: Gaussian mixtures and kernel densities."""

import jax
import jax.numpy as jnp
from jax import Array

from genfield.fields import Field, expand


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


def kde_score(
    x: Array, centres: Array, noise_level: Array | float, belongs: Array | None = None
) -> Array:
    """Score of the batch smoothed by N(0, σ²): a softmax over the centres (Flux Matching eq. 7).

    Args:
      x: [B, *D] query points. centres: [N, *D] data points.
      noise_level: σ, scalar or [B], in the units of x.
      belongs: [B, N], which centres a query's density has; None: all.
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
    if belongs is not None:
        cross = jnp.where(belongs, cross, -jnp.inf)
    # From the nearest centre's: a softmax of one centre then has derivatives of exactly 0, where
    # the rounding of |x|²/σ² would be left of them, by 1/σ² again in the second.
    nearest = jnp.argmax(cross, axis=-1, keepdims=True)
    logits = (cross - jnp.take_along_axis(cross, nearest, axis=-1)) / variance[:, None]
    mean = product(jax.nn.softmax(logits, axis=-1), points)
    return ((mean - flat) / variance[:, None]).reshape(x.shape)


def kde_field(
    centres: Array,
    group_size: int | None = None,
    label: Array | None = None,
    null_class: int | None = None,
) -> Field:
    """The kernel density's score as a Field: (x [B', *D], σ [B'], label [B'] or None).

    Args:
      centres: [B, *D]. group_size: each group of so many centres is a density of its own, and
        queries are dealt to the groups in order, equally many to each.
      label: [B] of the centres; a query's density then has the centres of its label, or all of the
        group for `null_class`.
    """
    groups = len(centres) // (group_size or len(centres))
    cut = lambda a: None if a is None else a.reshape(groups, -1, *a.shape[1:])
    points, classes = cut(centres), cut(label)

    def one(points, classes, x, sigma, asked):
        belongs = None
        if asked is not None:
            belongs = asked[:, None] == classes[None]
            if null_class is not None:
                belongs = belongs | (asked == null_class)[:, None]
        return kde_score(x, points, sigma, belongs)

    def score(x, t=None, cond=None):
        asked = None if label is None else cut(cond)
        sigma = cut(jnp.broadcast_to(jnp.asarray(t, jnp.float32), (len(x),)))
        return jax.vmap(one)(points, classes, cut(x), sigma, asked).reshape(x.shape)

    return score


def kde_velocity(score: Field) -> Field:
    """E[x1 - x0 | x_a] of the linear path, from the score of p_a with σ = 1 - a (Flux eq. 60).

    x [B, *D] and the noise level σ [B]; with the marginal score s, (x + σ s) / (1 - σ).
    """

    def velocity(x, t=None, cond=None):
        sigma = expand(t, x)
        return (x + sigma * score(x, t, cond)) / (1 - sigma)

    return velocity
