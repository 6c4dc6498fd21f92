"""The couplings of comparison: no matching at all, and the nearest source with replacement."""

import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.couplings.groups import check_pair, grouped
from genfield.distances import squared_distances
from genfield.registry import PositiveInt


def independent(x0: Array, x1: Array) -> Array:
    """x0 as drawn: the product coupling."""
    del x1
    return x0


def nearest_source(x0: Array, x1: Array, *, group_size: PositiveInt | None = None) -> Array:
    """The nearest x0 of each x1, with replacement: **biased**, for comparison only.

    Noises far from all data are never trained on, so the noise marginal is no longer that of x0
    (DANSM section 3.3).
    """
    check_pair(x0, x1)

    def match(sources, targets):
        return sources[jnp.argmin(squared_distances(targets, sources), axis=1)]

    return grouped(match, group_size, x0, x1)


METHODS = (
    registry.Coupling(name="independent", function=independent, extras=(), groups=False),
    registry.Coupling(name="nearest_source", function=nearest_source, extras=(), groups=True),
)
