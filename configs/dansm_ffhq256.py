"""Distance-aware noise-sample matching (DANSM, ICLR 2025), FFHQ 256x256: 10 steps, Table 5.

As dansm_cifar10.py, with a network of our own. Needs --config.data.path=…, a folder, archive or
.npz of images.
"""

import shared
from dansm_cifar10 import matched

from genfield.shipped import Recipe

# Match size, and its FID in the paper after 100 epochs.
VARIANTS = {"baseline": (0, 86.76), "100": (128, 58.58), "1k": (1_024, 66.95)}
RECIPES = dict.fromkeys(("1k", *VARIANTS), Recipe(114_170_755, "GPUs"))


def get_config(variant: str = "1k"):
    match_size, fid = shared.variant(variant, VARIANTS)
    config = matched(shared.images(every=2_500, size=256), match_size)
    config.net = dict(name="unet", channels=128, channel_multipliers=(1, 1, 2, 2, 4, 4))
    config.net.update(num_res_blocks=2, attention_levels=(16, 32), dropout=0.0, dtype="bfloat16")
    config.optimizer.learning_rate = 1e-4
    config.train.steps = 27_300  # 100 epochs of 70,000 images
    config.evaluate.paper = dict(fid=fid)
    return config
