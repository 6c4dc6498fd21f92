"""A loss of one's own: flow matching by the absolute error, in a file beside the package.

    python -m genfield.main --config=examples/own_loss.py --workdir=runs/own_loss

The record at the end says what the program must know: what the field learns to be, what it may
give, whether it has a clock. Keyword arguments of the function are fields of `config.loss`.
"""

import jax.numpy as jnp

from genfield import configuration, registry
from genfield.fields import mean_features
from genfield.registry import NotNegative


def absolute_flow(field, sample, cond=None, *, softness: NotNegative = 0.01):
    """Mean over features of √((f(x_t, t) - v)² + softness²), [B], and no terms."""
    error = field(sample.x, sample.t, cond) - sample.v
    return mean_features(jnp.sqrt(jnp.square(error) + softness**2)), {}


METHOD = registry.Loss(
    name="absolute_flow",
    function=absolute_flow,
    teaches="velocity",
    outputs=("vector",),
    scalar=None,
    clock=lambda bound: True,
    couples=lambda bound: False,
    shares_time=False,
    second_order=False,
    time_law=None,
    extras=(),
    roles=None,
    tables={},
)


def get_config():
    config = configuration.base()
    config.data = dict(name="two_moons", source="eight_gaussians")
    config.net = dict(name="mlp", time_input=True)
    config.loss = dict(name="absolute_flow", softness=0.02)
    config.train.steps = 4_000
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    return config
