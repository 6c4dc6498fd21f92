"""Distance Marching, 8 Gaussians to two moons (arXiv:2602.02928, Table 1 and appendix C.1).

The paper names the sampler; the training settings are found by measurement (docs/reproduction.md).
"""

from ml_collections import ConfigDict

from genfield import configuration


def get_config():
    config = configuration.base()
    config.data = ConfigDict({"name": "two_moons", "source": "eight_gaussians"})
    config.net = ConfigDict(
        {"name": "mlp", "width": 64, "depth": 3, "activation": "selu", "output": "scalar"}
    )
    config.rematching.name = "nearest"
    config.loss = ConfigDict(
        {
            "name": "distance_marching",
            "epsilon": 0.01,
            "c0": 0.01,
            "one_step_weight": 1.0,
            "eikonal_weight": 1.0,
        }
    )
    config.train.steps = 6_000
    config.checkpoint.every = 2_000
    # One jump by the predicted distance, then 16 proposals of HMC: 97 evaluations (C.1).
    hmc = {"name": "hamiltonian", "num_steps": 16, "step_size": 0.2, "num_leapfrog": 5}
    config.sampler = ConfigDict(
        {"name": "sphere_tracing", "num_steps": 1, "step_size": 1.0, "then": hmc}
    )
    config.sample.num = 10_000
    config.sample.batch_size = 10_000
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    config.evaluate.repeats = 5
    config.evaluate.paper = ConfigDict({"w2": 1.435, "hausdorff": 0.605, "chamfer": 0.005})
    return config


def smoke(config):
    """Shrinks the config to a step or two, for tests."""
    config.train.steps = 2
    config.sample.batch_size = config.evaluate.num_samples = 64
    config.evaluate.transport_points = 64
    config.evaluate.repeats = 1
    return config
