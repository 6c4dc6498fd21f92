"""Flux Matching, CelebA at 64x64 (Pao-Huang et al., "Generative Modeling with Flux Matching", B.3).

As flux_matching_cifar10.py but for batch and figures at full size. Needs --config.data.path=…, a
folder, archive or .npz of 64x64 images.
"""

import flux_matching_cifar10

RECIPES = flux_matching_cifar10.RECIPES


def get_config(variant: str = "full"):
    config = flux_matching_cifar10.get_config(variant)
    if variant == "full":
        config.batch_size, config.loss.group_size = 128, 32  # of four GPUs, and of each (Table 4)
        config.evaluate.metrics = ("heldout_loss", "frechet", "bits_per_dim")
        config.evaluate.paper = dict(fid=7.07, bits_per_dim=2.17)  # Table 1
    return config
