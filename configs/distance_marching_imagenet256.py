"""Distance Marching, class-conditional ImageNet 256x256 in latents (arXiv:2602.02928, Table 7).

SiT and training (AdamW at 1e-4, 256 latents a step): imagenet256 in shared.py. `:B/2` (the
default), with S, B, L, XL and patch 2, 4, 8. Needs --config.data.path=…, a folder that
`python -m genfield.prepare` wrote (docs/imagenet.md).
"""

import shared

RECIPES = shared.sit_recipes(head=62_801)


def get_config(variant: str = "B/2"):
    config = shared.imagenet256(variant)
    config.net.distance_head = "imagenet"
    config.net.distance_time_scale = 1 / 100  # "distance input rescaling"
    config.time = dict(name="uniform", high=0.999)
    config.loss = dict(name="distance_marching", epsilon=100.0, c0=100.0)
    config.loss.update(one_step_weight=1.0, eikonal_weight=30.0)
    config.sampler = dict(name="sphere_tracing", num_steps=250, step_size=0.022)
    return config
