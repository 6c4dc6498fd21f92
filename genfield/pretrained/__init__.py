"""Published weights: opened as genfield's networks and fields, and written under their names.

    from genfield import pretrained

    model = pretrained.load("EqM-XL-2.pt", kind="eqm")
    print(model.info)
    model.field(x, None, labels)  # channels last, in genfield's sign and time
    pretrained.export("runs/digits", "digits.safetensors")
    pretrained.autoencoder("sd-vae-ft-ema.safetensors").decode(latents)

A family of networks is a file of `families/`; see docs/pretrained.md. Every name is imported when
it is first used.
"""

import importlib

NAMES = {
    "Autoencoder": "pretrained.autoencoders",
    "Pretrained": "pretrained.loading",
    "autoencoder": "pretrained.autoencoders",
    "export": "program.published",
    "load": "program.published",
}
__all__ = [*NAMES]


def __getattr__(name: str):
    if name not in NAMES:
        raise AttributeError(f"module 'genfield.pretrained' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"genfield.{NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
