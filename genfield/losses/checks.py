"""One line where a loss is called with something else than a field and a PathSample."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from genfield.fields import checked
from genfield.paths import PathSample


def checks(loss: Callable) -> Callable:
    """The loss, which first looks at its field and its sample; what it computes stays the same.

    Raises (when called):
      TypeError: no field, or no PathSample.
    """

    @functools.wraps(loss)
    def call(field, sample, cond=None, **options):
        if not isinstance(sample, PathSample):
            array = isinstance(sample, jax.Array | np.ndarray)
            given = f"an array of shape {sample.shape}" if array else type(sample).__name__
            raise TypeError(
                f"{loss.__name__} takes a paths.PathSample, as paths.interpolate(path, x0, x1, t) "
                f"makes it, not {given}"
            )
        return loss(checked(field), sample, cond, **options)

    return call
