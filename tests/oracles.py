"""Closed forms on a finite data set, in float64 numpy, written from the papers.

The setting (DM, arXiv:2602.02928, definition 3.1): x = (1-t) x0 + t s_I with I uniform over the
N points s_i, x0 ~ N(0, I) and t ~ p_T. Each function gives what a regression learns at a fixed x.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Z_LIMIT = 18.0  # t = sigmoid(z): the times left out have a prior mass of e^-18 = 1.5e-8 a side
NEGLIGIBLE = 1e-13  # posterior weight, relative to the largest node, below which a node is dropped


class Posterior(NamedTuple):
    """Quadrature of p(i, t | x) (DM eq. 27-30): M nodes whose weights sum to 1."""

    weight: np.ndarray  # [M]
    index: np.ndarray  # [M]
    t: np.ndarray  # [M]
    x0: np.ndarray  # [M, d], the source that brings point i to x at time t
    x1: np.ndarray  # [M, d]
    x: np.ndarray  # [d]


def log_uniform_density(t, rest):
    """log p_T of U(0, 1); rest = 1 - t, passed for its accuracy near the data."""
    return np.zeros_like(t)


def log_skewed_density(t, rest):
    """log p_T of t = 1/(1+σ), ln σ ~ N(-1.2, 1.2²): logit t ~ N(1.2, 1.2²) (DM Table 6)."""
    logit = np.log(t) - np.log(rest)
    return -0.5 * ((logit - 1.2) / 1.2) ** 2 - np.log(1.2 * np.sqrt(2 * np.pi) * t * rest)


DENSITIES = {"uniform": log_uniform_density, "skewed": log_skewed_density}


def posterior(
    x, points, log_density: Callable, *, breaks=(0.8, 0.95), num_panels: int = 120, order: int = 6
) -> Posterior:
    """Joint posterior of (i, t) at x [d] for points [N, d]; x must not be one of the points.

    Composite Gauss-Legendre in z = logit t, which resolves both ends; `breaks` are times at which
    an integrand has a kink, and become panel edges.
    """
    x, points = np.asarray(x, np.float64), np.asarray(points, np.float64)
    kinks = [np.log(b / (1 - b)) for b in breaks]
    edges = np.sort(np.concatenate([np.linspace(-Z_LIMIT, Z_LIMIT, num_panels + 1), kinks]))
    nodes, weights = np.polynomial.legendre.leggauss(order)
    half = 0.5 * np.diff(edges)[:, None]
    z = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * nodes).ravel()
    t, rest = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    log_measure = np.log((half * weights).ravel() * t * rest) + log_density(t, rest)

    gap = x - t[None, :, None] * points[:, None, :]  # [N, K, d]
    log_weight = (
        log_measure - len(x) * np.log(rest) - 0.5 * np.sum(gap**2, axis=-1) / rest**2
    )  # eq. 28
    weight = np.exp(log_weight - log_weight.max())
    keep = weight > NEGLIGIBLE
    # The shape stays [N * K] at any x; dropped nodes weigh nothing and hold harmless values.
    source = np.where(keep[..., None], gap / rest[None, :, None], 0.0)
    weight = np.where(keep, weight, 0.0)
    n, k = weight.shape
    return Posterior(
        weight=(weight / weight.sum()).ravel(),
        index=np.repeat(np.arange(n), k),
        t=np.where(keep, t, 0.5).ravel(),
        x0=source.reshape(n * k, -1),
        x1=np.repeat(points, k, axis=0),
        x=x,
    )


def index_posterior(p: Posterior, num_points: int) -> np.ndarray:
    """P(I = i | x), [N] (eq. 27)."""
    return np.bincount(p.index, p.weight, minlength=num_points)


def _mean(p: Posterior, values, weight=1.0):
    """Posterior mean of values [M, d], with an extra weight [M] (corollary A.5, eq. 35)."""
    w = p.weight * weight
    return w @ values / w.sum()


def flow(p: Posterior) -> np.ndarray:
    """E[x1 - x0 | x] (theorem A.1, eq. 22)."""
    return _mean(p, p.x1 - p.x0)


def flow_at_time(x, t: float, points) -> np.ndarray:
    """E[x1 - x0 | x, t], by the posterior over the points at this t (eq. 30)."""
    x, points = np.asarray(x, np.float64), np.asarray(points, np.float64)
    log_weight = -0.5 * np.sum((x - t * points) ** 2, axis=-1) / (1 - t) ** 2
    w = np.exp(log_weight - log_weight.max())
    return w @ (points - (x - t * points) / (1 - t)) / w.sum()


def reweighted_flow(p: Posterior, cutoff: float) -> np.ndarray:
    """The minimiser under (1-t)^-2, constant within `cutoff` of the data (eq. 35, remark A.6)."""
    return _mean(p, p.x1 - p.x0, np.minimum((1 - p.t) ** -2.0, cutoff**-2.0))


def equilibrium(p: Posterior, decay: Callable) -> np.ndarray:
    """E[(x0 - x1) c(t) | x] (EqM, arXiv:2510.02300, eq. 3)."""
    return _mean(p, (p.x0 - p.x1) * decay(p.t)[:, None])


def linear_decay(t):
    """EqM eq. 4."""
    return 1 - t


def truncated_decay(t, a):
    """EqM eq. 5."""
    return np.where(t <= a, 1.0, (1 - t) / (1 - a))


def piecewise_decay(t, a, b):
    """EqM eq. 6."""
    return np.where(t <= a, b - (b - 1) / a * t, (1 - t) / (1 - a))


def _squared_distance(p: Posterior):
    return np.sum((p.x - p.x1) ** 2, axis=-1)


def one_step(p: Posterior, epsilon: float) -> np.ndarray:
    """The denoised point x - u v of the one-step loss alone (theorem A.3, eq. 33-34)."""
    return _mean(p, p.x1, 1 / (_squared_distance(p) + epsilon))


def eikonal(p: Posterior, c0: float) -> np.ndarray:
    """The direction of the directional eikonal loss alone (eq. 24, 26)."""
    return _mean(p, (p.x - p.x1) / np.sqrt(_squared_distance(p) + c0)[:, None])


def joint_loss(p: Posterior, u, v, epsilon, c0, one_step_weight, eikonal_weight) -> float:
    """The population form of eq. 8 at x."""
    r2, residual = _squared_distance(p), p.x - p.x1
    a = np.sum((residual - u * v) ** 2, axis=-1) / (r2 + epsilon)
    b = np.sum((v - residual / np.sqrt(r2 + c0)[:, None]) ** 2, axis=-1)
    return float(p.weight @ (one_step_weight * a + eikonal_weight * b))


def joint(
    p: Posterior, epsilon: float, c0: float, one_step_weight: float, eikonal_weight: float
) -> tuple[float, np.ndarray]:
    """(u, v) that minimise eq. 8 together; both weights positive.

    With w = 1/(r²+ε), W = E[w], a = E[w (x-x1)] and b = E[(x-x1)/√(r²+c0)], eq. 8 is quadratic in
    v, solved by v(u) = (λ1 u a + λ2 b) / (λ1 u² W + λ2). What is left to maximise over u is
    |λ1 u a + λ2 b|² / (λ1 u² W + λ2), whose stationary points solve
    -λ1 W (a·b) u² + (λ1 |a|² - λ2 W |b|²) u + λ2 (a·b) = 0: two roots of opposite signs, of which
    the maximum is the one with the sign of a·b.
    """
    l1, l2 = one_step_weight, eikonal_weight
    residual, r2 = p.x - p.x1, _squared_distance(p)
    w = p.weight / (r2 + epsilon)
    total, a = w.sum(), w @ residual
    b = p.weight @ (residual / np.sqrt(r2 + c0)[:, None])
    ab = float(a @ b)
    assert ab != 0, "the branch of u is undetermined"
    roots = np.roots([-ab * l1 * total, l1 * (a @ a) - l2 * total * (b @ b), l2 * ab]).real
    u = float(roots[np.sign(roots) == np.sign(ab)][0])
    return u, (l1 * u * a + l2 * b) / (l1 * u**2 * total + l2)
