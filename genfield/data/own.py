"""Data of one's own: an object with `shape`, a length and `gather(rows)`, made into a `Dataset`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genfield import registry
from genfield.data.identity import examples_hash
from genfield.data.pipeline import (
    MOST_CLASSES,
    SCANNED,
    SPLIT_SEED,
    Dataset,
    Examples,
    Feed,
    assemble,
    cheap,
    finite,
    short_hash,
    subset,
)
from genfield.errors import UserError

HELDOUT = 10_000  # at most, and at most a tenth
KEYS = ("x1", "x0", "label")
READ_FOR_LABELS = 1 << 16  # examples that are read for their labels alone
PROBES = 64  # examples that a fingerprint looks at


def open_source(
    where: str, table: Mapping[str, registry.DataSource], section: Mapping, feed: Feed
) -> Dataset:
    """The data set of a section; `where` names the section in messages."""
    source = registry.entry(where, table, section)
    if source.fed:
        return registry.build(where, table, section, feed=feed)
    return own(source.name, registry.build(where, table, section), feed)


def own(name: str, data: Any, feed: Feed, mark: str | None = None) -> Dataset:
    """A data set of an object with these attributes.

    Args:
      mark: of the contents, where they are known without a look at the examples. None: all of
        them are looked at, or, beyond CHEAP_BYTES, some.
      data: `shape`, of one example, channels last; `len(data)`; `gather(rows)` -> {"x1":
        [n, *shape], uint8 or floats; "label": [n] integers, if there are classes; "x0":
        [n, *shape] floats, of pairs with a source of their own}; and perhaps `num_classes` (else
        one more than the largest label), `class_names`, `labels` (all of them, [N]; without it
        those of very many examples are not checked), `where` (a place, for messages), `heldout`
        (another such object; else a tenth of the examples, by a fixed permutation, is held out).
    Raises:
      UserError: an attribute is missing, or what `gather` gives does not fit.
    """
    check(name, data)
    everything = _examples(name, data)
    held = getattr(data, "heldout", None)
    if held is not None:
        check(name, held)
        train, heldout = everything, _examples(name, held)
    else:
        rows = np.random.default_rng(SPLIT_SEED).permutation(everything.size)
        count = max(1, min(HELDOUT, everything.size // 10))
        train, heldout = subset(everything, rows[count:]), subset(everything, rows[:count])
    names = _class_names(name, data, everything)
    some = _some(everything)
    if mark is None:
        mark = examples_hash(everything, f"data {name!r}", feed.log) if cheap(everything) else some
    dataset = assemble(
        train,
        heldout,
        class_names=names,
        labels=bool(names),
        flip=False,
        fingerprint=short_hash("own", name, everything.size, mark),
        older=(short_hash("own", name, everything.size, some),),
        feed=feed,
    )
    paired = "x0" in everything.gather(np.arange(1))
    return dataset._replace(starts=heldout, source="own") if paired else dataset


def check(name: str, data: Any) -> None:
    """Raises UserError unless an object can be a source of data."""
    for attribute in ("shape", "__len__", "gather"):
        if not hasattr(data, attribute):
            raise UserError(
                f"data {name!r}: {type(data).__name__} has no {attribute!r}: a source has shape, "
                "len and gather(rows) -> {'x1': [n, *shape]}"
            )
    if len(data) < 2:
        raise UserError(f"data {name!r} has {len(data)} examples: some train, some are held out")
    batch = data.gather(np.arange(1))
    shape = tuple(data.shape)
    if "x1" not in batch or any(key not in KEYS for key in batch):
        raise UserError(
            f"data {name!r}: gather gives {', '.join(batch) or 'nothing'}, not x1 and perhaps "
            "x0 and label"
        )
    for key in [key for key in ("x1", "x0") if key in batch]:
        found = np.asarray(batch[key])
        if found.shape != (1, *shape) or not (found.dtype == np.uint8 or found.dtype.kind == "f"):
            raise UserError(
                f"data {name!r}: {key} of one row is {found.dtype} {list(found.shape)}, not uint8 "
                f"or floats of shape {[1, *shape]}"
            )


def _examples(name: str, data: Any) -> Examples:
    def gather(rows: np.ndarray) -> dict:
        batch = {key: np.asarray(values) for key, values in data.gather(rows).items()}
        for key, values in batch.items():
            if key != "label" and values.dtype != np.uint8:
                with np.errstate(over="ignore"):  # infinity is told below, with its row
                    batch[key] = np.asarray(values, np.float32)
        if "label" in batch:
            batch["label"] = _whole_labels(name, batch["label"])
        return batch

    size = len(data)
    labels = getattr(data, "labels", None)
    labels = labels if np.ndim(labels) == 1 else None  # a flag of that name is no list of labels
    if labels is not None and len(labels) != size:
        raise UserError(f"data {name!r}: labels are {len(labels)}, and there are {size} examples")
    has_labels = "label" in data.gather(np.arange(1))
    if has_labels and labels is None and size <= READ_FOR_LABELS:
        labels = np.concatenate(
            [
                gather(np.arange(start, min(start + SCANNED, size)))["label"]
                for start in range(0, size, SCANNED)
            ]
        )
    labels = _whole_labels(name, labels) if has_labels and labels is not None else None
    where = getattr(data, "where", None)
    where = f" ({where})" if isinstance(where, str | Path) else ""
    return finite(Examples(size, gather, labels=labels), f"data {name!r}{where}")


def _whole_labels(name: str, labels) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"data {name!r}: labels are {labels.dtype} {list(labels.shape)}, not whole numbers [N]"
        )
    if labels.size and labels.max() >= MOST_CLASSES:
        raise UserError(
            f"data {name!r}: labels reach {labels.max()}: number the classes from 0 on, at most "
            f"{MOST_CLASSES:,}"
        )
    return labels.astype(np.int32)


def _class_names(name: str, data: Any, examples: Examples) -> tuple[str, ...]:
    given = getattr(data, "class_names", None)
    if given is not None:
        return tuple(map(str, given))
    if "label" not in examples.gather(np.arange(1)):
        return ()
    count = getattr(data, "num_classes", None)
    if count is None and examples.labels is None:
        raise UserError(f"data {name!r} has labels, and must say num_classes or class_names")
    count = int(examples.labels.max()) + 1 if count is None else int(count)
    return tuple(map(str, range(count)))


def _some(examples: Examples) -> str:
    """A hash of some of the examples, evenly chosen."""
    rows = np.unique(np.linspace(0, examples.size - 1, PROBES).astype(int))
    batch = examples.gather(rows)
    return short_hash(*(np.ascontiguousarray(batch[key]).tobytes() for key in sorted(batch)))
