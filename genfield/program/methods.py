"""The methods that a config can name, and what is asked of the loss that it names."""

import functools

from genfield import registry
from genfield.registry import Methods

ROOMS = ("paths", "couplings", "losses", "sampling", "nets", "data", "metrics", "machine.loggers")


@functools.cache
def package() -> Methods:
    """The package's methods, room by room, in the order of the files' names."""
    return Methods(record for room in ROOMS for record in registry.find(f"genfield.{room}"))


def loss_of(config, methods: Methods | None = None) -> registry.Loss:
    """The loss that a config names; raises UserError for an unknown one."""
    return registry.choose("loss", config.loss.name, (methods or package())[registry.Loss])


def has_clock(config, methods: Methods | None = None) -> bool:
    """Whether a config trains a field that depends on t, or on the noise level."""
    loss = loss_of(config, methods)
    return loss.clock(registry.bound(loss, config.loss))
