"""Flow matching, class-conditional ImageNet 256x256 in latents: the baseline of EqM and DM.

SiT and training (AdamW at 1e-4, 256 latents a step): imagenet256 in shared.py. `:B/2` (the
default), with S, B, L, XL and patch 2, 4, 8; `_uncond` behind it leaves the time input out. Needs
--config.data.path=…, a folder that `python -m genfield.prepare` wrote (docs/imagenet.md).

`_ode` and `_sde` behind it sample and count as SiT's code does (arXiv:2401.08740), for --weights of
its authors (docs/published.md): at guidance 1.5 of three of the four channels, with dopri5, or
Euler-Maruyama in 250 steps, w = 1 - t, of which the last, 0.04 long, has no noise. `:XL/2_ode`: FID
2.15, `:XL/2_sde`: 2.06.
"""

import shared

SAMPLERS = {  # with the tolerances and defaults of SiT's code
    "_ode": dict(name="dopri5", atol=1e-6, rtol=1e-3),
    "_sde": dict(name="sde_euler", num_steps=250, diffusion="sigma", last_step="mean"),
}
FID = {"XL/2_ode": 2.15, "XL/2_sde": 2.06}
RECIPES = shared.sit_recipes("B/2_uncond", "XL/2_uncond", *FID)


def get_config(variant: str = "B/2"):
    size, mark, way = variant.partition("_")
    if mark + way not in ("", "_uncond", *SAMPLERS):
        shared.variant(variant, shared.SIT)  # tells what is known
    config = shared.imagenet256(size)
    config.loss = dict(name="flow_matching", time_input=way != "uncond")
    config.sampler = dict(name="euler", num_steps=250)  # as EqM's Table 7 for XL/2
    if mark + way in SAMPLERS:
        shared.published(config, **({"fid": FID[variant]} if variant in FID else {}))
        config.sampler = dict(SAMPLERS[mark + way])
        config.sample.update(guidance_scale=1.5, guidance_channels=3)
    return config
