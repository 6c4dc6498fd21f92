"""Stable-target denoising, springs: Flux Matching's baseline (Pao-Huang et al., "Generative
Modeling with Flux Matching", B.5).

As flux_matching_springs.py, with its variants, but for the loss.
"""

import flux_matching_springs

RECIPES = flux_matching_springs.RECIPES


def get_config(variant: str = "causal"):
    config = flux_matching_springs.get_config(variant)
    config.loss = dict(name="denoising", stable_target=True, group_size=config.loss.group_size)
    return config
