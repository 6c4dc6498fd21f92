"""Distance-aware noise-sample matching (DANSM, ICLR 2025), LSUN Bedroom: 10 steps, Fig. 6 and 7.

As dansm_cifar10.py, with a network of our own. Needs --config.data.path=…, a folder of
`python -m genfield.prepare --labels=False` (docs/imagenet.md).
"""

import shared
from dansm_cifar10 import matched
from ml_collections import config_dict

from genfield import configuration
from genfield.shipped import Recipe

VARIANTS = {"baseline": 0, "1k": 1_024, "10k": 10_240}  # match size; Fig. 6 is not tabulated
RECIPES = dict.fromkeys(("10k", *VARIANTS), Recipe(36_529_924, "a GPU"))


def get_config(variant: str = "10k"):
    config = matched(configuration.base(), shared.variant(variant, VARIANTS))
    config.data = dict(name="latents", path=config_dict.placeholder(str))
    config.data.update(shape=(32, 32, 4), num_classes=0, scale=1.0)
    config.net = dict(name="unet", channels=128, channel_multipliers=(1, 2, 2, 2), num_res_blocks=2)
    config.net.update(attention_levels=(2, 4), dropout=0.0)
    config.train.steps = 98_000  # 500 epochs of 50,000 latents
    config.train.eval_every = config.checkpoint.every = 5_000
    return config
