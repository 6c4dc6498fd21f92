"""A denoiser of two moons and its deterministic sampler (EDM, arXiv:2206.00364): the teacher of
lines_two_moons.py. `:uedm` is not told the noise level (arXiv:2502.13129).

    python -m genfield.main --config=configs/edm_two_moons.py --workdir=runs/teacher
    python -m genfield.main --workdir=runs/teacher --mode=pairs --config.sample.num=40000
"""

import shared

from genfield.shipped import Recipe

RECIPES = dict.fromkeys(("", "uedm"), Recipe(33_794, "about 2 min"))


def get_config(variant: str = ""):
    shared.variant(variant, RECIPES)
    config = shared.two_moons()
    config.preconditioning = variant or "edm"
    config.time = dict(name="log_normal", mean=0.0, std=1.6)
    config.loss = dict(name="denoising")
    config.sampler = dict(name="edm_heun", num_steps=18)
    config.batch_size = 512
    config.ema.rate = 0.999
    config.train.steps = config.checkpoint.every = 20_000
    config.train.log_every = 500
    config.sample.num = config.sample.batch_size = 10_000
    return config
