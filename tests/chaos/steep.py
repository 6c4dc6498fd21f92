"""A config for numbers that go wrong: a loss whose gradient can be NaN while it is not."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from genfield import configuration, registry
from genfield.fields import mean_features


def steep_flow(field, sample, cond=None, *, step, bad_step: int = -1):
    """Flow matching + 1, [B]; at `bad_step` + √0 in place of 1, whose slope is infinite."""
    error = mean_features(jnp.square(field(sample.x, sample.t, cond) - sample.v))
    return error + jnp.sqrt(jnp.where(step == bad_step, 0 * error, 1.0)), {}


METHOD = registry.Loss(
    name="steep_flow",
    function=steep_flow,
    teaches="velocity",
    outputs=("vector",),
    scalar=None,
    clock=lambda bound: True,
    couples=lambda bound: False,
    shares_time=False,
    second_order=False,
    time_law=None,
    extras=("step",),
    roles=None,
    tables={},
)


def get_config():
    config = configuration.base()
    config.data = ConfigDict({"name": "two_moons", "source": "eight_gaussians"})
    config.net = ConfigDict(dict(name="mlp", width=16, depth=2, time_input=True))
    config.loss = ConfigDict(dict(name="steep_flow", bad_step=-1))
    config.sampler = ConfigDict(dict(name="heun", num_steps=2))
    config.ema.rate = 0.9
    config.batch_size = 16
    config.train.steps = 12
    config.train.log_every = 3
    config.train.eval_batches = 1
    config.train.loggers = ()
    config.checkpoint.every = 4
    config.sample.num = 24
    config.sample.batch_size = config.sample.shard_size = 8
    config.evaluate.figures = False
    config.evaluate.num_samples = config.evaluate.transport_points = 16
    config.evaluate.repeats = 1
    return config
