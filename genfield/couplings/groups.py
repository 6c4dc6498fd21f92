"""What couplings share: groups of examples that are matched among themselves, and their costs."""

import jax
import jax.numpy as jnp
from jax import Array

from genfield.distances import squared_distances


def grouped(function, group_size: int | None, *arrays: Array):
    """Applies `function` to consecutive groups of examples, so that no device layout matters."""
    n = len(arrays[0])
    size = group_size or n
    if n % size:
        raise ValueError(f"group_size {size} does not divide the batch of {n} examples")
    if size == n:
        return function(*arrays)
    split = jax.tree.map(lambda a: a.reshape(n // size, size, *a.shape[1:]), arrays)
    return jax.lax.map(lambda group: function(*group), split).reshape(arrays[0].shape)


def check_pair(x0: Array, x1: Array, label=None, within_classes=False, class_penalty=0.0) -> None:
    if x0.shape != x1.shape:
        raise ValueError(f"a coupling needs x0 and x1 of one shape, got {x0.shape}, {x1.shape}")
    if label is None and (within_classes or class_penalty):
        raise ValueError("within_classes and class_penalty need labels")
    if class_penalty < 0:
        raise ValueError(f"class_penalty must not be negative, got {class_penalty}")


def costs(targets, sources, labels, within_classes: bool, class_penalty: float) -> Array:
    """Squared distances, and what pairs of two classes pay; labels: of targets and of sources."""
    cost = squared_distances(targets, sources)
    if not within_classes and not class_penalty:
        return cost
    other = labels[0][:, None] != labels[1][None]
    return jnp.where(other, jnp.inf if within_classes else cost + class_penalty, cost)
