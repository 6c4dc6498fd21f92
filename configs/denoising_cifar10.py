"""Stable-target denoising (Xu et al., arXiv:2302.00670), CIFAR-10: Flux Matching's baseline
(Pao-Huang et al., "Generative Modeling with Flux Matching", B.3).

As flux_matching_cifar10.py but for the loss; `:fast` is its sampler alone. Needs
--config.data.path=…, a folder, archive or .npz of images.
"""

import flux_matching_cifar10

RECIPES = flux_matching_cifar10.RECIPES


def get_config(variant: str = "full"):
    config = flux_matching_cifar10.get_config(variant)
    config.loss = dict(name="denoising", stable_target=True, group_size=config.loss.group_size)
    paper = dict(fid=4.74, inception_score=8.52, bits_per_dim=3.16)  # Table 1
    config.evaluate.paper = paper if variant == "full" else {}
    return config
