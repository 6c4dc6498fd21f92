"""A denoiser of two moons and its deterministic sampler (EDM, arXiv:2206.00364): the teacher of
lines_two_moons.py.

    python -m genfield.main --config=configs/edm_two_moons.py --workdir=runs/teacher
    python -m genfield.main --workdir=runs/teacher --mode=pairs --config.sample.num=40000
"""

from ml_collections import ConfigDict

from genfield import configuration


def get_config():
    config = configuration.base()
    config.data = ConfigDict({"name": "two_moons"})
    config.net = ConfigDict(
        {"name": "mlp", "width": 128, "depth": 3, "activation": "silu", "time_input": True}
    )
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 1.8
    config.time = ConfigDict({"name": "log_normal", "mean": 0.0, "std": 1.6})
    config.loss = ConfigDict({"name": "denoising"})
    config.batch_size = 512
    config.optimizer.schedule = "cosine"
    config.ema.rate = 0.999
    config.train.steps = config.checkpoint.every = 20_000
    config.train.log_every = 500
    config.sampler = ConfigDict({"name": "edm_heun", "num_steps": 18})
    config.sample.num = config.sample.batch_size = 10_000
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    config.evaluate.repeats = 3
    return config


def smoke(config):
    """Shrinks the config to two steps, for tests."""
    config.net.update(width=16, depth=2)
    config.batch_size = 16
    config.train.steps = config.train.log_every = 2
    config.sampler.num_steps = 2
    config.sample.batch_size = config.evaluate.num_samples = config.evaluate.transport_points = 64
    config.evaluate.repeats, config.train.eval_batches = 1, 1
    return config
