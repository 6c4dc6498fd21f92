"""The old name of `genfield.open_run`, for one release."""

import warnings

from genfield.program.open_run import open_run as _open_run


def open_run(workdir, step=None, *, best: bool = False):
    """The experiment, its parameters and their step; use `genfield.open_run`."""
    warnings.warn("genfield.jobs.open_run is now genfield.open_run: it gives a Run", stacklevel=2)
    run = _open_run(workdir, step, best=best)
    return run.experiment, run.params, run.step
