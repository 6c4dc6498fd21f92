"""Lines Matching, class-conditional ImageNet at 64x64, on the pairs of edm_imagenet64.py (Tables 4
and 6).

Stages and commands as lines_cifar10.py; the paper has 4 million pairs.
"""

import edm_imagenet64
from lines_cifar10 import at_64

from genfield.shipped import Recipe

FID = {"perceptual": 5.472, "adversarial": 1.318, "adversarial,sot": 1.167}  # Table 4
RECIPES = dict.fromkeys((*FID, "l2"), Recipe(295_899_267, "GPUs"))


def get_config(variant: str = "perceptual"):
    return at_64(edm_imagenet64.get_config(), variant, 8e-6, 30_000, FID)
