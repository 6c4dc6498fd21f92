"""A transformer of sequences, causal or not: the network of Flux Matching's Appendix B.5."""

import jax
import jax.numpy as jnp
from flax import nnx

from genfield import errors, placement, registry
from genfield.nets import initial, layers
from genfield.nets.attention import ATTENTIONS, attend
from genfield.nets.sit import MAX_PERIOD, TIME_FREQUENCIES, dit_linear
from genfield.registry import Fraction

# A time input of ln(sigma) / 4 spans three units; EDM's embeddings of it have frequencies of up
# to 1 (DDPM++) and of about 100 (NCSN++). These go from 100 down to 0.01.
TIME_SCALE = 100.0
ZERO = initial.constant(0.0)  # residual branches and the output start at zero, as SiT's do


def layer_norm(size, *, rngs, dtype=jnp.float32) -> nnx.LayerNorm:
    """Layer norm with scale and bias, statistics in float32."""
    return nnx.LayerNorm(
        size,
        use_fast_variance=False,
        scale_metadata={"initial": initial.constant(1.0)},
        bias_metadata={"initial": ZERO},
        dtype=dtype,
        rngs=rngs,
    )


class Block(nnx.Module):
    """norm, attention, dropout, skip; norm, GELU MLP, dropout, skip."""

    def __init__(self, width, num_heads, mlp_ratio, dropout, causal, attention, *, rngs, dtype):
        self.num_heads, self.causal, self.attention = num_heads, causal, attention
        options = {"rngs": rngs, "dtype": dtype}
        hidden = int(width * mlp_ratio)
        self.norm1 = layer_norm(width, **options)
        self.qkv = dit_linear(width, 3 * width, **options)
        self.out = dit_linear(width, width, ZERO, **options)
        self.norm2 = layer_norm(width, **options)
        self.mlp1 = dit_linear(width, hidden, **options)
        self.mlp2 = dit_linear(hidden, width, ZERO, **options)
        self.dropout = layers.Dropout(dropout)

    def attend(self, h):
        b, n, width = h.shape
        qkv = self.qkv(h).reshape(b, n, 3, self.num_heads, width // self.num_heads)
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.attention, self.causal)
        return self.out(y.reshape(b, n, width))

    def __call__(self, h, key=None):
        """[B, N, width] -> [B, N, width]; no dropout without a key."""
        keys = (None, None) if key is None else jax.random.split(key)
        drop = lambda y, key: self.dropout(y, deterministic=key is None, rngs=key)
        h = h + drop(self.attend(self.norm1(h)), keys[0])
        hidden = jax.nn.gelu(self.mlp1(self.norm2(h)), approximate=True)
        return h + drop(self.mlp2(hidden), keys[1])


class Transformer(layers.Network):
    """Pre-norm self-attention on sequences [B, N, C], a token for each of the N steps.

    Token n enters as a projection of x[:, n], plus a sinusoidal embedding of n, plus an embedding
    of the time input (and of the label, where there are classes).

    Fields:
      width, depth, num_heads: of the tokens, blocks of attention and MLP, heads of each.
      mlp_ratio: hidden width of the MLPs over the width.
      causal: token i attends to tokens 0 ... i only, so output i depends on x[:, :i + 1] alone
        (eq. 47).
      dropout: at the end of each residual branch.
      scan: one compiled block looped over the stack, or (False) unrolled: the same checkpoint.
      remat: what of each block the backward pass computes again, "none", "dots" (all but matrix
        products) or "full".
      dtype, attention ("xla", "chunked", "auto"): computation.
    Raises:
      UserError: examples that are not sequences, heads that do not divide the width.
    """

    def __init__(
        self,
        *,
        width=512,
        depth=12,
        num_heads=8,
        mlp_ratio=4,
        causal=False,
        dropout: Fraction = 0.0,
        scan=True,
        remat: layers.Remat = False,
        dtype="float32",
        attention="xla",
        shape,
        num_classes,
        rngs,
    ):
        _check_fields(shape, width, depth, num_heads, mlp_ratio, dropout)
        registry.choose("attention", attention, ATTENTIONS)
        self.depth, self.width, self.dropout = depth, width, dropout
        self.scan, self.remat = scan, layers.remat_of(remat)
        self.compute = layers.compute_dtype(dtype)

        self.tokens = layers.torch_linear(shape[-1], width, rngs=rngs)
        self.time1 = dit_linear(TIME_FREQUENCIES, width, initial.normal(0.02), rngs=rngs)
        self.time2 = dit_linear(width, width, initial.normal(0.02), rngs=rngs)
        self.labels = layers.label_rows(num_classes, width, rngs=rngs) if num_classes else None
        sizes = (width, num_heads, mlp_ratio, dropout, causal, attention)

        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def stack(rngs):
            return Block(*sizes, rngs=rngs, dtype=self.compute)

        self.blocks = stack(rngs)
        self.norm = layer_norm(width, rngs=rngs)
        self.last = dit_linear(width, shape[-1], ZERO, rngs=rngs)

    def embed(self, t, cond):
        """[B] times, [B] labels or None -> [B, width], float32."""
        embedding = layers.sinusoidal_embedding(TIME_SCALE * t, TIME_FREQUENCIES, MAX_PERIOD)
        embedding = self.time2(jax.nn.silu(self.time1(embedding)))
        return embedding if self.labels is None else embedding + self.labels(cond)

    def run_blocks(self, h, key):
        """All blocks in turn: a scan over the stack, or an unrolled loop over its rows."""
        graph, stack = nnx.split(self.blocks)
        stack = stack, None if key is None else jax.random.split(key, self.depth)

        def run(h, row):
            parameters, key = row
            parameters = placement.gathered(parameters, self.compute, "blocks")
            h = nnx.merge(graph, parameters)(placement.by_batch(h), key)
            return placement.by_batch(h), None

        run = layers.recomputed(run, self.remat, in_scan=self.scan)
        if self.scan:
            return jax.lax.scan(run, h, stack)[0]
        for i in range(self.depth):
            h, _ = run(h, jax.tree.map(lambda leaf, i=i: leaf[i], stack))
        return h

    def __call__(self, x, t, cond, rngs=None):
        positions = layers.sinusoidal_embedding(jnp.arange(x.shape[1]), self.width, MAX_PERIOD)
        h = self.tokens(x) + positions[None] + self.embed(t, cond)[:, None]
        h = self.run_blocks(h.astype(self.compute), None if rngs is None else rngs.dropout())
        return self.last(self.norm(h.astype(jnp.float32)))


def _check_fields(shape, width, depth, num_heads, mlp_ratio, dropout) -> None:
    """UserError for examples that are not sequences, or fields that do not fit."""
    if len(shape) != 2:
        raise errors.UserError(
            f"net 'transformer' needs examples of shape (tokens, channels), not {shape}: use 'mlp'"
        )
    if min(width, depth, num_heads, mlp_ratio) < 1:
        raise errors.UserError(
            "net 'transformer': width, depth, num_heads and mlp_ratio must be at least 1"
        )
    if width % num_heads or width % 2:
        raise errors.UserError(
            f"net 'transformer': width {width} must be divisible by num_heads ({num_heads}) "
            "and by 2"
        )
    if not 0 <= dropout < 1:
        raise errors.UserError(f"net 'transformer': dropout must be in [0, 1), not {dropout}")


METHOD = registry.Network(
    name="transformer",
    make=Transformer,
    second_order=lambda bound: None,
    last_layer=("last", "kernel"),
    stack=("blocks",),
    blocks=("blocks",),
    augmented=False,
)
