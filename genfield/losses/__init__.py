"""Losses: each takes a field and a PathSample and returns a loss [B] and its terms.

Only the train step averages over examples; whether features are summed or averaged is said in
each docstring, since the papers differ.
"""

from genfield.losses.action import action_matching
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

LOSSES = {
    "action_matching": action_matching,
    "flow_matching": flow_matching,
    "equilibrium_matching": equilibrium_matching,
    "distance_marching": distance_marching,
}

__all__ = [
    "DECAYS",
    "LOSSES",
    "WEIGHTS",
    "action_matching",
    "constant",
    "distance_marching",
    "equilibrium_matching",
    "flow_matching",
    "inverse_square",
    "linear",
    "piecewise",
    "truncated",
]
