"""Distance-aware noise-sample matching (DANSM, ICLR 2025), ImageNet 64x64: 5 steps, Table 1.

As dansm_cifar10.py, with a network of our own. Needs --config.data.path=…, a folder, archive or
.npz of images.
"""

import shared
from dansm_cifar10 import matched

from genfield.shipped import Recipe

# Match size, and its FID in the paper after 200 epochs.
VARIANTS = {"baseline": (0, 57.1), "100": (128, 54.7), "1k": (1_024, 52.2)}
RECIPES = dict.fromkeys(("1k", *VARIANTS), Recipe(258_006_915, "GPUs"))


def get_config(variant: str = "1k"):
    match_size, fid = shared.variant(variant, VARIANTS)
    config = matched(shared.images(every=10_000, size=64), match_size)
    config.net = dict(name="unet", channels=192, channel_multipliers=(1, 2, 3, 4), num_res_blocks=3)
    config.net.update(attention_levels=(4, 8), dropout=0.1, dtype="bfloat16")
    config.net.update(remat="full", attention="auto")
    config.optimizer.learning_rate = 1e-4
    config.sampler.num_steps = 5
    config.train.steps = 1_000_000  # 200 epochs of 1,281,167 images
    config.evaluate.paper = dict(fid=fid)
    return config
