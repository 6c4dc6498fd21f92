"""Distance-aware noise-sample matching (DANSM, ICLR 2025): FFHQ 256x256 in pixels.

Flow matching whose noises are matched to the samples by `couplings.greedy`, 10-step Euler sampling
(Table 5). The paper gives match sizes, the batch of 250 and epochs; network, optimiser and average
are ours. --config=configs/dansm_ffhq256.py:1k, …:100 or …:baseline; match sizes are the paper's,
rounded up to divide or fill batches of 256. Needs --config.data.path=…, a folder or archive of
images, or an .npz.
"""

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import choose

# By match size: its FID in the paper, after 100 epochs.
VARIANTS = {
    "baseline": (0, 86.76),
    "100": (128, 58.58),
    "1k": (1_024, 66.95),
}


def get_config(variant: str = "1k"):
    match_size, fid = choose("variant of this config", variant, VARIANTS)
    config = configuration.base()
    config.data = ConfigDict({"name": "images", "path": config_dict.placeholder(str), "size": 256})
    config.net = ConfigDict(
        dict(
            name="unet",
            channels=128,
            channel_multipliers=(1, 1, 2, 2, 4, 4),
            num_res_blocks=2,
            attention_levels=(16, 32),
            dropout=0.0,
            dtype="bfloat16",
        )
    )
    config.loss = ConfigDict({"name": "flow_matching"})
    if match_size:
        config.coupling = ConfigDict({"name": "greedy"})
        config.match_size = match_size
    config.sampler = ConfigDict({"name": "euler", "num_steps": 10})
    config.batch_size = 256
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1_000
    config.ema.rate = 0.9999
    config.train.steps = 27_300  # 100 epochs of 70,000 images
    config.train.log_every = 100
    config.train.eval_every = config.checkpoint.every = 2_500
    config.train.eval_samples = 1_000  # each time; the best checkpoint is theirs
    config.checkpoint.best_metric = "frechet"
    config.evaluate.metrics = ("heldout_loss", "frechet", "kid", "precision_recall")
    config.evaluate.num_samples = config.sample.num = 50_000
    config.evaluate.paper = ConfigDict({"fid": fid})
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network, for tests."""
    config.net.update(
        channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_levels=(2,)
    )
    config.data.size = 32
    config.batch_size = config.sample.batch_size = 8
    config.match_size = min(config.match_size, 16)
    config.train.steps, config.train.eval_batches, config.train.eval_every = 2, 1, 0
    config.optimizer.warmup_steps = 0
    config.train.eval_samples, config.checkpoint.best_metric = 0, "loss"
    config.evaluate.metrics, config.sample.num = ("heldout_loss",), 8
    config.sampler.num_steps = 2
    return config
