"""What an autoencoder is trained for: its images back, and latents near a normal distribution.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022),
section 3.1 and appendix G, without their discriminator.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genfield import rng
from genfield.data import to_unit
from genfield.features import autoencoder_kl
from genfield.features.autoencoder_kl import Config

PIXELS = {"l1": jnp.abs, "l2": jnp.square}


class Weights(NamedTuple):
    """Of the parts of the loss; it is a mean over the values of an image.

    kl: of the divergence of the posterior from a normal distribution, summed over an image's
      latents and divided by its number of values, as published; perceptual: of the distance in
      the features of a network.
    """

    kl: float = 1e-6
    perceptual: float = 1.0


class Reconstruction(NamedTuple):
    """The objective of `program.train_step`: `draw` holds the randomness, `loss` has none."""

    draw: Callable  # (key, {"x1": images [B, H, W, C]}) -> what `loss` takes
    loss: Callable  # (params, drawn, key, train) -> loss [B], terms {name: [B]}
    group_size: int = 1


def create(
    config: Config,
    *,
    pixels: str,
    weights: Weights,
    distance: Callable | None,
    crop: int | None,
    dtype: str,
) -> Reconstruction:
    """The objective of an autoencoder's parameters, {"autoencoder": …}.

    Args:
      pixels: "l1" or "l2".
      distance: (images, images) -> [B], of features; None: there is none.
      crop: side of a random square of each image that a step sees; None: whole images.
      dtype: of the layers.
    """

    def draw(key, batch):
        images = to_unit(batch["x1"])
        if crop:
            images = _cropped(rng.fold_in(key, 1), images, crop)
        sides = [side // config.factor for side in images.shape[1:3]]
        shape = (len(images), *sides, config.latent_channels)
        return {"images": images, "noise": jax.random.normal(rng.fold_in(key, 0), shape)}

    def loss(params, drawn, key, train):
        images, part = drawn["images"], params["autoencoder"]
        mean, std = autoencoder_kl.encode(part, images, config, dtype=dtype)
        made = autoencoder_kl.decode(part, mean + std * drawn["noise"], config, dtype=dtype)
        terms = {pixels: jnp.mean(PIXELS[pixels](made - images), axis=(1, 2, 3))}
        size = images[0].size
        divergence = jnp.square(mean) + jnp.square(std) - 1 - 2 * jnp.log(std)
        terms["kl"] = 0.5 * jnp.sum(divergence, axis=(1, 2, 3)) / size
        total = terms[pixels] + weights.kl * terms["kl"]
        if distance:
            terms["perceptual"] = distance(made, images)
            total += weights.perceptual * terms["perceptual"]
        return total, terms

    return Reconstruction(draw, loss)


def _cropped(key, images: jax.Array, side: int) -> jax.Array:
    """A square of each image, at a place of its own."""
    batch, height, width, channels = images.shape
    room = jnp.array([height - side + 1, width - side + 1])
    corners = jax.random.randint(key, (batch, 2), 0, room.reshape(1, 2))
    cut = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (side, side, channels))
    return jax.vmap(cut)(images, corners)
