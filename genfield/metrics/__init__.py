"""Figures of merit for what was generated."""

import functools
from collections.abc import Mapping

from genfield import registry


@functools.cache
def known() -> Mapping[str, registry.Metric]:
    """The metrics of the package, by name."""
    return registry.Methods(registry.find(__name__))[registry.Metric]
