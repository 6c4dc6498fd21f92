"""Augmentations that a network is told of, so that none leaks into its samples.

Source: EDM (Karras et al. 2022, arXiv:2206.00364, appendix F.2), after Karras et al. (2020,
arXiv:2006.06676). As there, an image is doubled by an orthogonal wavelet before it is warped and
halved by its transpose after, so that warping neither blurs nor aliases.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield.registry import choose

NUM_LABELS = 9
LOG2_SCALE = LOG2_STRETCH = 0.2  # EDM: standard deviations
SHIFT = 0.125  # EDM: standard deviation over the side of the image
AXIS_PROBABILITY = 0.5  # EDM: that a stretch is not along x
# Daubechies (1992), Table 6.3: the least asymmetric wavelet with six vanishing moments.
WAVELET = np.array(
    [
        0.015404109327027373,
        0.0034907120842174702,
        -0.11799011114819057,
        -0.048311742585633,
        0.4910559419267466,
        0.787641141030194,
        0.3379294217276218,
        -0.07263752278646252,
        -0.021060292512300564,
        0.04472490177066578,
        0.0017677118642428036,
        -0.007800708325034148,
    ]
)
BEFORE = len(WAVELET) // 2 - 1  # taps before the first of the two samples that make up a pixel
# Sample m is pixel (m - DELAY) / 2: 0.1 where a symmetric filter has 1/2.
DELAY = float(WAVELET @ np.arange(len(WAVELET)) / WAVELET.sum()) - BEFORE
# What is turned and stretched about: the middle of the image, or a point DELAY / 2 pixels from it,
# up and left, where EDM's code takes a pixel to be sample 2 i. Its networks were told of that.
CENTERS = {"middle": DELAY, "edm": 0.0}


class Augmentation(NamedTuple):
    """What happens to one image: flips, then a warp; (x, y) are pixels right and down."""

    flips: Array  # [2] bool: left-right, up-down
    warps: Array  # bool: whether the rest differs from nothing
    matrix: Array  # [2, 2]: from an offset to the centre in the result to the one it shows
    shift: Array  # [2]: pixels that the content moves, last of all
    labels: Array  # [9]: x-flip, y-flip, scale, rotation (2), stretch (2), shift (2)


def _rotation(angle):
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[cosine, -sine], [sine, cosine]])


def draw(
    key: Array, height: int, width: int, probability: float, x_flip_probability: float
) -> Augmentation:
    """An augmentation for one image, see `augment`."""
    keys = jax.random.split(key, 3)
    coins = jax.random.uniform(keys[0], 7)
    scale, stretch, *shift = jax.random.normal(keys[1], 4)
    angle, axis = jax.random.uniform(keys[2], 2, minval=-jnp.pi, maxval=jnp.pi)

    flips = coins[:2] < jnp.array([x_flip_probability, probability]) / 2
    on = coins[2:6] < probability
    scale, angle, stretch = jnp.where(on[:3], jnp.stack([scale, angle, stretch]), 0.0)
    shift = jnp.where(on[3], jnp.stack(shift), 0.0)
    axis = jnp.where(coins[6] < AXIS_PROBABILITY, axis, 0.0)

    narrower = jnp.diag(2.0 ** (LOG2_STRETCH * stretch * jnp.array([-1.0, 1.0])))
    matrix = 2.0 ** (-LOG2_SCALE * scale) * _product(
        _rotation(angle), _rotation(-axis), narrower, _rotation(axis)
    )
    labels = [scale, jnp.cos(angle) - 1, jnp.sin(angle)]
    labels += [stretch * jnp.cos(axis), stretch * jnp.sin(axis)]
    labels = jnp.concatenate([flips.astype(jnp.float32), jnp.stack(labels), shift])
    pixels = SHIFT * jnp.array([width, height], jnp.float32)
    return Augmentation(flips, on.any(), matrix, pixels * shift, labels)


def _product(*matrices):
    """Of small matrices, in full float32 on every device."""
    return functools.reduce(lambda a, b: jnp.matmul(a, b, precision="highest"), matrices)


def doubling(size: int) -> np.ndarray:
    """[4 (size - 1), size] float64: one period of the reflected signal at twice the rate.

    The signal goes on as its mirror image at either end, the end not repeated: its period is
    2 (size - 1). On a period the matrix is orthogonal.
    """
    period = 2 * (size - 1)
    matrix = np.zeros((2 * period, size))
    for n in range(period):
        rows = (2 * n - BEFORE + np.arange(len(WAVELET))) % (2 * period)
        np.add.at(matrix, (rows, min(n, period - n)), WAVELET)
    return matrix


def halving(size: int) -> np.ndarray:
    """[size, 2 size + 10] float64: the transpose, from samples -5, -4, ... of a doubled signal."""
    matrix = np.zeros((size, 2 * size + len(WAVELET) - 2))
    for n in range(size):
        matrix[n, 2 * n : 2 * n + len(WAVELET)] = WAVELET
    return matrix


def _resample(make, height, width, image):
    """make(height) and make(width) applied to the rows and columns of [., ., C]."""
    rows, columns = (jnp.asarray(make(side), jnp.float32) for side in (height, width))
    return jnp.einsum("uh,vw,hwc->uvc", rows, columns, image, precision="highest")


def _bilinear(image, y, x):
    """Periodic [H, W, C] at positions y, x [M, N] -> [M, N, C]."""
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = (y - top)[..., None], (x - left)[..., None]
    rows, columns = top.astype(int), left.astype(int)
    at = lambda i, j: image[(rows + i) % image.shape[0], (columns + j) % image.shape[1]]
    upper = at(0, 0) * (1 - right) + at(0, 1) * right
    lower = at(1, 0) * (1 - right) + at(1, 1) * right
    return upper * (1 - down) + lower * down


def warp(image: Array, matrix: Array, shift: Array, center: str = "middle") -> Array:
    """Moves the content of [H, W, C]: an offset p from the centre shows matrix (p - shift).

    Beyond its borders the image is its own reflection. `matrix` [2, 2] and `shift` [2] act on
    (x, y), in pixels right and down. `center`: of CENTERS.
    """
    height, width, _ = image.shape
    middle_y, middle_x = (n - 1 + CENTERS[center] for n in (height, width))  # samples
    samples = [np.arange(2 * n + len(WAVELET) - 2) - BEFORE for n in (height, width)]
    y, x = np.meshgrid(*samples, indexing="ij")
    offsets = jnp.asarray(np.stack([x - middle_x, y - middle_y], axis=-1), jnp.float32)
    offsets = offsets - 2 * shift[None, None]
    offsets = jnp.einsum("ij,uvj->iuv", matrix, offsets, precision="highest")
    doubled = _resample(doubling, height, width, image)
    warped = _bilinear(doubled, offsets[1] + middle_y, offsets[0] + middle_x)
    return _resample(halving, height, width, warped)


def apply(augmentation: Augmentation, image: Array, center: str = "middle") -> Array:
    """The augmented [H, W, C]; exact where it only flips."""
    x_flip, y_flip = augmentation.flips
    image = jnp.where(x_flip, image[:, ::-1], image)
    image = jnp.where(y_flip, image[::-1], image)
    warped = warp(image, augmentation.matrix, augmentation.shift, center)
    return jnp.where(augmentation.warps, warped, image)


def augment(
    key: Array,
    images: Array,
    probability: float = 0.12,
    x_flip_probability: float = 1.0,
    center: str = "middle",
) -> tuple[Array, Array]:
    """Images augmented each by itself, and the labels that say how.

    Each of these happens with its probability, independently: x-flip and y-flip of every second
    image; scaling by 2^(0.2 n), rotation by any angle, stretching by 2^(0.2 n) along an axis and by
    the inverse across it (along x in half of the cases, else any axis), and a shift by n/8 of the
    sides, where n is standard normal.

    Args:
      key: image i is augmented by fold_in(key, i), whatever the batch.
      images: [B, H, W, C] floats.
      probability: of each but the x-flip; EDM: 0.12 on CIFAR-10, 0.15 on FFHQ and AFHQ. 0 leaves
        the images as they are.
      x_flip_probability: EDM takes 1: half of all images are flipped.
      center: of rotation, scaling and stretching: "middle" of the image, or "edm", 0.05 pixels from
        it: what networks trained by EDM's code were told of.
    Returns:
      images [B, H, W, C] float32 and labels [B, 9] float32, zeros where nothing was done: x-flip
      and y-flip 0 or 1, n of the scaling, cos - 1 and sin of the rotation, n times cos and sin of
      the axis, n of the shift in x and y.
    Raises:
      ValueError: another shape or dtype, a probability out of range, an unknown centre.
    """
    if images.ndim != 4 or min(images.shape[1:3]) < 2:
        raise ValueError(f"augment needs images [B, H, W, C], not {list(images.shape)}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"augment needs images as floats, not {images.dtype}")
    if not (0 <= probability <= 1 and 0 <= x_flip_probability <= 1):
        raise ValueError(f"not probabilities: {probability}, {x_flip_probability}")
    choose("centre of the augmentation", center, CENTERS)
    images = images.astype(jnp.float32)
    if probability == 0:
        return images, jnp.zeros((len(images), NUM_LABELS), jnp.float32)

    def one(index, image):
        chances = (probability, x_flip_probability)
        drawn = draw(jax.random.fold_in(key, index), *image.shape[:2], *chances)
        return apply(drawn, image, center), drawn.labels

    return jax.vmap(one)(jnp.arange(len(images)), images)
