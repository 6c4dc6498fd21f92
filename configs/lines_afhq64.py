"""Lines Matching, AFHQ-v2 at 64x64, on the pairs of edm_afhq64.py (Tables 5 and 6).

Stages and commands as lines_cifar10.py; the paper has 2 million pairs.
"""

import runpy
from pathlib import Path

CIFAR10, TEACHER = (
    runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))
    for name in ("lines_cifar10", "edm_afhq64")
)


def get_config(variant: str = "perceptual"):
    fid = {"perceptual": 4.254, "adversarial": 1.545, "adversarial,sot": 1.776}
    return CIFAR10["at_64"](TEACHER["get_config"](), variant, 1e-4, 25_000, fid)


def smoke(config):
    """Shrinks the config to two steps of a tiny network with random features, for tests."""
    return CIFAR10["smoke"](config)
