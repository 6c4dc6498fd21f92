"""RNA kinetics as a field: transcription, splicing and degradation of each gene (Flux Matching).

The dynamical model of scVelo with a transcription rate that depends on the state instead of a
latent phase (Flux Matching, section B.2, eq. 41-42).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from genfield import errors, registry
from genfield.nets import layers
from genfield.nets.initial import constant

PARAMETERS = ("slope_unspliced", "slope_spliced", "offset", "splicing", "degradation")


class RNAKinetics(layers.Network):
    """dx/dτ of x = (u, s), unspliced and spliced abundances of G genes: [B, 2G] -> [B, 2G].

    du/dτ = α(u, s) - β u and ds/dτ = β u - γ s with α = softplus(a u + b s + c), gene by gene
    (eq. 41), β and γ the softplus of a free parameter each (eq. 42): 5 G parameters. All start at
    zero: a, b and c as in section B.2; the paper does not give the start of β and γ, here ln 2.
    The time is ignored.
    """

    def __init__(self, *, shape, num_classes, rngs):
        if len(shape) != 1 or shape[0] % 2 or not shape[0]:
            raise errors.UserError(
                f"net 'rna_kinetics' needs examples of shape (2 x genes,), unspliced then spliced, "
                f"not {shape}"
            )
        if num_classes:
            raise errors.UserError("net 'rna_kinetics' takes no labels: set data.labels=False")
        for name in PARAMETERS:
            zeros = jnp.zeros(shape[0] // 2, jnp.float32)
            setattr(self, name, nnx.Param(zeros, initial=constant(0.0)))

    def __call__(self, x, t, cond, rngs=None):
        a, b, c, splicing, degradation = (getattr(self, name)[...][None] for name in PARAMETERS)
        unspliced, spliced = jnp.split(x, 2, axis=-1)
        transcribed = jax.nn.softplus(a * unspliced + b * spliced + c)
        matured = jax.nn.softplus(splicing) * unspliced
        degraded = jax.nn.softplus(degradation) * spliced
        return jnp.concatenate([transcribed - matured, matured - degraded], axis=-1)


def rates(params: Mapping[str, Array]) -> dict[str, Array]:
    """What the parameters of `RNAKinetics` say: "splicing" β and "degradation" γ, [G] (eq. 42)."""
    return {name: jax.nn.softplus(params[name]) for name in ("splicing", "degradation")}


def spliced_velocity(velocity: Array) -> Array:
    """ds/dτ, which is called RNA velocity, of dx/dτ: [B, 2G] -> [B, G]."""
    return velocity[..., velocity.shape[-1] // 2 :]


METHOD = registry.Network(
    name="rna_kinetics",
    make=RNAKinetics,
    second_order=lambda bound: None,
    last_layer=None,
    stack=(),
    augmented=False,
)
