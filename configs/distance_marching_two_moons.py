"""Distance Marching, 8 Gaussians to two moons (arXiv:2602.02928, Table 1 and appendix C.1).

The paper names the sampler; the training settings are found by measurement (docs/reproduction.md).
"""

import shared

from genfield.shipped import Recipe

RECIPES = {"": Recipe(8_577, "about 1 min")}


def get_config():
    config = shared.eight_gaussians()
    config.net.output = "scalar"
    config.rematching.name = "nearest"
    config.loss = dict(name="distance_marching", epsilon=0.01, c0=0.01)
    config.loss.update(one_step_weight=1.0, eikonal_weight=1.0)
    config.train.steps, config.checkpoint.every = 6_000, 2_000
    # One jump by the predicted distance, then 16 proposals of HMC: 97 evaluations (C.1).
    config.sampler = dict(name="sphere_tracing", num_steps=1, step_size=1.0)
    config.sampler.then = dict(name="hamiltonian", num_steps=16, step_size=0.2, num_leapfrog=5)
    config.evaluate.paper = dict(w2=1.435, hausdorff=0.605, chamfer=0.005)  # Table 1
    return config
