"""Stable Diffusion's autoencoder, AutoencoderKL, as pure functions of its parameters.

Sources: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), with
the layers of Esser et al. (2021); the names of parameters and configs are those of diffusers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield import registry
from genfield.errors import UserError
from genfield.features.weights import Shapes, convolve, nested

EPSILON = 1e-6  # of all norms
LOG_VARIANCE = (-30.0, 20.0)  # the posterior's is clamped to this, as published
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
OVERLAP = 4  # tiles overlap by a quarter, as diffusers has it


class Config(NamedTuple):
    """The sizes of an autoencoder, under the names of diffusers; the defaults are the published.

    Attributes:
      in_channels, out_channels: of images, into the encoder and out of the decoder.
      latent_channels: of latents; 4 of Stable Diffusion, 16 of later ones.
      block_out_channels: of each level; each but the last halves the sides.
      layers_per_block: residual blocks of a level of the encoder; the decoder has one more.
      norm_num_groups: of the group norms.
      use_quant_conv, use_post_quant_conv: 1x1 convolutions after the encoder, before the decoder;
        the later, 16-channel kinds have none.
      mid_block_add_attention: attention at the lowest level.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def factor(self) -> int:
        """How many pixels of a side one latent covers."""
        return 2 ** (len(self.block_out_channels) - 1)


def check(config: Config) -> None:
    """Raises UserError for sizes that no autoencoder has."""
    numbers = {k: v for k, v in config._asdict().items() if type(v) is int}
    numbers |= {"block_out_channels": min(config.block_out_channels, default=0)}
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name}={getattr(config, name)} of an autoencoder must be positive")
    for width in config.block_out_channels:
        if width % config.norm_num_groups:
            raise UserError(
                f"norm_num_groups={config.norm_num_groups} does not divide the {width} channels of "
                "a block: choose a divisor of all block_out_channels"
            )


def shapes(config: Config) -> Shapes:
    """PyTorch's names and shapes of all parameters, in diffusers' order."""
    check(config)
    found: Shapes = {}
    widths, moments = config.block_out_channels, 2 * config.latent_channels
    layers = config.layers_per_block

    _conv(found, "encoder.conv_in", config.in_channels, widths[0], 3)
    inputs = widths[0]
    for i, width in enumerate(widths):
        name = f"encoder.down_blocks.{i}"
        for j in range(layers):
            _resnet(found, f"{name}.resnets.{j}", inputs, width)
            inputs = width
        if i + 1 < len(widths):
            _conv(found, f"{name}.downsamplers.0.conv", width, width, 3)
    _middle(found, "encoder.mid_block", inputs, config)
    _end(found, "encoder", inputs, moments)

    _conv(found, "decoder.conv_in", config.latent_channels, inputs, 3)
    for i, width in enumerate(reversed(widths)):
        name = f"decoder.up_blocks.{i}"
        for j in range(layers + 1):
            _resnet(found, f"{name}.resnets.{j}", inputs, width)
            inputs = width
        if i + 1 < len(widths):
            _conv(found, f"{name}.upsamplers.0.conv", width, width, 3)
    _middle(found, "decoder.mid_block", widths[-1], config)
    _end(found, "decoder", inputs, config.out_channels)

    if config.use_quant_conv:
        _conv(found, "quant_conv", moments, moments, 1)
    if config.use_post_quant_conv:
        _conv(found, "post_quant_conv", config.latent_channels, config.latent_channels, 1)
    return found


def _conv(found: Shapes, name: str, inputs: int, outputs: int, side: int) -> None:
    found |= {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}


def _scale(found: Shapes, name: str, width: int) -> None:
    found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _resnet(found: Shapes, name: str, inputs: int, outputs: int) -> None:
    _scale(found, f"{name}.norm1", inputs)
    _conv(found, f"{name}.conv1", inputs, outputs, 3)
    _scale(found, f"{name}.norm2", outputs)
    _conv(found, f"{name}.conv2", outputs, outputs, 3)
    if inputs != outputs:
        _conv(found, f"{name}.conv_shortcut", inputs, outputs, 1)


def _middle(found: Shapes, name: str, width: int, config: Config) -> None:
    if config.mid_block_add_attention:
        attention = f"{name}.attentions.0"
        _scale(found, f"{attention}.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            found |= {f"{attention}.{part}.weight": (width, width)}
            found |= {f"{attention}.{part}.bias": (width,)}
    for j in range(2):
        _resnet(found, f"{name}.resnets.{j}", width, width)


def _end(found: Shapes, name: str, width: int, outputs: int) -> None:
    _scale(found, f"{name}.conv_norm_out", width)
    _conv(found, f"{name}.conv_out", width, outputs, 3)


def random(config: Config, seed: int) -> dict:
    """Parameters as a new autoencoder has them, a nested dict of float32 arrays.

    Weights and biases are uniform within 1 / sqrt(inputs per output), as PyTorch begins; norms
    change nothing.
    """
    generator, drawn, bound = np.random.default_rng(seed), {}, 0.0
    for name, shape in shapes(config).items():
        if "norm" in name:
            drawn[name] = np.full(shape, name.endswith("weight"), np.float32)
            continue
        if name.endswith("weight"):  # the bias, which follows, has the same inputs
            bound = 1 / math.sqrt(math.prod(shape[1:]))
        drawn[name] = (generator.random(shape, np.float32) * 2 - 1) * np.float32(bound)
    return nested(drawn)


def encode(
    params: dict,
    images: jax.Array,
    config: Config,
    *,
    dtype: str = "float32",
    tile: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Images -> mean and standard deviation of their latents, before the scaling factor.

    Examples do not interact, so that a batch may be split over devices.

    Args:
      params: nested dict as `weights.convert` makes it.
      images: [B, H, W, in_channels] in [-1, 1], both sides divisible by `config.factor`.
      dtype: "float32" or "bfloat16", of the layers; norms and attention weights are float32.
      tile: side in pixels of the tiles that images are encoded in, one after the other, so that
        memory depends on the tile and not on the image. They overlap by a quarter, where they are
        blended. None: whole images, as published; tiles differ from it a little, since norms and
        attention see less.
    Returns:
      Two of [B, H/f, W/f, latent_channels], float32.
    Raises:
      UserError: another shape; a tile that is not a multiple of the factor; an unknown dtype.
    """
    _check_input("images", images, config.in_channels, config.factor)
    parts = _cast(params, dtype)
    whole = lambda x: _moments(parts, x, config)
    x = images.astype(registry.choose("dtype", dtype, DTYPES))
    moments = _by_tiles(whole, x, check_tile(tile, config), config.factor, 1)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.exp(0.5 * jnp.clip(log_variance, *LOG_VARIANCE))


def decode(
    params: dict,
    latents: jax.Array,
    config: Config,
    *,
    dtype: str = "float32",
    tile: int | None = None,
) -> jax.Array:
    """Latents, before the scaling factor -> images; not clipped to [-1, 1].

    Args:
      latents: [B, h, w, latent_channels]. The others: as `encode`; `tile` is in pixels here too.
    Returns:
      [B, f h, f w, out_channels], float32.
    Raises:
      UserError: as `encode`.
    """
    _check_input("latents", latents, config.latent_channels, 1)
    parts = _cast(params, dtype)
    whole = lambda x: _pixels(parts, x, config)
    x = latents.astype(registry.choose("dtype", dtype, DTYPES))
    return _by_tiles(whole, x, check_tile(tile, config), 1, config.factor)


def _check_input(what: str, x, channels: int, factor: int) -> None:
    if x.ndim != 4 or x.shape[-1] != channels or x.shape[1] % factor or x.shape[2] % factor:
        sides = f", sides divisible by {factor}" if factor > 1 else ""
        raise UserError(
            f"{what} of shape {list(x.shape)}: this autoencoder needs [B, H, W, {channels}]{sides}"
        )


def _cast(params: dict, dtype: str) -> dict:
    wanted = registry.choose("dtype", dtype, DTYPES)
    return jax.tree.map(lambda a: jnp.asarray(a, wanted), params)


def check_tile(tile: int | None, config: Config) -> int | None:
    """The side of a tile in latents; UserError where it is no multiple of the factor."""
    if tile is None:
        return None
    if tile < config.factor or tile % config.factor:
        raise UserError(f"tile={tile} must be a positive multiple of {config.factor} pixels")
    return tile // config.factor


def _moments(params: dict, x: jax.Array, config: Config) -> jax.Array:
    """Mean and log-variance, [B, h, w, 2 latent_channels]."""
    part, groups = params["encoder"], config.norm_num_groups
    x = _convolved(part["conv_in"], x)
    for i in range(len(config.block_out_channels)):
        level = part["down_blocks"][str(i)]
        x = _resnets(level, x, groups)
        if "downsamplers" in level:
            # One row and one column of zeros, at the far ends alone.
            kernel = level["downsamplers"]["0"]["conv"]
            x = _convolved(kernel, x, 2, ((0, 1), (0, 1)))
    x = _ended(part, _mixed(part["mid_block"], x, groups), groups)
    return _convolved(params["quant_conv"], x) if config.use_quant_conv else x


def _pixels(params: dict, x: jax.Array, config: Config) -> jax.Array:
    part, groups = params["decoder"], config.norm_num_groups
    if config.use_post_quant_conv:
        x = _convolved(params["post_quant_conv"], x)
    x = _mixed(part["mid_block"], _convolved(part["conv_in"], x), groups)
    for i in range(len(config.block_out_channels)):
        level = part["up_blocks"][str(i)]
        x = _resnets(level, x, groups)
        if "upsamplers" in level:
            x = _convolved(level["upsamplers"]["0"]["conv"], _doubled(x))
    return _ended(part, x, groups)


def _convolved(params: dict, x: jax.Array, stride: int = 1, padding="SAME") -> jax.Array:
    """A convolution, or a linear layer over channels, with its bias."""
    kernel = params["weight"]
    kernel = kernel.reshape(1, 1, *kernel.shape) if kernel.ndim == 2 else kernel
    return convolve(x, kernel, stride, padding) + params["bias"].reshape(1, 1, 1, -1)


def _normed(params: dict, x: jax.Array, groups: int) -> jax.Array:
    """Group norm, its statistics in float32."""
    batch, channels = x.shape[0], x.shape[-1]
    scale, shift = (params[k].astype(jnp.float32).reshape(1, 1, 1, -1) for k in ("weight", "bias"))

    def pooled(values):
        # Over places first: with the channels last in memory it is several times as fast.
        each = jnp.mean(values, axis=(1, 2)).reshape(batch, groups, channels // groups)
        shared = jnp.broadcast_to(jnp.mean(each, axis=2, keepdims=True), each.shape)
        return shared.reshape(batch, 1, 1, channels)

    centred = x.astype(jnp.float32) - pooled(x.astype(jnp.float32))
    scale = scale * jax.lax.rsqrt(pooled(jnp.square(centred)) + EPSILON)
    return (centred * scale + shift).astype(x.dtype)


def _resnets(params: dict, x: jax.Array, groups: int) -> jax.Array:
    for j in range(len(params["resnets"])):
        x = _residual(params["resnets"][str(j)], x, groups)
    return x


def _residual(params: dict, x: jax.Array, groups: int) -> jax.Array:
    h = _convolved(params["conv1"], jax.nn.silu(_normed(params["norm1"], x, groups)))
    h = _convolved(params["conv2"], jax.nn.silu(_normed(params["norm2"], h, groups)))
    return h + (_convolved(params["conv_shortcut"], x) if "conv_shortcut" in params else x)


def _mixed(params: dict, x: jax.Array, groups: int) -> jax.Array:
    """The middle: a residual block, attention where there is some, a residual block."""
    x = _residual(params["resnets"]["0"], x, groups)
    if "attentions" in params:
        x = x + _attended(params["attentions"]["0"], x, groups)
    return _residual(params["resnets"]["1"], x, groups)


def _attended(params: dict, x: jax.Array, groups: int) -> jax.Array:
    """Attention of one head over all places."""
    batch, height, width, channels = x.shape
    normal = _normed(params["group_norm"], x, groups)
    tokens = lambda name: _convolved(params[name], normal).reshape(batch, height * width, channels)
    query, key, value = map(tokens, ("to_q", "to_k", "to_v"))
    exact = {"precision": "highest", "preferred_element_type": jnp.float32}
    weights = jax.nn.softmax(
        jnp.einsum("bqc,bkc->bqk", query, key, **exact) / math.sqrt(channels), axis=-1
    )
    mixed = jnp.einsum("bqk,bkc->bqc", weights.astype(x.dtype), value, **exact)
    return _convolved(params["to_out"]["0"], mixed.astype(x.dtype).reshape(x.shape))


def _doubled(x: jax.Array) -> jax.Array:
    """Each pixel four times."""
    batch, height, width, channels = x.shape
    wide = jnp.broadcast_to(
        x.reshape(batch, height, 1, width, 1, channels), (batch, height, 2, width, 2, channels)
    )
    return wide.reshape(batch, 2 * height, 2 * width, channels)


def _ended(params: dict, x: jax.Array, groups: int) -> jax.Array:
    return _convolved(params["conv_out"], jax.nn.silu(_normed(params["conv_norm_out"], x, groups)))


def _by_tiles(
    function: Callable, x: jax.Array, tile: int | None, into: int, out_of: int
) -> jax.Array:
    """A function of images on overlapping tiles, blended linearly; float32.

    Args:
      tile: its side in latents; None: the whole.
      into, out_of: how many pixels of the input's and of the output's side a latent has.
    """
    batch, height, width, channels = x.shape
    sides = height // into, width // into
    high, wide = (min(tile or side, side) for side in sides)
    places = [
        (row, column) for row in _starts(sides[0], high) for column in _starts(sides[1], wide)
    ]
    if len(places) == 1:
        return function(x).astype(jnp.float32)
    ramp = np.outer(_ramp(high * out_of), _ramp(wide * out_of)).astype(np.float32)
    total = np.zeros([side * out_of for side in sides], np.float32)
    for row, column in places:
        total[_span(row, high, out_of), _span(column, wide, out_of)] += ramp
    cut = (batch, high * into, wide * into, channels)
    outputs = jax.eval_shape(function, jax.ShapeDtypeStruct(cut, x.dtype)).shape[-1]

    def add(out, place):
        corner = lambda scale: (0, place[0] * scale, place[1] * scale, 0)
        made = function(jax.lax.dynamic_slice(x, corner(into), cut)).astype(jnp.float32)
        made = made * ramp.reshape(1, *ramp.shape, 1)
        sofar = jax.lax.dynamic_slice(out, corner(out_of), made.shape)
        return jax.lax.dynamic_update_slice(out, sofar + made, corner(out_of)), None

    empty = jnp.zeros((batch, *total.shape, outputs), jnp.float32)
    summed, _ = jax.lax.scan(add, empty, np.array(places, np.int32))
    return summed / total.reshape(1, *total.shape, 1)


def _span(start: int, length: int, scale: int) -> slice:
    return slice(start * scale, (start + length) * scale)


def _starts(side: int, tile: int) -> list[int]:
    """Where tiles begin: each a quarter within the one before it, the last at the far end."""
    step = tile - tile // OVERLAP
    return [*range(0, side - tile, step), side - tile]


def _ramp(length: int) -> np.ndarray:
    """The weight of a tile's pixels: rising over a quarter of it, falling over a quarter."""
    place = np.arange(length) + 0.5
    return np.minimum(1, np.minimum(place, length - place) / (length / OVERLAP))
