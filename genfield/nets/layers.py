"""What the networks share: the base class, layers, time embedding, attention, label rows.

Sources: PyTorch's documented Linear/Conv initialisation; the sinusoidal embedding of Vaswani et al.
(2017) as used by ADM (Dhariwal & Nichol 2021) and DiT (Peebles & Xie 2023).
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from genfield import errors, placement, registry, rng
from genfield.nets.initial import Initial, constant, normal, uniform

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REMATS = {
    "none": "all is kept for the backward pass",
    "dots": "matrix products and convolutions are kept, the rest is computed again",
    "full": "all is computed again but what goes into a block",
}
Remat = Annotated[bool | str, registry.Free()]  # False is "none", True is "full"


class Network(nnx.Module):
    """A network of the package, whose parameters say how they start: `network(x, t, cond, rngs)`.

    `x` [B, *shape] float32, `t` [B] float32, `cond` [B] int32 or None where there are no classes;
    `rngs` an `nnx.Rngs` for dropout, None for none. `dropout` is the rate it applies. Where
    `augmentation_size` is not 0 it also takes `augmentation` [B, augmentation_size] or None. Each
    parameter carries an `Initial` in its metadata, from which `initial.draw` makes its values.
    """

    dropout = 0.0
    augmentation_size = 0

    def __init_subclass__(cls, **kwargs):
        """Shows the constructor's fields to `inspect.signature`, which nnx's metaclass hides."""
        super().__init_subclass__(**kwargs)
        init = inspect.signature(cls.__init__)
        cls.__signature__ = init.replace(parameters=list(init.parameters.values())[1:])


def compute_dtype(name: str):
    """The dtype of a config's `dtype` field; UserError for an unknown one."""
    return registry.choose("dtype", name, DTYPES)


def remat_of(value: bool | str) -> str:
    """What a `remat` field names, of REMATS; UserError for what is unknown."""
    return {False: "none", True: "full"}[value] if isinstance(value, bool) else _chosen(value)


def _chosen(value: str) -> str:
    registry.choose("remat", value, REMATS)
    return value


def recomputed(run: Callable, remat: str, *, in_scan: bool = False) -> Callable:
    """`run`, of which the backward pass computes again what `remat` does not keep.

    Weights that were gathered for it are never kept. in_scan: whether it is the body of a scan,
    which no common subexpression leaves.
    """
    keeps = {"full": None, "dots": _products}
    if placement.shards_parameters():
        keeps["none"] = placement.keeps_all_but_gathered
    if remat not in keeps:
        return run
    return jax.checkpoint(run, prevent_cse=not in_scan, policy=keeps[remat])


def block(module: nnx.Module, dtype, remat: str) -> Callable:
    """(h [B, …], …) -> [B, …]: a module called as ever, which is a block of a network on a mesh.

    What it takes and gives is split by the batch; its weights are gathered as it runs, matrices in
    `dtype`, and with all that `remat` does not keep again for the backward pass.
    """
    graph, parameters = nnx.split(module)

    def run(parameters, h, *more):
        whole = nnx.merge(graph, placement.gathered(parameters, dtype))
        return placement.by_batch(whole(placement.by_batch(h), *more))

    return functools.partial(recomputed(run, remat), parameters)


def _products(primitive, *arguments, **parameters) -> bool:
    """Keeps products of activations with weights, and convolutions."""
    plain = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive.name == "conv_general_dilated" or plain(primitive, *arguments, **parameters)


class Dropout(nnx.Dropout):
    """nnx's, on a batch [B, …]. Any mesh draws the noise that one device draws for all examples."""

    def __call__(self, inputs, *, deterministic=None, rngs=None):
        rows = placement.rows(len(inputs))
        if rows is None or deterministic or self.rate == 0:
            return super().__call__(inputs, deterministic=deterministic, rngs=rngs)
        kept = 1.0 - self.rate
        mask = rng.uniform_rows(rngs, rows.start, inputs.shape, rows.total) < kept
        return jax.lax.select(mask, inputs / kept, jnp.zeros_like(inputs))


def check_image(net: str, shape: tuple[int, ...], factor: int, why: str) -> None:
    """UserError unless `shape` is (height, width, channels) with both sides divisible by factor."""
    if len(shape) != 3:
        raise errors.UserError(
            f"net {net!r} needs examples of shape (height, width, channels), not {shape}: use 'mlp'"
        )
    if shape[0] % factor or shape[1] % factor:
        raise errors.UserError(
            f"net {net!r}: {shape[0]}x{shape[1]} images are not divisible by {factor} ({why})"
        )


def linear(
    inputs: int, outputs: int, kernel: Initial, bias: Initial | None, *, rngs, dtype=jnp.float32
) -> nnx.Linear:
    """A linear layer with the given initial values; bias None: without one."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias is not None,
        kernel_metadata={"initial": kernel},
        bias_metadata={"initial": bias},
        dtype=dtype,
        rngs=rngs,
    )


def torch_linear(inputs: int, outputs: int, *, rngs, dtype=jnp.float32) -> nnx.Linear:
    """A linear layer with PyTorch's default: weights and biases uniform in +-1/sqrt(fan_in)."""
    bounds = uniform(1 / math.sqrt(inputs))
    return linear(inputs, outputs, bounds, bounds, rngs=rngs, dtype=dtype)


def torch_conv(
    inputs: int, outputs: int, size: int, *, stride=1, rngs, dtype=jnp.float32, zero=False
) -> nnx.Conv:
    """A size x size convolution, size // 2 zeros around, with PyTorch's default (or all zero)."""
    initial = constant(0.0) if zero else uniform(1 / math.sqrt(inputs * size * size))
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,
        kernel_metadata={"initial": initial},
        bias_metadata={"initial": initial},
        dtype=dtype,
        rngs=rngs,
    )


def label_rows(num_classes: int, size: int, initial=normal(0.02), *, rngs) -> nnx.Embed:
    """Label embedding with a last row for the null class, float32; DiT's N(0, 0.02)."""
    return nnx.Embed(num_classes + 1, size, embedding_metadata={"initial": initial}, rngs=rngs)


class ZeroNullRow(nnx.Embed):
    """Label embedding whose last row no training moves."""

    def __call__(self, labels):
        rows = super().__call__(labels)
        null = (labels == self.num_embeddings - 1)[:, None]
        return jnp.where(null, jax.lax.stop_gradient(rows), rows)


def zero_null_row(num_classes: int, size: int, *, rngs) -> ZeroNullRow:
    """Label embedding with a last row of zeros that stays; PyTorch's N(0, 1) for the others."""
    initial = normal(1.0)._replace(zero_row=True)
    return ZeroNullRow(num_classes + 1, size, embedding_metadata={"initial": initial}, rngs=rngs)


def sinusoidal_embedding(t: jax.Array, size: int, max_period: float) -> jax.Array:
    """[B] times -> [B, size] float32: cosines then sines of t at periods 2 pi ... 2 pi max_period.

    `size` must be even. The times are used as they are (not multiplied by 1000).
    """
    half = size // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
