"""Losses: each takes a field and a PathSample and returns a loss [B] and its terms.

Only the train step averages over examples; whether features are summed or averaged is said in
each docstring, since the papers differ.
"""

from genfield.losses.action import action_matching
from genfield.losses.adversarial import adversarial_lines_matching
from genfield.losses.annealed import annealed_flux_matching, annealed_velocity_flux, flux_roles
from genfield.losses.denoising import denoising
from genfield.losses.distance import distance_marching
from genfield.losses.equilibrium import (
    DECAYS,
    constant,
    equilibrium_matching,
    linear,
    piecewise,
    truncated,
)
from genfield.losses.flow import WEIGHTS, flow_matching, inverse_square
from genfield.losses.flux import flux_augment, flux_matching
from genfield.losses.lines import DISTANCES, l2, lines_matching, squared_l2
from genfield.losses.mixing import mixing_proxy, sinkhorn_divergence

LOSSES = {
    "action_matching": action_matching,
    "flow_matching": flow_matching,
    "equilibrium_matching": equilibrium_matching,
    "distance_marching": distance_marching,
    "denoising": denoising,
    "lines_matching": lines_matching,
    "adversarial_lines_matching": adversarial_lines_matching,
    "flux_matching": annealed_flux_matching,
    "velocity_flux_matching": annealed_velocity_flux,
}
# What a loss trains beside its field: (key, **fields of its section) -> {role: parameters}.
ROLES = {"flux_matching": flux_roles, "velocity_flux_matching": flux_roles}
# To losses that name them.
OFFERED = (
    *("key", "roles", "label", "null_class"),
    *("step", "real", "real_label", "last_layer", "adversary"),
)

__all__ = [
    "DECAYS",
    "DISTANCES",
    "LOSSES",
    "OFFERED",
    "ROLES",
    "WEIGHTS",
    "action_matching",
    "adversarial_lines_matching",
    "annealed_flux_matching",
    "annealed_velocity_flux",
    "constant",
    "denoising",
    "distance_marching",
    "equilibrium_matching",
    "flow_matching",
    "flux_augment",
    "flux_matching",
    "inverse_square",
    "l2",
    "linear",
    "lines_matching",
    "mixing_proxy",
    "piecewise",
    "sinkhorn_divergence",
    "squared_l2",
    "truncated",
]
