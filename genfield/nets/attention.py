"""Softmax attention: XLA's, one in blocks, and kernels fused by hand where they can run.

Kernels are first order and reverse mode. `attend` takes their derivatives itself where it is not
told that they are all that is asked for: then any order in either mode is right.

In blocks: the online softmax of Milakov & Gimelshein (2018, arXiv:1805.02867) over blocks of keys,
each block of queries computed again in the backward pass (Rabe & Staats 2021, arXiv:2112.05682).
"""

import contextvars
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield import placement
from genfield.errors import UserError

ATTENTIONS = {
    "xla": "logits of all pairs of tokens at once",
    "chunked": "in blocks, with memory linear in the tokens",
    "auto": "a fused kernel where one can run, else chunked",  # docs/attention.md says why
}
QUERIES, KEYS = 256, 512  # of a block, at most
CUDNN_HEAD = 128  # channels of a head that cuDNN takes on every GPU since Ampere
LANES = 128  # of a TPU: blocks of splash attention are multiples
SPLASH_BLOCKS = (512, 256, 128)

_FIRST: contextvars.ContextVar[bool] = contextvars.ContextVar("first_order", default=False)


def first_order(apply: Callable) -> Callable:
    """A network's `apply` that training differentiates once, in reverse mode, and never otherwise.

    So kernels that have no other derivative keep their own.
    """

    @functools.wraps(apply)
    def call(params, x, t=None, cond=None, *, key=None, train=False):
        token = _FIRST.set(train)
        try:
            return apply(params, x, t, cond, key=key, train=train)
        finally:
            _FIRST.reset(token)

    return call


def attend(query: Array, key: Array, value: Array, kind: str, causal: bool = False) -> Array:
    """Softmax attention of [B, N, heads, head_channels] arrays, the softmax in float32.

    Args:
      kind: of ATTENTIONS. causal: logits A_ij = -inf for j > i (Flux Matching, eq. 47).
    Raises:
      UserError: a fused kernel whose library is not there.
    """
    plain = _xla if kind == "xla" else chunked
    kernel = _fused(query) if kind == "auto" else None
    if kernel is None:
        return plain(query, key, value, causal)
    if _FIRST.get():
        return kernel(query, key, value, causal)

    @jax.custom_jvp
    def call(query, key, value):
        return kernel(query, key, value, causal)

    @call.defjvp
    def _(primals, tangents):
        return jax.jvp(lambda *a: plain(*a, causal), primals, tangents)

    return call(query, key, value)


def _fused(query: Array) -> Callable | None:
    """The kernel for these queries where the step is to run; None where there is none."""
    platform, head = placement.platform(), query.shape[-1]
    if query.dtype != jnp.bfloat16:
        return None
    if platform == "gpu" and head % 8 == 0 and head <= CUDNN_HEAD:
        return cudnn
    if platform == "tpu" and placement.divides_batch(query.shape[0]):
        return splash
    return None


def _xla(query: Array, key: Array, value: Array, causal: bool = False) -> Array:
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="xla")


def chunked(query: Array, key: Array, value: Array, causal: bool = False) -> Array:
    """Attention of [B, N, heads, head_channels] arrays in blocks, for any N.

    It has derivatives of every order in either mode. They keep inputs, outputs and one row of
    blocks, so that memory is linear in N. Sums are in float32.
    """
    tokens = query.shape[1]
    queries, (keys, values) = _blocks(query, QUERIES), (_blocks(a, KEYS) for a in (key, value))
    starts = lambda blocks: blocks.shape[2] * jnp.arange(len(blocks))
    padded = len(keys) * keys.shape[2] > tokens

    def rows(block):
        first, q = block
        last = jnp.full(q.shape[1], tokens - 1) if padded else None
        last = first + jnp.arange(q.shape[1]) if causal else last
        add = functools.partial(_add, q, last)
        b, width, heads, channels = q.shape
        zeros = jnp.zeros((b, heads, width), jnp.promote_types(q.dtype, jnp.float32))
        start = zeros - jnp.inf, zeros, jnp.zeros((*zeros.shape, channels), zeros.dtype)
        (_, total, y), _ = jax.lax.scan(add, start, (starts(keys), keys, values))
        return jnp.moveaxis(y / total[..., None], 1, 2).astype(q.dtype)

    rows = jax.checkpoint(rows, prevent_cse=False)
    y = jax.lax.map(rows, (starts(queries), queries))
    return jnp.moveaxis(y, 0, 1).reshape(len(query), -1, *query.shape[2:])[:, :tokens]


def _blocks(a: Array, most: int) -> Array:
    """[B, N, …] -> [blocks, B, size, …], as even as can be, zeros at the end."""
    count = -(-a.shape[1] // most)
    size = -(-a.shape[1] // count)
    a = jnp.pad(a, ((0, 0), (0, count * size - a.shape[1]), (0, 0), (0, 0)))
    return jnp.moveaxis(a.reshape(len(a), count, size, *a.shape[2:]), 1, 0)


def _add(q: Array, last: Array | None, carry, block):
    """One block of keys for one of queries.

    Args:
      q: [B, queries, heads, channels].
      last: [queries], the last key that each sees; None: all of them.
      carry: highest logit [B, heads, queries], sum of weights, sum of weighted values.
      block: the first key's place, keys and values [B, keys, heads, channels].
    """
    highest, total, y = carry
    start, k, v = block
    product = functools.partial(jnp.einsum, preferred_element_type=total.dtype)
    logits = product("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    if last is not None:
        seen = (start + jnp.arange(k.shape[1]))[None] <= last[:, None]
        logits = jnp.where(seen[None, None], logits, -jnp.inf)
    # The result does not hang on what is taken off, and so neither do its derivatives.
    now = jax.lax.stop_gradient(jnp.maximum(highest, logits.max(-1)))
    weights, kept = jnp.exp(logits - now[..., None]), jnp.exp(highest - now)
    more = product("bhqk,bkhd->bhqd", weights.astype(v.dtype), v)
    return (now, total * kept + weights.sum(-1), y * kept[..., None] + more), None


def cudnn(query: Array, key: Array, value: Array, causal: bool = False) -> Array:
    """cuDNN's kernel, of bfloat16 on a GPU; head channels a multiple of 8 and at most 128."""
    try:
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, implementation="cudnn"
        )
    except RuntimeError as error:  # no such library: where a plan is made without its extra
        raise UserError(
            f"net.attention='auto' is cuDNN's on GPUs, which JAX does not find ({error}): pip "
            "install 'genfield[cuda]' brings it, or set config.net.attention='chunked'"
        ) from error


def splash(
    query: Array, key: Array, value: Array, causal: bool = False, interpret: bool = False
) -> Array:
    """JAX's kernel for TPUs, each device with its part of the batch; any N, any head channels.

    interpret: on any machine, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library  # slow to import

    tokens, heads = query.shape[1], query.shape[2]
    length = -(-tokens // LANES) * LANES
    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    seen = library.CausalMask if causal else library.FullMask
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = library.make_splash_mha_single_device(
        library.MultiHeadMask([seen((length, length))] * heads),
        block_sizes=library.BlockSizes(**{f"block_{name}": block for name in names}),
        interpret=interpret,
    )
    # What is added to fill the last block is of a segment of its own, which no token looks at.
    kinds = (np.arange(length) >= tokens).astype(np.int32)
    segments = library.SegmentIds(kinds, kinds) if length > tokens else None

    def run(query, key, value):
        fill = lambda a: jnp.pad(a.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - tokens), (0, 0)))
        filled = map(fill, (query / math.sqrt(query.shape[-1]), key, value))
        y = jax.vmap(functools.partial(kernel, segment_ids=segments))(*filled)
        return y.swapaxes(1, 2)[:, :tokens]

    return placement.on_each(run)(query, key, value)
