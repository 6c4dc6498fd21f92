"""A random autoencoder of two levels, whose latents are half as wide as its images."""

from pathlib import Path

import numpy as np

from genfield.features import autoencoder_kl, weights
from genfield.pretrained import autoencoders

CONFIG = autoencoder_kl.Config(
    block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=3
)


def write(folder: Path, seed: int = 0, scaling_factor: float = 0.5) -> Path:
    """The folder, as diffusers would write it."""
    random = np.random.default_rng(seed)
    state = {}
    for name, shape in autoencoder_kl.shapes(CONFIG).items():
        fan_in = np.prod(shape[1:], dtype=int)
        centre = float(len(shape) == 1 and name.endswith("weight"))
        state[name] = (centre + random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    params = weights.nested(state)
    autoencoders.save(folder, params, CONFIG, scaling_factor=scaling_factor)
    return folder
