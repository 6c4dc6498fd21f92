"""DiffAugment (Zhao et al., arXiv:2006.10738): what a discriminator sees, changed at random."""

import jax
import jax.numpy as jnp
from jax import Array

SHIFT, CUTOUT = 1 / 8, 1 / 2  # of an image's sides (Zhao et al.)


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
