"""What a learned field can do beyond drawing samples: pure functions of fields and arrays.

Equilibrium Matching (EqM, arXiv:2510.02300, section 5.4: partially noised inputs, scores that find
out-of-distribution inputs, composition; Fig. 5: nearest neighbours; Fig. 7: step sizes) and
Distance Marching (DM, arXiv:2602.02928: Table 5, Fig. 14, 30 and 31). `python -m genfield.study`
runs them on a checkpoint.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

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
    evaluations,
    expand,
    squared_norm,
    sum_features,
)

# Fields made of fields


def conditioned(field: Field, cond: Any) -> Field:
    """The field under one condition for all samples, whichever it is called with.

    Args:
      cond: one example's condition, without the batch axis: a label, or a pytree.
    """

    def fixed(x, t=None, cond_of_call=None):
        whole = lambda c: jnp.broadcast_to(c, (len(x), *jnp.shape(c)))
        return field(x, t, jax.tree.map(whole, cond))

    fixed.evaluations = evaluations(field)
    return fixed


def compose(
    fields: Sequence[Field], weights: Sequence[float] | None = None, *, on: str = "direction"
) -> Field:
    """The weighted sum of fields: the gradient of the summed energies (EqM section 5.4).

    Args:
      fields: all return vectors, or all a Prediction. They are called with the same `x`, `t` and
        `cond`; `conditioned` gives each its own condition.
      weights: one a field; 1 each where left out, as in the paper.
      on: for Predictions, which energies are summed. "direction": U = Σ w u, so that the direction
        is Σ w v and the distance Σ w u, a true pair where v = ∇u (for gradient descent, Langevin,
        HMC). "displacement": Σ w u²/2, whose gradient is Σ w u v; the distance is its length (for
        sphere tracing; with weights that sum to one, a whole step goes to the mean of where the
        fields would go).
    Returns:
      A field that counts as the sum of the fields' evaluations.
    Raises:
      ValueError: no fields, another number of weights, unknown `on`. TypeError, when called: only
        some fields return a Prediction.
    """
    fields = list(fields)
    weights = [1.0] * len(fields) if weights is None else list(weights)
    if not fields or len(weights) != len(fields):
        raise ValueError(f"compose needs a weight a field, got {len(fields)} and {len(weights)}")
    if on not in ("direction", "displacement"):
        raise ValueError(f"composition on {on!r}: known are 'direction', 'displacement'")
    total = lambda parts: sum(w * part for w, part in zip(weights, parts, strict=True))

    def composed(x, t=None, cond=None):
        outputs = [field(x, t, cond) for field in fields]
        predictions = [isinstance(output, Prediction) for output in outputs]
        if not any(predictions):
            return total(outputs)
        if not all(predictions):
            raise TypeError("compose needs fields of one kind: some return a Prediction, some not")
        if on == "direction":
            return Prediction(
                total([o.direction for o in outputs]), total([o.distance for o in outputs])
            )
        step = total([displacement(o) for o in outputs])
        length = jnp.sqrt(squared_norm(step))
        return Prediction(step / expand(jnp.maximum(length, 1e-12), step), length)

    composed.evaluations = sum(map(evaluations, fields))
    return composed


def scaled(field: Field, factor: Array | float) -> Field:
    """The field with its vector times `factor`, its distance as it was.

    Gradient descent, NAG, sphere tracing, Euler and Heun then take `factor` times their step, while
    clocks go on as they were (EqM Fig. 7's step sizes, its flow-matching baseline included). As an
    argument of a jitted function the factor changes without compiling anew.
    """

    def times(x, t=None, cond=None):
        output = field(x, t, cond)
        if isinstance(output, Prediction):
            return output._replace(direction=factor * output.direction)
        return factor * output

    times.evaluations = evaluations(field)
    return times


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


# Nearest neighbours

SPARE = 8  # candidates beyond k whose distances are computed anew, without cancellation


class Neighbours(NamedTuple):
    """The k nearest points of each query, the nearest first."""

    distance: np.ndarray  # [N, k], Euclidean
    index: np.ndarray  # [N, k], counted through all points


@jax.jit
def _closest(queries, points, best, first):
    """The running k best (squared distance, index) of queries [N, D], after points [P, D]."""
    k = best[0].shape[1]
    origin = points.mean(axis=0)
    centred = points - origin[None]
    norms = jnp.sum(centred**2, axis=1)

    def candidates(query):  # [D]
        products = jnp.dot(centred, query - origin, precision=jax.lax.Precision.HIGHEST)
        near = jax.lax.top_k(2 * products - norms, min(k + SPARE, len(points)))[1]
        return jnp.sum((points[near] - query[None]) ** 2, axis=1), near

    squared, near = jax.lax.map(candidates, queries, batch_size=64)
    squared = jnp.concatenate([best[0], squared], axis=1)
    index = jnp.concatenate([best[1], first + near], axis=1)
    kept = jax.lax.top_k(-squared, k)[1]
    return jnp.take_along_axis(squared, kept, axis=1), jnp.take_along_axis(index, kept, axis=1)


def nearest(
    queries,
    points,
    k: int = 1,
    *,
    block: int = 4096,
    on_block: Callable[[int], None] = lambda done: None,
) -> Neighbours:
    """Exact nearest neighbours in Euclidean distance (EqM Fig. 5), in float32.

    In memory at a time: the queries, a block of points and 64 rows of their distances. Candidates
    are found by matrix products and their distances computed anew from differences, so a copy
    lies at exactly 0.

    Args:
      queries: [N, *D]. points: [M, *D], or an iterable of such arrays, as they come from disk.
      block: rows of points at a time.
      on_block: told how many points are done; may raise to stop.
    Raises:
      ValueError: fewer than k points, k below 1, or shapes that differ.
    """
    if k < 1:
        raise ValueError(f"k must be positive, got {k}")
    queries = np.asarray(queries, np.float32)
    shape, flat = queries.shape[1:], jnp.asarray(queries.reshape(len(queries), -1))
    best = jnp.full((len(queries), k), jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
    done = 0
    for part in _parts(points, block):
        if part.shape[1:] != shape:
            raise ValueError(f"queries are {list(shape)} each, points {list(part.shape[1:])}")
        best = _closest(flat, part.reshape(len(part), -1), best, done)
        done += len(part)
        on_block(done)
    if done < k:
        raise ValueError(f"{k} nearest neighbours need as many points, got {done}")
    return Neighbours(np.sqrt(np.asarray(best[0])), np.asarray(best[1]))


def _parts(points: Any, block: int) -> Iterable[np.ndarray]:
    whole = hasattr(points, "shape")
    for array in [points] if whole else points:
        for first in range(0, len(array), block):
            yield np.asarray(array[first : first + block], np.float32)


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
