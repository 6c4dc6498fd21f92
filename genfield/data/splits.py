"""Which examples train and which are held out, and whether they are decoded into memory."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from genfield.data.layouts import heldout as heldout_of
from genfield.data.pipeline import SPLIT_SEED, Examples, Feed, check_batch, from_arrays, subset
from genfield.data.pixels import load, nbytes
from genfield.errors import UserError
from genfield.registry import choose

DEFAULT_HELDOUT = "test"


class Splits(NamedTuple):
    """The fields of a config that choose examples; `images` says what each does."""

    split: str
    heldout_split: str | None
    heldout_fraction: float
    in_memory: bool | str
    memory_limit_gb: float
    max_images: int | None

    @property
    def limit(self) -> float:
        """How many bytes may be held in memory without being asked for."""
        return float("inf") if self.in_memory is True else self.memory_limit_gb * 1e9

    def check(self) -> None:
        """Raises UserError for values out of range."""
        if self.in_memory not in (True, False, "auto"):
            raise UserError(f"data.in_memory={self.in_memory!r} must be True, False or 'auto'")
        if not 0.0 <= self.heldout_fraction < 1.0:
            raise UserError(
                f"data.heldout_fraction={self.heldout_fraction} must lie between 0 and 1"
            )
        if self.max_images is not None and self.max_images < 1:
            raise UserError(f"data.max_images={self.max_images} must be positive or None")

    def settle(
        self,
        known: Mapping[str, Callable[[], Examples]],
        where: str,
        feed: Feed,
    ) -> tuple[Examples, Examples, str]:
        """The training and the held-out examples, and a line that says how many and which.

        In memory, if that is asked for or fits.

        Args:
          known: the examples of each split that exists.
          where: the data's name in messages.
        Raises:
          UserError: an absent split, fewer examples than a batch, image shapes that differ.
        """
        train = choose(f"split of {where}", self.split, known)()
        held = heldout_of(known, self.split, self.heldout_split)
        which = held
        if held == self.split:
            heldout, which = train, "the same"
        elif held in known:
            heldout = known[held]()
        elif held in (None, DEFAULT_HELDOUT):
            train, heldout = hold_out(train, self.heldout_fraction)
            which = f"{100 * self.heldout_fraction:g}% of them"
        else:
            choose(f"split of {where}", held, known)
        shapes = [s.gather(np.arange(min(1, s.size)))["x1"].shape[1:] for s in (train, heldout)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{where}: training images are {shapes[0]}, held-out ones {shapes[1]}: "
                "set data.size"
            )
        same = heldout is train
        train = at_most(train, self.max_images)
        heldout = train if same else at_most(heldout, self.max_images)
        check_batch(train, feed)  # before the long work
        needed = nbytes(train) + (0 if same else nbytes(heldout))
        line = f"{train.size:,} to train on, {heldout.size:,} held out ({which})"
        if self.in_memory is False or needed > self.limit:
            return train, heldout, line
        train = load(train, where, feed.log)
        return train, train if same else load(heldout, where, feed.log), line


def hold_out(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """Splits off the last `fraction` of a fixed permutation, at least one example, of 0 none.

    Raises:
      UserError: nothing is left to train on.
    """
    if fraction == 0:
        none = {name: values[:0] for name, values in examples.gather(np.arange(1)).items()}
        return examples, from_arrays(none)
    order = np.random.default_rng(SPLIT_SEED).permutation(examples.size)
    cut = examples.size - max(1, round(fraction * examples.size))
    if cut < 1:
        raise UserError(
            f"heldout_fraction {fraction} of {examples.size} examples leaves none to train on"
        )
    return subset(examples, np.sort(order[:cut])), subset(examples, np.sort(order[cut:]))


def at_most(examples: Examples, count: int | None) -> Examples:
    """`count` examples chosen by a fixed permutation, in their old order; None keeps all."""
    if count is None or count >= examples.size:
        return examples
    order = np.random.default_rng(SPLIT_SEED).permutation(examples.size)
    return subset(examples, np.sort(order[:count]))
