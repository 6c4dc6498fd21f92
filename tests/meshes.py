"""How many of the eight fake devices the program sees: one, where meshes are not the point."""

from contextlib import contextmanager

import jax
import pytest

from genfield.machine import sharding


@contextmanager
def devices(num: int):
    """Meshes for which no devices are named lie on the first `num`."""
    original, some = sharding.make_mesh, jax.devices()[:num]
    make = lambda section, devices=None: original(section, some if devices is None else devices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", make)
        yield
