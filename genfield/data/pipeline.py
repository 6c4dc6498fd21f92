"""From two sets of examples to a `Dataset`: order, flips and a process's rows by (seed, step)."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from genfield.errors import UserError

# Splits, subsets and the order of held-out batches never depend on the seed of a run: two runs
# that differ in seed must not evaluate on each other's training images.
SPLIT_SEED = 20240229
MAX_THREADS = 16
MAX_SHOWN = 20  # classes that a message lists
ENDLESS = 1 << 62  # steps
CHEAP_BYTES = 1 << 30  # of examples that are looked at before the first step
SCANNED = 4096  # rows at a time
MOST_CLASSES = 1 << 20  # labels from there on are numbers of something else


class Examples(NamedTuple):
    """A finite set: `gather(rows)` gives {"x1": [n, *shape], "label": [n]}, label where known.

    `arrays` holds all of them where they are in memory; `labels` [size] are the labels, where they
    are known without reading the examples. `vary(rows, numbers)` gives them as training sees them,
    where that differs from time to time: example i is a function of rows[i] and numbers[i] alone.
    """

    size: int
    gather: Callable[[np.ndarray], dict]
    arrays: dict | None = None
    labels: np.ndarray | None = None
    vary: Callable[[np.ndarray, np.ndarray], dict] | None = None


class Latents(NamedTuple):
    """What is known of examples that are latents of an autoencoder.

    Attributes:
      scale, shift: an example is scale (latent - shift), of the latent as the autoencoder has it.
      autoencoder: SHA-256 of the weights that made them; None: not known.
      size: height and width of the images that they were, in pixels; None: not known.
    """

    scale: float
    shift: float = 0.0
    autoencoder: str | None = None
    size: int | None = None


class Dataset(NamedTuple):
    """What the training loop and the evaluation know of the data.

    Attributes:
      shape: of one example, channels last.
      num_classes: 0 where the data has no labels or they are off.
      class_names: in the order of the labels, which count from 0 in the order of `data.classes`
        where that leaves some out; empty where `num_classes` is 0.
      train: start_step -> endless iterator of this process's rows of each batch, {"x1": uint8
        [B/P, *shape], "label": int32 [B/P]}; it has a `close`. None for problems drawn on the
        device.
      heldout: (index, batch_size, rows=None) -> these rows, or all, of the index-th global batch of
        held-out examples, cycling; the same whatever the seed of the run. Float32 for problems
        drawn on the device. None where nothing is held out; `examples` has no "test" then.
      draw: (key, n) -> x1 [n, *shape]; None for data fed from the host.
      draw_source: (key, n) -> x0 [n, *shape]; None is standard normal.
      sizes: {"train": n, "test": m}; 0 is endless.
      examples: {"train": Examples, "test": Examples}, without flips; empty where drawn. With
        `data.classes` also "other_classes": the held-out examples of the classes that are left out
        of training, if there are any, without labels.
      pixels: whether the examples are images, uint8, whose samples can be shown and judged.
      fingerprint: of the examples themselves, where they are images; changes with `data.classes`.
      state: step -> what a checkpoint keeps, {"step", "seed", "fingerprint"}.
      source: the name of what `draw_source` draws.
      older: fingerprints that earlier versions gave these data: runs of theirs go on.
      starts: held-out examples with "x0", where a sample begins at the source of a pair (image to
        image): sample i at the i-th of them, cycling; None: noise.
      latents: what is known of them where the examples are latents; None: they are none.
    """

    shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...]
    train: Callable[[int], Iterator[dict]] | None
    heldout: Callable[[int, int], dict] | None
    draw: Callable | None
    draw_source: Callable | None
    sizes: dict
    examples: dict[str, Examples]
    pixels: bool
    fingerprint: str
    state: Callable[[int], dict]
    source: str = "normal"
    starts: Examples | None = None
    older: tuple[str, ...] = ()
    latents: Latents | None = None


class Feed(NamedTuple):
    """What the program, not the config, tells a source.

    sources: all that are known, by name, for a source that is made of others.
    rows: of each global batch, that this process yields; None: its share by its number.
    """

    batch_size: int
    seed: int
    process_index: int
    process_count: int
    log: Callable[[str], None]
    sources: Mapping[str, Any] = {}
    rows: np.ndarray | None = None

    def own_rows(self) -> np.ndarray:
        """Those of each global batch that this process yields."""
        if self.rows is not None:
            return self.rows
        share = self.batch_size // self.process_count
        return self.process_index * share + np.arange(share)


def from_arrays(arrays: dict) -> Examples:
    """Examples from arrays that share their first axis; those mapped from the disk stay there."""
    gather = lambda rows: {k: v[rows] for k, v in arrays.items()}
    mapped = any(isinstance(values, np.memmap) for values in arrays.values())
    return Examples(len(arrays["x1"]), gather, None if mapped else arrays, arrays.get("label"))


def subset(examples: Examples, rows: np.ndarray) -> Examples:
    """The examples at `rows`, in that order."""
    if examples.arrays is not None:
        return from_arrays(examples.gather(rows))
    labels, vary = None if examples.labels is None else examples.labels[rows], None
    if examples.vary is not None:
        vary = lambda inner, numbers: examples.vary(rows[inner], numbers)
    return Examples(len(rows), lambda inner: examples.gather(rows[inner]), labels=labels, vary=vary)


def cheap(examples: Examples) -> bool:
    """Whether all examples can be looked at before the first step without a wait."""
    one = examples.gather(np.arange(1)).values()
    return examples.size * sum(values.nbytes for values in one) <= CHEAP_BYTES


def finite(examples: Examples, where: str) -> Examples:
    """The same examples, which raise UserError where one holds NaN or infinity.

    All are looked at now where they are no more than CHEAP_BYTES, else each when it is read.
    `where` names the data in messages, with the row.
    """

    def gather(rows: np.ndarray) -> dict:
        batch = examples.gather(rows)
        for key, values in batch.items():
            if values.dtype.kind != "f":
                continue
            bad = rows[~np.isfinite(values.reshape(len(values), -1)).all(1)]
            if len(bad):
                raise UserError(
                    f"{where}: {key} of row {bad.min()} is NaN or infinite, as float32: mend that "
                    "row, or leave it out"
                )
        return batch

    if cheap(examples):
        for start in range(0, examples.size, SCANNED):
            gather(np.arange(start, min(start + SCANNED, examples.size)))
    return examples._replace(gather=gather)


def short_hash(*parts) -> str:
    """Sixteen hex digits that depend on the parts' printed forms."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def iterator_state(seed: int, fingerprint: str) -> Callable[[int], dict]:
    """step -> the JSON-able state; (seed, step) alone decides every later batch."""
    return lambda step: {"step": int(step), "seed": int(seed), "fingerprint": fingerprint}


def check_batch(train: Examples, feed: Feed) -> None:
    """Raises UserError where a batch is larger than the training set."""
    if feed.batch_size > train.size:
        raise UserError(
            f"batch_size {feed.batch_size} exceeds the {train.size} training examples: lower "
            "config.batch_size"
        )


def check_classes(classes: tuple[int, ...], class_names: tuple[str, ...]) -> None:
    """Raises UserError unless `data.classes` are some of the labels, each named once."""
    if not class_names:
        raise UserError("data.classes is set but this data has no labels: set data.classes=None")
    numbers = range(len(class_names))
    shown = [str(i) if class_names[i] == str(i) else f"{i} ({class_names[i]})" for i in numbers]
    if len(shown) > MAX_SHOWN:
        shown[MAX_SHOWN:-1] = ["…"]
    which, known = f"data.classes={tuple(classes)!r}", f"Known: {', '.join(shown)}"
    if not classes:
        raise UserError(f"{which} leaves nothing to train on: name some labels. {known}")
    for label in classes:
        if type(label) is not int or label not in numbers:
            raise UserError(f"{which}: {label!r} is no label of this data. {known}")
    if len(set(classes)) < len(classes):
        raise UserError(f"{which} names a label twice. {known}")


def part_classes(
    train: Examples, heldout: Examples, classes: tuple[int, ...], which: str
) -> tuple[Examples, Examples, Examples]:
    """Training and held-out examples of some labels, and the held-out ones of all others.

    The labels become 0, 1, … in the order of `classes`, which messages call `which`; the others
    lose theirs, as no network knows them.

    Raises:
      UserError: a class without a training example, or no held-out example of any.
    """
    absent = [label for label in classes if label not in train.labels]
    if absent:
        raise UserError(f"{which}: no training example has the label {absent[0]}: leave it out")
    inside = np.isin(heldout.labels, classes)
    if heldout.size and not inside.any():
        raise UserError(f"{which}: no held-out example has one of these labels: name more")
    numbers = np.zeros(max(classes) + 1, np.int32)
    numbers[list(classes)] = np.arange(len(classes))
    relabel = lambda batch: batch | {"label": numbers[batch["label"]]}
    return (
        _changed(subset(train, np.flatnonzero(np.isin(train.labels, classes))), relabel),
        _changed(subset(heldout, np.flatnonzero(inside)), relabel),
        _changed(subset(heldout, np.flatnonzero(~inside)), lambda batch: _select(batch, False)),
    )


def trained_classes(
    train: Examples, heldout: Examples, class_names: tuple[str, ...], feed: Feed
) -> tuple[int, ...] | None:
    """The labels that some training example has; None where all have, or where none are known.

    What is left out would be sampled and judged with a network that never saw it, so it is named
    in a line. Labels of very many examples that can only be had by reading them all are taken as
    they come, which is said too.

    Raises:
      UserError: labels below 0 or beyond the classes.
    """
    count = len(class_names)
    if train.labels is None or heldout.labels is None:
        feed.log(f"labels: not checked whether each of {count:,} classes has a training example")
        return None
    used = np.unique(train.labels)
    if used[0] < 0 or used[-1] >= count:
        raise UserError(
            f"labels go from {used[0]} to {used[-1]}, and there are {count} classes, counted from "
            "0: mend the labels or the number of classes"
        )
    absent = [class_names[c] for c in np.setdiff1d(np.arange(count), used)]
    if not absent:
        return None
    if heldout.size and not np.isin(heldout.labels, used).any():
        raise UserError(
            "labels: no held-out example is of a class that has training examples: hold out others "
            "(data.heldout_split, heldout_fraction), or take more examples"
        )
    shown = ", ".join(absent[:MAX_SHOWN]) + (", …" if len(absent) > MAX_SHOWN else "")
    feed.log(
        f"labels: {len(absent):,} of {count:,} classes have no training example and are left out "
        f"({shown}); the other {len(used):,} are numbered from 0"
    )
    return tuple(map(int, used))


def _changed(examples: Examples, change: Callable[[dict], dict]) -> Examples:
    """The examples with change(batch) for each batch of them."""
    if examples.arrays is not None:
        return from_arrays(change(examples.arrays))
    vary = examples.vary
    if vary is not None:
        vary = lambda rows, numbers: change(examples.vary(rows, numbers))
    return Examples(examples.size, lambda rows: change(examples.gather(rows)), vary=vary)


def assemble(
    train: Examples,
    heldout: Examples,
    *,
    class_names: tuple[str, ...],
    labels: bool,
    flip: bool,
    fingerprint: str,
    feed: Feed,
    classes: tuple[int, ...] | None = None,
    older: tuple[str, ...] = (),
) -> Dataset:
    """The data set that feeds `train` and evaluates on `heldout`, which may be empty.

    Args:
      class_names: of all labels; empty where the examples have none.
      labels: whether batches carry labels.
      flip: mirror each training image with probability 1/2.
      fingerprint: of the contents; the size of the training set and the classes are added.
      older: what earlier versions gave in its place.
      classes: train and evaluate on these labels alone, numbered anew from 0 in this order.
    Raises:
      UserError: labels wanted and absent; a batch larger than the training set; classes that
        `check_classes` or `trained_classes` refuses, or of which there is no example.
    """
    if labels and not class_names:
        raise UserError("data.labels is on but this data has no labels: set data.labels=False")
    others, which = {}, f"data.classes={tuple(classes or ())!r}"
    if classes is not None:
        check_classes(classes, class_names)
    elif labels:
        classes, which = trained_classes(train, heldout, class_names, feed), "classes"
    if classes is not None:
        train, heldout, left_out = part_classes(train, heldout, classes, which)
        others = {"other_classes": left_out} if left_out.size else {}
        class_names = tuple(class_names[c] for c in classes)
    check_batch(train, feed)
    part = (lambda mark: mark) if classes is None else lambda mark: short_hash(mark, tuple(classes))
    fingerprint, *older = (short_hash(part(m), train.size) for m in (fingerprint, *older))
    order = np.random.default_rng(SPLIT_SEED).permutation(heldout.size)

    def heldout_batch(index: int, batch_size: int, rows: np.ndarray | None = None) -> dict:
        numbers = np.arange(batch_size) if rows is None else rows
        places = (index * batch_size + numbers) % heldout.size
        return _select(heldout.gather(order[places]), labels)

    first = train.gather(np.arange(1))["x1"]
    return Dataset(
        shape=tuple(first.shape[1:]),
        num_classes=len(class_names) if labels else 0,
        class_names=class_names if labels else (),
        train=_train_batches(train, labels, flip, feed),
        heldout=heldout_batch if heldout.size else None,
        draw=None,
        draw_source=None,
        sizes={"train": train.size, "test": heldout.size},
        examples={"train": train} | ({"test": heldout} if heldout.size else {}) | others,
        pixels=first.dtype == np.uint8,
        fingerprint=fingerprint,
        state=iterator_state(feed.seed, fingerprint),
        older=tuple(older),
    )


def _select(batch: dict, labels: bool) -> dict:
    return {k: v for k, v in batch.items() if k != "label" or labels}


def _train_batches(
    train: Examples, labels: bool, flip: bool, feed: Feed
) -> Callable[[int], Iterator[dict]]:
    row_numbers = _row_numbers(train.size, feed.batch_size, feed.seed)
    mine = feed.own_rows()

    def draw_flips(batch, rng: np.random.Generator):
        # For the whole batch, before some are taken: processes must not share draws.
        return *batch, rng.random(feed.batch_size) < 0.5

    def gather(batch) -> dict:
        rows, numbers, mirrored = (column[mine] for column in batch)
        batch = train.gather(rows) if train.vary is None else train.vary(rows, numbers)
        batch = _select(batch, labels)
        if flip:
            batch["x1"][mirrored] = batch["x1"][mirrored, :, ::-1]
        return batch

    steps = grain.MapDataset.range(ENDLESS).seed(feed.seed)
    numbered = lambda step: (row_numbers(step), step * feed.batch_size + np.arange(feed.batch_size))
    batches = steps.map(numbered).random_map(draw_flips).map(gather)
    # Decoding wants threads; gathering from memory wants one, which runs beside the step.
    threads = 1 if train.arrays is not None else min(MAX_THREADS, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return lambda start_step: iter(batches[start_step:].to_iter_dataset(options))


def _row_numbers(size: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """step -> the global batch's rows; epochs are permutations and may end inside a batch.

    Not grain's own shuffle().repeat().batch(): that costs milliseconds an element on small data
    and overflows with batches of one (grain 0.2.18).
    """

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(size)

    def row_numbers(step: int) -> np.ndarray:
        epoch, place = np.divmod(step * batch_size + np.arange(batch_size), size)
        first, last = order(int(epoch[0])), order(int(epoch[-1]))
        return np.where(epoch == epoch[0], first[place], last[place])

    return row_numbers
