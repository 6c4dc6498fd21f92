"""Lines Matching, class-conditional ImageNet at 64x64, on the pairs of edm_imagenet64.py (Tables 4
and 6).

Stages and commands as lines_cifar10.py; the paper has 4 million pairs.
"""

import runpy
from pathlib import Path

CIFAR10, TEACHER = (
    runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))
    for name in ("lines_cifar10", "edm_imagenet64")
)


def get_config(variant: str = "perceptual"):
    fid = {"perceptual": 5.472, "adversarial": 1.318, "adversarial,sot": 1.167}
    return CIFAR10["at_64"](TEACHER["get_config"](), variant, 8e-6, 30_000, fid)


def smoke(config):
    """Shrinks the config to two steps of a tiny network with random features, for tests."""
    config = CIFAR10["smoke"](config)
    del config.net.attention_resolutions
    config.net.update(channels=16, attention_levels=(1,), head_channels=8, dtype="float32")
    return config
