"""Flux Matching, CIFAR-10 (Pao-Huang et al., "Generative Modeling with Flux Matching", B.3, B.4).

`:fast` adds the mixing proxy and samples by predictor and corrector (B.4); `:medium` is for one
GPU, `:small` for a CPU, some minutes, with another U-Net and that sampler; `:medium,fast` and
`:small,fast` are both. The baseline, stable-target denoising, is denoising_cifar10.py. Needs
--config.data.path=…, a folder, archive or .npz of images.
"""

import shared

from genfield.registry import choose
from genfield.shipped import Recipe

# The U-Net of Ho et al. (2020) with the settings of Table 3: 35,746,307 parameters.
HO = dict(resampling="conv", adaptive_scale=False, max_period=10_000, dropout=0.1)
HO |= dict(channel_multipliers=(1, 2, 2, 2), num_res_blocks=2)
LEVELS = dict(sigma_min=0.002, sigma_max=80.0)  # Table 4
RECIPES = {
    "full": Recipe(35_746_307, "GPUs"),
    "fast": Recipe(35_746_307, "GPUs"),
    "medium": Recipe(8_952_067, "a GPU"),
    "medium,fast": Recipe(8_952_067, "a GPU"),
    "small": Recipe(622_323, "minutes"),
    "small,fast": Recipe(622_323, "minutes"),
}


def get_config(variant: str = "full"):
    size, _, mode = variant.partition(",")
    size, mode = ("full", size) if size in ("fast", "plain") else (size, mode or "plain")
    fast = choose("mode of this config", mode, {"plain": False, "fast": True})
    config = shared.images(every=50_000)
    config.data.flip = True
    config.net = shared.network("unet", size, attention_levels=(2,), dtype="bfloat16")
    config.net.update({} if size == "small" else HO)
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 0.5
    config.time = dict(name="log_normal")
    config.loss = dict(name="flux_matching", group_size=128)  # a group is a GPU's batch (Table 4)
    config.sampler = dict(name="probability_flow", **LEVELS)
    config.batch_size = 512  # Table 4, as the training, but for the weight decay
    config.optimizer.update(name="adamw", learning_rate=1e-4, weight_decay=0.01, warmup_steps=2_500)
    config.ema.rate = 0.9993
    config.train.update(steps=500_000, eval_samples=10_000)
    config.evaluate.metrics = ("heldout_loss", "frechet", "inception_score", "bits_per_dim")
    if size == "full" and not fast:
        config.evaluate.paper = dict(fid=9.06, inception_score=8.54, bits_per_dim=3.26)  # Table 1
    if fast:
        config.loss.mixing_weight = 0.01
        config.evaluate.metrics = ("heldout_loss", "frechet")
    if fast or size == "small":
        config.sampler = dict(name="predictor_corrector", num_steps=100, **LEVELS)
    shared.reduced(config, size)
    if size == "small":
        config.net.dtype, config.loss.group_size = "float32", 64
    return config
