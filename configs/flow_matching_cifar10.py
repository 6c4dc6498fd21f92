"""Flow matching, CIFAR-10: the baseline, and with `_uncond` behind a size the one without time.

Table 8 of EqM has "the same hyper-parameters as the original codebase" (B.1), which is public:
the period of the time embedding, and Heun's rule on EDM's times, 50 steps of two evaluations.

U-Net and training (AdamW at 1e-4, 512 images a step): cifar10 in shared.py. `:medium` is half as
wide, for one GPU; `:small` is narrow, for a CPU, some minutes. Needs --config.data.path=…, a
folder, archive or .npz of images.
"""

import shared

SIZES = shared.CIFAR10_RECIPES
RECIPES = SIZES | {f"{size}_uncond": recipe for size, recipe in SIZES.items()}


def get_config(variant: str = "full"):
    config = shared.cifar10(variant.removesuffix("_uncond"))
    config.net.max_period = 10_000
    uncond = variant.endswith("_uncond")
    config.time = dict(name="skewed")  # DM's Table 6
    config.loss = dict(name="flow_matching", time_input=not uncond)
    config.sampler = dict(name="heun", num_steps=50, times="edm")
    config.evaluate.paper = dict(fid=3.96 if uncond else 2.09)  # arXiv:2510.02300, Table 8
    return config
