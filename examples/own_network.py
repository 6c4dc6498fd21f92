"""A network of one's own: an ordinary flax.nnx.Module, made of ordinary layers.

    python -m genfield.main --config=examples/own_network.py --workdir=runs/own_network

The constructor takes its own fields, which become fields of `config.net`, and `shape` (of one
example), `num_classes` (0: none) and `rngs`. The call gets x [B, *shape], t [B] and labels [B] or
None, and gives a field [B, *shape], an energy [B], or a `fields.Prediction`. A pair of functions
does as well, whatever library they come from: `:pair`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from genfield import configuration, registry


class Residual(nnx.Module):
    """Layers that add to what they are given; the time is one more input."""

    def __init__(self, *, width: int = 64, depth: int = 3, shape, num_classes, rngs):
        (size,) = shape
        self.first = nnx.Linear(size + 1, width, rngs=rngs)
        self.hidden = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.drop = nnx.Dropout(0.05, rngs=rngs)
        self.last = nnx.Linear(width, size, rngs=rngs)

    def __call__(self, x, t, cond):
        h = self.first(jnp.concatenate([x, t[:, None]], axis=-1))
        for layer in self.hidden:
            h = h + self.drop(jax.nn.gelu(layer(h)))
        return self.last(h)


def linear_pair(scale: float = 0.1):
    """(init, apply) of x A + t b, scaled at the start: no Flax at all."""

    def init(key, shape, num_classes):
        (size,) = shape
        return {"A": scale * jax.random.normal(key, (size, size)), "b": jnp.zeros(size)}

    def apply(params, x, t, cond, *, key, train):
        return x @ params["A"] + t[:, None] * params["b"][None]

    return init, apply


FACTS = dict(second_order=lambda bound: None, last_layer=None, stack=(), augmented=False)
METHODS = (
    registry.Network(name="residual", make=Residual, **FACTS),
    registry.Network(name="linear_pair", make=linear_pair, **FACTS),
)


def get_config(which: str = "module"):
    config = configuration.base()
    config.data = dict(name="two_moons", source="eight_gaussians")
    config.net = dict(name="residual", width=64) if which == "module" else dict(name="linear_pair")
    config.train.steps = 4_000
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    return config
