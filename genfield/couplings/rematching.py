"""Rematching: other targets for points that are already on their paths."""

import jax.numpy as jnp

from genfield import registry
from genfield.couplings.groups import grouped
from genfield.distances import squared_distances
from genfield.paths import Path, PathSample, interpolate
from genfield.registry import PositiveInt


def keep_targets(path: Path, sample: PathSample) -> PathSample:
    """The sample as it is."""
    del path
    return sample


def nearest_target(
    path: Path, sample: PathSample, *, group_size: PositiveInt | None = None
) -> PathSample:
    """Replaces each target by the nearest x1 of the minibatch to x_t (DM section 3.3).

    With replacement, so labels no longer belong to their targets and images collapse onto few
    targets (DM sections 4.1, C.6): for low-dimensional, unconditional problems.

    Returns:
      The sample with x0, t and x kept; x1 and the velocity are those of the new pairing.
    """

    def nearest(x, targets):
        return targets[jnp.argmin(squared_distances(x, targets), axis=1)]

    x1 = grouped(nearest, group_size, sample.x, sample.x1)
    return interpolate(path, sample.x0, x1, sample.t)._replace(x=sample.x)


METHODS = (
    registry.Rematching(name="none", function=keep_targets, moves=False),
    registry.Rematching(name="nearest", function=nearest_target, moves=True),
)
