"""What a learned field can do beyond drawing samples: pure functions of fields and arrays.

Equilibrium Matching (EqM, arXiv:2510.02300, section 5.4: partially noised inputs, scores that find
out-of-distribution inputs, composition; Fig. 5: nearest neighbours; Fig. 7: step sizes) and
Distance Marching (DM, arXiv:2602.02928: Table 5, Fig. 14, 30 and 31). `python -m genfield.study`
runs them on a checkpoint.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield import paths, rng
from genfield.fields import (
    Field,
    Prediction,
    direction,
    displacement,
    squared_norm,
    sum_features,
)

# Partially noised inputs


def partially_noised(x0: Array, x1: Array, t, path: paths.Path = paths.linear) -> Array:
    """x_t of each pair at one time, [B, *D]: (1-t) x0 + t x1 on the linear path (EqM Fig. 10)."""
    return paths.interpolate(path, x0, x1, jnp.full(x1.shape[:1], t, jnp.float32)).x


# Scores, and what to tell apart by them


def scores(field: Field, x: Array, t: Array | None = None, cond: Any = None) -> dict[str, Array]:
    """How far each x seems to be from the data: name -> [B]; larger is further away.

    Returns:
      "gradient_norm": |f|, or |v| of a Prediction. For a Prediction also "distance": u, the
      energy of a scalar network (EqM-E, Table 6) or a predicted distance (DM Table 5), and
      "displacement": |u v|. For a vector "dot_energy": <x, f>, the energy that EqM-E learns
      (EqM section 3.2), here of a field that was not trained to be its gradient.
    """
    output = field(x, t, cond)
    out = {"gradient_norm": jnp.sqrt(squared_norm(direction(output)))}
    if isinstance(output, Prediction):
        step = displacement(output)
        return out | {"distance": output.distance, "displacement": jnp.sqrt(squared_norm(step))}
    return out | {"dot_energy": sum_features(x * output)}


def constant_like(key: Array, x: Array, low: float, high: float) -> Array:
    """One level a channel in all places, uniform on [low, high): x is [B, *places, C]."""
    shape = (len(x), *[1] * (x.ndim - 2), x.shape[-1])
    return jnp.broadcast_to(jax.random.uniform(key, shape, x.dtype, low, high), x.shape)


def uniform_like(key: Array, x: Array, low, high) -> Array:
    """Independent numbers, uniform on [low, high); both broadcast against x without its batch."""
    bound = lambda value: jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape[1:])[None]
    return bound(low) + (bound(high) - bound(low)) * jax.random.uniform(key, x.shape, x.dtype)


def shuffled(key: Array, x: Array) -> Array:
    """Each image with its pixels in an order of its own, channels together: [B, *places, C]."""
    flat = x.reshape(len(x), -1, x.shape[-1])
    order = rng.per_index(
        key, jnp.arange(len(x)), lambda k: jax.random.permutation(k, flat.shape[1])
    )
    return jnp.take_along_axis(flat, order[:, :, None], axis=1).reshape(x.shape)


def blurred(x: Array, std: float) -> Array:
    """Images [B, H, W, C] under a Gaussian filter of `std` pixels, cut at 3 std, edges repeated."""
    radius = int(np.ceil(3 * std))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    for axis in (1, 2):
        size, pad = x.shape[axis], [(0, 0)] * x.ndim
        pad[axis] = (radius, radius)
        wide = jnp.pad(x, pad, mode="edge")
        part = lambda i, wide=wide, size=size, axis=axis: jax.lax.slice_in_dim(
            wide, i, i + size, axis=axis
        )
        x = sum(float(tap) * part(i) for i, tap in enumerate(taps / taps.sum()))
    return x


# What a distance is worth


def distance_errors(output: Prediction, x: Array, x1: Array, c0: float) -> dict[str, Array]:
    """Relative errors of a predicted distance (DM Fig. 14), each [B].

    Returns:
      "r": |x - x1|. "distance": |u - √(r² + c0)| / √(r² + c0), against the smoothed distance that
      the eikonal loss teaches (eq. 4). "displacement": | |u v| - r | / r, infinite at r = 0.
      Their means are Fig. 14's MAPE.
    Raises:
      TypeError: the output is no Prediction.
    """
    if not isinstance(output, Prediction):
        raise TypeError("distance_errors needs a field that returns fields.Prediction")
    r2 = squared_norm(x - x1)
    r, smooth = jnp.sqrt(r2), jnp.sqrt(r2 + c0)
    length = jnp.sqrt(squared_norm(displacement(output)))
    return {
        "r": r,
        "distance": jnp.abs(output.distance - smooth) / smooth,
        "displacement": jnp.abs(length - r) / r,
    }


def binned(values, by, edges) -> dict[str, np.ndarray]:
    """Mean, standard deviation, median and count of `values` [N] where `by` [N] lies in each bin.

    Bins are [edge, next edge), the last one closed; empty ones have NaN.
    """
    values, by, edges = (np.asarray(a, np.float64) for a in (values, by, edges))
    place = np.searchsorted(edges, by, side="right") - 1
    place[by == edges[-1]] = len(edges) - 2
    groups = [values[place == i] for i in range(len(edges) - 1)]
    over = lambda how: np.array([how(g) if len(g) else np.nan for g in groups])
    return {
        "mean": over(np.mean),
        "std": over(np.std),
        "median": over(np.median),
        "count": np.array([len(g) for g in groups]),
    }


def along(field: Field, trace: Array, cond: Any = None) -> dict[str, Array]:
    """The field's `scores` at each position of a trace [K + 1, B, *D], and how far samples moved.

    Returns:
      The names of `scores`, [K + 1, B], at t = None (DM Fig. 30: "distance"; Fig. 31:
      "gradient_norm" under gradient descent, "displacement" under sphere tracing), and "moved",
      |x_{k+1} - x_k|, [K, B].
    """
    out = jax.lax.map(lambda x: scores(field, x, None, cond), trace)
    lengths = jax.lax.map(lambda d: jnp.sqrt(squared_norm(d)), trace[1:] - trace[:-1])
    return out | {"moved": lengths}
