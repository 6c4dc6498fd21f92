"""The Inception-v3 of the FID and the Inception Score: TensorFlow's graph of December 2015.

Sources: Szegedy et al. (2016); the weights and names of pytorch-fid's `fid_inception_v3`, which
differs from torchvision's network in its pools: average pools leave padding out of their counts,
the last block takes a max pool; 1008 logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from genfield.features.weights import Shapes, batch_norm, batch_norm_shapes, convolve, dense

SIZE = 299
IGNORED = r"AuxLogits\.|.*\.num_batches_tracked$"
EPSILON = 1e-3
CLASSES = 1008
SPATIAL = 7  # sFID (Nash et al., 2021): the first channels of mixed_6's 1x1 branch


class Conv(NamedTuple):
    """Convolution, batch norm, ReLU. At stride 2 there is no padding."""

    name: str
    channels: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """A 3 x 3 pool: "average" or "max"."""

    kind: str
    stride: int = 1


def _a(pool: int) -> tuple:
    return (
        (Conv("branch1x1", 64, 1),),
        (Conv("branch5x5_1", 48, 1), Conv("branch5x5_2", 64, 5)),
        _double(64, 96, Conv("branch3x3dbl_3", 96, 3)),
        (Pool("average"), Conv("branch_pool", pool, 1)),
    )


def _b() -> tuple:
    return (
        (Conv("branch3x3", 384, 3, 2),),
        _double(64, 96, Conv("branch3x3dbl_3", 96, 3, 2)),
        (Pool("max", 2),),
    )


def _c(inner: int) -> tuple:
    sides = ((1, 7), (7, 1))
    return (
        (Conv("branch1x1", 192, 1),),
        (
            Conv("branch7x7_1", inner, 1),
            Conv("branch7x7_2", inner, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv("branch7x7dbl_1", inner, 1),
            *(Conv(f"branch7x7dbl_{n}", inner, sides[(n + 1) % 2]) for n in (2, 3, 4)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (Pool("average"), Conv("branch_pool", 192, 1)),
    )


def _d() -> tuple:
    return (
        (Conv("branch3x3_1", 192, 1), Conv("branch3x3_2", 320, 3, 2)),
        (
            Conv("branch7x7x3_1", 192, 1),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, 3, 2),
        ),
        (Pool("max", 2),),
    )


def _e(pool: str) -> tuple:
    return (
        (Conv("branch1x1", 320, 1),),
        (Conv("branch3x3_1", 384, 1), _fork("branch3x3_2")),
        _double(448, 384, _fork("branch3x3dbl_3")),
        (Pool(pool), Conv("branch_pool", 192, 1)),
    )


def _double(first: int, second: int, last) -> tuple:
    return (Conv("branch3x3dbl_1", first, 1), Conv("branch3x3dbl_2", second, 3), last)


def _fork(name: str) -> tuple:
    """Two convolutions of the same input, side by side."""
    return ((Conv(f"{name}a", 384, (1, 3)),), (Conv(f"{name}b", 384, (3, 1)),))


# A layer is a Conv, a Pool, or a tuple of branches (each a tuple of layers) to be concatenated.
STEM = (
    Conv("Conv2d_1a_3x3", 32, 3, 2),
    Conv("Conv2d_2a_3x3", 32, 3, 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, 3),
    Pool("max", 2),
    Conv("Conv2d_3b_1x1", 80, 1),
    Conv("Conv2d_4a_3x3", 192, 3, 1, "VALID"),
    Pool("max", 2),
)
BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _b(),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e("average"),
    "Mixed_7c": _e("max"),
}


def shapes() -> Shapes:
    """PyTorch's names and shapes of all tensors."""
    found: Shapes = {}
    channels = _add_shapes(found, "", STEM, 3)
    for name, branches in BLOCKS.items():
        channels = _add_shapes(found, f"{name}.", (branches,), channels)
    return found | {"fc.weight": (CLASSES, channels), "fc.bias": (CLASSES,)}


def _add_shapes(found: Shapes, prefix: str, layers: tuple, channels: int) -> int:
    """Adds the tensors of layers in a row; returns their output's channels."""
    for layer in layers:
        if isinstance(layer, Conv):
            height, width = _sides(layer.kernel)
            found[f"{prefix}{layer.name}.conv.weight"] = (layer.channels, channels, height, width)
            found |= batch_norm_shapes(f"{prefix}{layer.name}.bn", layer.channels)
            channels = layer.channels
        elif not isinstance(layer, Pool):
            channels = sum(_add_shapes(found, prefix, branch, channels) for branch in layer)
    return channels


def _sides(kernel: int | tuple[int, int]) -> tuple[int, int]:
    return (kernel, kernel) if isinstance(kernel, int) else kernel


def apply(params: dict, x: jax.Array) -> dict[str, jax.Array]:
    """Features of images, their levels in 0..255.

    They are normalised to (x - 128) / 128 as in the graph of 2015; pytorch-fid takes
    x / 127.5 - 1 instead.

    Args:
      params: as `weights.convert` gives them.
      x: [B, 299, 299, 3] float32.
    Returns:
      "pool" [B, 2048]: what the FID compares; "logits" [B, 1008]; "logits_unbiased" [B, 1008]:
      without the bias, what the softmax of the original Inception Score reads; "spatial"
      [B, 2023]: for the sFID, the first 7 channels of mixed_6's (torchvision's Mixed_6d) 1x1
      branch, 17 x 17 each, flattened as [17, 17, 7].
    Raises:
      ValueError: another shape.
    """
    if x.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"x is {list(x.shape)}: inception_v3 needs [B, {SIZE}, {SIZE}, 3]")
    x = _run(params, STEM, (x.astype(jnp.float32) - 128) / 128)
    spatial = None
    for name, branches in BLOCKS.items():
        if name == "Mixed_6d":
            spatial = _run(params[name], branches[0], x)[..., :SPATIAL]
        x = _run(params[name], (branches,), x)
    pool = jnp.mean(x, axis=(1, 2))
    unbiased = dense(params["fc"], pool, bias=False)
    return {
        "pool": pool,
        "logits": unbiased + params["fc"]["bias"].reshape(1, -1),
        "logits_unbiased": unbiased,
        "spatial": spatial.reshape(len(x), -1),
    }


def _run(params: dict, layers: tuple, x: jax.Array) -> jax.Array:
    for layer in layers:
        if isinstance(layer, Conv):
            x = _convolve(params[layer.name], layer, x)
        elif isinstance(layer, Pool):
            x = _pool(layer, x)
        else:
            x = jnp.concatenate([_run(params, branch, x) for branch in layer], axis=-1)
    return x


def _convolve(params: dict, layer: Conv, x: jax.Array) -> jax.Array:
    padding = "VALID" if layer.stride == 2 else layer.padding
    x = convolve(x, params["conv"]["weight"], layer.stride, padding)
    return jax.nn.relu(batch_norm(params["bn"], x, EPSILON))


def _pool(layer: Pool, x: jax.Array) -> jax.Array:
    window, strides = (1, 3, 3, 1), (1, layer.stride, layer.stride, 1)
    padding = "VALID" if layer.stride == 2 else "SAME"
    if layer.kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
    add = lambda y: jax.lax.reduce_window(y, 0.0, jax.lax.add, window, strides, padding)
    return add(x) / add(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
