"""Equilibrium Matching, 8 Gaussians to two moons: the scalar network and rematching of DM C.1.

`…:energy_matching` is the first stage of Energy Matching (Balcerak et al., arXiv:2504.10612): an
energy without time input whose gradient is minus the velocity of OT-paired flow matching, which is
EqM with a constant decay. Its second, contrastive stage is not trained.
"""

from ml_collections import ConfigDict

from genfield import configuration
from genfield.errors import choose

PAPER = {
    "equilibrium_matching": {"w2": 1.433, "hausdorff": 2.034, "chamfer": 0.260},
    "energy_matching": {"w2": 0.523, "hausdorff": 1.279, "chamfer": 0.031},
}


def get_config(variant: str = "equilibrium_matching"):
    choose("variant of this config", variant, PAPER)
    config = configuration.base()
    config.data = ConfigDict({"name": "two_moons", "source": "eight_gaussians"})
    config.net = ConfigDict(
        {"name": "mlp", "width": 64, "depth": 3, "activation": "selu", "output": "scalar"}
    )
    config.rematching.name = "nearest"
    config.loss = ConfigDict(
        {
            "name": "equilibrium_matching",
            "decay": {"name": "truncated", "a": 0.8, "multiplier": 4.0},
        }
    )
    config.train.steps = 20_000
    config.checkpoint.every = 5_000
    config.sampler = ConfigDict({"name": "gradient_descent", "num_steps": 100, "step_size": 0.0025})
    config.sample.num = 10_000
    config.sample.batch_size = 10_000
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    config.evaluate.repeats = 5
    config.evaluate.paper = ConfigDict(PAPER[variant])
    if variant == "energy_matching":
        config.rematching.name = "none"
        config.coupling = ConfigDict({"name": "exact_assignment"})
        config.loss.decay = ConfigDict({"name": "constant"})
        config.sampler = ConfigDict({"name": "euler", "num_steps": 100})
    return config


def smoke(config):
    """Shrinks the config to a step or two, for tests."""
    config.train.steps = 2
    config.sampler.num_steps = 2
    config.sample.batch_size = config.evaluate.num_samples = 64
    config.evaluate.transport_points = 64
    config.evaluate.repeats = 1
    return config
