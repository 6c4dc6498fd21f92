"""A config for tests: flow matching on latents 4x4x4 of ten classes, with a tiny SiT.

`folder(path)` writes its latents, `autoencoder(path)` an autoencoder that makes images 8x8 of them.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from genfield import configuration
from genfield.features import autoencoder_kl
from genfield.pretrained import autoencoders

SHAPE = (4, 4, 4)
SCALE = 0.5


def get_config():
    config = configuration.base()
    config.data = ConfigDict(dict(name="latents", path="latents", shape=SHAPE, num_classes=10))
    config.data.scale = SCALE
    config.net = ConfigDict(dict(name="sit", depth=1, width=16, num_heads=2, patch_size=2))
    config.loss = ConfigDict(dict(name="flow_matching"))
    config.sampler = ConfigDict(dict(name="euler", num_steps=2))
    config.label_dropout, config.ema.rate = 0.1, 0.9
    config.batch_size = 16
    config.train.update(steps=2, log_every=1, eval_batches=1)
    config.checkpoint.every = 2
    config.sample.batch_size, config.sample.num = 3, 8
    config.evaluate.num_samples = 24
    return config


def latents(path: Path) -> Path:
    """A folder with 64 latents of unit variance once they are scaled."""
    path.mkdir(parents=True)
    values = np.random.default_rng(0).normal(size=(64, *SHAPE)) / SCALE
    np.save(path / "latents.npy", values.astype(np.float16))
    np.save(path / "labels.npy", np.arange(64) % 10)
    return path


def autoencoder(path: Path, **sizes) -> Path:
    """A folder with a random autoencoder; sizes: of its config."""
    known = dict(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1)
    config = autoencoder_kl.Config(**(known | sizes))
    params = autoencoder_kl.random(config, 0)
    last = params["decoder"]["conv_out"]["weight"]
    last *= 6  # so that images are no plain grey
    autoencoders.save(path, params, config, scaling_factor=SCALE)
    return path
