"""AutoencoderKL against diffusers; tiles against a blend in NumPy; a batch split over devices."""

import hashlib
import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_autoencoders import CASES, made, params, sizes, state

from genfield.errors import UserError
from genfield.features import autoencoder_kl as kl
from genfield.features import weights
from genfield.machine import sharding

# SHA-256 of "name [shape]\n" over the sorted names of stabilityai/sd-vae-ft-mse.
PUBLISHED = "5a0ba4e758a914142de788cfdc978a9e45274c037ef49e4aeac28723907be7c6"


def relative(a, b) -> float:
    """The largest error, relative to the largest value."""
    return float(np.max(np.abs(np.asarray(a) - b)) / np.max(np.abs(b)))


@pytest.fixture(scope="module")
def functions():
    """(case, options) -> jitted encode, decode of (params, x)."""

    def of(case, **options):
        encode = lambda params, x: kl.encode(params, x, sizes(case), **options)
        decode = lambda params, x: kl.decode(params, x, sizes(case), **options)
        return jax.jit(encode), jax.jit(decode)

    return of


def test_the_published_names_and_shapes():
    found = kl.shapes(kl.Config())
    assert sum(math.prod(shape) for shape in found.values()) == 83_653_863
    lines = "".join(f"{name} {list(shape)}\n" for name, shape in sorted(found.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == PUBLISHED


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_diffusers(case, functions):
    assert {n: a.shape for n, a in state(case).items()} == kl.shapes(sizes(case))
    (encode, decode), wanted = functions(case), made(case)
    mean, std = encode(params(case), wanted["x"])
    decoded = decode(params(case), wanted["mean"])
    assert relative(mean, wanted["mean"]) < 1e-5
    assert relative(decoded, wanted["decoded"]) < 1e-5
    np.testing.assert_allclose(std, wanted["std"], rtol=1e-4)
    # The log-variance is clamped on both sides.
    assert np.isclose(wanted["std"].max(), np.exp(10), rtol=1e-5)
    assert np.isclose(wanted["std"].min(), np.exp(-15), rtol=1e-5)


def test_bfloat16_inside_float32_outside(functions):
    (encode, decode), wanted = functions("sixteen", dtype="bfloat16"), made("sixteen")
    outputs = *encode(params("sixteen"), wanted["x"]), decode(params("sixteen"), wanted["mean"])
    assert all(a.dtype == np.float32 for a in outputs)
    for found, name in ((outputs[0], "mean"), (outputs[2], "decoded")):
        assert 1e-4 < relative(found, wanted[name]) < 0.05


def blended(tiles: dict, shape: tuple[int, ...], side: tuple[int, int]) -> np.ndarray:
    """Tiles [B, h, w, C] at (row, column), weighted by their distance from the tile's edge."""
    ramp = lambda n: np.minimum(1, (np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5) / (n / 4))
    weight = ramp(side[0])[:, None, None] * ramp(side[1])[None, :, None]
    total, weights = np.zeros(shape), np.zeros((*shape[1:3], 1))
    for (row, column), tile in tiles.items():
        place = slice(row, row + side[0]), slice(column, column + side[1])
        total[:, *place] += np.asarray(tile) * weight
        weights[place] += weight
    return total / weights


def test_tiles_overlap_by_a_quarter_and_are_blended(functions):
    case = "plain"  # of factor 2
    whole_encode, whole_decode = functions(case)
    encode, decode = functions(case, tile=16)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 28, 12, 1)).astype(np.float32)
    mean, std = encode(params(case), images)
    # Tiles of 8 latents begin at 0 and at the far end; the other side is shorter than a tile.
    rows = (0, 6)
    cut = {(row, 0): images[:, 2 * row : 2 * row + 16] for row in rows}
    parts = {at: whole_encode(params(case), part) for at, part in cut.items()}
    wanted = blended({at: p[0] for at, p in parts.items()}, (2, 14, 6, 2), (8, 6))
    np.testing.assert_allclose(mean, wanted, atol=1e-5)
    logs = {at: 2 * np.log(np.asarray(p[1], np.float64)) for at, p in parts.items()}
    inside = (np.abs(logs[0, 0]) < 20).all((0, 1, 2))  # the channels that no clamp bends
    wanted = np.exp(0.5 * blended(logs, (2, 14, 6, 2), (8, 6)))
    np.testing.assert_allclose(np.asarray(std)[..., inside], wanted[..., inside], rtol=1e-4)

    latents = np.random.default_rng(1).normal(size=(1, 20, 14, 2)).astype(np.float32)
    places = [(row, column) for row in (0, 6, 12) for column in (0, 6)]
    tiles = {(2 * r, 2 * c): whole_decode(params(case), latents[:, r : r + 8, c : c + 8])
             for r, c in places}  # fmt: skip
    wanted = blended(tiles, (1, 40, 28, 1), (16, 16))
    np.testing.assert_allclose(decode(params(case), latents), wanted, atol=1e-5)


def test_one_tile_is_the_whole(functions):
    wanted = made("published")
    _, decode = functions("published")
    _, tiled = functions("published", tile=64)
    arguments = params("published"), wanted["mean"]
    np.testing.assert_array_equal(tiled(*arguments), decode(*arguments))


def test_tiles_bound_the_memory(functions):
    latents = jax.ShapeDtypeStruct((1, 64, 64, 2), np.float32)
    used = []
    for tile in (None, 32):
        _, decode = functions("plain", tile=tile)
        compiled = decode.lower(params("plain"), latents).compile()
        used.append(compiled.memory_analysis().temp_size_in_bytes)
    assert used[1] < used[0] / 4


def test_a_split_batch_stays_split(functions):
    mesh = sharding.make_mesh(ConfigDict({"data": 4, "fsdp": 2}), jax.devices())
    split, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    case, wanted = "published", made("published")
    placed = jax.device_put(params(case), everywhere)
    for function, given, names in zip(
        functions(case, tile=8), ("x", "mean"), (("mean", "std"), ("decoded",)), strict=True
    ):
        whole = jax.tree.leaves(function(params(case), wanted[given]))
        batch = np.tile(wanted[given], (4, 1, 1, 1))
        compiled = function.lower(placed, jax.device_put(batch, split)).compile()
        text = compiled.as_text()
        assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all"))
        outputs = jax.tree.leaves(compiled(placed, jax.device_put(batch, split)))
        assert len(outputs) == len(names)
        for found, alone in zip(outputs, whole, strict=True):
            assert found.sharding.is_equivalent_to(split, found.ndim)
            np.testing.assert_allclose(found, np.tile(alone, (4, 1, 1, 1)), rtol=1e-4, atol=1e-5)


def test_random_parameters_are_those_of_the_sizes():
    config = kl.Config(block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1)
    drawn = weights.state_dict(kl.random(config, 3))
    assert {n: a.shape for n, a in drawn.items()} == kl.shapes(config)
    again, other = (weights.state_dict(kl.random(config, seed)) for seed in (3, 4))
    kernel = "decoder.conv_in.weight"
    assert np.array_equal(again[kernel], drawn[kernel])
    assert not np.array_equal(other[kernel], drawn[kernel])
    bound = 1 / math.sqrt(4 * 9)
    assert 0.9 * bound < np.abs(drawn[kernel]).max() <= bound


@pytest.mark.parametrize(
    "options, shape, words",
    [
        ({}, (1, 9, 8, 3), r"\[1, 9, 8, 3\]: .* \[B, H, W, 3\], sides divisible by 4"),
        ({}, (1, 8, 8, 4), r"needs \[B, H, W, 3\]"),
        ({"tile": 6}, (1, 8, 8, 3), "tile=6 must be a positive multiple of 4"),
        ({"dtype": "float16"}, (1, 8, 8, 3), "unknown dtype 'float16'"),
    ],
)
def test_mistakes_are_one_line(options, shape, words):
    with pytest.raises(UserError, match=words):
        kl.encode(params("published"), np.zeros(shape, np.float32), sizes("published"), **options)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm_num_groups": 3}, "norm_num_groups=3 does not divide the 128"),
        ({"layers_per_block": 0}, "layers_per_block=0 .* must be positive"),
        ({"block_out_channels": ()}, "must be positive"),
    ],
)
def test_sizes_that_cannot_be(change, words):
    with pytest.raises(UserError, match=words):
        kl.shapes(kl.Config()._replace(**change))
