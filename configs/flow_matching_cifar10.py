"""Flow matching, CIFAR-10.

The time-conditional baseline on the U-Net and time distribution of DM's Table 6
(arXiv:2602.02928).

Needs --config.data.path=…, a folder or archive of split/class/*.png|jpg, or an .npz; `:small` is
a narrow network for a CPU, some minutes; `:medium` (half the width) one for a single GPU. `_uncond`
behind a size leaves the time input out: the time-unconditional baseline.
"""

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import choose

SIZES = {
    "full": dict(channels=128, channel_multipliers=(2, 2, 2), num_res_blocks=4, dropout=0.3),
    "medium": dict(channels=64, channel_multipliers=(2, 2, 2), num_res_blocks=4, dropout=0.1),
    "small": dict(channels=16, channel_multipliers=(1, 2, 4), num_res_blocks=1, dropout=0.0),
}


def get_config(variant: str = "full"):
    size, uncond = variant.removesuffix("_uncond"), variant.endswith("_uncond")
    config = configuration.base()
    config.data = ConfigDict({"name": "images", "path": config_dict.placeholder(str)})
    config.net = ConfigDict(
        {"name": "unet", "attention_levels": (2,), **choose("size of this config", size, SIZES)}
    )
    config.time = ConfigDict({"name": "skewed"})
    config.loss = ConfigDict({"name": "flow_matching", "time_input": not uncond})
    config.sampler = ConfigDict({"name": "heun", "num_steps": 50})
    config.batch_size = 512
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.01
    config.ema.rate = 0.9999
    config.train.steps = 293_000  # 3000 epochs of 50,000 images
    config.train.log_every = 100
    config.train.eval_every = config.checkpoint.every = 5_000
    config.train.eval_samples = 1_000  # each time; the best checkpoint is theirs
    config.checkpoint.best_metric = "frechet"
    config.sample.batch_size = 256
    config.evaluate.metrics = ("heldout_loss", "frechet", "kid", "precision_recall")
    config.evaluate.num_samples = config.sample.num = 50_000
    fid = 3.96 if uncond else 2.09  # arXiv:2510.02300, Table 8
    config.evaluate.paper = ConfigDict({"fid": fid})
    if size == "medium":
        config.net.dtype = "bfloat16"
        config.batch_size = 256
        config.optimizer.learning_rate = 4e-4
        config.optimizer.warmup_steps = 500
        config.ema.rate = 0.999
        config.train.steps = 20_000
        config.train.eval_every = config.checkpoint.every = 2_000
        config.evaluate.num_samples = config.sample.num = 10_000
    if size == "small":
        config.batch_size = 64
        config.optimizer.learning_rate = 1e-3
        config.ema.rate = 0.99
        config.train.steps = 600
        config.train.log_every = 50
        config.train.eval_every = config.checkpoint.every = 150
        config.train.eval_samples, config.checkpoint.best_metric = 0, "loss"
        config.sample.batch_size = 64
        config.evaluate.num_samples, config.sample.num = 2_000, 64
        config.evaluate.metrics = ("heldout_loss",)  # 250 evaluations a sample take long on a CPU
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network, for tests."""
    config.net.update(channels=8, channel_multipliers=(1, 1), num_res_blocks=1)
    config.batch_size = config.sample.batch_size = 8
    config.train.steps, config.train.eval_batches, config.train.eval_every = 2, 1, 0
    config.train.eval_samples, config.checkpoint.best_metric = 0, "loss"
    config.evaluate.metrics, config.sample.num = ("heldout_loss",), 8
    config.sampler.num_steps = 2
    return config
