"""Weights for the cases of published.npz, from their names and shapes."""

import math

import numpy as np


def weights_of(shapes: dict) -> dict[str, np.ndarray]:
    """Random weights for names and shapes; filters and tables are what they must be."""
    random, made = np.random.RandomState(0), {}
    for name, shape in sorted(shapes.items()):
        values = random.standard_normal(shape)
        if name.endswith("resample_filter"):
            taps = np.array([1, 1] if shape[-1] == 2 else [1, 3, 3, 1])
            values = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
        elif name == "u":
            values = iddpm_levels()
        elif len(shape) == 1:
            values = ("weight" in name) + 0.3 * values
        else:
            values = values / math.sqrt(np.prod(shape[1:]))
        if name == "label_emb.weight":
            values[-1] = 0.0
        made[name] = values.astype(np.float32)
    return made


def iddpm_levels() -> np.ndarray:
    """EDM's table for iDDPM, from the highest level down."""
    alpha = np.sin(0.5 * np.pi * np.arange(1001) / 1000 / 1.008) ** 2
    levels = [0.0]
    for j in range(1000, 0, -1):
        levels.append(np.sqrt((levels[-1] ** 2 + 1) / max(alpha[j - 1] / alpha[j], 1e-3) - 1))
    return np.array(levels[::-1])
