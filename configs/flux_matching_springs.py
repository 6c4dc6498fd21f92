"""Flux Matching on trajectories of two masses on nonlinear springs (Pao-Huang et al., "Generative
Modeling with Flux Matching", B.5).

`:causal` (the default) lets a time point see itself and earlier ones, which no score can; `:full`
lets it see all. `:causal,small` and `:full,small` are for a CPU. The baseline with the same network
is denoising_springs.py.
"""

from ml_collections import ConfigDict

from genfield import configuration
from genfield.errors import choose

SIZES = {
    "paper": dict(width=512, depth=12, num_heads=8),
    "small": dict(width=64, depth=4, num_heads=4),
}


def get_config(variant: str = "causal", loss: str = "flux_matching"):
    mask, _, size = variant.partition(",")
    causal = choose("mask of this config", mask, {"causal": True, "full": False})
    config = configuration.base()
    config.data = ConfigDict({"name": "springs", "num_trajectories": 2_000})
    config.net = ConfigDict({"name": "transformer", "causal": causal})
    config.net.update(choose("size of this config", size or "paper", SIZES))
    config.path = "variance_exploding"
    # The paper states no preconditioning; the data have a standard deviation of 2.84.
    config.preconditioning, config.sigma_data = "edm", 2.8
    config.time = ConfigDict({"name": "log_uniform", "low": 0.002, "high": 80.0})
    config.batch_size = 256
    config.loss = ConfigDict({"name": loss, "group_size": 256})
    if loss == "denoising":
        config.loss.stable_target = True
    else:
        config.loss.sigma_data = config.sigma_data
    config.optimizer.learning_rate = 3e-4
    config.ema.rate = 0.99
    config.train.steps = 10_000
    config.train.log_every = 100
    config.checkpoint.every = 2_500
    config.sampler = ConfigDict({"name": "reverse_ve", "num_steps": 512})
    config.sample.num = config.evaluate.num_samples = config.evaluate.transport_points = 2_000
    config.sample.batch_size = 500
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    if size == "small":
        # The levels of the study in docs/flux_matching.md.
        config.time.low = config.sampler.sigma_min = 0.1
        config.batch_size, config.loss.group_size = 64, 16  # a group has one σ
        if loss != "denoising":
            config.loss.estimator = "pathwise"
        config.optimizer.learning_rate, config.optimizer.schedule = 2e-3, "cosine"
        config.train.steps = 2_000
        config.checkpoint.every = 1_000
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network, for tests."""
    config.net.update(width=16, depth=2, num_heads=2)
    config.data.update(num_trajectories=32, length=6)
    config.batch_size = config.loss.group_size = 8
    config.train.steps, config.train.eval_batches, config.sampler.num_steps = 2, 1, 2
    config.sample.batch_size = config.sample.num = config.evaluate.num_samples = 16
    config.evaluate.transport_points = 16
    return config
