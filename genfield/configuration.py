"""What a config file starts from: `configuration.base()`, every section with its default."""

from genfield.program.defaults import base

__all__ = ["base"]
