"""The crop of prepared images, against an oracle in NumPy."""

import numpy as np
import pytest
from own_images import picture
from PIL import Image

from genfield.data.decoding import Reading
from genfield.data.decoding import prepare as read_picture
from genfield.prepare.crop import AdmReading


def resampled(levels: np.ndarray, length: int, axis: int, kernel, support: float) -> np.ndarray:
    """Pillow's antialiased resampling along an axis, rounded to levels."""
    ratio = levels.shape[axis] / length
    wide = max(ratio, 1.0)
    centres = (np.arange(length)[:, None] + 0.5) * ratio
    places = np.arange(levels.shape[axis])[None] + 0.5
    inside = (places > centres - support * wide) & (places <= centres + support * wide)
    weights = np.where(inside, kernel((places - centres) / wide), 0.0)
    weights /= weights.sum(1, keepdims=True)
    out = np.moveaxis(np.tensordot(weights, levels.astype(float), (1, axis)), 0, axis)
    return np.clip(np.floor(out + 0.5 + 1e-9), 0, 255)


def box(x):
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def bicubic(x, a=-0.5):
    x = abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    return np.where(x < 1, near, np.where(x < 2, a * (((x - 5) * x + 8) * x - 4), 0.0))


def oracle(levels: np.ndarray, size: int) -> np.ndarray:
    while min(levels.shape[:2]) >= 2 * size:
        height, width = levels.shape[:2]
        levels = resampled(levels, width // 2, 1, box, 0.5)
        levels = resampled(levels, height // 2, 0, box, 0.5)
    scale = size / min(levels.shape[:2])
    height, width = (round(n * scale) for n in levels.shape[:2])
    levels = resampled(levels, width, 1, bicubic, 2.0)
    levels = resampled(levels, height, 0, bicubic, 2.0)
    top, left = (height - size) // 2, (width - size) // 2
    return levels[top : top + size, left : left + size]


@pytest.mark.parametrize(
    "shape", [(16, 16), (15, 40), (64, 33), (33, 70), (131, 200), (17, 16), (7, 5), (16, 31)]
)
def test_the_crop_is_adm_s(shape):
    levels = picture(sum(shape), shape)
    found = read_picture(Image.fromarray(levels), AdmReading(16)).astype(float)
    expected = oracle(levels, 16)
    assert found.shape == expected.shape == (16, 16, 3)
    gap = abs(found - expected)
    assert gap.max() <= 2 and (gap > 0.5).mean() < 0.02  # Pillow computes in fixed point
    if shape == (64, 33):  # one pixel aside, and no noise agrees
        assert abs(found[1:] - expected[:-1]).mean() > 10


def test_the_crop_is_not_that_of_other_sources():
    image = Image.fromarray(picture(3, (64, 80)))
    a, b = (read_picture(image, reading(16)).astype(int) for reading in (AdmReading, Reading))
    assert abs(a - b).max() > 5
