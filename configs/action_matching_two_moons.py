"""Action Matching, 8 Gaussians to two moons (arXiv:2210.06662; baselines of DM's Table 1).

--config=configs/action_matching_two_moons.py or …:swish, which has the smoother activation.
"""

from ml_collections import ConfigDict

from genfield import configuration
from genfield.errors import choose

PAPER = {
    "selu": {"w2": 0.581, "hausdorff": 2.154, "chamfer": 0.140},
    "swish": {"w2": 0.442, "hausdorff": 1.719, "chamfer": 0.033},
}
ACTIVATION = {"selu": "selu", "swish": "silu"}  # two names of one function


def get_config(variant: str = "selu"):
    choose("variant of this config", variant, PAPER)
    config = configuration.base()
    config.data = ConfigDict({"name": "two_moons", "source": "eight_gaussians"})
    config.net = ConfigDict(
        {"name": "mlp", "width": 64, "depth": 3, "output": "scalar", "time_input": True}
    )
    config.net.activation = ACTIVATION[variant]
    config.loss = ConfigDict({"name": "action_matching"})
    config.train.steps = 20_000
    config.checkpoint.every = 5_000
    config.sampler = ConfigDict({"name": "euler", "num_steps": 100})
    config.sample.num = 10_000
    config.sample.batch_size = 10_000
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    config.evaluate.repeats = 5
    config.evaluate.paper = ConfigDict(PAPER[variant])
    return config


def smoke(config):
    """Shrinks the config to a step or two, for tests."""
    config.train.steps = 2
    config.sampler.num_steps = 2
    config.sample.batch_size = config.evaluate.num_samples = 64
    config.evaluate.transport_points = 64
    config.evaluate.repeats = 1
    return config
