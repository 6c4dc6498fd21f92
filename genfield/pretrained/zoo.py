"""The model zoo: small trained models that come with the package, opened by name.

    genfield.pretrained.load("digits/distance_marching")

Of each the folder `models` holds NAME.safetensors, an export; NAME.json, its card; NAME.png, its
samples. `python reproduce/zoo.py` trains and writes them anew; docs/zoo.md is their table.
"""

from pathlib import Path
from typing import Any

from genfield.reading import json_file
from genfield.shipped import MODELS

ENDING = ".safetensors"


def names() -> list[str]:
    """All models, as `load` takes them."""
    return sorted(
        f.relative_to(MODELS).with_suffix("").as_posix() for f in MODELS.rglob(f"*{ENDING}")
    )


def place(name: object) -> Path | None:
    """The file of a model; None where nothing is called so."""
    return MODELS / f"{name}{ENDING}" if str(name) in names() else None


def card(name: str) -> dict[str, Any]:
    """What is known of a model: config, command, metrics with their spread, hash, size.

    Raises:
      KeyError: no model is called so.
    """
    file = place(name)
    if file is None:
        raise KeyError(name)
    return json_file(file.with_suffix(".json"))
