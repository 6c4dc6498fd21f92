"""Paths from source to data, and the distributions of time that training draws on them.

t = 0 is the source, t = 1 the data; a path is x_t = α(t) x1 + σ(t) x0, with noise around it where
it is a bridge: x_t = α(t) x1 + σ(t) x0 + γ(t) z. On the variance-exploding path the place of t is
taken by the noise level σ, which runs from 0 at the data to infinity.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield import preconditionings, registry
from genfield.fields import expand
from genfield.registry import Fraction, Positive


class Path(NamedTuple):
    """x_t = alpha(t) x1 + sigma(t) x0 + gamma(t) z; each takes and returns arrays of any shape."""

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    gamma: Callable[[Array], Array] | None = None  # of a bridge; None: no noise


class PathSample(NamedTuple):
    """One point on each example's path; x0, x1, x, v are [B, *D] and t is [B]."""

    x0: Array
    x1: Array
    t: Array
    x: Array
    v: Array


linear = Path(alpha=lambda t: t, sigma=lambda t: 1 - t)
variance_exploding = Path(alpha=jnp.ones_like, sigma=lambda t: t)  # t is the noise level σ

BRIDGE_END = 1e-8  # added to t (1-t), whose root has an infinite derivative at the ends


def brownian_bridge(path: Path, noise_level: float) -> Path:
    """`path` with a Brownian bridge around it: γ(t) = s √(t (1-t)), s the `noise_level`.

    Flow matching along it, with an entropic coupling of regularisation 2 s², is SB-CFM (Tong et
    al., arXiv:2307.03672; arXiv:2302.00482, section 3.2.5): its velocity is
    x1 - x0 + (1-2t) / (2 t (1-t)) (x_t - μ_t) on the linear path.
    """
    return path._replace(gamma=lambda t: noise_level * jnp.sqrt(t * (1 - t) + BRIDGE_END))


def interpolate(path: Path, x0: Array, x1: Array, t: Array, z: Array | None = None) -> PathSample:
    """The point x_t and its velocity dx_t/dt, by one jvp in t.

    Args:
      x0: source [B, *D]. x1: data [B, *D]. t: [B], float32.
      z: standard normal noise [B, *D]; of a bridge, and only of one.
    Raises:
      ValueError: x0, x1 and z differ in shape, t is not [B], or z is missing or of no use.
    """
    if x0.shape != x1.shape or t.shape != x0.shape[:1]:
        raise ValueError(
            f"interpolate needs x0 and x1 of one shape [B, *D] and t of shape [B]; "
            f"got {x0.shape}, {x1.shape} and {t.shape}"
        )

    if (z is None) != (path.gamma is None) or (z is not None and z.shape != x0.shape):
        given = "none" if z is None else z.shape
        raise ValueError(f"a bridge takes noise z of x0's shape {x0.shape}, others none: {given}")

    def at(time):
        x = expand(path.alpha(time), x1) * x1 + expand(path.sigma(time), x0) * x0
        return x if z is None else x + expand(path.gamma(time), z) * z

    x, v = jax.jvp(at, (t,), (jnp.ones_like(t),))
    return PathSample(x0=x0, x1=x1, t=t, x=x, v=v)


def velocity_to_score(path: Path, velocity: Array, x: Array, t: Array) -> Array:
    """Score of p_t where x0 is standard normal and hangs on nothing: [B, *D].

    Of v = E[α' x1 + σ' x0 | x] and x = α x1 + σ x0 the noise is E[x0 | x] = (α' x - α v) / (α' σ -
    α σ'), and the score -E[x0 | x] / σ. On the linear path it is `fields.velocity_to_score`.

    Args:
      t: [B], where neither σ nor α' σ - α σ' is 0.
    Raises:
      ValueError: a bridge, whose velocity does not tell its score.
    """
    alpha, rate, sigma, turn = _rates(path, x, t)
    return (alpha * velocity - rate * x) / (sigma * turn)


def score_to_velocity(path: Path, score: Array, x: Array, t: Array) -> Array:
    """Inverse of `velocity_to_score`, where α is not 0."""
    alpha, rate, sigma, turn = _rates(path, x, t)
    return (rate * x + sigma * turn * score) / alpha


def _rates(path: Path, x: Array, t: Array) -> tuple[Array, Array, Array, Array]:
    """α, α', σ and α' σ - α σ', with the rank of x."""
    if path.gamma is not None:
        raise ValueError("a bridge's velocity does not tell its score: pass a path without gamma")
    slope = lambda function: jax.jvp(function, (t,), (jnp.ones_like(t),))
    (alpha, rate), (sigma, fall) = slope(path.alpha), slope(path.sigma)
    turn = rate * sigma - alpha * fall
    return tuple(expand(a, x) for a in (alpha, rate, sigma, turn))


TimeSampler = Callable[[Array, int], Array]  # (key, n) -> times [n], float32


def uniform(low: float = 0.0, high: float = 1.0) -> TimeSampler:
    """U(low, high); (0, 0.999) is the truncated one of DM's ImageNet runs (Table 7)."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"uniform times need 0 <= low < high <= 1, got low={low}, high={high}")
    return lambda key, n: jax.random.uniform(key, (n,), jnp.float32, low, high)


def skewed(mean: float = -1.2, std: Positive = 1.2, low: Fraction = 1e-4) -> TimeSampler:
    """t = 1/(1+σ) with ln σ ~ N(mean, std²), clipped to [low, 1]: DM's CIFAR-10 runs (Table 6)."""

    def draw(key, n):
        noise_level = jnp.exp(mean + std * jax.random.normal(key, (n,), jnp.float32))
        return jnp.clip(1 / (1 + noise_level), low, 1.0)

    return draw


def logit_normal(mean: float = 0.0, std: Positive = 1.0) -> TimeSampler:
    """t = sigmoid(n), n ~ N(mean, std²): weight on the middle of the path."""
    return lambda key, n: jax.nn.sigmoid(mean + std * jax.random.normal(key, (n,), jnp.float32))


def log_normal(mean: float = -1.2, std: Positive = 1.2) -> TimeSampler:
    """Noise levels with ln σ ~ N(mean, std²): EDM's (arXiv:2206.00364, Table 1)."""
    return lambda key, n: jnp.exp(mean + std * jax.random.normal(key, (n,), jnp.float32))


def log_uniform(low: float = 0.002, high: float = 80.0) -> TimeSampler:
    """Noise levels with ln σ uniform over [ln low, ln high] (Flux Matching, Table 6)."""
    if not 0 < low < high:
        raise ValueError(f"log_uniform noise levels need 0 < low < high, got {low}, {high}")
    ends = jnp.log(low), jnp.log(high)
    return lambda key, n: jnp.exp(jax.random.uniform(key, (n,), jnp.float32, *ends))


def variance_preserving() -> TimeSampler:
    """Noise levels σ(t) of the VP process, t uniform over [1e-5, 1] (EDM, Table 1)."""

    def draw(key, n):
        time = jax.random.uniform(key, (n,), jnp.float32, preconditionings.VP_FIRST, 1.0)
        return preconditionings.vp_level(time)

    return draw


def iddpm() -> TimeSampler:
    """The noise levels of iDDPM's table, each as often as the others (EDM, Table 1)."""
    levels = preconditionings.iddpm_levels()[:-1].astype(np.float32)
    return lambda key, n: jax.random.choice(key, levels, (n,))


def fixed(level: Positive) -> TimeSampler:
    """One noise level for all: the smoothing of a field of the data themselves."""
    if level <= 0:
        raise ValueError(f"a fixed noise level must be positive, got {level}")
    return lambda key, n: jnp.full((n,), level, jnp.float32)


LEVELS = {"noise_levels": True, "one": None}
METHODS = (
    registry.Path(name="linear", path=linear, noise_levels=False),
    registry.Path(name="variance_exploding", path=variance_exploding, noise_levels=True),
    registry.TimeLaw(name="uniform", make=uniform, noise_levels=False, one=None),
    registry.TimeLaw(name="skewed", make=skewed, noise_levels=False, one=None),
    registry.TimeLaw(name="logit_normal", make=logit_normal, noise_levels=False, one=None),
    registry.TimeLaw(name="log_normal", make=log_normal, **LEVELS),
    registry.TimeLaw(name="log_uniform", make=log_uniform, **LEVELS),
    registry.TimeLaw(name="variance_preserving", make=variance_preserving, **LEVELS),
    registry.TimeLaw(name="iddpm", make=iddpm, **LEVELS),
    registry.TimeLaw(name="fixed", make=fixed, noise_levels=True, one=lambda b: b["level"]),
)
