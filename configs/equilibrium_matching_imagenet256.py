"""Equilibrium Matching, class-conditional ImageNet 256x256 in latents (arXiv:2510.02300, Table 7).

SiT and training (AdamW at 1e-4, 256 latents a step): imagenet256 in shared.py. `:B/2` (the
default), with S, B, L, XL and patch 2, 4, 8. Needs --config.data.path=…, a folder that
`python -m genfield.prepare` wrote (docs/imagenet.md).

`_published` behind it samples and counts as the authors' code does, for --weights of theirs
(docs/published.md): "250 steps" are 249, guidance moves three of the four channels, and so on.
`:B/2_published` descends without guidance, FID 32.85; `:XL/2_published` looks ahead, at guidance
1.5, FID 1.90.
"""

import shared

FID = {"B/2": 32.85, "XL/2": 1.90}  # of the authors' weights, as their README has them
RECIPES = shared.sit_recipes("B/2_published", "XL/2_published")


def get_config(variant: str = "B/2"):
    size = variant.removesuffix("_published")
    config = shared.imagenet256(size)
    config.loss = dict(name="equilibrium_matching")
    config.loss.decay = dict(name="truncated", a=0.8, multiplier=4.0)
    config.sampler = dict(name="nesterov", num_steps=250, step_size=0.003, momentum=0.35)
    if size == "XL/2":
        config.sampler.update(step_size=0.0017, momentum=0.3)
    if size != variant:
        shared.published(config, **({"fid": FID[size]} if size in FID else {}))
        config.sampler.num_steps = 249
        if size == "XL/2":
            config.sample.update(guidance_scale=1.5, guidance_channels=3)
        else:
            config.sampler = dict(name="gradient_descent", num_steps=249, step_size=0.003)
    return config
