"""Lengths ‖x1 - x0‖ of pairs of noise and image (DM, arXiv:2602.02928, Theorem A.1, Fig. 10)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield.analyze.neighbours import draw_noise, draw_targets

BLOCK = 1000  # pairs at a time
QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)


@jax.jit
def _lengths(x0, x1):
    return jnp.sqrt(jnp.sum((x1 - x0) ** 2, axis=-1))


def pair_lengths(key: Array, images: Array, num: int) -> np.ndarray:
    """ℓ = ‖x1 - x0‖ of `num` pairs, x0 ~ N(0, I), x1 of `draw_targets`: float64 [num]."""
    noise, order = jax.random.split(key)
    targets = draw_targets(order, num, len(images))
    parts = []
    for start in range(0, num, BLOCK):
        indices = np.arange(start, min(start + BLOCK, num))
        x0 = draw_noise(noise, indices, dimension=images.shape[1])
        parts.append(np.asarray(_lengths(x0, images[targets[indices]]), np.float64))
    return np.concatenate(parts)


def lengths_from(x: Array, images: Array) -> np.ndarray:
    """‖x1 - x‖ of all images from one point x [D]; float64 [N]."""
    parts = [_lengths(x[None], images[i : i + BLOCK]) for i in range(0, len(images), BLOCK)]
    return np.concatenate([np.asarray(p, np.float64) for p in parts])


def summary(values: np.ndarray) -> dict:
    """Mean, standard deviation, skewness (third standardised moment) and quantiles of [N]."""
    mean, std = float(values.mean()), float(values.std())
    centred = values - mean
    skewness = float(np.mean(centred**3)) / std**3 if std > 0 else 0.0
    quantiles = dict(zip(map(str, QUANTILES), np.quantile(values, QUANTILES).tolist(), strict=True))
    return {"count": len(values), "mean": mean, "std": std, "skewness": skewness} | {
        "quantiles": quantiles
    }
