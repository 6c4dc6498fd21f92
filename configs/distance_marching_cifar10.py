"""Distance Marching, CIFAR-10 (arXiv:2602.02928, Table 6).

U-Net and training (AdamW at 1e-4, 512 images a step): cifar10 in shared.py. `:medium` is half as
wide, for one GPU; `:small` is narrow, for a CPU, some minutes. Needs --config.data.path=…, a
folder, archive or .npz of images.
"""

import shared

from genfield.shipped import Recipe

RECIPES = {
    "full": Recipe(55_686_596, "GPUs"),
    "medium": Recipe(13_954_756, "a GPU"),
    "small": Recipe(625_108, "10 to 20 min"),
}


def get_config(size: str = "full"):
    config = shared.cifar10(size)
    config.net.distance_head = "cifar_narrow" if size == "small" else "cifar"
    config.net.distance_time_scale = 1.0  # "distance input rescaling"
    config.time = dict(name="skewed")
    config.loss = dict(name="distance_marching", epsilon=4.0, c0=4.0)
    config.loss.update(one_step_weight=0.1, eikonal_weight=1.0)
    config.sampler = dict(name="sphere_tracing", num_steps=250, step_size=0.031)
    config.evaluate.paper = dict(fid=2.23)  # Table 2, sphere tracing
    return config
