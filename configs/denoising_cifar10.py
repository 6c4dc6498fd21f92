"""Stable-target denoising (Xu et al., arXiv:2302.00670), CIFAR-10: Flux Matching's baseline.

The same as flux_matching_cifar10.py in all but the loss; `:medium` and `:small` as there
(Pao-Huang et al., "Generative Modeling with Flux Matching", B.3).

Needs --config.data.path=…, a folder or archive of split/class/*.png|jpg, or an .npz.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

FLUX = runpy.run_path(str(Path(__file__).with_name("flux_matching_cifar10.py")))
smoke = FLUX["smoke"]


def get_config(size: str = "full"):
    config = FLUX["get_config"](size)
    group = config.loss.group_size
    config.loss = ConfigDict({"name": "denoising", "stable_target": True, "group_size": group})
    paper = {"fid": 4.74, "inception_score": 8.52, "bits_per_dim": 3.16}  # Table 1
    config.evaluate.paper = ConfigDict(paper if size == "full" else {})
    return config
