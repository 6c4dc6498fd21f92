"""Distance Marching on scikit-learn's 8x8 digits: no download, minutes on a CPU."""

import shared

from genfield.shipped import Recipe

RECIPES = {"": Recipe(719_842, "10 to 20 min")}


def get_config():
    config = shared.digits()
    config.net.distance_head = "cifar"
    config.net.direction_scale = 1 / 8  # makes about a unit vector of 64 numbers of order one
    config.time = dict(name="uniform", high=0.999)
    # The paper's settings for the 3,072 numbers of an image, with ε = c0 scaled to a digit's 64.
    config.loss = dict(name="distance_marching", epsilon=0.1, c0=0.1)
    config.loss.update(one_step_weight=0.1, eikonal_weight=1.0)
    config.sampler = dict(name="sphere_tracing", num_steps=250, step_size=0.031)
    return config
