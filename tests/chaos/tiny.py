"""A config for runs that are struck: flow matching on digits, with few and small programs."""

from ml_collections import ConfigDict

from genfield import configuration


def get_config():
    config = configuration.base()
    config.data = ConfigDict({"name": "digits", "labels": True})
    config.net = ConfigDict(dict(name="mlp", width=16, depth=1, time_input=True))
    config.sampler = ConfigDict(dict(name="heun", num_steps=2))
    config.label_dropout = 0.1
    config.ema.rate = 0.9
    config.batch_size = 16
    config.train.steps = 12
    config.train.log_every = 3
    config.train.eval_batches = 1
    config.train.eval_every = 6
    config.train.eval_samples = 8
    config.checkpoint.every = 4
    config.sample.num = 24
    config.sample.batch_size = config.sample.shard_size = 8
    config.evaluate.figures = False
    return config
