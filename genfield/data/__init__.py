"""Data: `create(config, ...)` gives a `Dataset`, whichever source the config names.

Sources: 2-D problems drawn on the device (`toys`), `images` (folder, tar archive or .npz),
`digits` (scikit-learn's 8x8), `latents` (arrays on disk), `pairs` (of noise and what became of it),
`springs` (trajectories of two masses), `cells` (spliced and unspliced counts) and `tfds` (prepared
TFDS data sets, without TensorFlow).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from genfield.data import cells, digits, images, latents, pairs, prepared, springs, toys
from genfield.data.pipeline import Dataset, Feed
from genfield.data.pixels import to_uint8, to_unit
from genfield.data.toys import DISTRIBUTIONS
from genfield.errors import UserError, build

__all__ = ["DISTRIBUTIONS", "SOURCES", "Dataset", "create", "to_uint8", "to_unit"]

SOURCES: dict[str, Callable[..., Dataset]] = {
    **{name: partial(toys.toy, name) for name in DISTRIBUTIONS},
    "cells": cells.cells,
    "digits": digits.digits,
    "images": images.images,
    "latents": latents.latents,
    "pairs": pairs.pairs,
    "springs": springs.springs,
    "tfds": prepared.tfds,
}


def create(
    config: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    log: Callable[[str], None] | None = None,
) -> Dataset:
    """The data set of a config section: its `name` picks the source, its fields are passed on.

    Args:
      config: a mapping with `name` (a key of `SOURCES`) and the fields of that source.
      batch_size: the global batch, summed over processes.
      seed: decides the order of the examples and their flips; together with the step, nothing
        else does.
      process_index, process_count: this process yields rows [r B/P, (r+1) B/P) of each batch.
      log: told one line at a time what takes longer than two seconds.
    Raises:
      UserError: unknown names or fields, data that is absent or unreadable, a batch that does
        not divide among the processes or exceeds the data.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} does not divide among {process_count} processes: "
            "choose a positive multiple"
        )
    if seed < 0:
        raise UserError(f"seed {seed} must not be negative")
    feed = Feed(batch_size, seed, process_index, process_count, log or (lambda line: None))
    return build("data", SOURCES, config, feed=feed)
