"""Equilibrium Matching, class-conditional ImageNet 256x256 in latents (arXiv:2510.02300, Table 7).

SiT and training (AdamW at 1e-4, 256 latents a step): imagenet256 in shared.py. `:B/2` (the
default), with S, B, L, XL and patch 2, 4, 8. Needs --config.data.path=…, a folder that
`python -m genfield.prepare` wrote (docs/imagenet.md).
"""

import shared


def get_config(variant: str = "B/2"):
    config = shared.imagenet256(variant)
    config.loss = dict(name="equilibrium_matching")
    config.loss.decay = dict(name="truncated", a=0.8, multiplier=4.0)
    config.sampler = dict(name="nesterov", num_steps=250, step_size=0.003, momentum=0.35)
    if variant == "XL/2":
        config.sampler.update(step_size=0.0017, momentum=0.3)
    return config
