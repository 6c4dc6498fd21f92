"""EDM's denoiser, class-conditional ImageNet at 64x64 with the ADM U-Net (arXiv:2206.00364): the
teacher of lines_imagenet64.py. `:stochastic` samples as Table 5 has it, in 511 evaluations.

Needs --config.data.path=…, a folder or archive of split/class/*.png|jpg, or an .npz.
"""

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import choose

VARIANTS = {"deterministic": 2.23, "stochastic": 1.36}  # FID
CHURN = {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}


def get_config(variant: str = "deterministic"):
    fid = choose("variant of this config", variant, VARIANTS)
    config = configuration.base()
    config.data = ConfigDict({"name": "images", "path": config_dict.placeholder(str)})
    config.data.size, config.data.labels, config.data.flip = 64, True, False
    config.net = ConfigDict({"name": "adm", "dropout": 0.1, "dtype": "bfloat16"})
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 0.5
    config.time = ConfigDict({"name": "log_normal", "mean": -1.2, "std": 1.2})
    config.loss = ConfigDict({"name": "denoising"})
    config.sampler = ConfigDict({"name": "edm_heun", "num_steps": 40})
    if variant == "stochastic":
        config.sampler.num_steps = 256
        config.sampler.update(CHURN)
    config.batch_size = 4_096
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 2_440  # 10 million images
    config.ema.half_life = 50_000_000.0
    config.ema.ramp_up = 0.05
    config.train.steps = 610_000  # 2,500 million images
    config.train.log_every = 100
    config.train.eval_every = config.checkpoint.every = 5_000
    config.train.eval_samples = 1_000
    config.checkpoint.best_metric = "frechet"
    config.evaluate.metrics = ("heldout_loss", "frechet", "kid", "precision_recall")
    config.evaluate.num_samples = config.sample.num = 50_000
    config.evaluate.paper = ConfigDict({"fid": fid})
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network, for tests."""
    config.data.size = 16
    config.net.update(channels=16, channel_multipliers=(1,), num_res_blocks=1)
    config.net.update(attention_levels=(1,), head_channels=8, dtype="float32")
    config.batch_size = config.sample.batch_size = 8
    config.optimizer.warmup_steps = 0
    config.train.steps, config.train.eval_batches, config.train.eval_every = 2, 1, 0
    config.train.eval_samples, config.checkpoint.best_metric = 0, "loss"
    config.evaluate.metrics, config.sample.num = ("heldout_loss",), 8
    config.sampler.num_steps = 2
    return config
