"""Equilibrium Matching (Wang & Du, arXiv:2510.02300)."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.fields import Field, direction, expand, mean_features
from genfield.losses.checks import checks
from genfield.losses.decays import DECAYS, Decay, truncated
from genfield.paths import PathSample


@checks
def equilibrium_matching(
    field: Field,
    sample: PathSample,
    cond: Any = None,
    *,
    decay: Decay = truncated(0.8, 4.0),
    time_input: bool = False,
) -> tuple[Array, dict]:
    """Mean over features of (f(x_t) - (x0 - x1) c(t))² (eq. 3).

    Args:
      field: the gradient of an implicit energy; it points from data to noise. A Prediction's
        direction is used, so a scalar network's gradient is an explicit energy (eq. 7).
      decay: c(t) with its multiplier.
      time_input: the noise-conditioned ablation (Table 4).
    Returns:
      The loss [B], and its terms (none).
    """
    gradient = direction(field(sample.x, sample.t if time_input else None, cond))
    target = (sample.x0 - sample.x1) * expand(decay(sample.t), sample.x)
    return mean_features(jnp.square(gradient - target)), {}


METHOD = registry.Loss(
    name="equilibrium_matching",
    function=equilibrium_matching,
    teaches="gradient",
    outputs=("vector", "potential", "energy"),
    scalar="energy",
    clock=lambda bound: bound["time_input"],
    couples=lambda bound: False,
    shares_time=False,
    second_order=False,
    time_law=None,
    extras=(),
    roles=None,
    tables={"decay": registry.Nested(DECAYS, default=None, of_data=False, bare=False, loads=False)},
)
