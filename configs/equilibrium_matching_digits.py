"""Equilibrium Matching on scikit-learn's 8x8 digits: no download, minutes on a CPU."""

from ml_collections import ConfigDict

from genfield import configuration


def get_config():
    config = configuration.base()
    config.data = ConfigDict({"name": "digits", "labels": True})
    config.net = ConfigDict(
        {
            "name": "unet",
            "channels": 32,
            "channel_multipliers": (1, 2),
            "num_res_blocks": 1,
            "attention_levels": (2,),
            "dropout": 0.1,
        }
    )
    config.loss = ConfigDict(
        {
            "name": "equilibrium_matching",
            "decay": {"name": "truncated", "a": 0.8, "multiplier": 4.0},
        }
    )
    config.sampler = ConfigDict(
        {"name": "nesterov", "num_steps": 250, "step_size": 0.003, "momentum": 0.35}
    )
    config.label_dropout = 0.1
    config.batch_size = 128
    config.optimizer.learning_rate = 1e-3
    config.ema.rate = 0.995
    config.train.steps = 1_500
    config.train.log_every = 50
    config.train.eval_every = config.checkpoint.every = 500
    config.train.eval_samples = 64  # a picture at each evaluation
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network, for tests."""
    config.net.update(channels=8, channel_multipliers=(1, 1))
    config.batch_size = config.sample.batch_size = 8
    config.train.steps, config.train.eval_batches, config.train.eval_every = 2, 1, 0
    config.sampler.num_steps = 2
    return config
