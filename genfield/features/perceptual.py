"""Distances of images in the features of a pretrained network, for losses.

Sources: Johnson, Alahi & Fei-Fei, "Perceptual Losses for Real-Time Style Transfer" (2016), eq. 2;
the unit vectors of Zhang et al. (arXiv:1801.03924).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from genfield import errors, features, registry
from genfield.registry import NotNegative, NotNegativeInt, Place

LAYERS = {
    "vgg16": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "efficientnet_lite0": ("stage_0", "stage_1", "stage_2", "stage_4", "stage_6"),
}


def levels(images: Array, size: int | None) -> Array:
    """[B, H, W, 1 or 3] in [-1, 1] -> what networks take: [B, size, size, 3], 0..255, bilinear.

    Raises:
      ValueError: no images.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"features are of images [B, H, W, 1 or 3], not {list(images.shape)}")
    batch, height, width, _ = images.shape
    if size is not None and (height, width) != (size, size):
        images = jax.image.resize(images, (batch, size, size, images.shape[-1]), "bilinear")
    return jnp.broadcast_to((images + 1) * 127.5, (*images.shape[:-1], 3))


def perceptual(
    network: str = "vgg16",
    layers: tuple[str, ...] | None = None,
    size: int | None = 224,
    unit_vectors: bool = False,
    pixel_weight: NotNegative = 0.0,
    path: Place | None = None,
    sha256: str | None = None,
    seed: NotNegativeInt | None = None,
) -> Callable[[Array, Array], Array]:
    """Σ over layers of the mean squared difference of features: (a, b) [B, H, W, C] -> [B].

    Args:
      network: "vgg16", as LMM has it, or "efficientnet_lite0".
      layers: outputs of the network; None: `LAYERS`.
      size: images are first resized to so many pixels, LMM's 224; None: they stay as they are.
      unit_vectors: features of a place are scaled to unit length first, as LPIPS does, so that
        layers count alike.
      pixel_weight: of the mean squared difference of the pixels, in [-1, 1], which is added.
      path, sha256, seed: of the network's weights, as `features.create`; they are loaded when the
        distance is first taken.
    Raises:
      UserError: unknown network or layer, no size; when it is first taken, no weights.
    """
    known = registry.choose("network of a perceptual distance", network, LAYERS)
    if size is not None and size < 1:
        raise errors.UserError(f"size {size} of a perceptual distance must be positive, or None")
    outputs = features.outputs(network, (1, 224, 224, 3))
    spatial = {name: None for name, a in outputs.items() if a.ndim == 4}
    for layer in layers or ():
        registry.choose(f"layer of {network}", layer, spatial)
    chosen = tuple(layers or known)
    load = functools.cache(lambda: features.create(network, path=path, sha256=sha256, seed=seed))

    def seen(images):
        made = load()
        found = made.apply(made.params, levels(images, size))
        return [_unit(found[name]) if unit_vectors else found[name] for name in chosen]

    def distance(a: Array, b: Array) -> Array:
        apart = lambda x, y: jnp.mean(jnp.square(x - y), axis=(1, 2, 3))
        total = sum(apart(x, y) for x, y in zip(seen(a), seen(b), strict=True))
        return total + pixel_weight * apart(a, b) if pixel_weight else total

    return distance


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-10)
