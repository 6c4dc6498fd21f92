"""The old name of `genfield.load_parameters`, for one release."""

import warnings

from genfield.machine import checkpoint


def load(workdir, *, step=None, item=None):
    """A run's parameters; use `genfield.load_parameters`."""
    warnings.warn("genfield.checkpoint.load is now genfield.load_parameters", stacklevel=2)
    return checkpoint.load(workdir, step=step, item=item)
