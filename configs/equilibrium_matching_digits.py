"""Equilibrium Matching on scikit-learn's 8x8 digits: no download, minutes on a CPU."""

import shared

from genfield.shipped import Recipe

RECIPES = {"": Recipe(710_241, "10 to 20 min")}


def get_config():
    config = shared.digits()
    config.loss = dict(name="equilibrium_matching")
    config.loss.decay = dict(name="truncated", a=0.8, multiplier=4.0)
    config.sampler = dict(name="nesterov", num_steps=250, step_size=0.003, momentum=0.35)
    return config
