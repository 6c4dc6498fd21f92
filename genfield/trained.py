"""What a network was trained to be: its output with time input, energy and preconditioning."""

from collections.abc import Callable

import jax.numpy as jnp

from genfield.fields import ENERGIES, Field, potential_field, rotated_gradient, score_field
from genfield.preconditionings import PRECONDITIONINGS
from genfield.registry import AT_LEVELS


def trained_field(
    network: Callable,
    *,
    teaches: str,
    clock: bool,
    name: str,
    output: str = "vector",
    energy: str = "none",
    preconditioning: str = "none",
    sigma_data: float = 0.5,
    rotation: float = 0.0,
) -> Field:
    """The field of a network whose parameters are bound.

    Args:
      network: (x [B, *D], t [B] or None, cond) -> what the network gives.
      teaches: what it learned to be, of registry.FIELDS. clock: whether it is called with t, or the
        noise level; otherwise it is never shown one, whichever sampler follows it.
      name: of what trained it, for messages.
      output: of registry.OUTPUTS. energy: of a vector network, a key of fields.ENERGIES.
      preconditioning, sigma_data, rotation: of fields of noise levels, as the config has them.
    """

    def call(x, t=None, cond=None):
        if clock and t is None:
            raise ValueError(f"the field of {name} was trained with t: pass t [B]")
        return network(x, t if clock else None, cond)

    if teaches in AT_LEVELS:
        if preconditioning != "none":
            denoiser = PRECONDITIONINGS[preconditioning].denoiser(call, sigma_data)
            return denoiser if teaches == "denoiser" else score_field(denoiser)
        at_level = lambda x, t=None, cond=None: call(x, None if t is None else jnp.log(t) / 4, cond)
        return rotated_gradient(at_level, rotation) if output == "potential" else at_level
    if output == "energy":
        return potential_field(ENERGIES[energy](call))
    return potential_field(call) if output == "potential" else call
