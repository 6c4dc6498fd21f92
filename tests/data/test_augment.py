"""Augmentations: labels say what was done, warps against SciPy, images never interact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT
from scipy import ndimage

from genfield.data import augment

GOLDEN = ROOT / "tests" / "golden"

SHAPE = (24, 32, 3)  # not square: x and y must not be confused
BATCH = 48


@functools.cache
def images(batch=BATCH):
    """Smooth images, none symmetric."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] / 32
    one = np.stack([np.sin(3 * x + 5 * y), np.cos(4 * x * y), np.sin(2 * x - y)], axis=-1)
    return jnp.asarray(one[None] * np.linspace(0.5, 1, batch).reshape(-1, 1, 1, 1), jnp.float32)


run = jax.jit(augment.augment, static_argnums=(2, 3))
warp = jax.jit(augment.warp)


@functools.cache
def augmented(probability, x_flip_probability=1.0):
    pair = run(jax.random.key(0), images(), probability, x_flip_probability)
    return jax.tree.map(np.asarray, pair)


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def expected(image, labels, sign):
    """SciPy's cubic splines for what labels say; a stretch of n along an axis has the labels of -n
    along the opposite one, so that its sign must be told."""
    flip_x, flip_y, scale, cosine, sine, stretch_x, stretch_y, shift_x, shift_y = labels
    image = image[:, ::-1] if flip_x else image
    image = image[::-1] if flip_y else image
    stretch, axis = sign * np.hypot(stretch_x, stretch_y), np.arctan2(stretch_y, stretch_x)
    narrower = np.diag([2 ** (-0.2 * stretch), 2 ** (0.2 * stretch)])
    matrix = rotation(np.arctan2(sine, cosine + 1)) @ rotation(-axis) @ narrower @ rotation(axis)
    matrix = 2 ** (-0.2 * scale) * matrix[::-1, ::-1]  # from (x, y) to (row, column)
    height, width = image.shape[:2]
    middle, shift = np.array([height - 1, width - 1]) / 2, np.array([shift_y, shift_x])
    offset = middle - matrix @ (middle + shift * np.array([height, width]) / 8)
    channels = [
        ndimage.affine_transform(image[..., i], matrix, offset, order=3, mode="mirror")
        for i in range(image.shape[-1])
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_labels_say_what_was_done(probability):
    """Up to the kinks at reflected borders, where interpolations differ."""
    results, labels = augmented(probability)
    for before, after, row in zip(np.asarray(images()), results, labels, strict=True):
        wanted = [expected(before, row, sign) for sign in (1, -1)]
        errors = [np.abs(after - w) for w in wanted]
        best = min(errors, key=np.max)
        assert best.max() < 0.06
        assert np.median(best) < 2e-3


def test_flips_are_exact():
    results, labels = augmented(1e-9)
    x_flips = labels[:, 0] == 1
    assert 0.2 < x_flips.mean() < 0.8
    assert not labels[:, 1:].any()
    np.testing.assert_array_equal(results[x_flips], images()[x_flips][:, :, ::-1])
    np.testing.assert_array_equal(results[~x_flips], images()[~x_flips])
    results, labels = augmented(0.3)
    only = ~labels[:, 2:].any(axis=1) & (labels[:, 1] == 1)
    assert only.any()
    for before, after, row in zip(images()[only], results[only], labels[only], strict=True):
        flipped = before[::-1, ::-1] if row[0] else before[::-1]
        np.testing.assert_array_equal(after, flipped)


def test_nothing_at_probability_zero():
    results, labels = run(jax.random.key(0), images(), 0.0, 1.0)
    np.testing.assert_array_equal(results, images())
    np.testing.assert_array_equal(labels, np.zeros((BATCH, augment.NUM_LABELS)))
    assert results.dtype == labels.dtype == jnp.float32


def test_images_never_interact():
    """Image i under a key is the same in any batch, beside any others."""
    results, labels = augmented(1.0)
    others = images().at[5:].set(0.5)
    same, same_labels = run(jax.random.key(0), others, 1.0, 1.0)
    np.testing.assert_array_equal(same[:5], results[:5])
    fewer, fewer_labels = run(jax.random.key(0), others[:5], 1.0, 1.0)
    np.testing.assert_allclose(fewer, results[:5], atol=1e-5)
    for found in (same_labels, fewer_labels):
        np.testing.assert_array_equal(found[:5], labels[:5])
    assert len(np.unique(labels[:, 2])) == BATCH
    different, _ = run(jax.random.key(1), images(), 1.0, 1.0)
    assert np.abs(different - results).max() > 0.1


def test_chances_and_sizes():
    """EDM, appendix F.2: each with its probability, independently, of the stated spread."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = lambda x_flip: lambda key: augment.draw(key, 32, 32, 0.12, x_flip).labels
    labels = np.asarray(jax.jit(jax.vmap(draw(1.0)))(keys))
    without = jax.jit(jax.vmap(draw(0.0)))(keys)
    np.testing.assert_array_equal(without[:, 0], np.zeros(len(keys)))
    np.testing.assert_array_equal(without[:, 1:], labels[:, 1:])
    happened = labels != 0
    chances = [0.5, 0.06] + [0.12] * 4
    np.testing.assert_allclose(happened[:, [0, 1, 2, 3, 5, 7]].mean(0), chances, atol=0.015)
    both = (happened[:, 2] & happened[:, 3]).mean()
    np.testing.assert_allclose(both, 0.12**2, atol=0.004)
    assert (happened[:, 3] == happened[:, 4]).all() and (happened[:, 7] == happened[:, 8]).all()
    scale, stretch, shift = labels[:, 2], np.hypot(labels[:, 5], labels[:, 6]), labels[:, 7:]
    for values in (scale, stretch, shift):
        np.testing.assert_allclose((values[values != 0] ** 2).mean(), 1, atol=0.1)
    along_x = (labels[:, 6] == 0)[stretch > 0].mean()
    np.testing.assert_allclose(along_x, 0.5, atol=0.05)
    angle = np.arctan2(labels[:, 4], labels[:, 3] + 1)[labels[:, 3] != 0]
    np.testing.assert_allclose((angle**2).mean(), np.pi**2 / 3, rtol=0.1)


def noise():
    return jax.random.uniform(jax.random.key(2), SHAPE, minval=-1)


def test_whole_pixels_move_without_interpolation():
    image = noise()
    np.testing.assert_allclose(warp(image, jnp.eye(2), jnp.zeros(2)), image, atol=1e-5)
    padded = np.pad(np.asarray(image), ((8, 8), (8, 8), (0, 0)), mode="reflect")
    moved = warp(image, jnp.eye(2), jnp.array([3.0, -2.0]))
    np.testing.assert_allclose(moved, padded[10 : 10 + SHAPE[0], 5 : 5 + SHAPE[1]], atol=1e-5)
    far = warp(image, jnp.eye(2), jnp.array([2.0 * (SHAPE[1] - 1), 0.0]))  # a period
    np.testing.assert_allclose(far, image, atol=1e-5)


def test_inverse_warps_restore():
    """And a quarter turn is one: the filter's delay does not move the centre."""
    image = images()[0]
    matrix = jnp.asarray(1.05 * rotation(0.3) @ np.diag([1.1, 0.9]), jnp.float32)
    shift = jnp.array([1.3, -0.6])
    there = warp(image, matrix, shift)
    inverse = jnp.linalg.inv(matrix)
    back = warp(there, inverse, -matrix @ shift)
    inside = np.s_[9:-9, 9:-9]
    np.testing.assert_allclose(back[inside], image[inside], atol=2e-3)
    square = image[:, :24]
    turned = warp(square, jnp.asarray(rotation(np.pi / 2), jnp.float32), jnp.zeros(2))
    np.testing.assert_allclose(turned[inside], np.rot90(square)[inside], atol=1e-3)


def test_the_wavelet_is_orthogonal_with_six_vanishing_moments():
    taps = augment.WAVELET
    for lag in range(6):
        overlap = taps[: len(taps) - 2 * lag] @ taps[2 * lag :]
        np.testing.assert_allclose(overlap, lag == 0, atol=1e-11)
    signs = (-1.0) ** np.arange(12)
    for moment in range(6):
        np.testing.assert_allclose(taps @ (signs * (np.arange(12) / 12) ** moment), 0, atol=1e-11)


@pytest.mark.parametrize(
    ("shape", "dtype", "chances", "message"),
    [
        ((8, 8, 3), float, (0.1,), r"images \[B, H, W, C\], not \[8, 8, 3\]"),
        ((1, 1, 8, 3), float, (0.1,), "images"),
        ((1, 8, 8, 3), np.uint8, (0.1,), "floats, not uint8"),
        ((1, 8, 8, 3), float, (1.1,), "not probabilities: 1.1"),
        ((1, 8, 8, 3), float, (0.1, -1.0), "not probabilities"),
    ],
)
def test_wrong_inputs_fail(shape, dtype, chances, message):
    with pytest.raises(ValueError, match=message):
        augment.augment(jax.random.key(0), jnp.zeros(shape, dtype), *chances)


def test_the_published_centre_is_that_of_edms_code():
    """Against EDM's geometry by PyTorch's conv2d and grid_sample; ours turns about the middle."""
    with np.load(GOLDEN / "edm_warp.npz") as file:
        given = file["images"], file["matrices"], file["shifts"]
        warped = file["warped"]
    published = jax.jit(jax.vmap(functools.partial(augment.warp, center="edm")))
    np.testing.assert_allclose(published(*given), warped, atol=5e-6)
    middle = jax.vmap(augment.warp)(*given)
    assert np.abs(middle - warped).max(axis=(1, 2, 3)).min() > 0.01
    with pytest.raises(ValueError, match=r"unknown centre of the augmentation 'pixel'"):
        augment.augment(jax.random.key(0), given[0], center="pixel")
