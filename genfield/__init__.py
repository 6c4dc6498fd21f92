"""Generative fields in JAX. Import what is needed: `from genfield import losses, sampling`.

Nothing is imported here, so that the core stays usable where Flax, grain or orbax are absent.
"""

__version__ = "0.1.0"
