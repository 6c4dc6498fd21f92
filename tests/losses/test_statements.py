"""Equilibrium Matching's Statements 1 to 3 (arXiv:2510.02300, section 3.2) on closed forms.

1 and 2 are about the exact minimiser on a finite data set, as the dimension grows; 3 about gradient
descent on an L-smooth energy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from genfield import sampling

DIMENSIONS = (2, 8, 32, 128)
POINTS = 5
DECAY = functools.partial(oracles.truncated_decay, a=0.8)


@functools.cache
def points(dim: int) -> np.ndarray:
    return np.random.default_rng(dim).normal(size=(POINTS, dim))


def minimiser(x: np.ndarray, dim: int, decay=DECAY) -> np.ndarray:
    """f(x) of a perfect training (eq. 3)."""
    return oracles.equilibrium(
        oracles.posterior(x, points(dim), oracles.log_uniform_density, num_panels=60), decay
    )


def at_a_sample(dim: int, decay=DECAY) -> float:
    """|f| beside a training example, over its size at a noise."""
    direction = np.random.default_rng(1).normal(size=dim)
    beside = points(dim)[0] + 1e-3 * direction / np.linalg.norm(direction)
    noise = np.random.default_rng(2).normal(size=dim)
    return np.linalg.norm(minimiser(beside, dim, decay)) / np.linalg.norm(minimiser(noise, dim))


def test_statement_1_the_gradient_vanishes_at_samples_as_the_dimension_grows():
    sizes = [at_a_sample(dim) for dim in DIMENSIONS]
    assert np.all(np.diff(sizes) < 0) and sizes[0] > 0.1 and sizes[-1] < 0.01, sizes
    # It is c(1) = 0 that makes it vanish: flow matching's field, c = 1, does not.
    assert at_a_sample(128, np.ones_like) > 0.5


def descended(x: np.ndarray, dim: int, step: float = 0.1, num: int = 60) -> np.ndarray:
    for _ in range(num):
        x = x - step * minimiser(x, dim)
    return x


@pytest.mark.parametrize("seed", range(2))
def test_statement_2_minima_are_samples(seed):
    """Descent from noise ends at a training example, and that is a minimum, not a saddle."""
    dim = 128
    start = np.random.default_rng(10 + seed).normal(size=dim)
    end = descended(start, dim)
    to = lambda x: np.linalg.norm(x - points(dim), axis=1)
    assert to(end).min() < 0.02 * to(start).min()
    # f points away from it all around.
    sample = points(dim)[np.argmin(to(end))]
    for direction in np.random.default_rng(seed).normal(size=(4, dim)):
        aside = 0.3 * direction / np.linalg.norm(direction)
        assert minimiser(sample + aside, dim) @ aside > 0.5 * 0.3 * np.linalg.norm(
            minimiser(sample + aside, dim)
        )


CURVATURES = np.array([4.0, 1.0, 0.25], np.float32)


def energy(x):
    """4 log cosh x_1 + …: L-smooth with L = 4, and bounded below by 0."""
    return jnp.log(jnp.cosh(x)) @ CURVATURES


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_statement_3_descent_converges_at_one_over_n(share):
    """min |f(x_k)|² over k < K is at most 2 (E(x_0) - E_inf) / (η K), for η up to 1/L."""
    eta, num = share / CURVATURES.max(), 200
    x = jnp.asarray(3 * np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    field = lambda x, t=None, cond=None: jax.grad(lambda z: energy(z).sum())(x)
    out = sampling.sample(
        jax.random.key(0), field, x, sampling.gradient_descent(eta), num_steps=num, trace=1
    )
    squares = np.sum(np.square(jax.vmap(field)(out.trace)), axis=-1)  # [num + 1, 16]
    smallest = np.minimum.accumulate(squares[:-1], axis=0)
    bound = 2 * np.asarray(energy(x)) / (eta * np.arange(1, num + 1)[:, None])
    assert np.all(smallest <= bound)
    # Each step gains what the derivation says it does.
    gained = -np.diff(np.asarray(energy(out.trace)), axis=0)
    assert np.all(gained >= 0.5 * eta * squares[:-1] - 1e-5)
