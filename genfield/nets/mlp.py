"""The multilayer perceptron of the two-dimensional studies ("MLP 3x64 SELU" of TorchCFM)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from genfield import errors, registry
from genfield.nets import initial, layers

ACTIVATIONS = {
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}
OUTPUTS = {"vector": "a field, [B, *shape]", "scalar": "an energy or a distance, [B]"}


class MLP(layers.Network):
    """`depth` hidden layers of `width`; examples of any shape are flattened.

    Fields:
      width, depth: size and number of the hidden layers.
      activation: one of ACTIVATIONS.
      output: "vector" returns [B, *shape], "scalar" returns [B].
      time_input: the time is an extra input of the first layer; without it t is ignored.
      dtype: the hidden layers but the first compute in it (the first sees the time).
    Labels, where there are classes, enter the first layer one-hot, with a row for the null class.
    """

    def __init__(
        self,
        *,
        width=64,
        depth=3,
        activation="selu",
        output="vector",
        time_input=False,
        dtype="float32",
        shape,
        num_classes,
        rngs,
    ):
        if depth < 1 or width < 1:
            raise errors.UserError(f"net 'mlp' needs depth and width >= 1, not {depth}, {width}")
        registry.choose("output", output, OUTPUTS)
        self.activation = registry.choose("activation", activation, ACTIVATIONS)
        self.output, self.time_input, self.depth = output, time_input, depth
        self.compute = layers.compute_dtype(dtype)
        size = math.prod(shape)
        inputs = size + int(time_input)
        self.first = layers.torch_linear(inputs, width, rngs=rngs)
        self.hidden = nnx.Dict(
            {
                str(i): layers.torch_linear(width, width, rngs=rngs, dtype=self.compute)
                for i in range(1, depth)
            }
        )
        self.last = layers.torch_linear(width, 1 if output == "scalar" else size, rngs=rngs)
        rows = initial.uniform(1 / math.sqrt(inputs))
        self.labels = (
            layers.label_rows(num_classes, width, rows, rngs=rngs) if num_classes else None
        )

    def __call__(self, x, t, cond, rngs=None):
        h = x.reshape(len(x), -1)
        if self.time_input:
            h = jnp.concatenate([h, t[:, None]], axis=-1)
        h = self.first(h)
        if self.labels is not None:
            h = h + self.labels(cond)
        h = h.astype(self.compute)
        for i in range(1, self.depth):
            h = self.hidden[str(i)](self.activation(h))
        y = self.last(self.activation(h).astype(jnp.float32))
        return y[:, 0] if self.output == "scalar" else y.reshape(x.shape)


METHOD = registry.Network(
    name="mlp",
    make=MLP,
    second_order=lambda bound: None,
    last_layer=("last", "kernel"),
    stack=(),
    augmented=False,
)
