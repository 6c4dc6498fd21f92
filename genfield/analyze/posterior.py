"""What each loss learns at a point x, exactly, from the posterior over image and time given x.

Distance Marching, arXiv:2602.02928: Theorems A.1 to A.3, eq. 22, 26, 27-28, 33; Fig. 11.

Let x = (1-t) x0 + t x1 in d dimensions and e = t/(1-t), the odds of t. Then x0 = x + e (x - x1)
and x1 - x0 = (1+e) (x1 - x): every minimiser is a weighted mean of x1 - x over the images s_i, and
only the weights need an integral over time, eq. 28 in e:

    W_i = ∫ p_T(t) (1+e)^(d-2) exp(-½‖x + e (x - s_i)‖²) de

Without p_T the integrand is log-concave, with its mode and bounds of its tails in closed form: each
(x, s_i) has its own Gauss-Legendre rule, on what lies within `NATS` of the mode.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

NATS = 45.0  # what is left out is below e^-45 of the mode
NUM_NODES = 48
BLOCK_WEIGHTS = 6_400_000  # entries of a block of weights: 51 MB, of which about 20 are in memory
IMAGES = 5000  # converted to float64 at a time


def log_uniform(e: Array) -> Array:
    """log p_T of t ~ U(0, 1) at odds e."""
    return jnp.zeros_like(e)


def log_skewed(e: Array) -> Array:
    """log p_T of t = 1/(1+σ), ln σ ~ N(-1.2, 1.2²) (DM Table 6), up to a constant.

    logit t = ln e ~ N(1.2, 1.2²), and dt = t (1-t) d logit t.
    """
    logit = jnp.log(e)
    return -0.5 * ((logit - 1.2) / 1.2) ** 2 - logit + 2 * jnp.log1p(e)


# p_T by name; "zero" is t = 0 given, where all images are equally likely.
TIMES: dict[str, Callable | None] = {"zero": None, "uniform": log_uniform, "skewed": log_skewed}


class Minimisers(NamedTuple):
    """Float64 [P, D] each."""

    one_step: np.ndarray  # f = ŝ - x, to the data (eq. 33)
    flow: np.ndarray  # g = E[x1 - x0 | x], to the data (eq. 22)
    eikonal: np.ndarray  # h = E[(x - x1)/√(r²+c0) | x], away from the data (eq. 26)


class Angles(NamedTuple):
    """In radians, [P] each; `ratio` is (∠(f,h) + ∠(h,g)) / ∠(f,g), at least 1."""

    one_step_eikonal: np.ndarray
    eikonal_flow: np.ndarray
    one_step_flow: np.ndarray
    ratio: np.ndarray


def minimisers(
    x,
    images,
    *,
    time: str,
    epsilon: float,
    c0: float,
    num_nodes: int = NUM_NODES,
    on_block: Callable[[int], None] = lambda done: None,
) -> Minimisers:
    """The minimisers at x of the one-step, flow matching and directional eikonal losses.

    In float64 on JAX's default device. `BLOCK_WEIGHTS` / N points are done at a time, with about
    20 arrays of one weight a point and image.

    Args:
      x: [P, D], no point of which is an image. images: [N, D].
      time: p_T, a key of `TIMES`.
      epsilon, c0: of the losses, in squared units of x.
      num_nodes: of the quadrature over time.
      on_block: told how many points are done.
    Raises:
      ValueError: unknown time, shapes that do not fit, a point that is an image.
    """
    if time not in TIMES:
        raise ValueError(f"unknown time {time!r}: known are {', '.join(TIMES)}")
    if np.ndim(x) != 2 or np.ndim(images) != 2 or x.shape[1] != images.shape[1]:
        raise ValueError(f"x and images must be [P, D] and [N, D], got {x.shape}, {images.shape}")
    block = max(1, BLOCK_WEIGHTS // len(images))
    parts = []
    with jax.enable_x64(True):
        rule = tuple(map(jnp.asarray, np.polynomial.legendre.leggauss(num_nodes)))
        settings = jnp.asarray([epsilon, c0], jnp.float64)
        for start in range(0, len(x), block):
            rows = jnp.asarray(x[start : start + block], jnp.float64)
            parts.append(_minimisers(rows, images, rule, settings, time))
            on_block(min(start + block, len(x)))
    return Minimisers(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _minimisers(x: Array, images, rule, settings, time: str) -> list[np.ndarray]:
    """One block of points, float64 [P, D]: the three minimisers, by passes over the images."""
    chunks = [slice(i, i + IMAGES) for i in range(0, len(images), IMAGES)]
    products, squares = zip(*(_products(x, jnp.asarray(images[c])) for c in chunks), strict=True)
    products, squares = jnp.concatenate(products, axis=1), jnp.concatenate(squares)
    weights, nearest = _weights(
        jnp.sum(x * x, axis=1), products, squares, rule, settings, dimension=x.shape[1], time=time
    )
    if not nearest > 0:
        raise ValueError("minimisers need points that are no images: one lies at distance 0")
    sums = 0.0
    for chunk in chunks:
        sums = sums + _sum_images(weights[:, :, chunk], jnp.asarray(images[chunk]))
    means = sums - jnp.sum(weights, axis=-1)[..., None] * x[None]
    return [np.asarray(m) for m in means]


@jax.jit
def _products(x, images):
    """x·s [P, N] and ‖s‖² [N]."""
    images = images.astype(jnp.float64)
    return x @ images.T, jnp.sum(images * images, axis=1)


@jax.jit
def _sum_images(weights, images):
    """Σ_i weights[..., i] s_i: [3, P, D]."""
    return weights @ images.astype(jnp.float64)


@functools.partial(jax.jit, static_argnames=("dimension", "time"))
def _weights(square, products, squares, rule, settings, *, dimension: int, time: str):
    """The weights of s_i - x in f, g and h, [3, P, N], and the least ‖x - s_i‖²."""
    epsilon, c0 = settings
    g = square[:, None] - products  # x·(x - s_i)
    r2 = g - products + squares[None, :]  # ‖x - s_i‖²
    log_density = TIMES[time]
    if log_density is None:
        posterior, stretch = jnp.full_like(r2, 1 / r2.shape[1]), 1.0
    else:
        log_weight, stretch = _integrate(g, r2, rule, dimension, log_density)
        posterior = jax.nn.softmax(log_weight, axis=1)  # eq. 27
    closer = posterior / (r2 + epsilon)
    one_step = closer / jnp.sum(closer, axis=1, keepdims=True)
    return jnp.stack([one_step, posterior * stretch, -posterior / jnp.sqrt(r2 + c0)]), r2.min()


def _integrate(g, r2, rule, dimension: int, log_density: Callable):
    """log W_i up to a term in x, and E[1+e | x, i]: [P, N] each, of g = x·(x-s_i), r2 = ‖x-s_i‖².

    φ(e) = (d-2) ln(1+e) - e g - ½ e² r², of slope zero at the root of (1+e)(g + e r²) = d-2. Right
    of the mode φ'' <= -r²; left of it φ'' <= -r² - (d-2)/(1+mode)².
    """
    power = dimension - 2
    rise = max(power, 0)
    mode = 2 * (rise - g) / (g + r2 + jnp.sqrt((g - r2) ** 2 + 4 * r2 * rise))
    mode = jnp.maximum(mode, 0.0)
    fall = jnp.maximum(g - rise, 0.0)  # -φ' at the mode where that is t = 0
    right = 2 * NATS / (fall + jnp.sqrt(fall**2 + 2 * NATS * r2))
    left = jnp.minimum(mode, jnp.sqrt(2 * NATS / (r2 + rise / (1 + mode) ** 2)))
    half, centre = 0.5 * (left + right), mode + 0.5 * (right - left)
    phi = lambda e: power * jnp.log1p(e) - e * g - 0.5 * e**2 * r2
    peak = phi(mode)

    def add(sums, node):
        place, weight = node
        e = centre + half * place
        term = weight * jnp.exp(phi(e) - peak + log_density(e))
        return (sums[0] + term, sums[1] + term * e), None

    zero = jnp.zeros_like(g)
    (total, moment), _ = jax.lax.scan(add, (zero, zero), rule)
    return peak + jnp.log(half * total), 1 + moment / total


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between rows of [P, D], in radians, accurate near 0 and π (Kahan's formula): [P]."""
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    return 2 * np.arctan2(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1))


def angles(m: Minimisers) -> Angles:
    """The angles between f, -h and g, which all point to the data, and their ratio (DM Fig. 11).

    By the triangle inequality on the sphere the ratio is never below 1; it is 1 where h lies on
    the arc from f to g, and NaN where f and g have one direction.
    """
    first, second = angle(m.one_step, -m.eikonal), angle(-m.eikonal, m.flow)
    direct = angle(m.one_step, m.flow)
    ratio = np.divide(first + second, direct, out=np.full_like(direct, np.nan), where=direct > 0)
    return Angles(first, second, direct, ratio)


def single_precision_ratio(m: Minimisers) -> np.ndarray:
    """The ratio of `angles` as arccos of float32 cosines gives it, [P].

    Near 1 a rounding of 6e-8 in a cosine is an angle of 3e-4: small angles come out noisy, and
    the ratio may fall below 1. NaN where ∠(f,g) comes out as 0.
    """
    f, h, g = (np.asarray(v, np.float32) for v in (m.one_step, -m.eikonal, m.flow))

    def by_cosine(a, b):
        norms = [np.sqrt(np.sum(v * v, axis=1)) for v in (a, b)]
        return np.arccos(np.clip(np.sum(a * b, axis=1) / (norms[0] * norms[1]), -1, 1))

    through, direct = by_cosine(f, h) + by_cosine(h, g), by_cosine(f, g)
    return np.divide(through, direct, out=np.full_like(direct, np.nan), where=direct > 0)
