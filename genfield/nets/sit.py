"""SiT, the transformer of DiT (Peebles & Xie 2023, arXiv:2212.09748; Ma et al. 2024,
arXiv:2401.08740): patches, adaLN-Zero blocks, fixed sin-cos positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from genfield import errors, placement, registry
from genfield.nets import heads, initial, layers
from genfield.nets.attention import ATTENTIONS, attend
from genfield.registry import Positive

SIZES = {  # depth, width, heads: DiT, Table 1
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
TIME_FREQUENCIES = 256  # DiT's timestep embedder
MAX_PERIOD = 10_000
ZERO = initial.constant(0.0)  # adaLN-Zero


def position_table(height: int, width: int, size: int) -> np.ndarray:
    """[height * width, size] float32, row-major: the first half encodes the column, the second the
    row, each as sines then cosines at size/4 frequencies 10000^(-k / (size/4))."""
    frequencies = 10_000.0 ** (-np.arange(size // 4) / (size // 4))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def dit_linear(inputs, outputs, kernel=None, *, rngs, dtype=jnp.float32) -> nnx.Linear:
    """A linear layer with zero biases, Xavier-uniform unless told."""
    kernel = kernel or initial.uniform(math.sqrt(6 / (inputs + outputs)))
    return layers.linear(inputs, outputs, kernel, initial.constant(0.0), rngs=rngs, dtype=dtype)


def plain_norm(size, *, rngs, dtype=jnp.float32) -> nnx.LayerNorm:
    """Layer norm without parameters, statistics in float32."""
    return nnx.LayerNorm(
        size, use_bias=False, use_scale=False, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


def modulate(h, shift, scale):
    """[B, N, width] by [B, width]."""
    return h * (1 + scale[:, None]) + shift[:, None]


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and gated by the condition (adaLN-Zero)."""

    def __init__(self, width, num_heads, mlp_ratio, attention, *, rngs, dtype):
        self.num_heads, self.attention = num_heads, attention
        self.norm1 = plain_norm(width, rngs=rngs, dtype=dtype)
        self.qkv = dit_linear(width, 3 * width, rngs=rngs, dtype=dtype)
        self.out = dit_linear(width, width, rngs=rngs, dtype=dtype)
        self.norm2 = plain_norm(width, rngs=rngs, dtype=dtype)
        self.mlp1 = dit_linear(width, int(width * mlp_ratio), rngs=rngs, dtype=dtype)
        self.mlp2 = dit_linear(int(width * mlp_ratio), width, rngs=rngs, dtype=dtype)
        self.modulation = dit_linear(width, 6 * width, ZERO, rngs=rngs, dtype=dtype)

    def attend(self, h):
        b, n, width = h.shape
        qkv = self.qkv(h).reshape(b, n, 3, self.num_heads, width // self.num_heads)
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.attention)
        return self.out(y.reshape(b, n, width))

    def __call__(self, h, condition):
        """[B, N, width] tokens, [B, width] condition -> [B, N, width]."""
        modulation = jnp.split(self.modulation(jax.nn.silu(condition)), 6, axis=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        h = h + gate1[:, None] * self.attend(modulate(self.norm1(h), shift1, scale1))
        hidden = jax.nn.gelu(self.mlp1(modulate(self.norm2(h), shift2, scale2)), approximate=True)
        return h + gate2[:, None] * self.mlp2(hidden)


class SiT(layers.Network):
    """The transformer on [B, H, W, C]; parameters of the blocks are stacked on a leading axis.

    Fields:
      size: "S", "B", "L", "XL"; depth, width, num_heads: override the size's, one by one.
      patch_size: side of a patch; it must divide both sides of the image.
      mlp_ratio: hidden width of the MLPs over the width.
      double_output: the last layer predicts 2C channels and the second C are dropped, as in the
        published weights.
      scan: one compiled block looped over the stack, or (False) unrolled: the same checkpoint.
      remat: what of each block the backward pass computes again, "none", "dots" (all but matrix
        products) or "full".
      distance_head, direction_scale, distance_time_scale, distance_time_gradient,
        distance_input_scale: see `heads.create`.
      dtype, attention ("xla", "chunked", "auto"): computation.
    Raises:
      UserError: a patch size that does not divide the image, heads that do not divide the width.
    """

    def __init__(
        self,
        *,
        size="B",
        patch_size=2,
        depth: int | None = None,
        width: int | None = None,
        num_heads: int | None = None,
        mlp_ratio: Positive = 4,
        double_output=True,
        scan=True,
        remat: layers.Remat = False,
        distance_head: str | None = None,
        direction_scale: float | None = None,
        distance_time_scale: Positive | None = None,
        distance_time_gradient: bool | None = None,
        distance_input_scale: float | None = None,
        dtype="float32",
        attention="xla",
        shape,
        num_classes,
        rngs,
    ):
        preset = registry.choose("size", size, SIZES)
        given = (depth, width, num_heads)
        depth, width, num_heads = (
            p if g is None else g for p, g in zip(preset, given, strict=True)
        )
        if min(depth, width, num_heads, patch_size) < 1:
            raise errors.UserError(
                "net 'sit': depth, width, num_heads and patch_size must be at least 1"
            )
        if width % num_heads or width % 4:
            raise errors.UserError(
                f"net 'sit': width {width} must be divisible by num_heads ({num_heads}) and by 4"
            )
        layers.check_image("sit", shape, patch_size, "patch_size")
        registry.choose("attention", attention, ATTENTIONS)
        self.depth, self.width, self.patch_size = depth, width, patch_size
        self.scan, self.remat = scan, layers.remat_of(remat)
        self.compute = layers.compute_dtype(dtype)
        self.outputs = shape[-1] * (2 if double_output else 1)
        pixels = patch_size * patch_size

        self.patches = dit_linear(pixels * shape[-1], width, rngs=rngs, dtype=self.compute)
        self.time1 = dit_linear(TIME_FREQUENCIES, width, initial.normal(0.02), rngs=rngs)
        self.time2 = dit_linear(width, width, initial.normal(0.02), rngs=rngs)
        self.labels = layers.label_rows(num_classes, width, rngs=rngs) if num_classes else None

        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def stack(rngs):
            return Block(width, num_heads, mlp_ratio, attention, rngs=rngs, dtype=self.compute)

        self.blocks = stack(rngs)
        self.norm = plain_norm(width, rngs=rngs)
        self.modulation = dit_linear(width, 2 * width, ZERO, rngs=rngs)
        self.last = dit_linear(width, pixels * self.outputs, ZERO, rngs=rngs)
        given = direction_scale, distance_time_scale, distance_time_gradient, distance_input_scale
        self.distance = heads.create(distance_head, given, shape[-1], num_classes, rngs)

    def embed(self, t, cond):
        """[B] times, [B] labels or None -> [B, width] condition, float32."""
        embedding = layers.sinusoidal_embedding(t, TIME_FREQUENCIES, MAX_PERIOD)
        embedding = self.time2(jax.nn.silu(self.time1(embedding)))
        return embedding if self.labels is None else embedding + self.labels(cond)

    def patchify(self, x):
        """[B, H, W, C] -> [B, N, p*p*C], both row-major."""
        b, height, width, c = x.shape
        p = self.patch_size
        x = x.reshape(b, height // p, p, width // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, -1, p * p * c)

    def unpatchify(self, tokens, shape):
        """[B, N, p*p*outputs] -> [B, H, W, C]: the first C output channels."""
        b, height, width, c = shape
        p = self.patch_size
        y = tokens.reshape(b, height // p, width // p, p, p, self.outputs)
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, self.outputs)[..., :c]

    def run_blocks(self, h, condition):
        """All blocks in turn: a scan over the stack, or an unrolled loop over its rows."""
        graph, stack = nnx.split(self.blocks)

        def run(h, parameters):
            parameters = placement.gathered(parameters, self.compute, "blocks")
            h = nnx.merge(graph, parameters)(placement.by_batch(h), condition)
            return placement.by_batch(h), None

        run = layers.recomputed(run, self.remat, in_scan=self.scan)
        if self.scan:
            return jax.lax.scan(run, h, stack)[0]
        for i in range(self.depth):
            h, _ = run(h, jax.tree.map(lambda leaf, i=i: leaf[i], stack))
        return h

    def __call__(self, x, t, cond, rngs=None):
        if self.distance is not None:
            distance, t = self.distance(x, t, cond)
        grid = x.shape[1] // self.patch_size, x.shape[2] // self.patch_size
        positions = position_table(*grid, self.width)[None]
        condition = placement.by_batch(self.embed(t, cond))
        h = (self.patches(self.patchify(x)) + positions).astype(self.compute)
        h = self.run_blocks(h, condition.astype(self.compute)).astype(jnp.float32)
        shift, scale = jnp.split(self.modulation(jax.nn.silu(condition)), 2, axis=-1)
        y = self.unpatchify(self.last(modulate(self.norm(h), shift, scale)), x.shape)
        return y if self.distance is None else self.distance.prediction(y, distance)


METHOD = registry.Network(
    name="sit",
    make=SiT,
    second_order=lambda bound: None,
    last_layer=("last", "kernel"),
    stack=("blocks",),
    blocks=("blocks",),
    augmented=False,
)
