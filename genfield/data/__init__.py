"""Data: `create(config, ...)` gives a `Dataset`, whichever source the config names.

Sources: 2-D problems drawn on the device (`toys`), `images` (folders, archives, .npz, Hugging
Face's columns), `digits` (scikit-learn's 8x8), `latents` (arrays on disk), `arrays` (.npy, .npz),
`pairs` (of noise and what became of it), `springs` (trajectories of two masses), `cells` (spliced
and unspliced counts) and `tfds` (prepared TFDS data sets, without TensorFlow). `own` makes one of
any object with `shape`, `len` and `gather(rows)`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from genfield import registry
from genfield.data import identity
from genfield.data.own import open_source
from genfield.data.pipeline import Dataset, Feed
from genfield.data.pixels import to_uint8, to_unit
from genfield.data.toys import DISTRIBUTIONS
from genfield.errors import UserError

__all__ = ["DISTRIBUTIONS", "Dataset", "create", "known", "to_uint8", "to_unit"]


@functools.cache
def known() -> Mapping[str, registry.DataSource]:
    """The sources of the package, by name."""
    return registry.Methods(registry.find(__name__))[registry.DataSource]


def create(
    config: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    rows: np.ndarray | None = None,
    log: Callable[[str], None] | None = None,
    table: Mapping[str, registry.DataSource] | None = None,
) -> Dataset:
    """The data set of a config section: its `name` picks the source, its fields are passed on.

    Args:
      config: a mapping with `name` and the fields of that source.
      batch_size: the global batch, summed over processes.
      seed: decides the order of the examples and their flips; together with the step, nothing
        else does.
      process_index, process_count: this process yields rows [r B/P, (r+1) B/P) of each batch.
      rows: it yields these instead, which its devices hold: `sharding.local_rows`.
      log: told one line at a time what takes longer than two seconds.
      table: sources by name; None: those of the package.
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
    table = known() if table is None else table
    told = log or (lambda line: None)
    feed = Feed(batch_size, seed, process_index, process_count, told, table, rows)
    identity.watch_none()
    return open_source("data", table, config, feed)
