"""Lines Matching against a discriminator: two players, their weight, DiffAugment (LMM, appendix E).

Sources: LMM eq. 8; the hinge of Lim & Ye (arXiv:1705.02894); the adaptive weight of Esser et al.
(arXiv:2012.09841); DiffAugment of Zhao et al. (arXiv:2006.10738).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from genfield.fields import Field, mean_features, sum_features
from genfield.losses.lines import squared_l2
from genfield.paths import PathSample

SHIFT, CUTOUT = 1 / 8, 1 / 2  # of an image's sides (Zhao et al.)


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


def diff_augment(
    key: Array, images: Array, policy: tuple[str, ...] = ("color", "translation", "cutout")
) -> Array:
    """Images changed at random, each by itself and differentiably (Zhao et al., section 3).

    Args:
      key: [B], one an image. images: [B, H, W, C] in [-1, 1].
      policy: of "color" (brightness, saturation, contrast), "translation" (by up to an eighth of
        the sides) and "cutout" (of a square of half the sides); what leaves or is cut is 0.
    Raises:
      ValueError: an unknown policy.
    """
    for name in policy:
        if name not in AUGMENTATIONS:
            raise ValueError(f"unknown policy {name!r}; known: {', '.join(AUGMENTATIONS)}")

    def one(key, image):
        for number, (name, change) in enumerate(AUGMENTATIONS.items()):
            if name in policy:
                image = change(jax.random.fold_in(key, number), image)
        return image

    return jax.vmap(one)(key, images)


def _color(key: Array, image: Array) -> Array:
    brightness, saturation, contrast = jax.random.uniform(key, (3,))
    image = image + brightness - 0.5
    grey = image.mean(-1, keepdims=True)
    image = (image - grey) * 2 * saturation + grey
    mean = image.mean()
    return (image - mean) * (contrast + 0.5) + mean


def _translation(key: Array, image: Array) -> Array:
    height, width, channels = image.shape
    reach = [int(side * SHIFT + 0.5) for side in (height, width)]
    padded = jnp.pad(image, [(r, r) for r in reach] + [(0, 0)])
    start = jax.random.randint(key, (2,), 0, 2 * jnp.array(reach) + 1)
    return jax.lax.dynamic_slice(padded, (*start, 0), (height, width, channels))


def _cutout(key: Array, image: Array) -> Array:
    def inside(key, side):
        length = int(side * CUTOUT + 0.5)
        first = jax.random.randint(key, (), 0, side + 1 - length % 2) - length // 2
        place = jnp.arange(side)
        return (place >= first) & (place < first + length)

    rows, columns = map(inside, jax.random.split(key), image.shape[:2])
    return jnp.where(rows[:, None, None] & columns[None, :, None], 0.0, image)


AUGMENTATIONS = {"color": _color, "translation": _translation, "cutout": _cutout}


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
    game: str = "hinge",
    lines_weight: float = 0.5,
    adversarial_weight: float = 1.0,
    start: int = 0,
    policy: tuple[str, ...] = ("color", "translation", "cutout"),
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
