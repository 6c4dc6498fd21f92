"""Equilibrium Matching, 8 Gaussians to two moons: the scalar network and rematching of DM C.1.

`:energy_matching` is the first stage of Energy Matching (Balcerak et al., arXiv:2504.10612): an
energy without time input whose gradient is minus the velocity of OT-paired flow matching, which is
EqM with a constant decay. Its second, contrastive stage is not trained.
"""

import shared

from genfield.shipped import Recipe

PAPER = {  # DM's Table 1 (arXiv:2602.02928)
    "equilibrium_matching": dict(w2=1.433, hausdorff=2.034, chamfer=0.260),
    "energy_matching": dict(w2=0.523, hausdorff=1.279, chamfer=0.031),
}

RECIPES = dict.fromkeys(PAPER, Recipe(8_577, "about 2 min"))


def get_config(variant: str = "equilibrium_matching"):
    paper = shared.variant(variant, PAPER)
    config = shared.eight_gaussians()
    config.net.output = "scalar"
    config.loss = dict(name="equilibrium_matching")
    if variant == "energy_matching":
        config.coupling = dict(name="exact_assignment")
        config.loss.decay = dict(name="constant")
    else:
        config.rematching.name = "nearest"
        config.loss.decay = dict(name="truncated", a=0.8, multiplier=4.0)
        config.sampler = dict(name="gradient_descent", num_steps=100, step_size=0.0025)
    config.evaluate.paper = paper
    return config
