"""EDM's denoiser, class-conditional ImageNet at 64x64 with the ADM U-Net (arXiv:2206.00364, Table
7): the teacher of lines_imagenet64.py. `:stochastic` samples as Table 5 has it, and with
`_published` behind it counts as EDM's code does, for --weights of its authors (docs/published.md).

As edm_cifar10.py but for what follows. Needs --config.data.path=…, a folder, archive or .npz of
images.
"""

import edm_cifar10
import shared

from genfield.shipped import Recipe

FID = {"deterministic": 2.23, "stochastic": 1.36}  # as LMM's Table 2 quotes them

WAYS = ("deterministic", "stochastic", "deterministic_published", "stochastic_published")
RECIPES = dict.fromkeys(WAYS, Recipe(295_899_267, "GPUs"))


def get_config(variant: str = "deterministic"):
    way, mark, _ = variant.partition("_published")
    fid = shared.variant(way, FID)
    config = edm_cifar10.get_config()
    config.data.update(size=64, labels=True)
    config.net = dict(name="adm", dropout=0.1, dtype="bfloat16", remat="full", attention="auto")
    config.augmentation = 0.0
    config.sampler.num_steps = 40  # 79 evaluations
    if way == "stochastic":
        config.sampler.num_steps = 256  # 511 evaluations
        config.sampler.update(churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)
    config.batch_size = 4_096
    config.optimizer.update(learning_rate=1e-4, warmup_steps=2_440)  # 10 million images
    config.ema.half_life = 50_000_000.0
    config.train.steps = 610_000  # 2,500 million images
    config.train.eval_every = config.checkpoint.every = 5_000
    config.evaluate.labels = "random"
    config.evaluate.paper = dict(fid=fid)
    if mark:
        shared.published(config, fid=fid)
    return config
