"""Action Matching (Neklyudov et al., arXiv:2210.06662): a baseline of DM's Table 1."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.fields import Field, Prediction, squared_norm
from genfield.losses.checks import checks
from genfield.paths import PathSample


@checks
def action_matching(field: Field, sample: PathSample, cond: Any = None) -> tuple[Array, dict]:
    """s(x0, 0) - s(x1, 1) + |∇s|²/2 + ∂s/∂t at (x_t, t) (eq. 5), norms summed over features.

    Minimal where ∇s is the gradient part of the marginal velocity; no velocity is asked for. The
    least value is minus half that part's mean square, so the loss is negative.

    Args:
      field: returns a Prediction of a scalar network with a clock (`fields.potential_field`): its
        distance is the action s, its direction the velocity ∇s.
      sample: t must be uniform on [0, 1], since its mean stands for the integral over time.
    Returns:
      The loss [B], and its terms {"ends": [B], "kinetic": [B], "rate": [B]}.
    Raises:
      TypeError: the field does not return a Prediction.
    """
    at = lambda x, t: field(x, t, cond)
    ones = jnp.ones_like(sample.t)
    prediction, rate = jax.jvp(lambda t: at(sample.x, t), (sample.t,), (ones,))
    if not isinstance(prediction, Prediction):
        raise TypeError("action_matching needs a field that returns fields.Prediction")
    ends = at(sample.x0, 0 * ones).distance - at(sample.x1, ones).distance
    kinetic = 0.5 * squared_norm(prediction.direction)
    terms = {"ends": ends, "kinetic": kinetic, "rate": rate.distance}
    return ends + kinetic + rate.distance, terms


METHOD = registry.Loss(
    name="action_matching",
    function=action_matching,
    teaches="velocity",
    outputs=("potential",),
    scalar="action",
    clock=lambda bound: True,
    couples=lambda bound: False,
    shares_time=False,
    second_order=True,
    time_law="uniform",
    extras=(),
    roles=None,
    tables={},
)
