"""Stable-target denoising, CelebA at 64x64: Flux Matching's baseline (Pao-Huang et al., "Generative
Modeling with Flux Matching", B.3): denoising_cifar10.py with its own data, batch and figures.

Needs --config.data.path=…, a folder or archive of split/class/*.png|jpg, or an .npz, of 64x64
images.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

CIFAR = runpy.run_path(str(Path(__file__).with_name("denoising_cifar10.py")))
smoke = CIFAR["smoke"]


def get_config(variant: str = "full"):
    config = CIFAR["get_config"](variant)
    if variant == "full":
        config.batch_size, config.loss.group_size = 128, 32
        config.evaluate.paper = ConfigDict({"fid": 2.41, "bits_per_dim": 2.03})
        config.evaluate.metrics = ("heldout_loss", "frechet", "bits_per_dim")
    return config
