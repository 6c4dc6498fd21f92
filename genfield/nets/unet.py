"""The U-Net of ADM (Dhariwal & Nichol 2021, arXiv:2105.05233) as the CIFAR-10 recipe of flow
matching configures it (Lipman et al. 2024; Distance Marching, Table 6): 55,676,419 parameters."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from genfield import errors, placement, registry
from genfield.nets import heads, layers
from genfield.nets.attention import ATTENTIONS, attend
from genfield.nets.initial import constant
from genfield.registry import Fraction, NotNegativeInt, Positive, PositiveInt

GROUPS = 32  # ADM: GroupNorm32
SMALLEST_GROUP = 2  # channels; groups of one would erase the channel means
MAX_PERIOD = 1_000_000  # Distance Marching, Table 6
NULL_ROWS = {  # what the null class adds to the embedding
    "learned": layers.label_rows,  # as the classes do (DiT)
    "zero": layers.zero_null_row,  # zeros that no training moves (the U-Net of flow_matching)
}
BLOCKS = ("down", "shrink", "middle1", "middle2", "up", "grow")
RESAMPLINGS = {
    "pool": "means of 2x2 cells, repeated pixels",
    "conv": "the same by strided and 3x3 convolutions (Ho et al. 2020)",
    "block": "in ResBlocks of their own (ADM)",
}


def group_norm(
    channels, *, smallest_group=SMALLEST_GROUP, epsilon=1e-5, rngs, dtype
) -> nnx.GroupNorm:
    """32 groups, fewer where they would not divide the channels or hold fewer than
    `smallest_group`; statistics in float32."""
    fits = [
        g for g in range(1, GROUPS + 1) if channels % g == 0 and channels // g >= smallest_group
    ]
    return nnx.GroupNorm(
        channels,
        max(fits, default=1),
        epsilon=epsilon,
        use_fast_variance=False,
        scale_metadata={"initial": constant(1.0)},
        bias_metadata={"initial": constant(0.0)},
        dtype=dtype,
        rngs=rngs,
    )


def average_pool(x):
    """[B, H, W, C] -> [B, H/2, W/2, C], means of 2x2 cells."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample_nearest(x):
    """[B, H, W, C] -> [B, 2H, 2W, C], each pixel repeated."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class ResBlock(nnx.Module):
    """norm, SiLU, conv; norm, scale and shift by the embedding, SiLU, dropout, zero conv; skip.

    `adaptive_scale` False: the embedding is added before the second norm (Ho et al. 2020).
    `resample` is applied before the first conv and on the skip.
    """

    def __init__(
        self,
        inputs,
        outputs,
        embedding_size,
        dropout,
        *,
        adaptive_scale=True,
        resample=None,
        smallest_group=SMALLEST_GROUP,
        rngs,
        dtype,
    ):
        self.adaptive_scale, self.resample = adaptive_scale, resample
        modulations = (2 if adaptive_scale else 1) * outputs
        norm = {"smallest_group": smallest_group, "rngs": rngs, "dtype": dtype}
        self.norm1 = group_norm(inputs, **norm)
        self.conv1 = layers.torch_conv(inputs, outputs, 3, rngs=rngs, dtype=dtype)
        self.modulation = layers.torch_linear(embedding_size, modulations, rngs=rngs, dtype=dtype)
        self.norm2 = group_norm(outputs, **norm)
        self.dropout = layers.Dropout(dropout)
        self.conv2 = layers.torch_conv(outputs, outputs, 3, rngs=rngs, dtype=dtype, zero=True)
        self.skip = (
            layers.torch_conv(inputs, outputs, 1, rngs=rngs, dtype=dtype)
            if inputs != outputs
            else None
        )

    def __call__(self, x, embedding, key):
        h = jax.nn.silu(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h, modulation = self.conv1(h), self.modulation(jax.nn.silu(embedding))[:, None, None]
        if self.adaptive_scale:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + modulation)
        h = self.dropout(jax.nn.silu(h), deterministic=key is None, rngs=key)
        return (x if self.skip is None else self.skip(x)) + self.conv2(h)


class SelfAttention(nnx.Module):
    """norm, attention over all pixels, zero projection, skip."""

    def __init__(
        self, channels, num_heads, attention, *, smallest_group=SMALLEST_GROUP, rngs, dtype
    ):
        self.num_heads, self.attention = num_heads, attention
        self.norm = group_norm(channels, smallest_group=smallest_group, rngs=rngs, dtype=dtype)
        self.qkv = layers.torch_conv(channels, 3 * channels, 1, rngs=rngs, dtype=dtype)
        self.out = layers.torch_conv(channels, channels, 1, rngs=rngs, dtype=dtype, zero=True)

    def __call__(self, x):
        b, h, w, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, h * w, 3, self.num_heads, c // self.num_heads)
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.attention)
        return x + self.out(y.reshape(b, h, w, c))


class Stage(nnx.Module):
    """A ResBlock, then self-attention where the level has it."""

    def __init__(self, block, attention=None):
        self.block, self.attention = block, attention

    def __call__(self, x, embedding, key):
        h = self.block(x, embedding, key)
        return h if self.attention is None else self.attention(h)


class ResizingConv(nnx.Module):
    """A strided convolution, or one of the repeated pixels; called as a Stage is."""

    def __init__(self, channels, resample, *, rngs, dtype):
        self.halves = resample is average_pool
        stride = 2 if self.halves else 1
        self.conv = layers.torch_conv(channels, channels, 3, stride=stride, rngs=rngs, dtype=dtype)

    def __call__(self, x, embedding, key):
        return self.conv(x if self.halves else upsample_nearest(x))


class StageSize(NamedTuple):
    """The i-th stage of a level and the channels it takes and gives."""

    level: int
    index: int
    inputs: int
    outputs: int


def plan_stages(widths, num_res_blocks, first=None) -> tuple[list[StageSize], list[StageSize]]:
    """The stages down and up, in the order they run: each one up takes one more skip as input.

    `first` is the width of the first convolution, widths[0] unless given.
    """
    down, up, width = [], [], first or widths[0]
    skips = [width]  # the first convolution's
    for level, outputs in enumerate(widths):
        for i in range(num_res_blocks):
            down.append(StageSize(level, i, width, outputs))
            width = outputs
            skips.append(width)
        if level < len(widths) - 1:
            skips.append(width)  # the pooled image's
    for level, outputs in reversed(list(enumerate(widths))):
        for i in range(num_res_blocks + 1):
            up.append(StageSize(level, i, width + skips.pop(), outputs))
            width = outputs
    return down, up


def _key(stage: StageSize) -> str:
    return f"{stage.level}_{stage.index}"


def _check(shape, widths, channels, dropout, attention_levels, attention, resampling) -> list[bool]:
    """For each level, whether it attends; UserError for fields that do not fit."""
    if not widths or channels < 1 or channels % 2:
        raise errors.UserError("net 'unet' needs even channels and at least one multiplier")
    if not 0 <= dropout < 1:
        raise errors.UserError(f"net 'unet': dropout must be in [0, 1), not {dropout}")
    factors = [2**level for level in range(len(widths))]
    layers.check_image("unet", shape, factors[-1], f"{len(widths)} levels")
    registry.choose("attention", attention, ATTENTIONS)
    registry.choose("resampling", resampling, RESAMPLINGS)
    for factor in attention_levels:
        registry.choose("attention level", factor, dict.fromkeys(factors))
    return [factor in attention_levels for factor in factors]


def _count_heads(width, num_heads, head_channels, wider) -> int:
    """Heads for a width: `num_heads`, or as many as `head_channels` gives, or (`wider`) fewer."""
    heads_here = width // head_channels if head_channels else num_heads
    exact = wider or not head_channels or width % head_channels == 0
    if heads_here < 1 or width % heads_here or not exact:
        raise errors.UserError(
            f"net 'unet': {width} channels do not split into heads: change num_heads "
            f"({num_heads}) or head_channels ({head_channels})"
        )
    return heads_here


def _resizing(resampling, widths, stage, options, levels, resample) -> nnx.Dict | None:
    """What resamples at each of these levels; None where nothing of it is learned."""
    make = {
        "conv": lambda width: ResizingConv(width, resample, **options),
        "block": lambda width: stage(width, width, resample=resample),
    }.get(resampling)
    return make and nnx.Dict({str(level): make(widths[level]) for level in levels})


class UNet(layers.Network):
    """ADM's U-Net on [B, H, W, C], resampling without parameters, scale-shift norms.

    Fields:
      channels: base width; the time embedding has 4 x channels.
      channel_multipliers: width of each level over the base; each further level halves the image.
      num_res_blocks: ResBlocks a level on the way down (one more on the way up).
      attention_levels: downsampling factors (1, 2, 4, ...) at which pixels attend.
      num_heads: attention heads. head_channels: the channels of one; give either.
      resampling: between levels: "pool", "conv", "block", see RESAMPLINGS.
      adaptive_scale: the embedding scales and shifts; or (False) it is added.
      dropout: in every ResBlock.
      max_period: of the time embedding.
      smallest_group: fewest channels of a group of the norms, which are 32 groups where they can;
        1 for 32 whatever the width, as in the published code.
      null_row: what the null class adds to the embedding, see NULL_ROWS.
      distance_head, direction_scale, distance_time_scale, distance_time_gradient,
        distance_input_scale: see `heads.create`.
      dtype, attention ("xla", "chunked", "auto"): computation; remat: what of a stage the
        backward pass computes again, "none", "dots" or "full".
    Raises:
      UserError: an image side that the levels do not divide, heads that do not divide the width,
        an attention level that does not exist.
    """

    label_rows = staticmethod(layers.label_rows)
    middle_attention = True  # whether pixels attend in the middle
    wider_heads = False  # whether heads are wider than head_channels where it divides no width

    def __init__(
        self,
        *,
        channels=128,
        channel_multipliers: tuple[PositiveInt, ...] = (2, 2, 2),
        num_res_blocks: NotNegativeInt = 4,
        attention_levels=(2,),
        num_heads=1,
        head_channels: int | None = None,
        resampling="pool",
        adaptive_scale=True,
        dropout: Fraction = 0.3,
        max_period: Positive = MAX_PERIOD,
        smallest_group: PositiveInt = SMALLEST_GROUP,
        null_row="learned",
        distance_head: str | None = None,
        direction_scale: float | None = None,
        distance_time_scale: Positive | None = None,
        distance_time_gradient: bool | None = None,
        distance_input_scale: float | None = None,
        dtype="float32",
        attention="xla",
        remat: layers.Remat = False,
        shape,
        num_classes,
        rngs,
    ):
        widths = tuple(channels * multiplier for multiplier in channel_multipliers)
        rows = registry.choose("null_row", null_row, {**NULL_ROWS, "learned": self.label_rows})
        attends = _check(shape, widths, channels, dropout, attention_levels, attention, resampling)
        self.channels, self.num_res_blocks, self.num_levels = channels, num_res_blocks, len(widths)
        self.dropout, self.max_period, self.remat = dropout, max_period, layers.remat_of(remat)
        self.compute = layers.compute_dtype(dtype)
        options = {"rngs": rngs, "dtype": self.compute}
        normed = options | {"smallest_group": smallest_group}

        def stage(inputs, outputs, attend=False, resample=None):
            scale = {"adaptive_scale": adaptive_scale, "resample": resample}
            block = ResBlock(inputs, outputs, 4 * channels, dropout, **scale, **normed)
            if not attend:
                return Stage(block)
            split = _count_heads(outputs, num_heads, head_channels, self.wider_heads)
            return Stage(block, SelfAttention(outputs, split, attention, **normed))

        resizing = functools.partial(_resizing, resampling, widths, stage, options)
        self.time1 = layers.torch_linear(channels, 4 * channels, rngs=rngs)
        self.time2 = layers.torch_linear(4 * channels, 4 * channels, rngs=rngs)
        self.labels = rows(num_classes, 4 * channels, rngs=rngs) if num_classes else None
        down, up = plan_stages(widths, num_res_blocks)
        self.first = layers.torch_conv(shape[-1], widths[0], 3, **options)
        self.down = nnx.Dict({_key(s): stage(s.inputs, s.outputs, attends[s.level]) for s in down})
        self.shrink = resizing(range(len(widths) - 1), average_pool)
        self.middle1 = stage(widths[-1], widths[-1], self.middle_attention)
        self.middle2 = stage(widths[-1], widths[-1])
        self.up = nnx.Dict({_key(s): stage(s.inputs, s.outputs, attends[s.level]) for s in up})
        self.grow = resizing(range(1, len(widths)), upsample_nearest)
        self.norm = group_norm(widths[0], **normed | {"dtype": jnp.float32})
        self.last = layers.torch_conv(widths[0], shape[-1], 3, rngs=rngs, zero=True)
        given = direction_scale, distance_time_scale, distance_time_gradient, distance_input_scale
        self.distance = heads.create(distance_head, given, shape[-1], num_classes, rngs)

    def embed(self, t, cond, augmentation=None):
        """[B] times, [B] labels or None, augmentation or None -> [B, 4 x channels], float32."""
        embedding = layers.sinusoidal_embedding(t, self.channels, self.max_period)
        if augmentation is not None:
            embedding = embedding + self.augmentation(augmentation)
        embedding = self.time2(jax.nn.silu(self.time1(embedding)))
        return embedding if self.labels is None else embedding + self.labels(cond)

    def __call__(self, x, t, cond, rngs=None, augmentation=None):
        if self.distance is not None:
            distance, t = self.distance(x, t, cond)
        embedding = placement.by_batch(self.embed(t, cond, augmentation)).astype(self.compute)

        def run(stage, h):
            call = layers.block(stage, self.compute, self.remat)
            return call(h, embedding, None if rngs is None else rngs.dropout())

        h = self.first(x)
        skips = [h]
        for level in range(self.num_levels):
            for i in range(self.num_res_blocks):
                h = run(self.down[f"{level}_{i}"], h)
                skips.append(h)
            if level < self.num_levels - 1:
                h = run(self.shrink[str(level)], h) if self.shrink else average_pool(h)
                skips.append(h)
        h = run(self.middle2, run(self.middle1, h))
        for level in reversed(range(self.num_levels)):
            for i in range(self.num_res_blocks + 1):
                h = run(self.up[f"{level}_{i}"], jnp.concatenate([h, skips.pop()], axis=-1))
            if level:
                h = run(self.grow[str(level)], h) if self.grow else upsample_nearest(h)
        y = self.last(jax.nn.silu(self.norm(h.astype(jnp.float32))))
        return y if self.distance is None else self.distance.prediction(y, distance)


METHOD = registry.Network(
    name="unet",
    make=UNet,
    second_order=lambda bound: None,
    last_layer=("last", "kernel"),
    stack=(),
    blocks=BLOCKS,
    augmented=False,
)
