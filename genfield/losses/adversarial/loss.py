"""Lines Matching against a discriminator (LMM, eq. 8 and appendix E)."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from genfield import registry
from genfield.fields import Field, mean_features, sum_features
from genfield.losses.adversarial.augment import AUGMENTATIONS, diff_augment
from genfield.losses.adversarial.discriminator import projected
from genfield.losses.adversarial.game import GAMES, Adversary, adaptive_weight
from genfield.losses.checks import checks
from genfield.losses.lines import DISTANCES, squared_l2
from genfield.paths import PathSample
from genfield.registry import NotNegative, NotNegativeInt, OneOf

ADVERSARIES = {"projected": projected}


@checks
def adversarial_lines_matching(
    field: Field,
    sample: PathSample,
    cond: Any = None,
    *,
    key: Array,
    roles: dict,
    real: Array,
    adversary: Adversary,
    last_layer: tuple[Any, Callable[[Any], Field]],
    label: Array | None = None,
    real_label: Array | None = None,
    step: Array | None = None,
    distance: Callable[[Array, Array], Array] = squared_l2,
    game: Annotated[str, OneOf(GAMES)] = "hinge",
    lines_weight: NotNegative = 0.5,
    adversarial_weight: NotNegative = 1.0,
    start: NotNegativeInt = 0,
    policy: Annotated[tuple[str, ...], OneOf(AUGMENTATIONS)] = ("color", "translation", "cutout"),
) -> tuple[Array, dict]:
    """λ_lines L_lines + λ_adapt L_disc for the field, and the discriminator's own loss (LMM eq. 8).

    Both players move in one backward pass: the field sees the discriminator's gradient and not its
    parameters, and the other way round. λ_adapt is one number for all examples of the call.

    Args:
      field: the denoiser, not used by itself: `last_layer` makes the same one.
      sample, distance: as `lines_matching`.
      key: [B], of the augmentations. roles: as `adversary.init` made them.
      real: [B, *D] in [-1, 1], examples of the data; label, real_label: [B], of the pairs and of
        those, for a conditional discriminator.
      last_layer: the weights of the field's last layer, and the field as a function of them.
      step: [B] int32, all equal: before step `start` there is no adversarial part. None: there is.
      game: "hinge" or "non_saturating" (eq. 8's logarithms). lines_weight: λ_lines (Table 6).
      adversarial_weight: times λ_adapt. policy: of `diff_augment`; empty: none.
    Returns:
      The loss [B], and its terms: "lines", "generator", "discriminator" and "adaptive_weight".
    Raises:
      ValueError: an unknown game or policy.
    """
    if game not in GAMES:
        raise ValueError(f"unknown game {game!r}; known: {', '.join(GAMES)}")
    values, field_of = last_layer
    ends, pull = jax.vjp(lambda v: field_of(v)(sample.x, sample.t, cond), values)
    fixed, frozen = jax.lax.stop_gradient((ends, roles))
    lines, back = jax.vjp(lambda x: distance(x, sample.x1), fixed)
    [lines_slope] = back(jnp.ones_like(lines))

    def judged(players, number, images, of):
        keys = jax.vmap(lambda k: jax.random.fold_in(k, number))(key)
        return adversary.logits(players, diff_augment(keys, images, policy), of)

    def play():
        of_ends = lambda x: mean_features(GAMES[game].generator(judged(frozen, 0, x, label)))
        generator, back = jax.vjp(of_ends, fixed)
        [slope] = back(jnp.ones_like(generator))
        weight = adversarial_weight * adaptive_weight(pull, lines_slope, slope)
        logits = judged(roles, 1, real, real_label), judged(roles, 0, fixed, label)
        critic = mean_features(GAMES[game].discriminator(*logits)) + adversary.track(roles)
        return lines_weight * lines_slope + weight * slope, generator, critic, weight

    def wait():
        zeros = jnp.zeros_like(lines)
        return lines_weight * lines_slope, zeros, zeros, jnp.zeros(())

    if step is None or start == 0:
        slope, generator, critic, weight = play()
    else:
        slope, generator, critic, weight = jax.lax.cond(step[0] >= start, play, wait)
    # <slope, ends> has the wanted gradient: distance and discriminator are gone back through once.
    moving = sum_features(jax.lax.stop_gradient(slope) * ends) + critic
    value = lines_weight * lines + weight * generator + critic
    terms = {"lines": lines, "generator": generator, "discriminator": critic}
    terms["adaptive_weight"] = jnp.broadcast_to(weight, lines.shape)
    return jax.lax.stop_gradient(value - moving) + moving, jax.lax.stop_gradient(terms)


def _optimizer(section) -> optax.GradientTransformation:
    """RAdam, whose second betas are those of GANs."""
    betas = dict(b1=section.discriminator_b1, b2=section.discriminator_b2)
    return optax.radam(section.discriminator_learning_rate, **betas)


METHOD = registry.Loss(
    name="adversarial_lines_matching",
    function=adversarial_lines_matching,
    teaches="denoiser",
    outputs=("vector",),
    scalar=None,
    clock=lambda bound: True,
    couples=lambda bound: False,
    shares_time=False,
    second_order=True,
    time_law=None,
    extras=("key", "roles", "label", "step", "real", "real_label", "last_layer"),
    roles=registry.Roles(
        init=lambda key, adversary, **_: adversary.init(key),
        # Each step of "spectral" takes the vector to where its power iteration went.
        optimizers={"discriminator": _optimizer, "spectral": lambda section: optax.sgd(1.0)},
    ),
    tables={
        "distance": registry.Nested(DISTANCES, default=None, of_data=False, bare=True, loads=True),
        "adversary": registry.Nested(
            ADVERSARIES, default="projected", of_data=True, bare=False, loads=True
        ),
    },
)
