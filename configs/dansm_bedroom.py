"""Distance-aware noise-sample matching (DANSM, ICLR 2025): LSUN Bedroom 256x256 in latents.

Flow matching whose noises are matched to the samples by `couplings.greedy`, 10-step Euler sampling
(Fig. 6 and 7). The paper gives match sizes, the batch of 250 and epochs; network, optimiser and
average are ours. --config=configs/dansm_bedroom.py:10k, …:1k or …:baseline; match sizes are the
paper's, rounded up to divide or fill batches of 256. Needs --config.data.path=…, a folder with
latents.npy: 4x32x32 of Stable Diffusion's autoencoder, unscaled.
"""

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import choose

# Match sizes; the paper's curves (Fig. 6) are not tabulated.
VARIANTS = {
    "baseline": 0,
    "1k": 1_024,
    "10k": 10_240,
}


def get_config(variant: str = "10k"):
    match_size = choose("variant of this config", variant, VARIANTS)
    config = configuration.base()
    config.data = ConfigDict({"name": "latents", "path": config_dict.placeholder(str)})
    config.data.update(shape=(32, 32, 4), num_classes=0, scale=1.0)
    config.net = ConfigDict(
        dict(
            name="unet",
            channels=128,
            channel_multipliers=(1, 2, 2, 2),
            num_res_blocks=2,
            attention_levels=(2, 4),
            dropout=0.0,
        )
    )
    config.loss = ConfigDict({"name": "flow_matching"})
    if match_size:
        config.coupling = ConfigDict({"name": "greedy"})
        config.match_size = match_size
    config.sampler = ConfigDict({"name": "euler", "num_steps": 10})
    config.batch_size = 256
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 1_000
    config.ema.rate = 0.9999
    config.train.steps = 98_000  # 500 epochs of 50,000 latents
    config.train.log_every = 100
    config.train.eval_every = config.checkpoint.every = 5_000
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network, for tests."""
    config.net.update(
        channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_levels=(2,)
    )
    config.batch_size = config.sample.batch_size = 8
    config.match_size = min(config.match_size, 16)
    config.train.steps, config.train.eval_batches, config.train.eval_every = 2, 1, 0
    config.optimizer.warmup_steps = 0
    config.sample.num = 8
    config.sampler.num_steps = 2
    return config
