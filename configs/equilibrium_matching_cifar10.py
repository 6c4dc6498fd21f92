"""Equilibrium Matching, CIFAR-10 (arXiv:2510.02300, B.1).

Stated: c(γ), as for ImageNet (Table 7). Inferred: the multiplier, which was searched and is not
given, and the sampler, which is ImageNet's. The paper took "a step size of 1": that fits
integrating -f over unit time, as flow matching's code does: config.sampler = dict(name="heun",
num_steps=50, times="edm"). A field times a factor is a step times it, so that `study sweep`
searches both without training anew. Times are DM's (arXiv:2602.02928, Table 6).

U-Net and training (AdamW at 1e-4, 512 images a step): cifar10 in shared.py. `:medium` is half as
wide, for one GPU; `:small` is narrow, for a CPU, some minutes. Needs --config.data.path=…, a
folder, archive or .npz of images.
"""

import shared

RECIPES = shared.CIFAR10_RECIPES


def get_config(size: str = "full"):
    config = shared.cifar10(size)
    config.time = dict(name="skewed")
    config.loss = dict(name="equilibrium_matching")
    config.loss.decay = dict(name="truncated", a=0.8, multiplier=4.0)
    config.sampler = dict(name="nesterov", num_steps=250, step_size=0.003, momentum=0.35)
    config.evaluate.paper = dict(fid=3.36)  # Table 8
    return config
