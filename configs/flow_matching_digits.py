"""Flow matching on scikit-learn's 8x8 digits: no download, minutes on a CPU."""

import shared

from genfield.shipped import Recipe

RECIPES = {"": Recipe(710_241, "10 to 20 min")}


def get_config():
    config = shared.digits()
    config.loss = dict(name="flow_matching")
    config.sampler = dict(name="heun", num_steps=50)
    return config
