"""EDM's denoiser, CIFAR-10 (Karras et al., arXiv:2206.00364): the teacher of lines_cifar10.py.

`:cond` is class-conditional, the teacher of LMM's Table 3; `:medium` (half the width) for one GPU;
`:small` has 16x16 images, for a CPU, tens of minutes. Pairs for lines_cifar10.py:

    python -m genfield.main --config=configs/edm_cifar10.py:cond --workdir=runs/teacher
    python -m genfield.main --workdir=runs/teacher --mode=pairs --config.sample.num=1000000

Needs --config.data.path=…, a folder or archive of split/class/*.png|jpg, or an .npz.
"""

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import choose

NETS = {
    "full": dict(channels=128, channel_multipliers=(2, 2, 2), num_res_blocks=4, dropout=0.13),
    "medium": dict(channels=64, channel_multipliers=(2, 2, 2), num_res_blocks=4, dropout=0.1),
    "small": dict(channels=16, channel_multipliers=(1, 2, 4), num_res_blocks=1, dropout=0.0),
}
VARIANTS = {"full": "full", "cond": "full", "medium": "medium", "small": "small"}


def get_config(variant: str = "full"):
    size = choose("variant of this config", variant, VARIANTS)
    config = configuration.base()
    config.data = ConfigDict({"name": "images", "path": config_dict.placeholder(str)})
    config.data.flip, config.data.labels = False, variant == "cond"  # flips: by augmentation
    config.net = ConfigDict({"name": "ddpmpp", "augmentation_size": 9, **NETS[size]})
    config.net.attention_resolutions = (16,)
    config.augmentation = 0.12
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 0.5
    config.time = ConfigDict({"name": "log_normal", "mean": -1.2, "std": 1.2})
    config.loss = ConfigDict({"name": "denoising"})
    config.sampler = ConfigDict({"name": "edm_heun", "num_steps": 18})
    config.batch_size = 512
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 19_500  # 10 million images
    config.ema.half_life = 500_000.0
    config.ema.ramp_up = 0.05
    config.train.steps = 390_625  # 200 million images
    config.train.log_every = 100
    config.train.eval_every = config.checkpoint.every = 10_000
    config.train.eval_samples = 1_000
    config.checkpoint.best_metric = "frechet"
    config.sample.batch_size = 256
    config.evaluate.metrics = ("heldout_loss", "frechet", "kid", "precision_recall")
    config.evaluate.num_samples = config.sample.num = 50_000
    paper = {"full": 1.97, "cond": 1.79}  # arXiv:2206.00364, Table 2
    config.evaluate.paper = ConfigDict({"fid": paper[variant]} if variant in paper else {})
    if size == "medium":
        config.net.dtype = "bfloat16"
        config.batch_size = 256
        config.optimizer.warmup_steps = 1_000
        config.ema = ConfigDict(dict(rate=0.999, half_life=0.0, ramp_up=0.0))
        config.train.steps = 20_000
        config.train.eval_every = config.checkpoint.every = 2_000
        config.evaluate.num_samples = config.sample.num = 10_000
    if size == "small":
        config.data.size = 16
        config.net.attention_resolutions = (4,)
        config.batch_size = 64
        config.optimizer.warmup_steps = 100
        config.ema = ConfigDict(dict(rate=0.995, half_life=0.0, ramp_up=0.0))
        config.train.steps = 2_500
        config.train.log_every = 50
        config.train.eval_every = config.checkpoint.every = 500
        config.train.eval_samples, config.checkpoint.best_metric = 0, "loss"
        config.evaluate.metrics = ("heldout_loss",)  # features of 50,000 take long on a CPU
        config.evaluate.num_samples, config.sample.num = 2_000, 6_000
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network, for tests."""
    config.net.update(channels=8, channel_multipliers=(1, 1), num_res_blocks=1)
    config.batch_size = config.sample.batch_size = 8
    config.optimizer.warmup_steps = 0
    config.train.steps, config.train.eval_batches, config.train.eval_every = 2, 1, 0
    config.train.eval_samples, config.checkpoint.best_metric = 0, "loss"
    config.evaluate.metrics, config.sample.num = ("heldout_loss",), 8
    config.sampler.num_steps = 2
    return config
