"""Lines Matching, two moons: the pairs of a teacher (edm_two_moons.py) joined by straight lines.

    python -m genfield.main --config=configs/lines_two_moons.py --workdir=runs/lines \\
        --config.data.path=runs/teacher/pairs/step_20000

`:1`, `:2` (the default) and `:3` sample in so many steps; `:flow` is 2-rectified flow on the same
pairs (arXiv:2209.03003).
"""

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import choose

STEPS = {"1": (0,), "2": (0, 1), "3": (0, 3, 5), "flow": None}


def get_config(variant: str = "2"):
    indices = choose("variant of this config", variant, STEPS)
    config = configuration.base()
    config.data = ConfigDict({"name": "pairs", "path": config_dict.placeholder(str)})
    config.data.real = ConfigDict({"name": "two_moons"})  # for the metrics
    config.net = ConfigDict(
        {"name": "mlp", "width": 128, "depth": 3, "activation": "silu", "time_input": True}
    )
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 1.8
    config.time = ConfigDict({"name": "schedule", "schedule_steps": 18})
    config.loss = ConfigDict({"name": "lines_matching"})
    config.sampler = ConfigDict({"name": "multistep", "indices": indices, "noise": "line"})
    if variant == "flow":
        config.path, config.preconditioning = "linear", "none"
        config.time = ConfigDict({"name": "uniform"})
        config.loss = ConfigDict({"name": "flow_matching"})
        config.sampler = ConfigDict({"name": "euler", "num_steps": 2})
    config.batch_size = 512
    config.optimizer.name, config.optimizer.schedule = "radam", "cosine"
    config.ema.rate = 0.999
    config.train.steps = config.checkpoint.every = 20_000
    config.train.log_every = 500
    config.sample.num = config.sample.batch_size = config.evaluate.num_samples = 10_000
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    return config


def smoke(config):
    """Shrinks the config to two steps, for tests."""
    config.net.update(width=16, depth=2)
    config.batch_size = 16
    config.train.steps = config.train.log_every = 2
    config.sample.batch_size = config.evaluate.num_samples = config.evaluate.transport_points = 64
    config.train.eval_batches = 1
    return config
