"""Numbers that are not finite, put into a training in this process at one of its steps."""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from genfield.machine.digests import named_path
from genfield.program.loop import Loop


def bad(array: jax.Array, value: float) -> jax.Array:
    """The same array with `value` as its last entry."""
    return jax.device_put(array.at[(-1,) * array.ndim].set(value), array.sharding)


def in_tree(tree, name: str, value: float):
    """The tree with a bad entry in the array whose path ends with `name`, the first of them."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    chosen = next(path for path, _ in paths if named_path(path).endswith(name))
    change = lambda path, leaf: bad(leaf, value) if path == chosen else leaf
    return jax.tree_util.tree_map_with_path(change, tree)


def of_state(item: str, name: str, value: float) -> Callable:
    """A change of the state: of its parameters, its average or its optimiser."""

    def change(loop: Loop, batch: dict) -> dict:
        tree = in_tree(getattr(loop.state, item), name, value)
        loop.state = loop.state._replace(**{item: tree})
        return batch

    return change


def of_data(row: int, value: float) -> Callable:
    """A change of the batch: one example of points in the plane."""

    def change(loop: Loop, batch: dict) -> dict:
        points = np.random.default_rng(0).standard_normal((loop.config.batch_size, 2))
        points[row, 1] = value
        return {"x1": jnp.asarray(points, jnp.float32)}

    return change


INJECTIONS = {  # name: the change, and what must be found: its cause and its array
    "data": (of_data(3, np.nan), "data", "x1"),
    "data_inf": (of_data(15, np.inf), "data", "x1"),
    "parameters": (of_state("params", "last/kernel", np.nan), "parameters", "field/last/kernel"),
    "parameters_inf": (of_state("params", "first/bias", -np.inf), "parameters", "field/first/bias"),
    "ema": (of_state("ema", "last/bias", np.nan), "EMA", "field/last/bias"),
    "ema_inf": (of_state("ema", "first/kernel", np.inf), "EMA", "field/first/kernel"),
    "first_moment": (of_state("optimizer", "mu/field/last/bias", np.nan), "optimizer", "mu/"),
    "second_moment": (of_state("optimizer", "nu/field/last/bias", np.inf), "optimizer", "nu/"),
}


@contextlib.contextmanager
def injected(change: Callable, step: int) -> Iterator[None]:
    """Trainings within meet `change` before this step, once."""
    following = Loop._next

    def next_batch(self, batches) -> dict:
        batch = following(self, batches)
        return change(self, batch) if self.step == step else batch

    with mock.patch.object(Loop, "_next", next_batch):
        yield
