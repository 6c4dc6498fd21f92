"""EDM's denoiser, AFHQ-v2 at 64x64 (arXiv:2206.00364, Table 7): the teacher of lines_afhq64.py.

As edm_cifar10.py but for the network, the batch and the learning rate.

Needs --config.data.path=…, a folder or archive of split/class/*.png|jpg, or an .npz.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

CIFAR10 = runpy.run_path(str(Path(__file__).with_name("edm_cifar10.py")))


def get_config():
    config = CIFAR10["get_config"]()
    config.data.size = 64
    config.net.channel_multipliers, config.net.dropout = (1, 2, 2, 2), 0.25
    config.augmentation = 0.15
    config.batch_size = 256
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 39_000  # 10 million images
    config.train.steps = 781_250  # 200 million images
    config.sampler.num_steps = 40
    config.evaluate.paper = ConfigDict({"fid": 1.96})
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network, for tests."""
    config = CIFAR10["smoke"](config)
    config.data.size = 16
    config.net.update(channel_multipliers=(1,), attention_resolutions=())
    return config
