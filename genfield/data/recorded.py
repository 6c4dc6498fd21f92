"""What a run keeps of its data, so that it samples, opens and is studied where they are not."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genfield.data import toys
from genfield.data.pipeline import Dataset, Latents, iterator_state
from genfield.errors import UserError
from genfield.reading import json_file

FILE = "data.json"


def facts(dataset: Dataset) -> dict:
    """All that is known of a data set without reading it again, as JSON types."""
    return {
        "shape": list(dataset.shape),
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "pixels": bool(dataset.pixels),
        "fingerprint": dataset.fingerprint,
        "older": list(dataset.older),
        "source": dataset.source,
        "sizes": list(dataset.sizes.items()),
        "examples": list(dataset.examples),
        "starts": dataset.starts is not None,
        "latents": None if dataset.latents is None else dataset.latents._asdict(),
    }


def read(workdir: Path) -> dict | None:
    """The facts that a run kept; None where it is older than they are, or its data are drawn.

    Raises:
      UserError: a file that is damaged.
    """
    path = Path(workdir) / FILE
    if not path.exists():
        return None
    try:
        found = json_file(path)
        dataset(found, lambda: None, 0)
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete it, and the data themselves are read"
        ) from error


class Later:
    """An object that is opened when something of it is asked for."""

    def __init__(self, opened: Callable[[], Any]):
        self._opened = opened

    def __getattr__(self, name: str):
        return getattr(self._opened(), name)


def dataset(known: dict, create: Callable[[], Dataset], seed: int) -> Dataset:
    """The data set of these facts, which `create` opens when its examples are first asked for.

    Raises, then:
      UserError: what `create` raises, and data that are not those of the facts.
    """

    @functools.cache
    def opened() -> Dataset:
        found = create()
        if found.fingerprint != known["fingerprint"]:
            raise UserError(
                f"the data differ from what the run was trained on (fingerprint "
                f"{found.fingerprint}, not {known['fingerprint']}): point config.data.path to the "
                "same files"
            )
        return found

    return Dataset(
        shape=tuple(known["shape"]),
        num_classes=known["num_classes"],
        class_names=tuple(known["class_names"]),
        train=lambda start_step: opened().train(start_step),
        heldout=(lambda *arguments: opened().heldout(*arguments))
        if "test" in known["examples"]
        else None,
        draw=None,
        draw_source=toys.DISTRIBUTIONS.get(known["source"]),
        sizes=dict(known["sizes"]),
        examples={
            name: Later(lambda name=name: opened().examples[name]) for name in known["examples"]
        },
        pixels=known["pixels"],
        fingerprint=known["fingerprint"],
        state=iterator_state(seed, known["fingerprint"]),
        source=known["source"],
        starts=Later(lambda: opened().starts) if known["starts"] else None,
        older=tuple(known.get("older", ())),
        latents=Latents(**known["latents"]) if known.get("latents") else None,
    )
