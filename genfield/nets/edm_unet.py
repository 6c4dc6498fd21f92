"""The U-Nets of EDM (Karras et al. 2022, arXiv:2206.00364, appendix F), without preconditioning.

DDPM++ and NCSN++ come from Song et al. (2021, arXiv:2011.13456), ADM from Dhariwal & Nichol (2021,
arXiv:2105.05233). EDM gives them the time ln(noise level) / 4.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from genfield import errors, placement, registry
from genfield.nets import layers, unet
from genfield.nets.attention import ATTENTIONS
from genfield.nets.initial import Initial, constant, given, uniform
from genfield.registry import Fraction, NotNegativeInt, PositiveInt

SQRT_HALF = math.sqrt(0.5)  # Song et al.: the sum of two branches keeps its variance
QKV_GAIN = math.sqrt(0.2)  # EDM, on initial weights
LAST_GAIN = 1e-5  # EDM, on the initial weights that end a branch or the network
EPSILON = 1e-6  # EDM: of the norms of DDPM++ and NCSN++
SMALLEST_GROUP = 4  # EDM: channels
MAX_PERIOD = 10_000  # Song et al., ADM
FOURIER_SCALE = 16.0  # Song et al.: standard deviation of the frequencies


def xavier(inputs, outputs, gain=1.0) -> Initial:
    """Glorot's uniform values for the fans of a layer, times a gain."""
    return uniform(gain * math.sqrt(6 / (inputs + outputs)))


def xavier_conv(inputs, outputs, size, gain=1.0, *, rngs, dtype=jnp.float32) -> nnx.Conv:
    """A size x size convolution, same padding; biases start at zero."""
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        kernel_metadata={"initial": xavier(inputs * size**2, outputs * size**2, gain)},
        bias_metadata={"initial": constant(0.0)},
        dtype=dtype,
        rngs=rngs,
    )


def xavier_linear(inputs, outputs, *, use_bias=True, rngs, dtype=jnp.float32) -> nnx.Linear:
    """A linear layer; biases start at zero."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_metadata={"initial": xavier(inputs, outputs)},
        bias_metadata={"initial": constant(0.0)},
        dtype=dtype,
        rngs=rngs,
    )


class LabelLinear(nnx.Linear):
    """A linear layer of one-hot labels times a gain; the null class is the vector of zeros."""

    def __init__(self, num_classes, size, kernel: Initial, *, gain=1.0, use_bias=True, rngs):
        self.gain = gain
        super().__init__(
            num_classes,
            size,
            use_bias=use_bias,
            kernel_metadata={"initial": kernel},
            bias_metadata={"initial": constant(0.0)},
            rngs=rngs,
        )

    def __call__(self, labels):
        """[B] integers -> [B, size] float32."""
        return super().__call__(self.gain * jax.nn.one_hot(labels, self.in_features))


def positional_features(t, size):
    """[B] times -> [B, size]: sines, cosines at periods 2 pi ... 2 pi MAX_PERIOD, both included."""
    frequencies = MAX_PERIOD ** -jnp.linspace(0.0, 1.0, size // 2)
    angles = t[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_frequencies(shape) -> np.ndarray:
    """[2, size / 2] float32: normally distributed frequencies, always the same ones.

    The first row is in radians, as the network uses them; the second in turns, as published files
    hold them. NumPy never changes what RandomState draws.
    """
    turns = FOURIER_SCALE * np.random.RandomState(0).standard_normal(shape[1])
    return np.stack([2 * np.pi * turns, turns]).astype(np.float32)


def fourier_features(t, frequencies):
    """[B] times, frequencies [2, size / 2] -> [B, size]: sines, cosines.

    The frequencies get no gradient.
    """
    angles = t[:, None] * jax.lax.stop_gradient(frequencies)[:1]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Embedding(nnx.Module):
    """Time features, plus labels and augmentation made as long as they, through two layers."""

    def __init__(self, fourier, size, outputs, num_classes, augmentation_size, *, rngs):
        start = given(fourier_frequencies)
        self.frequencies = nnx.Param(jnp.zeros((2, size // 2)), initial=start) if fourier else None
        self.size = size
        kernel, gain = xavier(num_classes, size), math.sqrt(num_classes)
        self.labels = (
            LabelLinear(num_classes, size, kernel, gain=gain, rngs=rngs) if num_classes else None
        )
        self.augmentation = (
            xavier_linear(augmentation_size, size, use_bias=False, rngs=rngs)
            if augmentation_size
            else None
        )
        self.first = xavier_linear(size, outputs, rngs=rngs)
        self.second = xavier_linear(outputs, outputs, rngs=rngs)

    def __call__(self, t, labels, augmentation):
        """[B], [B] or None, [B, augmentation_size] or None -> [B, outputs] float32."""
        if self.frequencies is None:
            h = positional_features(t, self.size)
        else:
            h = fourier_features(t, self.frequencies[...])
        if self.labels is not None:
            h = h + self.labels(labels)
        if augmentation is not None:
            h = h + self.augmentation(augmentation)
        return jax.nn.silu(self.second(jax.nn.silu(self.first(h))))


def group_norm(channels, *, rngs, dtype) -> nnx.GroupNorm:
    """EDM's: min(32, channels / 4) groups."""
    fields = {"smallest_group": SMALLEST_GROUP, "epsilon": EPSILON}
    return unet.group_norm(channels, **fields, rngs=rngs, dtype=dtype)


def zero_border(x):
    """[B, H, W, C] -> [B, H + 2, W + 2, C]."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _smooth_halve(x):
    """[B, H + 2, W + 2, C] -> [B, H/2, W/2, C] by the filter [1, 3, 3, 1] / 8."""
    for axis in (1, 2):
        size = x.shape[axis] - 3
        a, b, c, d = (jax.lax.slice_in_dim(x, k, k + size, 2, axis) for k in range(4))
        x = (a + 3 * b + 3 * c + d) / 8
    return x


def smooth_pool(x):
    """[B, H, W, C] -> [B, H/2, W/2, C] by the filter [1, 3, 3, 1] / 8, zeros around the image."""
    return _smooth_halve(zero_border(x))


def smooth_upsample(x):
    """[B, H, W, C] -> [B, 2H, 2W, C]: 4 times the transpose of `smooth_pool`."""
    x = zero_border(x)
    for axis in (1, 2):
        size = x.shape[axis] - 2
        a, b, c = (jax.lax.slice_in_dim(x, k, k + size, 1, axis) for k in range(3))
        pairs = jnp.stack([a + 3 * b, 3 * b + c], axis + 1) / 4
        x = pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


class Block(nnx.Module):
    """norm, SiLU, resample, conv, add embedding; norm, SiLU, dropout, conv; skip; over sqrt 2."""

    def __init__(self, inputs, outputs, embedding_size, dropout, resample, *, rngs, dtype):
        options = {"rngs": rngs, "dtype": dtype}
        self.resample = resample
        self.norm1 = group_norm(inputs, **options)
        self.conv1 = xavier_conv(inputs, outputs, 3, **options)
        self.shift = xavier_linear(embedding_size, outputs, **options)
        self.norm2 = group_norm(outputs, **options)
        self.dropout = layers.Dropout(dropout)
        self.conv2 = xavier_conv(outputs, outputs, 3, LAST_GAIN, **options)
        projects = inputs != outputs or resample is not None
        self.skip = xavier_conv(inputs, outputs, 1, **options) if projects else None

    def __call__(self, x, embedding, key):
        h = jax.nn.silu(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.norm2(self.conv1(h) + self.shift(embedding)[:, None, None])
        h = self.dropout(jax.nn.silu(h), deterministic=key is None, rngs=key)
        return SQRT_HALF * ((x if self.skip is None else self.skip(x)) + self.conv2(h))


class SelfAttention(unet.SelfAttention):
    """One head over all pixels, added to the skip, over sqrt 2."""

    def __init__(self, channels, attention, *, rngs, dtype):
        options = {"rngs": rngs, "dtype": dtype}
        self.num_heads, self.attention = 1, attention
        self.norm = group_norm(channels, **options)
        self.qkv = xavier_conv(channels, 3 * channels, 1, QKV_GAIN, **options)
        self.out = xavier_conv(channels, channels, 1, LAST_GAIN, **options)

    def __call__(self, x):
        return SQRT_HALF * super().__call__(x)


class Pyramid(nnx.Module):
    """A step of NCSN++'s residual encoder: what it keeps of the image, halved, joins the level."""

    def __init__(self, inputs, outputs, *, rngs, dtype):
        self.conv = xavier_conv(inputs, outputs, 3, rngs=rngs, dtype=dtype)

    def __call__(self, pyramid, h):
        """[B, 2H, 2W, inputs], [B, H, W, outputs] -> [B, H, W, outputs]."""
        return SQRT_HALF * (h + _smooth_halve(self.conv(zero_border(pyramid))))


def _check_fields(net, shape, widths, channels, dropout, attention_resolutions, attention):
    """For each level, whether it attends; UserError for fields that do not fit."""
    if not widths or channels < 4 or channels % 4:
        raise errors.UserError(
            f"net {net!r} needs channels divisible by 4 and at least one multiplier"
        )
    if not 0 <= dropout < 1:
        raise errors.UserError(f"net {net!r}: dropout must be in [0, 1), not {dropout}")
    layers.check_image(net, shape, 2 ** (len(widths) - 1), f"{len(widths)} levels")
    registry.choose("attention", attention, ATTENTIONS)
    resolutions = [shape[0] >> level for level in range(len(widths))]
    for resolution in attention_resolutions:
        registry.choose("attention resolution", resolution, dict.fromkeys(resolutions))
    return [resolution in attention_resolutions for resolution in resolutions]


class DDPMPP(layers.Network):
    """DDPM++ on [B, H, W, C], by default CIFAR-10's: 55,732,739 parameters.

    Fields:
      channels: base width; the embedding has 4 x channels.
      channel_multipliers: width of each level over the base; each further level halves the image.
      num_res_blocks: blocks a level on the way down (one more on the way up).
      attention_resolutions: image heights at which pixels attend: after each block on the way
        down, after the last on the way up; they always do once in the middle.
      dropout: in every block; EDM: 0.13 on CIFAR-10, 0.05 on FFHQ, 0.25 on AFHQ.
      augmentation_size: numbers that tell how an image was augmented (9: `data.augment`) or 0.
      learned_variance: as of `ADM`.
      dtype, attention ("xla", "chunked", "auto"): computation; remat: what of a stage the
        backward pass computes again, "none", "dots" or "full".
    Raises:
      UserError: an image side that the levels do not divide, an attention resolution that no
        level has.
    """

    name = "ddpmpp"
    fourier, feature_multiplier = False, 1
    halve, double = staticmethod(unet.average_pool), staticmethod(unet.upsample_nearest)
    residual_encoder = False

    def __init__(
        self,
        *,
        channels=128,
        channel_multipliers: tuple[PositiveInt, ...] = (2, 2, 2),
        num_res_blocks: NotNegativeInt = 4,
        attention_resolutions=(16,),
        dropout: Fraction = 0.13,
        augmentation_size: NotNegativeInt = 0,
        learned_variance=False,
        dtype="float32",
        attention="xla",
        remat: layers.Remat = False,
        shape,
        num_classes,
        rngs,
    ):
        widths = tuple(channels * multiplier for multiplier in channel_multipliers)
        fields = (channels, dropout, attention_resolutions, attention)
        attends = _check_fields(self.name, shape, widths, *fields)
        self.num_res_blocks, self.num_levels = num_res_blocks, len(widths)
        self.dropout, self.augmentation_size = dropout, augmentation_size
        self.remat = layers.remat_of(remat)
        self.compute = layers.compute_dtype(dtype)
        options = {"rngs": rngs, "dtype": self.compute}

        def stage(inputs, outputs, attend=False, resample=None):
            block = Block(inputs, outputs, 4 * channels, dropout, resample, **options)
            if not attend:
                return unet.Stage(block)
            return unet.Stage(block, SelfAttention(outputs, attention, **options))

        def stages(sizes, first_attending):
            attend = lambda size: attends[size.level] and size.index >= first_attending
            make = lambda size: stage(size.inputs, size.outputs, attend(size))
            return nnx.Dict({f"{size.level}_{size.index}": make(size) for size in sizes})

        def resizing(levels, resample):
            make = lambda width: stage(width, width, resample=resample)
            return nnx.Dict({str(level): make(widths[level]) for level in levels})

        sizes = self.feature_multiplier * channels, 4 * channels, num_classes, augmentation_size
        self.embedding = Embedding(self.fourier, *sizes, rngs=rngs)
        down, up = unet.plan_stages(widths, num_res_blocks, channels)
        self.first = xavier_conv(shape[-1], channels, 3, **options)
        self.down = stages(down, 0)
        self.shrink = resizing(range(len(widths) - 1), self.halve)
        steps = enumerate(zip((shape[-1], *widths), widths[:-1], strict=False))
        steps = steps if self.residual_encoder else ()
        self.pyramid = nnx.Dict({str(k): Pyramid(*step, **options) for k, step in steps})
        self.middle1 = stage(widths[-1], widths[-1], True)
        self.middle2 = stage(widths[-1], widths[-1])
        self.up = stages(up, num_res_blocks)
        self.grow = resizing(range(1, len(widths)), self.double)
        self.norm = group_norm(widths[0], rngs=rngs, dtype=jnp.float32)
        self.outputs = shape[-1]
        outputs = self.outputs * (2 if learned_variance else 1)
        self.last = xavier_conv(widths[0], outputs, 3, LAST_GAIN, rngs=rngs)

    def __call__(self, x, t, cond, rngs=None, augmentation=None):
        embedding = placement.by_batch(self.embedding(t, cond, augmentation)).astype(self.compute)

        def run(stage, h):
            call = layers.block(stage, self.compute, self.remat)
            return call(h, embedding, None if rngs is None else rngs.dropout())

        pyramid, h = x, self.first(x)
        skips = [h]
        for level in range(self.num_levels):
            for i in range(self.num_res_blocks):
                h = run(self.down[f"{level}_{i}"], h)
                skips.append(h)
            if level < self.num_levels - 1:
                h = run(self.shrink[str(level)], h)
                if self.pyramid:
                    step = layers.block(self.pyramid[str(level)], self.compute, "none")
                    pyramid = h = step(pyramid, h)
                skips.append(h)
        h = run(self.middle2, run(self.middle1, h))
        for level in reversed(range(self.num_levels)):
            for i in range(self.num_res_blocks + 1):
                h = run(self.up[f"{level}_{i}"], jnp.concatenate([h, skips.pop()], axis=-1))
            if level:
                h = run(self.grow[str(level)], h)
        return self.last(jax.nn.silu(self.norm(h.astype(jnp.float32))))[..., : self.outputs]


class NCSNPP(DDPMPP):
    """NCSN++: DDPM++ with Fourier features, a residual encoder and smoother resampling.

    The frequencies are an array among the parameters that training leaves as it is.

    Fields and errors: DDPMPP's.
    """

    name = "ncsnpp"
    fourier, feature_multiplier = True, 2
    halve, double = staticmethod(smooth_pool), staticmethod(smooth_upsample)
    residual_encoder = True


METHODS = tuple(
    registry.Network(
        name=network.name,
        make=network,
        second_order=lambda bound: None,
        last_layer=("last", "kernel"),
        stack=(),
        blocks=(*unet.BLOCKS, "pyramid"),
        augmented=True,
        fixed={("embedding", "frequencies"): fourier_frequencies} if network.fourier else {},
    )
    for network in (DDPMPP, NCSNPP)
)
