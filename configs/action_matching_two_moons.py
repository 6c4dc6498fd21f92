"""Action Matching, 8 Gaussians to two moons (arXiv:2210.06662): a baseline of DM's Table 1.

`:selu` (the default), or `:swish`, which is smoother.
"""

import shared

from genfield.shipped import Recipe

# The activation, and the figures of Table 1 (arXiv:2602.02928).
VARIANTS = {
    "selu": ("selu", dict(w2=0.581, hausdorff=2.154, chamfer=0.140)),
    "swish": ("silu", dict(w2=0.442, hausdorff=1.719, chamfer=0.033)),  # two names of one function
}

RECIPES = dict.fromkeys(VARIANTS, Recipe(8_641, "about 5 min"))


def get_config(variant: str = "selu"):
    activation, paper = shared.variant(variant, VARIANTS)
    config = shared.eight_gaussians()
    config.net.update(output="scalar", time_input=True, activation=activation)
    config.loss = dict(name="action_matching")
    config.evaluate.paper = paper
    return config
