"""Flow matching, class-conditional ImageNet 256x256 in latents: the baseline of EqM and DM.

SiT and training (AdamW at 1e-4, 256 latents a step): imagenet256 in shared.py. `:B/2` (the
default), with S, B, L, XL and patch 2, 4, 8; `_uncond` behind it leaves the time input out. Needs
--config.data.path=…, a folder that `python -m genfield.prepare` wrote (docs/imagenet.md).
"""

import shared


def get_config(variant: str = "B/2"):
    config = shared.imagenet256(variant.removesuffix("_uncond"))
    config.loss = dict(name="flow_matching", time_input=not variant.endswith("_uncond"))
    config.sampler = dict(name="euler", num_steps=250)  # as EqM's Table 7 for XL/2
    return config
