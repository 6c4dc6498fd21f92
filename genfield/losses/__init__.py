"""Losses: each takes a field and a PathSample and returns a loss [B] and its terms.

Only the train step averages over examples; whether features are summed or averaged is said in
each docstring, since the papers differ. A velocity points from source to data, a gradient from the
data away: a sampler that follows the other one takes `fields.negate`.
"""

from typing import Any, Protocol

from jax import Array

from genfield.fields import Field
from genfield.losses import decays
from genfield.losses.action import action_matching
from genfield.losses.adversarial.loss import adversarial_lines_matching
from genfield.losses.denoising import denoising
from genfield.losses.distance import distance_marching
from genfield.losses.equilibrium import equilibrium_matching
from genfield.losses.flow import flow_matching, inverse_square
from genfield.losses.flux.estimator import flux_augment, flux_estimator
from genfield.losses.flux.levels import flux_matching, flux_roles, velocity_flux_matching
from genfield.losses.flux.mixing import mixing_proxy, sinkhorn_divergence
from genfield.losses.lines import l2, lines_matching, squared_l2
from genfield.paths import PathSample


class Loss(Protocol):
    """A loss: the field has its parameters bound, so that the loss is a function of them."""

    def __call__(
        self, field: Field, sample: PathSample, cond: Any = None, **options
    ) -> tuple[Array, dict[str, Array]]:
        """The loss [B], and its terms by name, [B] each."""
        ...


__all__ = [
    "Loss",
    "action_matching",
    "adversarial_lines_matching",
    "decays",
    "denoising",
    "distance_marching",
    "equilibrium_matching",
    "flow_matching",
    "flux_augment",
    "flux_estimator",
    "flux_matching",
    "flux_roles",
    "inverse_square",
    "l2",
    "lines_matching",
    "mixing_proxy",
    "sinkhorn_divergence",
    "squared_l2",
    "velocity_flux_matching",
]
