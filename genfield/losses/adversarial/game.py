"""The game against a discriminator, and the weight of the two losses of a field in it.

Sources: LMM eq. 8; the hinge of Lim & Ye (arXiv:1705.02894); the adaptive weight of Esser et al.
(arXiv:2012.09841).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Game(NamedTuple):
    """What the players minimise, of the discriminator's logits, elementwise."""

    generator: Callable[[Array], Array]  # of generated ones
    discriminator: Callable[[Array, Array], Array]  # of real and of generated ones


GAMES = {
    "hinge": Game(
        generator=lambda fake: -fake,
        discriminator=lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake),
    ),
    "non_saturating": Game(
        generator=lambda fake: jax.nn.softplus(-fake),
        discriminator=lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake),
    ),
}


class Adversary(NamedTuple):
    """A discriminator as pure functions.

    init(key) -> {role: parameters}
    logits(roles, images [B, H, W, C] in [-1, 1], label [B] or None) -> [B, heads]
    track(roles) -> scalar whose gradient carries along what the discriminator keeps of itself
    """

    init: Callable[[Array], dict]
    logits: Callable[[dict, Array, Array | None], Array]
    track: Callable[[dict], Array] = lambda roles: jnp.zeros(())


def adaptive_weight(pull: Callable[[Array], Any], lines: Array, adversarial: Array) -> Array:
    """|∇_L lines| / |∇_L adversarial| over the last layer's weights (LMM, appendix E).

    Args:
      pull: takes a gradient in the network's outputs to one in those weights.
      lines, adversarial: gradients of both losses in the outputs, [B, *D].
    """
    norm = lambda gradient: jnp.sqrt(
        sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(pull(gradient)))
    )
    return norm(lines) / (norm(adversarial) + 1e-12)
