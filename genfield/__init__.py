"""Generative fields in JAX.

    import genfield

    genfield.losses, genfield.sampling, genfield.couplings   # pure functions, no Flax needed
    run = genfield.open_run("runs/digits")                    # a trained run

Every name is imported when it is first used, so that the core works where Flax, grain or orbax are
absent.
"""

import importlib

__version__ = "0.1.0"

MODULES = ("couplings", "data", "fields", "guidance", "losses", "metrics", "nets", "paths")
MODULES += ("registry", "sampling", "scores")
NAMES = {
    "Field": "fields",
    "Prediction": "fields",
    "Path": "paths",
    "PathSample": "paths",
    "interpolate": "paths",
    "Loss": "losses",
    "Sampler": "sampling",
    "sample": "sampling",
    "Run": "program.open_run",
    "open_run": "program.open_run",
    "load_parameters": "program.open_run",
}
__all__ = [*MODULES, *NAMES]


def __getattr__(name: str):
    if name in MODULES:
        return importlib.import_module(f"genfield.{name}")
    if name in NAMES:
        value = getattr(importlib.import_module(f"genfield.{NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'genfield' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
