"""Lines Matching, AFHQ-v2 at 64x64, on the pairs of edm_afhq64.py (Tables 5 and 6).

Stages and commands as lines_cifar10.py; the paper has 2 million pairs.
"""

import edm_afhq64
from lines_cifar10 import at_64

from genfield.shipped import Recipe

FID = {"perceptual": 4.254, "adversarial": 1.545, "adversarial,sot": 1.776}  # Table 5
RECIPES = dict.fromkeys((*FID, "l2"), Recipe(61_805_571, "GPUs"))


def get_config(variant: str = "perceptual"):
    return at_64(edm_afhq64.get_config(), variant, 1e-4, 25_000, FID)
