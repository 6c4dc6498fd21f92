"""What metrics need of a run, in words; see `registry.Metric.against`."""

from genfield.registry import Facts


def images(facts: Facts) -> str | None:
    """Pixels, for a feature network."""
    if facts.pictures:
        return None
    if facts.latents:
        return (
            "needs pixels, and the samples are latents: set config.autoencoder to the weights of "
            "the autoencoder that made them, or leave it out of config.evaluate.metrics"
        )
    return (
        f"needs images, and data {facts.data!r} are none: leave it out of config.evaluate.metrics"
    )


def points(facts: Facts) -> str | None:
    """Points, or short sequences, whose distances mean something."""
    if len(facts.shape) <= 2:
        return None
    return f"needs a point problem or sequences, not {facts.data!r}"


def likelihood(facts: Facts) -> str | None:
    """Test images, and a field that has a likelihood."""
    if not (facts.pixels and "test" in facts.splits):
        return f"needs test images, which {facts.data!r} has not"
    return None if facts.likelihood else "needs a velocity or a field of noise levels"


def nothing(facts: Facts) -> str | None:
    """Any run will do."""
    return None
