"""Flow matching (Lipman et al., arXiv:2210.02747), with and without the time input."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.fields import Field, mean_features
from genfield.losses.checks import checks
from genfield.paths import PathSample


def inverse_square(cutoff: float = 0.05) -> Callable[[Array], Array]:
    """Weight (1-t)^-2, held constant within `cutoff` of the data (DM section 4.1, remark A.6).

    Without the cut-off the posterior weight is infinite for Gaussian targets: state the cut-off
    wherever a result is quoted.
    """
    if not 0 < cutoff <= 1:
        raise ValueError(f"inverse_square needs 0 < cutoff <= 1, got {cutoff}")
    return lambda t: 1 / jnp.square(jnp.maximum(1 - t, cutoff))


WEIGHTS = {"inverse_square": inverse_square}


@checks
def flow_matching(
    field: Field,
    sample: PathSample,
    cond: Any = None,
    *,
    time_input: bool = True,
    weight: Callable[[Array], Array] | None = None,
) -> tuple[Array, dict]:
    """w(t) · mean over features of (f(x_t, t) - v)².

    Args:
      field: the velocity field; called with t, or with None where `time_input` is off
        (Uncond-FM). sample: see PathSample.
      weight: of t, e.g. `inverse_square(0.05)`; None is 1.
    Returns:
      The loss [B], and its terms (none).
    """
    v = field(sample.x, sample.t if time_input else None, cond)
    loss = mean_features(jnp.square(v - sample.v))
    return (loss if weight is None else weight(sample.t) * loss), {}


METHOD = registry.Loss(
    name="flow_matching",
    function=flow_matching,
    teaches="velocity",
    outputs=("vector",),
    scalar=None,
    clock=lambda bound: bound["time_input"],
    couples=lambda bound: False,
    shares_time=False,
    second_order=False,
    time_law=None,
    extras=(),
    roles=None,
    tables={
        "weight": registry.Nested(WEIGHTS, default=None, of_data=False, bare=False, loads=False)
    },
)
