"""Closed forms of Flux Matching in float64 numpy, from the paper's equations 4-9 and 52.

The setting: p = N(m, Σ), P = Σ⁻¹, f(x) = A x + b. With y = x - m, U = A + P and w = A m + b,

    u = f - s = U y + w,    r = tr U - yᵀ Uᵀ P y - wᵀ P y,    ∇r = -(H y + P w),  H = P U + Uᵀ P,

and a Langevin chain is y_t = M y_0 + noise. Each estimator's mean is then an integral over t of
traces. Gradients are those of the loss as it is trained, with the second-order part held.
"""

from typing import NamedTuple

import numpy as np
import scipy.integrate
import scipy.linalg


class Problem(NamedTuple):
    """f(x) = A x + b on N(mean, covariance); σ is the unit of the chain's time alone."""

    A: np.ndarray  # [d, d]
    b: np.ndarray  # [d]
    mean: np.ndarray  # [d]
    covariance: np.ndarray  # [d, d]
    sigma: float

    @property
    def precision(self):
        return np.linalg.inv(self.covariance)

    @property
    def U(self):
        return self.A + self.precision

    @property
    def w(self):
        return self.A @ self.mean + self.b

    @property
    def H(self):
        return self.precision @ self.U + self.U.T @ self.precision


class Answer(NamedTuple):
    """Of a loss: its mean and the means of its gradients in A and b."""

    value: float
    in_A: np.ndarray
    in_b: np.ndarray


def make_problem(seed: int, dim: int, spread: float, size: float = 1.0) -> Problem:
    """Eigenvalues of Σ from `size` to `size * spread`, turned at random; σ² their mean."""
    rng = np.random.default_rng([seed, dim])
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    values = size * np.geomspace(1, spread, dim) if dim > 1 else np.array([size * spread])
    covariance = (axes * values) @ axes.T
    scale = 1 / np.sqrt(values.mean())
    A = scale**2 * rng.normal(size=(dim, dim)) / np.sqrt(dim)
    b, mean = scale * rng.normal(size=dim), rng.normal(size=dim) / scale
    return Problem(A, b, mean, covariance, float(np.sqrt(np.trace(covariance) / dim)))


def _answer(p: Problem, K: np.ndarray, k: np.ndarray) -> Answer:
    """From K y + k, the mean of the pulled -∇r given the start x."""
    value = np.trace(p.U.T @ K @ p.covariance) + p.w @ k
    return Answer(float(value), K @ p.covariance + np.outer(k, p.mean), k)


def projection(p: Problem) -> np.ndarray:
    """G: Π u = G y + w is the gradient field with the flux of u, so P G + G P = H (eq. 4)."""
    return scipy.linalg.solve_continuous_lyapunov(p.precision, p.H)


def projected_divergence(p: Problem) -> float:
    """J = E|Π f - s|² by its definition (eq. 4)."""
    G = projection(p)
    return float(np.trace(G @ p.covariance @ G) + p.w @ p.w)


def untruncated(p: Problem) -> Answer:
    """Equation 6 over all times, exact dynamics: K = G, k = w."""
    return _answer(p, projection(p), p.w)


def truncated(p: Problem, horizon: float) -> Answer:
    """Equation 6 for t up to T in units of σ², exact dynamics: M = exp(-P σ² t)."""
    values, axes = np.linalg.eigh(p.precision)
    time = horizon * p.sigma**2
    total = values[:, None] + values
    K = axes @ (axes.T @ p.H @ axes * -np.expm1(-total * time) / total) @ axes.T
    k = axes @ (-np.expm1(-values * time) * (axes.T @ p.w))
    return _answer(p, K, k)


def times(horizon: float, num_nodes: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on [0, T]."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return 0.5 * horizon * (nodes + 1), 0.5 * horizon * weights


def _step(p: Problem, h: float) -> np.ndarray:
    """The matrix of one step of equation 8."""
    return np.eye(len(p.b)) - p.sigma**2 * -np.expm1(-h) * p.precision


def transition(p: Problem, t: float, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(M, noise covariance) of y_t = M y_0 + noise by the steps of equation 8."""
    h, d = t / num_steps, len(p.b)
    step, noise = _step(p, h), np.zeros((d, d))
    for _ in range(num_steps):
        noise = step @ noise @ step.T + p.sigma**2 * -np.expm1(-2 * h) * np.eye(d)
    return np.linalg.matrix_power(step, num_steps), noise


def chain(p: Problem, horizon: float, num_steps: int) -> Answer:
    """Equation 6 for the chain as it is run: each t has `num_steps` steps (eq. 8)."""
    K, k = np.zeros_like(p.A), np.zeros_like(p.b)
    for t, weight in zip(*times(horizon), strict=True):
        M = np.linalg.matrix_power(_step(p, t / num_steps), num_steps)
        K += weight * p.sigma**2 * M.T @ p.H @ M
        k += weight * p.sigma**2 * M.T @ p.precision @ p.w
    return _answer(p, K, k)


def cross_chain(p: Problem, horizon: float, num_steps: int, normalized: bool = False) -> Answer:
    """Equations 9 and 52 of infinitely many chains.

    The kernel k(x_t | x_0) = N(x_0 + σ²(1 - e^{-t}) s(x_0), σ²(1 - e^{-2t})) is the transition's
    only for isotropic p of variance σ². Over starts, softmax(x_t) is the posterior p k / ∫ p k, so
    y_0 = C y_t on average; over ends it is p_t k / ∫ p_t k, so y_t = D y_0, and no e^{-t}.
    """
    K, k, eye = np.zeros_like(p.A), np.zeros_like(p.b), np.eye(len(p.b))
    for t, weight in zip(*times(horizon), strict=True):
        M, noise = transition(p, t, num_steps)
        ends = M @ p.covariance @ M.T + noise
        N = eye - p.sigma**2 * -np.expm1(-t) * p.precision
        width = p.sigma**2 * -np.expm1(-2 * t)
        if normalized:
            D = np.linalg.solve(np.linalg.inv(ends) + eye / width, N / width)
            held, factor = p.H @ D @ p.covariance, 1.0
        else:
            C = p.covariance @ N.T @ np.linalg.inv(N @ p.covariance @ N.T + width * eye)
            held, factor = p.H @ ends @ C.T, np.exp(-t)
        K += weight * p.sigma**2 * factor * held
        k += weight * p.sigma**2 * factor * p.precision @ p.w
    in_A = K + np.outer(k, p.mean)
    return Answer(float(np.trace(p.U.T @ K) + p.w @ k), in_A, k)


def autocorrelation(p: Problem, horizon: float) -> float:
    """∫ E[r(x_0) r(x_t)] dt up to T (eq. 5, the first form), by the moments of Gaussians.

    With Q = H/2 and C = cov(y_t, y_0): 2 tr(Q C Q Cᵀ) + wᵀ P C P w.
    """
    Q, P = p.H / 2, p.precision
    total = 0.0
    for t, weight in zip(*times(horizon), strict=True):
        C = scipy.linalg.expm(-P * p.sigma**2 * t) @ p.covariance
        total += weight * p.sigma**2 * (2 * np.trace(Q @ C @ Q @ C.T) + p.w @ P @ C @ P @ p.w)
    return total


# By hand, for given ends of the chains: the estimators of (∂x_t/∂x)ᵀ ∇r(x_t) as loops.


def pulled(
    x, ends, slopes, score, sigma: float, t: float, estimator: str, labels=None, end_labels=None
) -> np.ndarray:
    """Equation 9 of one group: starts x [n, d], ends [m, d], slopes ∇r(x_t) [m, d] -> [n, d]."""
    n, m = len(x), len(ends)
    density = np.zeros((n, m))
    for i in range(n):
        for j in range(m):
            gap = ends[j] - x[i] - sigma**2 * (1 - np.exp(-t)) * score[i]
            density[i, j] = np.exp(-(gap @ gap) / (2 * sigma**2 * (1 - np.exp(-2 * t))))
            if labels is not None and labels[i] != end_labels[j]:
                density[i, j] = 0
    if estimator == "cross_chain":
        weights = np.exp(-t) * density / density.sum(0, keepdims=True) * (n / m)
    else:
        weights = density / density.sum(1, keepdims=True)
    return weights @ slopes


# Mixtures, and fields that keep them.


def mixture(x, means, std, weights) -> tuple[np.ndarray, np.ndarray]:
    """Density [B] and score [B, d] of Σ π_k N(μ_k, s_k² I)."""
    x, d = np.asarray(x, np.float64), np.shape(x)[-1]
    gap = x[:, None] - means[None]
    parts = np.exp(-0.5 * (gap**2).sum(-1) / std**2) / (2 * np.pi * std**2) ** (d / 2) * weights
    return parts.sum(1), -(parts[..., None] * gap / std[None, :, None] ** 2).sum(1) / parts.sum(1)[
        :, None
    ]


def draw_mixture(rng, num: int, means, std, weights) -> np.ndarray:
    """[num, d]."""
    k = rng.choice(len(weights), size=num, p=weights)
    return means[k] + std[k][:, None] * rng.normal(size=(num, means.shape[1]))


def truncated_exponential_mass(rate: float, horizon: float, t: float) -> float:
    """∫_0^t of equation 49 by adaptive quadrature."""
    density = lambda s: rate * np.exp(-rate * s) / (1 - np.exp(-rate * horizon))
    return scipy.integrate.quad(density, 0, t, epsabs=1e-12)[0]


def flow_velocity(x, centres, a: float) -> np.ndarray:
    """Equation 60 at x [d]."""
    log_weight = -0.5 * ((x - a * centres) ** 2).sum(-1) / (1 - a) ** 2
    w = np.exp(log_weight - log_weight.max())
    return (w / w.sum()) @ (centres - x) / (1 - a)


def kde_score(x, centres, sigma: float) -> np.ndarray:
    """Equation 7 at x [d]."""
    log_weight = -0.5 * ((x - centres) ** 2).sum(-1) / sigma**2
    w = np.exp(log_weight - log_weight.max())
    return (w @ (centres - x)) / (sigma**2 * w.sum())
