"""Arrays among the parameters that training leaves as they are, and others at paths of a tree.

Checkpoints that were written before a network had such an array lack it: then it has the values
that it starts with, which are those that the network had built in.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Path = tuple[str, ...]


def values(starts: Mapping[Path, Callable], params: Mapping) -> dict[Path, np.ndarray]:
    """What fixed arrays start with, as a network's record says; `params` gives their shapes."""
    return {path: start(at(params, path).shape) for path, start in starts.items()}


def at(tree: Mapping, path: Path) -> Any:
    """The array, or the branch, at a path."""
    for name in path:
        tree = tree[name]
    return tree


def without(tree: Mapping, paths: Iterable[Path]) -> Mapping:
    """Nested dicts without the arrays at these paths."""
    for *branch, leaf in paths:
        left = {name: part for name, part in at(tree, branch).items() if name != leaf}
        tree = _changed(tree, branch, left)
    return tree


def put(tree: Mapping, arrays: Mapping[Path, Any]) -> Mapping:
    """Nested dicts with these arrays at their paths."""
    for path, array in arrays.items():
        tree = _changed(tree, path, array)
    return tree


def completed(tree: Mapping, arrays: Mapping[Path, Any]) -> Mapping:
    """Nested dicts with those of these arrays that they lack."""
    lacking = lambda path: path[-1] not in at(tree, path[:-1])
    return put(tree, {path: array for path, array in arrays.items() if lacking(path)})


def _changed(tree: Mapping, path: Iterable[str], new: Any) -> Any:
    if not path:
        return new
    head, *rest = path
    return {**tree, head: _changed(tree.get(head), rest, new)}
