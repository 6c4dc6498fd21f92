"""Pretrained feature networks as pure functions of their parameters, for metrics and losses.

Sources: the Inception-v3 of the FID (`inception`), EfficientNet-Lite0 (`efficientnet`), VGG-16
(`vgg`); `resize` brings images to their sizes, `weights` and `torch_files` bring their parameters.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield import errors, registry
from genfield.features import efficientnet, inception, torch_files, vgg, weights

NETWORKS = {"inception_v3": inception, "efficientnet_lite0": efficientnet, "vgg16": vgg}


class FeatureNetwork(NamedTuple):
    """A network and its weights.

    Attributes:
      name: a key of `NETWORKS`.
      params: nested dict of float32 NumPy arrays.
      apply: `apply(params, x)` -> dict of outputs by name; `x` float32 [B, size, size, 3], levels
        in 0..255, already resized; the network normalises them itself. Choose among the outputs
        inside `jax.jit`, so that the others are not kept.
      size: of the images, in pixels.
      hash: SHA-256 (hex) of the names, shapes and values of `params`, whatever file they came in.
      origin: the file's path, or "random, seed 0".
      trained: False for random weights. verified: whether the file was the published one.
    """

    name: str
    params: dict
    apply: Callable
    size: int
    hash: str
    origin: str
    trained: bool
    verified: bool = False


def create(
    name: str, *, path: str | None = None, sha256: str | None = None, seed: int | None = None
) -> FeatureNetwork:
    """A feature network with its weights.

    Args:
      name: "inception_v3", "efficientnet_lite0" or "vgg16".
      path: a .pth, .pt, .bin or .safetensors file; None looks for one (`weights.find`).
      sha256: of the file, or its first eight or more hex digits.
      seed: random weights from this seed instead of a file, to try a pipeline out.
    Raises:
      UserError: unknown name; no weights to be had; a file that is not the network's; a file and
        a seed.
    """
    network = registry.choose("feature network", name, NETWORKS)
    shapes = network.shapes()
    if seed is None:
        origin = str(weights.find(name, path, sha256))
        params = weights.convert(name, origin, torch_files.read(origin), shapes, network.IGNORED)
    elif path is not None or sha256 is not None:
        raise errors.UserError(f"{name}: pass a file (path, sha256) or a seed, not both")
    else:
        origin = f"random, seed {seed}"
        params = weights.nested(weights.random(shapes, seed))
    return FeatureNetwork(
        name,
        params,
        network.apply,
        network.SIZE,
        weights.digest(params),
        origin,
        trained=seed is None,
        verified=seed is None and weights.published(name, origin),
    )


def outputs(name: str, shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a network's outputs for images of `shape` [B, H, W, 3]; takes no weights.

    Raises:
      UserError: unknown name. ValueError: a shape that the network does not take.
    """
    network = registry.choose("feature network", name, NETWORKS)
    zeros = {key: np.broadcast_to(np.float32(0), size) for key, size in network.shapes().items()}
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda x: network.apply(weights.nested(zeros), x), image)


def default() -> str:
    """The network for the FID: "inception_v3" where its weights are at hand, without a download.

    Otherwise "efficientnet_lite0".
    """
    return "inception_v3" if weights.here("inception_v3") else "efficientnet_lite0"
