"""EDM's denoiser, AFHQ-v2 at 64x64 (arXiv:2206.00364, Table 7): the teacher of lines_afhq64.py.

As edm_cifar10.py but for what follows. Needs --config.data.path=…, a folder, archive or .npz of
images.
"""

import edm_cifar10

from genfield.shipped import Recipe

RECIPES = {"": Recipe(61_805_571, "GPUs")}


def get_config():
    config = edm_cifar10.get_config()
    config.data.size = 64
    config.net.update(channel_multipliers=(1, 2, 2, 2), dropout=0.25)
    config.augmentation = 0.15
    config.batch_size = 256
    config.optimizer.update(learning_rate=2e-4, warmup_steps=39_000)  # 10 million images
    config.train.steps = 781_250  # 200 million images
    config.sampler.num_steps = 40  # 79 evaluations
    config.evaluate.paper = dict(fid=1.96)  # Table 2
    return config
