"""Flow matching, 8 Gaussians to two moons (baselines of DM's Table 1, arXiv:2602.02928).

`:independent` (the default), `:ot` (OT-CFM) or `:sb` (SB-CFM, arXiv:2307.03672).
"""

import shared

from genfield.shipped import Recipe

PAPER = {
    "independent": dict(w2=0.577, hausdorff=1.337, chamfer=0.026),
    "ot": dict(w2=0.218, hausdorff=1.233, chamfer=0.019),
    "sb": dict(w2=0.218, hausdorff=1.807, chamfer=0.028),
}
BRIDGE = 1.0  # σ of the Schrödinger bridge; the paper does not give its own
RECIPES = {
    "independent": Recipe(8_706, "about 1 min"),
    "ot": Recipe(8_706, "minutes"),
    "sb": Recipe(8_706, "minutes"),
}


def get_config(variant: str = "independent"):
    paper = shared.variant(variant, PAPER)
    config = shared.eight_gaussians()
    config.net.time_input = True
    config.loss = dict(name="flow_matching")
    if variant == "ot":
        config.coupling = dict(name="exact_assignment")
    if variant == "sb":
        config.coupling = dict(name="sinkhorn", regularization=2 * BRIDGE**2)
        config.path_noise = BRIDGE
    config.evaluate.paper = paper
    return config
