"""Flux Matching, CIFAR-10 (Pao-Huang et al., "Generative Modeling with Flux Matching", B.3, B.4).

`:fast` adds the mixing proxy and samples by predictor and corrector (B.4); `:medium` is for one
GPU, `:small` for a CPU, some minutes; `:medium,fast` and `:small,fast` are both. The baseline with
the same network, stable-target denoising, is denoising_cifar10.py.

Needs --config.data.path=…, a folder or archive of split/class/*.png|jpg, or an .npz.
"""

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import choose

HO = dict(resampling="conv", adaptive_scale=False, max_period=10_000)  # 35,746,307 parameters
WIDE = dict(channel_multipliers=(1, 2, 2, 2), num_res_blocks=2, dropout=0.1)
SIZES = {
    "full": dict(channels=128, **WIDE, **HO),
    "medium": dict(channels=64, **WIDE, **HO),
    "small": dict(channels=16, channel_multipliers=(1, 2, 4), num_res_blocks=1, dropout=0.0),
}


def get_config(variant: str = "full"):
    size, _, mode = variant.partition(",")
    size, mode = ("full", size) if size in ("fast", "plain") else (size, mode or "plain")
    choose("mode of this config", mode, {"plain": None, "fast": None})
    config = configuration.base()
    config.data = ConfigDict({"name": "images", "path": config_dict.placeholder(str)})
    config.data.flip = True
    config.net = ConfigDict(
        {"name": "unet", "attention_levels": (2,), **choose("size of this config", size, SIZES)}
    )
    config.net.dtype = "bfloat16"
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 0.5
    config.time = ConfigDict({"name": "log_normal"})
    # A group of 128 is a GPU's batch (Table 4).
    config.loss = ConfigDict({"name": "flux_matching", "group_size": 128})
    levels = {"sigma_min": 0.002, "sigma_max": 80.0}
    config.sampler = ConfigDict({"name": "probability_flow", **levels})
    if mode == "fast":
        config.loss.mixing_weight = 0.01
        config.sampler = ConfigDict({"name": "predictor_corrector", "num_steps": 100, **levels})
    config.batch_size = 512
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 2_500
    config.ema.rate = 0.9993
    config.train.steps = 500_000
    config.train.log_every = 100
    config.train.eval_every = config.checkpoint.every = 50_000
    config.train.eval_samples = 10_000  # each time; the best checkpoint is theirs
    config.checkpoint.best_metric = "frechet"
    config.sample.batch_size = 256
    config.evaluate.metrics = ("heldout_loss", "frechet", "inception_score", "bits_per_dim")
    config.evaluate.num_samples = config.sample.num = 50_000
    config.evaluate.paper = ConfigDict({"fid": 9.06, "inception_score": 8.54, "bits_per_dim": 3.26})
    if mode == "fast":
        config.evaluate.paper = ConfigDict()
        config.evaluate.metrics = ("heldout_loss", "frechet")
    if size == "medium":
        config.batch_size = 256
        config.optimizer.learning_rate = 4e-4
        config.optimizer.warmup_steps = 500
        config.ema.rate = 0.999
        config.train.steps = 20_000
        config.train.eval_every = config.checkpoint.every = 2_000
        config.train.eval_samples = 1_000
        config.evaluate.num_samples = config.sample.num = 10_000
        config.evaluate.paper = ConfigDict()
    if size == "small":
        config.net.dtype = "float32"
        config.batch_size = config.loss.group_size = 64
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup_steps = 0
        config.ema.rate = 0.99
        config.train.steps = 600
        config.train.log_every = 50
        config.train.eval_every = config.checkpoint.every = 150
        config.train.eval_samples, config.checkpoint.best_metric = 0, "loss"
        config.sampler = ConfigDict({"name": "predictor_corrector", "num_steps": 100, **levels})
        config.sample.batch_size = 64
        config.evaluate.num_samples, config.sample.num = 2_000, 64
        config.evaluate.metrics = ("heldout_loss",)
        config.evaluate.paper = ConfigDict()
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network, for tests."""
    config.net.update(channels=8, channel_multipliers=(1, 1), num_res_blocks=1)
    config.batch_size = config.loss.group_size = config.sample.batch_size = 8
    config.optimizer.warmup_steps = 0
    config.train.steps, config.train.eval_batches, config.train.eval_every = 2, 1, 0
    config.train.eval_samples, config.checkpoint.best_metric = 0, "loss"
    config.evaluate.metrics, config.sample.num = ("heldout_loss",), 8
    config.sampler = ConfigDict({"name": "predictor_corrector", "num_steps": 2})
    return config
