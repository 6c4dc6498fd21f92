"""Distance-aware noise-sample matching (DANSM, ICLR 2025), CIFAR-10: 10 steps, Table 1.

Flow matching whose noises are matched to the samples by `couplings.greedy`. The paper gives epochs,
match sizes (`:10k`, `:1k`, or none, `:baseline`) and, once, a batch of 250 (A.4): 256 here, which
the match sizes, rounded up, divide or fill. The network is that of flow matching's code; optimiser
and average are ours. Needs --config.data.path=…, a folder, archive or .npz of images.
"""

import shared

from genfield.shipped import Recipe

# Match size, and its FID in the paper after 500 epochs.
VARIANTS = {"baseline": (0, 16.5), "1k": (1_024, 13.5), "10k": (10_240, 9.7)}
RECIPES = dict.fromkeys(("10k", *VARIANTS), Recipe(55_676_419, "a GPU"))


def get_config(variant: str = "10k"):
    match_size, fid = shared.variant(variant, VARIANTS)
    config = matched(shared.images(every=5_000), match_size)
    config.net = shared.network("unet", "full", attention_levels=(2,))
    config.train.steps = 98_000  # 500 epochs of 50,000 images
    config.evaluate.paper = dict(fid=fid)
    return config


def matched(config, match_size: int):
    """The method on any data; a match size of 0 is the baseline."""
    config.loss = dict(name="flow_matching")
    config.coupling = dict(name="greedy" if match_size else "independent")
    config.match_size = match_size
    config.sampler = dict(name="euler", num_steps=10)
    config.batch_size = 256
    config.optimizer.update(name="adamw", learning_rate=2e-4, warmup_steps=1_000)
    config.ema.rate = 0.9999
    return config
