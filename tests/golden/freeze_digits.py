"""A config for freeze.py: Distance Marching on digits with a transformer that compiles in seconds.

It stands beside the record, so that it stays as it is whatever the tests' own small config becomes.
"""

from freeze import of
from ml_collections import ConfigDict


def get_config():
    config = of("base")()
    config.data = ConfigDict({"name": "digits", "labels": True})
    config.net = ConfigDict(
        dict(name="sit", depth=1, width=16, num_heads=2, distance_head="imagenet")
    )
    config.loss = ConfigDict(dict(name="distance_marching", epsilon=0.1, c0=0.1))
    config.sampler = ConfigDict(dict(name="sphere_tracing", step_size=0.1, num_steps=2))
    config.label_dropout = 0.1
    config.ema.rate = 0.9
    config.batch_size = 16
    config.train.steps = 4
    config.train.log_every = 1
    config.train.eval_batches = 1
    config.checkpoint.every = 2
    config.sample.batch_size = config.sample.num = 8
    config.evaluate.figures = False
    return config


def smoke(config):
    """It is small as it is."""
    return config
