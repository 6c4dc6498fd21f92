"""Likelihoods of flows by the instantaneous change of variables (Chen et al., arXiv:1806.07366).

Along dx/ds = v(x, s) the log density of x changes by -∇·v ds, so that log p(x) is the prior's log
density at the trajectory's end plus the integral of ∇·v from x to there.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from genfield.fields import Field, direction, evaluations, sum_features
from genfield.fields import divergence as exact_divergence
from genfield.rng import normal, typed, uniform
from genfield.sampling.diffusion import SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, check_noise_levels
from genfield.sampling.diffusion_flow import flow_scale, flow_velocity
from genfield.sampling.ode import solve_ode

LEVELS = 256  # of a uint8 pixel


class LogProb(NamedTuple):
    """Log densities in nats, of each sample on its own."""

    value: Array  # [B]
    standard_error: Array  # [B], over the probes: 0 if exact, NaN with one probe, which cannot tell
    nfe: Array  # [B] int32, network evaluations along the trajectory, divergences not counted


class Gaussian(NamedTuple):
    """A prior N(mean, variance) with independent coordinates; scalars or [*D] each."""

    mean: Array | float = 0.0
    variance: Array | float = 1.0


PROBES: dict[str, Callable[[Array, Array], Array]] = {
    "rademacher": lambda key, like: 1 - 2 * (uniform(key, like) < 0.5).astype(like.dtype),
    "normal": normal,
}
DIVERGENCES = ("hutchinson", "exact")
FOLLOWS = ("score", "velocity")


def log_prob(
    key: Array | None,
    field: Field,
    x: Array,
    *,
    follows: str,
    cond: Any = None,
    divergence: str = "hutchinson",
    num_probes: int = 1,
    probe: str = "rademacher",
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    sigma_data: float = SIGMA_DATA,
    prior: Gaussian | None = None,
    max_steps: int = 4096,
) -> LogProb:
    """log p(x) under the ODE of a score or a velocity, with each sample's own steps.

    A score f(x, σ) is followed along its probability flow (`sampling.probability_flow`) from
    sigma_min to sigma_max. x is taken as a sample of the law at sigma_min, and p is that law: the
    data smoothed by N(0, sigma_min²). A velocity v(x, t) is followed from t = 1 to 0.

    Hutchinson's estimate draws its probes once a trajectory and integrates εᵀ(∂v/∂x)ε for each, so
    each is an unbiased estimate of log p(x), up to the solver's error: `value` is their mean.

    Args:
      key: draws the probes: one key, or keys [B], one a sample, whose likelihood then does not
        depend on its batch. None will do for the exact divergence.
      field: the score, or the generative field in its place, or the velocity.
      follows: "score" or "velocity": which of the two the field is.
      x: [B, *D], float32. cond: conditions, a pytree of [B, ...].
      divergence: "hutchinson", or "exact": one derivative a dimension at each evaluation.
      num_probes: one derivative each at each evaluation. probe: "rademacher" or "normal".
      method, rtol, atol, max_steps: of `solve_ode`; the tolerances hold for the log density too.
      sigma_min, sigma_max, sigma_data: of a score, as in `sampling.probability_flow`.
      prior: the law at the trajectory's end: by default N(0, I), and N(0, sigma_max² I) of a score,
        for which N(mean, variance + sigma_max²) with the data's moments is closer.
    Raises:
      ValueError: unknown follows, divergence, probe or method, num_probes not positive, keys of
        another number than the samples, or not 0 < sigma_min < sigma_max.
    """
    _check(follows, divergence, probe, num_probes)
    probes = None
    if divergence == "hutchinson":
        key = typed(key)
        if key.shape not in ((), x.shape[:1]):
            raise ValueError(f"key must be one key, or one a sample: {len(x)}, not {key.shape}")
        probes = PROBES[probe](key, jnp.zeros((len(x), num_probes, *x.shape[1:]), x.dtype))
    options = {"method": method, "rtol": rtol, "atol": atol, "max_steps": max_steps}
    if follows == "velocity":
        prior = Gaussian() if prior is None else prior
        end, change, nfe = _follow(field, x, probes, cond, t0=1.0, t1=0.0, **options)
        value = _log_normal(end, prior)[:, None] + change
    else:
        check_noise_levels(sigma_min, sigma_max)
        prior = Gaussian(variance=sigma_max**2) if prior is None else prior
        first, last = (flow_scale(s, sigma_data) for s in (sigma_min, sigma_max))
        times = {"t0": math.log(sigma_min), "t1": math.log(sigma_max)}
        velocity = flow_velocity(field, sigma_data)
        end, change, nfe = _follow(velocity, x / first, probes, cond, **times, **options)
        rescaling = x[0].size * math.log(last / first)  # the flow is of x over its scale
        value = _log_normal(last * end, prior)[:, None] + change + rescaling
    return LogProb(jnp.mean(value, axis=1), _standard_error(value, divergence), nfe)


def _check(follows, divergence, probe, num_probes):
    given = {
        "follows": (follows, FOLLOWS),
        "divergence": (divergence, DIVERGENCES),
        "probe": (probe, PROBES),
    }
    for name, (value, known) in given.items():
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    if num_probes < 1:
        raise ValueError(f"num_probes must be positive, got {num_probes}")


def _follow(velocity, x, probes, cond, **options):
    """The end of each trajectory [B, *D], its integrals of ∇·v [B, P], and the evaluations [B]."""
    size, count = x[0].size, 1 if probes is None else probes.shape[1]

    def augmented(z, t=None, cond=None):  # z [b, size + P]: the position and the integrals
        probes, cond = cond
        y = z[:, :size].reshape(-1, *x.shape[1:])
        at = lambda y: direction(velocity(y, t, cond))
        if probes is None:
            v, rate = at(y), exact_divergence(lambda y, t, cond: at(y), y)[:, None]
        else:
            v, rate = _probed(at, y, probes)
        return jnp.concatenate([v.reshape(-1, size), rate], axis=1)

    augmented.evaluations = evaluations(velocity)
    start = jnp.concatenate([x.reshape(-1, size), jnp.zeros((len(x), count), x.dtype)], axis=1)
    out = solve_ode(augmented, start, cond=(probes, cond), **options)
    return out.x[:, :size].reshape(x.shape), out.x[:, size:], out.nfe


def _probed(at, y, probes):
    """v(y) [B, *D] and εᵀ(∂v/∂y)ε of each probe [B, P], of one evaluation."""

    def along(probe):
        v, derivative = jax.jvp(at, (y,), (probe,))
        return v, sum_features(probe * derivative)

    return jax.vmap(along, in_axes=1, out_axes=(None, 1))(probes)


def _log_normal(x, prior):
    mean, variance = (jnp.broadcast_to(a, x.shape[1:])[None] for a in prior)
    return -0.5 * sum_features((x - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance))


def _standard_error(value, divergence):
    if divergence == "exact":
        return jnp.zeros(len(value), value.dtype)
    if value.shape[1] == 1:
        return jnp.full(len(value), jnp.nan, value.dtype)
    return jnp.std(value, axis=1, ddof=1) / math.sqrt(value.shape[1])


def bits_per_dim(log_prob: Array, num_dims: int, levels: int = LEVELS) -> Array:
    """Bits a dimension that discrete data cost, from log densities [B] of dequantised data.

    -(log p(x) / num_dims + ln w) / ln 2, with w = 2 / (levels - 1) the distance of two levels in
    [-1, 1] under `data.pixels.to_unit` (not the 2 / levels of data that are scaled by levels).
    With x from `dequantize`, log(p(x) w^num_dims) is in expectation at most the log of the mass
    that p gives to the pixels' cell (Jensen), the probability that a sample, rounded to the
    nearest level, is the image: so these bits are in expectation an upper bound on the image's
    own.

    Raises:
      ValueError: num_dims not positive, or fewer than two levels.
    """
    if num_dims < 1 or levels < 2:
        raise ValueError(f"num_dims must be >= 1 and levels >= 2, got {num_dims} and {levels}")
    return -(log_prob / num_dims + math.log(2 / (levels - 1))) / math.log(2)


def dequantize(key: Array, pixels: Array) -> Array:
    """uint8 pixels -> floats uniform in the cell of each level, (pixels + u) / 127.5 - 1.

    u is uniform in [-1/2, 1/2), so the mean is `data.pixels.to_unit`, which networks train on, and
    the cells of the 256 levels tile [-1 - 1/255, 1 + 1/255].

    Args:
      key: one key, or keys [B], one an image. pixels: uint8 [B, *D].
    Returns:
      Float32 [B, *D].
    Raises:
      TypeError: pixels that are not uint8.
    """
    if pixels.dtype != jnp.uint8:
        raise TypeError(f"dequantize takes uint8 pixels, got {pixels.dtype}")
    pixels = jnp.asarray(pixels, jnp.float32)
    return (pixels + uniform(typed(key), pixels) - 0.5) / 127.5 - 1.0
