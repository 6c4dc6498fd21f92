"""EDM's denoiser, CIFAR-10 (Karras et al., arXiv:2206.00364, Table 7): the teacher of
lines_cifar10.py.

`:cond` is class-conditional, the teacher of LMM's Table 3; `:medium` (half the width) for one GPU;
`:small` has 16x16 images, for a CPU, tens of minutes. `:uedm` is not told the noise level
(arXiv:2502.13129), with EDM's sampler and training. `:published` and `:cond_published` sample and
count as EDM's code does, for --weights of its authors (docs/published.md). Pairs for
lines_cifar10.py:

    python -m genfield.main --config=configs/edm_cifar10.py:cond --workdir=runs/teacher
    python -m genfield.main --workdir=runs/teacher --mode=pairs --config.sample.num=1000000

Needs --config.data.path=…, a folder, archive or .npz of images.
"""

import shared

from genfield.shipped import Recipe

# Size, and the FID of Table 2.
VARIANTS = {"full": ("full", 1.97), "cond": ("full", 1.79)}
VARIANTS |= {"medium": ("medium", None), "small": ("small", None)}
VARIANTS |= {"uedm": ("full", 2.23)}  # of Sun et al.; Distance Marching, Table 2
VARIANTS |= {"published": VARIANTS["full"], "cond_published": VARIANTS["cond"]}
RECIPES = {
    "full": Recipe(55_733_891, "GPUs"),
    "cond": Recipe(55_735_299, "GPUs"),
    "medium": Recipe(13_956_931, "a GPU"),
    "uedm": Recipe(55_733_891, "GPUs"),
    "small": Recipe(744_947, "about 30 min"),
    "published": Recipe(55_733_891, "a GPU"),
    "cond_published": Recipe(55_735_299, "a GPU"),
}


def get_config(variant: str = "full"):
    size, fid = shared.variant(variant, VARIANTS)
    config = shared.images(every=10_000)
    config.data.update(flip=False, labels="cond" in variant)  # the augmentation flips
    config.net = shared.network("ddpmpp", size, attention_resolutions=(16,), augmentation_size=9)
    if size == "full":
        config.net.dropout = 0.13
    config.augmentation = 0.12
    config.path = "variance_exploding"
    config.preconditioning = "uedm" if variant == "uedm" else "edm"
    config.sigma_data = 0.5  # Table 1, as the loss and the times
    config.time = dict(name="log_normal", mean=-1.2, std=1.2)
    config.loss = dict(name="denoising")
    config.sampler = dict(name="edm_heun", num_steps=18)  # 35 evaluations
    config.batch_size = 512
    config.optimizer.update(learning_rate=1e-3, warmup_steps=19_500)  # 10 million images
    config.ema.update(half_life=500_000.0, ramp_up=0.05)
    config.train.steps = 390_625  # 200 million images
    config.evaluate.labels = "random" if variant == "cond" else "balanced"
    config.evaluate.paper = dict(fid=fid) if fid else {}
    if "published" in variant:
        shared.published(config, fid=fid)
    shared.reduced(config, size)
    if size == "medium":
        config.optimizer.update(learning_rate=1e-3, warmup_steps=1_000)
    if size == "small":
        config.data.size, config.net.attention_resolutions = 16, (4,)
        config.optimizer.warmup_steps = 100
        config.ema.rate = 0.995
        config.train.steps = 2_500
        config.train.eval_every = config.checkpoint.every = 500
        config.sample.update(num=6_000, batch_size=256)
    return config
