"""Flow matching on your own images, in whatever folder or archive they lie (docs/images.md).

`:small` trains at 32x32, about a quarter of an hour on two cores; `:medium`, the default, at 64x64
on one GPU.

    python -m genfield.main --config=configs/images.py:small --workdir=runs/mine \\
        --config.data.path=FOLDER

`--config.data.labels=True` adds the classes. Settings are ours.
"""

import shared

from genfield.shipped import Recipe

SIDES = {"small": 32, "medium": 64}
RECIPES = {"medium": Recipe(15_023_747, "a GPU"), "small": Recipe(622_323, "about 15 min")}


def get_config(size: str = "medium"):
    config = shared.images(every=2_000, size=shared.variant(size, SIDES))
    config.net = shared.network("unet", size, attention_levels=(2,))
    config.optimizer.update(name="adamw", b2=0.95, weight_decay=0.01)
    config.time = dict(name="skewed")
    config.loss = dict(name="flow_matching")
    config.sampler = dict(name="heun", num_steps=25)
    shared.reduced(config, size)
    # Batches for folders of few images too; figures that need many images wait to be asked for.
    config.train.eval_samples, config.checkpoint.best_metric = 64, "loss"
    config.evaluate.metrics = ("heldout_loss",)
    if size == "medium":
        config.net.channel_multipliers = (1, 2, 2, 2)
        config.batch_size, config.optimizer.learning_rate = 64, 2e-4
    else:
        config.batch_size, config.train.steps = 32, 1_500
        config.train.eval_every = config.checkpoint.every = 500
    return config
