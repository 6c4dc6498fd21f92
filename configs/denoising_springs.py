"""Stable-target denoising on the springs of flux_matching_springs.py, the same in all but the loss.

`:causal`, `:full`, `:causal,small` and `:full,small` (Pao-Huang et al., "Generative Modeling with
Flux Matching", B.5).
"""

import runpy
from pathlib import Path

FLUX = runpy.run_path(str(Path(__file__).with_name("flux_matching_springs.py")))
smoke = FLUX["smoke"]


def get_config(variant: str = "causal"):
    return FLUX["get_config"](variant, "denoising")
