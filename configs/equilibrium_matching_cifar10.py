"""Equilibrium Matching, CIFAR-10 (arXiv:2510.02300, B.1).

Stated: c(γ), as for ImageNet (Table 7). Inferred: the multiplier, which was searched and is not
given, and the sampler, which is ImageNet's. The paper took "a step size of 1": that fits
integrating -f over unit time, as flow matching's code does: config.sampler = dict(name="heun",
num_steps=50, times="edm"). A field times a factor is a step times it, so that `study sweep`
searches both without training anew. Times are DM's (arXiv:2602.02928, Table 6).

U-Net and training (AdamW at 1e-4, 512 images a step): cifar10 in shared.py. `:medium` is half as
wide, for one GPU; `:small` is narrow, for a CPU, some minutes. Needs --config.data.path=…, a
folder, archive or .npz of images.

`:energy` is EqM-E-B/4 of Table 6, which tells other images from CIFAR-10 by its energy: `genfield
study ood --other=svhn.tar,textures.tar`. Stated: SiT-B/4 and the dot product (section 5.4), and
AdamW, batch and multiplier (Table 7). Inferred: pixels without classes, ImageNet's number of
steps, and the sampler. `:energy_small` is narrow, for a CPU.
"""

import shared

from genfield.shipped import Recipe

ENERGIES = {"energy": Recipe(129_620_832, "GPUs"), "energy_small": Recipe(337_056, "10 to 20 min")}
RECIPES = shared.CIFAR10_RECIPES | ENERGIES


def get_config(variant: str = "full"):
    if variant in ENERGIES:
        return energy(variant.removeprefix("energy").removeprefix("_") or "full")
    config = shared.cifar10(variant)
    config.time = dict(name="skewed")
    config.loss = dict(name="equilibrium_matching")
    config.loss.decay = dict(name="truncated", a=0.8, multiplier=4.0)
    config.sampler = dict(name="nesterov", num_steps=250, step_size=0.003, momentum=0.35)
    config.evaluate.paper = dict(fid=3.36)  # Table 8
    return config


def energy(size: str):
    """Table 6's: an energy of a transformer on pixels."""
    config = shared.images(every=10_000)
    config.net = dict(name="sit", size="B", patch_size=4)
    config.energy = "dot"
    config.batch_size = 256
    config.optimizer.update(name="adamw", learning_rate=1e-4)
    config.ema.rate = 0.9999
    config.train.steps = 400_000
    config.loss = dict(name="equilibrium_matching")
    config.loss.decay = dict(name="truncated", a=0.8, multiplier=4.0)
    config.sampler = dict(name="gradient_descent", num_steps=250, step_size=0.003)
    if size == "small":
        config.net.update(depth=4, width=64, num_heads=4)
    return shared.reduced(config, size)
