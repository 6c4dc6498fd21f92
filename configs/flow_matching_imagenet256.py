"""Flow matching, class-conditional ImageNet 256x256 in the latents of an autoencoder.

SiT's own training (Ma et al., 2024): the time-conditional baseline of both papers.
--config=configs/flow_matching_imagenet256.py:B/2, with S, B, L, XL and patch 2, 4, 8;
`_uncond` behind it leaves the time input out: the time-unconditional baseline. Needs
--config.data.path=…, a folder with latents.npy and labels.npy.
"""

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import choose

VARIANTS = {
    f"{size}/{patch}": (size, patch) for size in ("S", "B", "L", "XL") for patch in (2, 4, 8)
}


def get_config(variant: str = "B/2"):
    size, uncond = variant.removesuffix("_uncond"), variant.endswith("_uncond")
    size, patch = choose("variant of this config", size, VARIANTS)
    config = configuration.base()
    config.data = ConfigDict(
        {
            "name": "latents",
            "path": config_dict.placeholder(str),
            "shape": (32, 32, 4),
            "num_classes": 1000,
        }
    )
    config.net = ConfigDict(
        {"name": "sit", "size": size, "patch_size": patch, "remat": False, "dtype": "float32"}
    )
    config.loss = ConfigDict({"name": "flow_matching", "time_input": not uncond})
    config.sampler = ConfigDict({"name": "euler", "num_steps": 250})
    config.label_dropout = 0.1
    config.batch_size = 256
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.ema.rate = 0.9999
    config.train.steps = 400_000  # 80 epochs of 1,281,167 images
    config.train.log_every = 100
    config.train.eval_every = config.checkpoint.every = 10_000
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network, for tests."""
    config.net.update(depth=2, width=32, num_heads=2, patch_size=4)
    config.batch_size = config.sample.batch_size = 8
    config.train.steps, config.train.eval_batches, config.train.eval_every = 2, 1, 0
    config.sampler.num_steps = 2
    return config
