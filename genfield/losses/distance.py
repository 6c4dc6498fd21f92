"""Distance Marching (Wang et al., arXiv:2602.02928)."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.fields import Field, Prediction, displacement, expand, squared_norm
from genfield.losses.checks import checks
from genfield.paths import PathSample
from genfield.registry import NotNegative


@checks
def distance_marching(
    field: Field,
    sample: PathSample,
    cond: Any = None,
    *,
    epsilon: NotNegative,
    c0: NotNegative,
    one_step_weight: NotNegative = 1.0,
    eikonal_weight: NotNegative = 1.0,
    normalize: bool = True,
) -> tuple[Array, dict]:
    """λ1 L_OS + λ2 L_DE (eq. 8), norms summed over features.

    Args:
      field: returns a Prediction; its direction is ∇u of a scalar network
        (`fields.potential_field`, eq. 3 and 5) or predicted beside u (eq. 7).
      epsilon: ε of the one-step loss, in squared units of x. c0: offset of the eikonal loss.
      one_step_weight: λ1. eikonal_weight: λ2. With 0 a loss is left out (Table 10).
      normalize: False leaves out the one-step loss's denominator (the ablation of Table 11).
    Returns:
      The loss [B], and its terms {"one_step": [B], "eikonal": [B]}, unweighted.
    Raises:
      TypeError: the field does not return a Prediction.
    """
    prediction = field(sample.x, None, cond)
    if not isinstance(prediction, Prediction):
        raise TypeError("distance_marching needs a field that returns fields.Prediction")
    residual = sample.x - sample.x1
    r2 = squared_norm(residual)
    one_step = squared_norm(residual - displacement(prediction))
    if normalize:
        one_step = one_step / (r2 + epsilon)
    target = residual / expand(jnp.sqrt(r2 + c0), residual)
    eikonal = squared_norm(prediction.direction - target)
    loss = one_step_weight * one_step + eikonal_weight * eikonal
    return loss, {"one_step": one_step, "eikonal": eikonal}


METHOD = registry.Loss(
    name="distance_marching",
    function=distance_marching,
    teaches="gradient",
    outputs=("predicted", "potential"),
    scalar="distance",
    clock=lambda bound: False,
    couples=lambda bound: False,
    shares_time=False,
    second_order=False,
    time_law=None,
    extras=(),
    roles=None,
    tables={},
)
