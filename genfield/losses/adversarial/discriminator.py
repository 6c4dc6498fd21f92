"""A projected discriminator: small heads on frozen pretrained features at several scales.

Sources: Sauer et al., "Projected GANs" (arXiv:2111.01007) and "StyleGAN-XL" (arXiv:2202.00273);
spectral normalisation of Miyato et al. (arXiv:1802.05957); conditional projection of Miyato &
Koyama (arXiv:1802.05637). Group norm stands where they have batch norm: examples never interact.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield import features, registry
from genfield.errors import UserError
from genfield.features.perceptual import levels
from genfield.losses.adversarial.game import Adversary
from genfield.registry import NotNegativeInt, Place

# Outputs at strides 4, 8, 16 and 32, the last with the most channels.
SCALES = {
    "efficientnet_lite0": ("stage_1", "stage_2", "stage_4", "stage_6"),
    "vgg16": ("relu2_2", "relu3_3", "relu4_3", "relu5_3"),
}
LAST_SIDE = 4  # heads halve their maps down to this side
WIDEST = 512
GROUPS = 8
LABEL_SIZE = 64
KERNEL = 4


def projected(
    networks: tuple[str, ...] = ("efficientnet_lite0",),
    size: int | None = 224,
    width: int = 64,
    seed: NotNegativeInt = 0,
    paths: tuple[Place, ...] = (),
    random_features: int | None = None,
    *,
    shape: tuple[int, ...],
    num_classes: int,
) -> Adversary:
    """The discriminator of images [B, *shape]; conditional where there are classes.

    Args:
      networks: of features, "efficientnet_lite0" or "vgg16", or both.
      size: images are resized to so many pixels, LMM's 224; None: they stay as they are.
      width: channels of the finest scale after mixing; each further one has twice as many.
      seed: of the fixed random mixing across channels and scales.
      paths: of the networks' weights, in their order; left out, they are looked for. They are
        loaded when the discriminator is first asked.
      random_features: a seed for networks with random weights, to try things out.
    Raises:
      UserError: no images, unknown networks, widths or sizes that cannot be; when it is first
        asked, no weights.
    """
    _check_projected(networks, size, width, paths, shape)
    files = paths or (None,) * len(networks)
    load = functools.cache(
        lambda name, path: features.create(name, path=path, seed=random_features)
    )
    side = (1, *shape[:2], 3) if size is None else (1, size, size, 3)
    try:
        found = [features.outputs(name, side) for name in networks]
    except ValueError as error:
        raise UserError(f"loss.adversary.size: {error}") from error
    taps = [[out[tap] for tap in SCALES[name]] for name, out in zip(networks, found, strict=True)]
    rng = np.random.default_rng(seed)
    mixers = [_draw_mixer(rng, [tap.shape[-1] for tap in scales], width) for scales in taps]

    def pyramids(images: Array) -> list[Array]:
        """The mixed features of every network and scale, fine to coarse."""
        made = [load(name, path) for name, path in zip(networks, files, strict=True)]
        parts = [_mix(m, _taps(n, images, size)) for n, m in zip(made, mixers, strict=True)]
        return [level for part in parts for level in part]

    maps = [m for pair in zip(mixers, taps, strict=True) for m in jax.eval_shape(_mix, *pair)]

    def init(key: Array) -> dict:
        keys = jax.random.split(key, len(maps))
        heads = [_head(k, m.shape, num_classes) for k, m in zip(keys, maps, strict=True)]
        named = {str(i): head for i, head in enumerate(heads)}
        vectors = {
            i: {name: _unit(jnp.ones(layer["kernel"].shape[-1])) for name, layer in head.items()}
            for i, head in named.items()
        }
        return {"discriminator": named, "spectral": vectors}

    def logits(roles: dict, images: Array, label: Array | None = None) -> Array:
        parts = roles["discriminator"], roles["spectral"]
        heads = [[part[str(i)] for part in parts] for i in range(len(maps))]
        found = pyramids(images)
        return jnp.stack([_judge(*h, m, label) for h, m in zip(heads, found, strict=True)], axis=1)

    def track(roles: dict) -> Array:
        total = jnp.zeros(())
        for i, head in roles["discriminator"].items():
            for name, layer in head.items():
                vector = roles["spectral"][i][name]
                _, found = _spectral(jax.lax.stop_gradient(layer["kernel"]), vector)
                total += 0.5 * jnp.sum(jnp.square(vector - found))
        return total

    return Adversary(init, logits, track)


def _check_projected(networks, size: int | None, width: int, paths, shape) -> None:
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise UserError(f"a projected discriminator needs images, not examples of {shape}")
    if width < 1 or width % GROUPS:
        raise UserError(f"loss.adversary.width {width} must be a multiple of {GROUPS}")
    if paths and len(paths) != len(networks):
        raise UserError("loss.adversary.paths names a file for each of its networks")
    if size is not None and size < 1:
        raise UserError(f"loss.adversary.size {size} must be positive, or None")
    for name in networks:
        registry.choose("network of a discriminator", name, SCALES)


def _taps(network: features.FeatureNetwork, images: Array, size: int | None) -> list[Array]:
    found = network.apply(network.params, levels(images, size))
    return [found[name] for name in SCALES[network.name]]


def _kernel(rng: np.random.Generator, side: int, inputs: int, outputs: int) -> np.ndarray:
    kernel = rng.standard_normal((side, side, inputs, outputs), np.float32)
    return kernel * np.float32(math.sqrt(2 / (side * side * inputs)))


def _draw_mixer(rng: np.random.Generator, channels: list[int], width: int) -> dict:
    """Fixed random convolutions: 1x1 across channels, 3x3 from each scale to the finer one."""
    widths = [min(width << i, WIDEST) for i in range(len(channels))]
    across = [_kernel(rng, 1, *pair) for pair in zip(channels, widths, strict=True)]
    scales = [_kernel(rng, 3, widths[i + 1], widths[i]) for i in range(len(widths) - 1)]
    return {"channels": across, "scales": scales}


def _mix(mixer: dict, taps: list[Array]) -> list[Array]:
    """Channels mixed, then each scale given the coarser ones (Projected GANs, section 3.2)."""
    mixed = [_convolve(tap, k) for tap, k in zip(taps, mixer["channels"], strict=True)]
    for i in reversed(range(len(mixed) - 1)):
        coarse = _convolve(mixed[i + 1], mixer["scales"][i])
        shape = (*mixed[i].shape[:3], coarse.shape[-1])
        mixed[i] = mixed[i] + jax.image.resize(coarse, shape, "bilinear")
    return mixed


def _convolve(x: Array, kernel: Array, stride: int = 1, padding="SAME") -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers
    )


def _head(key: Array, shape: tuple[int, ...], num_classes: int) -> dict:
    """Layers that halve a map to LAST_SIDE, and one that looks at all of it."""
    side, channels, layers = max(shape[1:3]), shape[-1], {}
    keys = iter(jax.random.split(key, 16))
    normal = lambda *sizes: jax.random.normal(next(keys), sizes)
    scaled = lambda *sizes: normal(*sizes) * math.sqrt(2 / math.prod(sizes[:-1]))
    while side > LAST_SIDE:
        side, inputs, channels = -(-side // 2), channels, min(2 * channels, WIDEST)
        kernel = scaled(KERNEL, KERNEL, inputs, channels)
        ones, zeros = jnp.ones(channels), jnp.zeros(channels)
        layers[f"halve_{len(layers)}"] = {"kernel": kernel, "scale": ones, "shift": zeros}
    outputs = LABEL_SIZE if num_classes else 1
    last = {"kernel": scaled(side, side, channels, outputs), "bias": jnp.zeros(outputs)}
    layers["last"] = last
    if num_classes:
        layers["label"] = {"kernel": normal(num_classes + 1, LABEL_SIZE)}
    return layers


def _judge(head: dict, vectors: dict, x: Array, label: Array | None) -> Array:
    """[B, h, w, C] -> logits [B]."""
    kernel = lambda name: _spectral(head[name]["kernel"], vectors[name])[0]
    for name in sorted(n for n in head if n.startswith("halve")):
        x = _convolve(x, kernel(name), 2)
        x = jax.nn.leaky_relu(_group_norm(x, head[name]["scale"], head[name]["shift"]), 0.2)
    side = head["last"]["kernel"].shape[0]
    x = jnp.pad(x, ((0, 0), (0, side - x.shape[1]), (0, side - x.shape[2]), (0, 0)))
    out = _convolve(x, kernel("last"), padding="VALID")[:, 0, 0]
    out = out + head["last"]["bias"].reshape(1, -1)
    if "label" not in head:
        return out[:, 0]
    null = head["label"]["kernel"].shape[0] - 1
    label = jnp.full(len(x), null) if label is None else label
    return jnp.sum(out * kernel("label")[label], axis=-1) / math.sqrt(LABEL_SIZE)


def _group_norm(x: Array, scale: Array, shift: Array) -> Array:
    groups = x.reshape(*x.shape[:3], GROUPS, -1)
    mean = groups.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(groups - mean).mean((1, 2, 4), keepdims=True)
    groups = (groups - mean) * jax.lax.rsqrt(variance + 1e-5)
    return groups.reshape(x.shape) * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)


def _spectral(kernel: Array, vector: Array) -> tuple[Array, Array]:
    """The kernel over its largest singular value, and the left vector after a power iteration."""
    matrix = kernel.reshape(-1, kernel.shape[-1]).T
    still = jax.lax.stop_gradient(matrix)
    right = _unit(jax.lax.stop_gradient(vector) @ still)
    left = _unit(still @ right)
    return kernel / (left @ matrix @ right), left


def _unit(x: Array) -> Array:
    return x / (jnp.linalg.norm(x) + 1e-12)
