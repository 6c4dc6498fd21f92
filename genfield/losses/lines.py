"""Lines Matching Models: straight lines through the pairs of a deterministic sampler."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.features.perceptual import perceptual
from genfield.fields import Field, squared_norm
from genfield.losses.checks import checks
from genfield.paths import PathSample


def squared_l2(a: Array, b: Array) -> Array:
    """|a - b|², summed over features: [B, *D], [B, *D] -> [B]."""
    return squared_norm(a - b)


def l2(a: Array, b: Array) -> Array:
    """|a - b|, [B]; its gradient is bounded, and zero where a = b."""
    squared = squared_norm(a - b)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


DISTANCES = {"squared_l2": lambda: squared_l2, "l2": lambda: l2, "perceptual": perceptual}


@checks
def lines_matching(
    field: Field,
    sample: PathSample,
    cond: Any = None,
    *,
    distance: Callable[[Array, Array], Array] = squared_l2,
) -> tuple[Array, dict]:
    """The distance of N(x1 + σ x0, σ) from x1 (LMM eq. 7), of pairs x1 = Sampler(x0).

    Of independent x0 and x1 it is denoising without a weight; of pairs, the minimiser is the end of
    each line, whatever the noise.

    Args:
      field: the denoiser N, called with the noise level σ [B] (`fields.precondition`).
      sample: of `paths.variance_exploding`, whose t is σ, with x0 the noise that x1 was drawn from.
      distance: (N's output, x1) -> [B], such as a perceptual one.
    Returns:
      The loss [B], and its terms (none).
    """
    return distance(field(sample.x, sample.t, cond), sample.x1), {}


METHOD = registry.Loss(
    name="lines_matching",
    function=lines_matching,
    teaches="denoiser",
    outputs=("vector",),
    scalar=None,
    clock=lambda bound: True,
    couples=lambda bound: False,
    shares_time=False,
    second_order=False,
    time_law=None,
    extras=(),
    roles=None,
    tables={
        "distance": registry.Nested(DISTANCES, default=None, of_data=False, bare=True, loads=True)
    },
)
