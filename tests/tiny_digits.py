"""A config for tests: Distance Marching on digits.

Its network is a scalar MLP, which costs a run a third of the transformer behind `:sit`; that one
predicts a direction and a distance.
"""

from ml_collections import ConfigDict

from genfield import configuration

NETWORKS = {
    "mlp": dict(name="mlp", width=16, depth=1, output="scalar"),
    "sit": dict(name="sit", depth=1, width=16, num_heads=2, distance_head="imagenet"),
}


def get_config(net="mlp"):
    config = configuration.base()
    config.data = ConfigDict({"name": "digits", "labels": True})
    config.net = ConfigDict(NETWORKS[net])
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
