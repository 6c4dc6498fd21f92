"""scikit-learn's bundled 8x8 digits: real images that need no download."""

import numpy as np

from genfield import registry
from genfield.data.pipeline import SPLIT_SEED, Dataset, Feed, assemble, from_arrays, subset
from genfield.errors import UserError

TRAIN = 1500  # of 1797


def digits(labels: bool = False, classes: tuple[int, ...] | None = None, *, feed: Feed) -> Dataset:
    """The digits as uint8 [8, 8, 1], 10 classes, 1,500 to train on and 297 held out.

    The split is the same for every run; values 0..16 become 0..255.

    Args:
      labels: class conditioning.
      classes: the digits to train on and hold out, as for `images`; None: all ten.
    Raises:
      UserError: scikit-learn is not installed, `classes` that are no digits.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "data 'digits' needs scikit-learn: pip install 'genfield[digits]'"
        ) from error
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    everything = from_arrays({"x1": images, "label": bunch.target.astype(np.int32)})
    order = np.random.default_rng(SPLIT_SEED).permutation(everything.size)
    return assemble(
        subset(everything, order[:TRAIN]),
        subset(everything, order[TRAIN:]),
        class_names=tuple(map(str, range(10))),
        labels=labels,
        flip=False,
        fingerprint="scikit-learn digits",
        feed=feed,
        classes=classes,
    )


METHOD = registry.DataSource(
    name="digits",
    make=digits,
    holds="images",
    drawn=False,
    beside_pairs=True,
    fed=True,
)
