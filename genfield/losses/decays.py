"""Equilibrium Matching's decays c(t): how its target falls to 0 at the data (section 3.1)."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

Decay = Callable[[Array], Array]  # t [B] -> c(t) [B], multiplier included


def _check(a: float) -> None:
    if not 0 <= a < 1:
        raise ValueError(f"a decay starts at 0 <= a < 1, got a={a}")


def linear(multiplier: float = 1.0) -> Decay:
    """λ (1-t) (eq. 4)."""
    return lambda t: multiplier * (1 - t)


def truncated(a: float = 0.8, multiplier: float = 4.0) -> Decay:
    """λ for t <= a, then linear to 0 (eq. 5); the paper's default a = 0.8, λ = 4 (section 5.3)."""
    _check(a)
    return lambda t: multiplier * jnp.minimum(1.0, (1 - t) / (1 - a))


def piecewise(a: float = 0.8, b: float = 1.4, multiplier: float = 1.0) -> Decay:
    """λ (b - (b-1) t/a) for t <= a, then linear to 0 (eq. 6)."""
    _check(a)
    if a == 0 or b < 0:
        raise ValueError(f"piecewise needs a > 0 and b >= 0, got a={a}, b={b}")
    return lambda t: multiplier * jnp.where(t <= a, b - (b - 1) * t / a, (1 - t) / (1 - a))


def constant(multiplier: float = 1.0) -> Decay:
    """λ: the negative of flow matching (section 3.1); the gradient does not vanish on data."""
    return lambda t: jnp.full_like(t, multiplier)


DECAYS = {"linear": linear, "truncated": truncated, "piecewise": piecewise, "constant": constant}
