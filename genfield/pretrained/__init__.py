"""Published weights: opened as genfield's networks and fields, and written under their names.

    from genfield import pretrained

    model = pretrained.load("EqM-XL-2.pt", kind="eqm")
    print(model.info)
    model.field(x, None, labels)  # channels last, in genfield's sign and time
    pretrained.export("runs/digits", "digits.safetensors")

A family of networks is a file of `families/`; see docs/pretrained.md.
"""

import importlib

NAMES = {
    "load": "pretrained.loading",
    "Pretrained": "pretrained.loading",
}
__all__ = [*NAMES]


def __getattr__(name: str):
    if name in NAMES:
        value = getattr(importlib.import_module(f"genfield.{NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'genfield.pretrained' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
