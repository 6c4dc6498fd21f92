"""Flow matching, 8 Gaussians to two moons (baselines of DM's Table 1).

--config=configs/flow_matching_two_moons.py, …:ot (OT-CFM) or …:sb (SB-CFM, arXiv:2307.03672).
"""

from ml_collections import ConfigDict

from genfield import configuration
from genfield.errors import choose

PAPER = {
    "independent": {"w2": 0.577, "hausdorff": 1.337, "chamfer": 0.026},
    "ot": {"w2": 0.218, "hausdorff": 1.233, "chamfer": 0.019},
    "sb": {"w2": 0.218, "hausdorff": 1.807, "chamfer": 0.028},
}
BRIDGE = 1.0  # σ of the Schrödinger bridge; the paper does not give its own


def get_config(variant: str = "independent"):
    choose("variant of this config", variant, PAPER)
    config = configuration.base()
    config.data = ConfigDict({"name": "two_moons", "source": "eight_gaussians"})
    config.net = ConfigDict(
        {"name": "mlp", "width": 64, "depth": 3, "activation": "selu", "time_input": True}
    )
    config.loss = ConfigDict({"name": "flow_matching"})
    if variant == "ot":
        config.coupling = ConfigDict({"name": "exact_assignment"})
    if variant == "sb":
        config.coupling = ConfigDict({"name": "sinkhorn", "regularization": 2 * BRIDGE**2})
        config.path_noise = BRIDGE
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
