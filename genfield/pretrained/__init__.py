"""Published weights: autoencoders of images.

    genfield.pretrained.autoencoder("sd-vae-ft-ema.safetensors")

Every name is imported when it is first used.
"""

import importlib

NAMES = {"Autoencoder": "autoencoders", "autoencoder": "autoencoders"}
__all__ = [*NAMES]


def __getattr__(name: str):
    if name not in NAMES:
        raise AttributeError(f"module 'genfield.pretrained' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"genfield.pretrained.{NAMES[name]}"), name)
    globals()[name] = value
    return value
