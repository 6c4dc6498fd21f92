"""Lines Matching, AFHQ-v2 at 64x64, on the pairs of edm_afhq64.py (Tables 5 and 6).

Stages and commands as lines_cifar10.py, `:small` left out.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

CIFAR10, TEACHER = (
    runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))
    for name in ("lines_cifar10", "edm_afhq64")
)


def get_config(variant: str = "perceptual"):
    config = CIFAR10["get_config"](variant)
    teacher = TEACHER["get_config"]()
    config.net = teacher.net
    config.net.dropout = 0.0
    config.time.schedule_steps = 40
    config.sampler.schedule_steps = 40
    config.optimizer.learning_rate = 1e-4
    config.train.steps = 25_000 if "adversarial" in variant else 80_000
    if "real" in config.data:
        config.data.real = teacher.data
        config.data.real.flip = True
    fid = {"perceptual": 4.254, "adversarial": 1.545, "adversarial,sot": 1.776}
    config.evaluate.paper = ConfigDict({"fid": fid[variant]} if variant in fid else {})
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network with random features, for tests."""
    return CIFAR10["smoke"](config)
