"""Flux Matching, two moons: one law, many dynamics (Pao-Huang et al., "Generative Modeling with
Flux Matching").

`:annealed` (the default) learns a field for every noise level (eq. 11) and samples down them;
`:smoothed` one field of the data smoothed by σ = 0.2, sampled by Langevin dynamics; `:turning` the
same, made to circulate; `:velocity` other particles with the marginals of a flow (eq. 61); `:score`
is the baseline, stable-target denoising.
"""

import shared

from genfield.shipped import Recipe

VARIANTS = ("annealed", "smoothed", "turning", "velocity", "score")
RECIPES = dict.fromkeys(VARIANTS, Recipe(33_794, "minutes"))
RECIPES["annealed"] = Recipe(33_794, "about 3 min")


def get_config(variant: str = "annealed"):
    shared.variant(variant, dict.fromkeys(VARIANTS))
    config = shared.two_moons()
    config.time = dict(name="log_uniform", low=0.02, high=20.0)
    config.loss = dict(name="flux_matching", group_size=128)
    # The corrector's step goes with 1 / |f|², whose mean is infinite in the plane.
    config.sampler = dict(name="reverse_ve", num_steps=100, sigma_min=0.02, sigma_max=20.0)
    config.batch_size = 1024
    config.ema.rate = 0.99
    config.train.update(steps=4_000, log_every=200)
    config.checkpoint.every = 2_000
    config.sample.num = config.sample.batch_size = 2_000
    if variant == "annealed":
        config.loss.sigma_data = config.sigma_data
    if variant == "score":
        config.loss = dict(name="denoising", stable_target=True, group_size=128)
    if variant in ("smoothed", "turning"):
        config.time = dict(name="fixed", level=0.2)
        config.loss.learned_normalizer = False
        config.sampler = dict(name="langevin", num_steps=2_000, step_size=0.002)
    if variant == "turning":
        config.loss.update(norm_weight=0.05, circulation_weight=0.5)
    if variant == "velocity":
        config.path, config.preconditioning, config.sigma_data = "linear", "none", 0.5
        config.time = dict(name="uniform", low=0.02, high=0.98)
        config.loss.name = "velocity_flux_matching"
        config.sampler = dict(name="euler", num_steps=100)
    return config
