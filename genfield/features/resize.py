"""Resizing as the published metrics do it, by two small interpolation matrices.

Sources: the original FID graph's bilinear resizing (TensorFlow 1); Parmar et al., "On Aliased
Resizing and Surprising Subtleties in GAN Evaluation" (2022), whose clean-fid uses Pillow's bicubic.
"""

import jax
import jax.numpy as jnp
import numpy as np

from genfield import registry

CUBIC = -0.5  # Pillow's coefficient
LEVELS = 255.0


def tf1_bilinear(inputs: int, outputs: int) -> np.ndarray:
    """[outputs, inputs] float64: interpolation at i * inputs / outputs, edges repeated.

    TensorFlow 1's default: no half-pixel centres, and shrinking skips pixels.
    """
    position = np.arange(outputs) * (inputs / outputs)
    lower = np.floor(position).astype(int)
    rows, matrix = np.arange(outputs), np.zeros((outputs, inputs))
    np.add.at(matrix, (rows, lower), 1 - (position - lower))
    np.add.at(matrix, (rows, np.minimum(lower + 1, inputs - 1)), position - lower)
    return matrix


def antialiased(inputs: int, outputs: int) -> np.ndarray:
    """[outputs, inputs] float64: Pillow's bicubic filter, widened when shrinking.

    Pixel centres lie at halves; at the edges the weights that are left are scaled to sum to one.
    """
    scale = inputs / outputs
    centre = (np.arange(outputs)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(inputs)[None, :] + 0.5 - centre) / max(scale, 1.0)
    matrix = _cubic(distance)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel of distances x >= 0."""
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x**2 + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


# Each: the matrix of one axis, and whether results are clipped to 0..255 (cubics overshoot).
CONVENTIONS = {"tf1_bilinear": (tf1_bilinear, False), "antialiased": (antialiased, True)}


def resize(x: jax.Array, size: int, convention: str) -> jax.Array:
    """Images brought to size x size; can be jitted with `size` and `convention` static.

    Args:
      x: [B, H, W, 3], or [B, H, W, 1] for grey, which is repeated; uint8, or float levels 0..255.
      size: of the result, in pixels.
      convention: "tf1_bilinear" (the original FID) or "antialiased" (clean-fid).
    Returns:
      [B, size, size, 3] float32 levels, not rounded.
    Raises:
      UserError: unknown convention.
      ValueError: another shape.
    """
    matrix, clip = registry.choose("resizing convention", convention, CONVENTIONS)
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"x is {list(x.shape)}: resize needs [B, H, W, 1 or 3]")
    x = jnp.asarray(x, jnp.float32)
    for axis, letter in ((1, "h"), (2, "w")):
        if x.shape[axis] != size:
            weights = jnp.asarray(matrix(x.shape[axis], size), jnp.float32)
            result = "bhwc".replace(letter, "s")
            x = jnp.einsum(f"s{letter},bhwc->{result}", weights, x, precision="highest")
    x = jnp.clip(x, 0.0, LEVELS) if clip else x
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))
