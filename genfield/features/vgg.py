"""VGG-16's convolutions with ImageNet weights, for perceptual losses.

Source: Simonyan & Zisserman (2015), configuration D; names and normalisation of torchvision.
"""

import jax
import jax.numpy as jnp
import numpy as np

from genfield.features.weights import Shapes, convolve

SIZE = 224
IGNORED = r"classifier\."
# Of levels in [0, 1]: ImageNet's, as torchvision has them.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Convolutions and channels between two max pools.
GROUPS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def _names() -> list[list[str]]:
    """The convolutions' names in each group: torchvision counts ReLUs and pools as well."""
    begins = [sum(2 * count + 1 for count, _ in GROUPS[:i]) for i in range(len(GROUPS))]
    return [
        [str(begin + 2 * i) for i in range(count)]
        for begin, (count, _) in zip(begins, GROUPS, strict=True)
    ]


def shapes() -> Shapes:
    """PyTorch's names and shapes of the convolutions' tensors."""
    found, inputs = {}, 3
    for names, (_, channels) in zip(_names(), GROUPS, strict=True):
        for name in names:
            found[f"features.{name}.weight"] = (channels, inputs, 3, 3)
            found[f"features.{name}.bias"] = (channels,)
            inputs = channels
    return found


def apply(params: dict, x: jax.Array) -> dict[str, jax.Array]:
    """Features of images, their levels in 0..255.

    Args:
      params: as `weights.convert` gives them.
      x: [B, H, W, 3] float32, both sides divisible by 16.
    Returns:
      "relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3": [B, h, w, c] at strides 1, 2, 4, 8,
      16 with 64, 128, 256, 512, 512 channels.
    Raises:
      ValueError: another shape.
    """
    if x.ndim != 4 or x.shape[-1] != 3 or x.shape[1] % 16 or x.shape[2] % 16:
        raise ValueError(f"x is {list(x.shape)}: vgg16 needs [B, H, W, 3], sides divisible by 16")
    mean, deviation = (np.array(v, np.float32).reshape(1, 1, 1, 3) for v in (MEAN, DEVIATION))
    x, outputs = (x.astype(jnp.float32) / 255 - mean) / deviation, {}
    for number, group in enumerate(_names(), 1):
        if number > 1:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for name in group:
            layer = params["features"][name]
            x = jax.nn.relu(convolve(x, layer["weight"]) + layer["bias"].reshape(1, 1, 1, -1))
        outputs[f"relu{number}_{len(group)}"] = x
    return outputs
