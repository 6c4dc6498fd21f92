"""From a record to pure functions: a class of the package, an nnx.Module of one's own, or a pair.

The only place that splits or merges a Flax NNX module; the rest of the program sees functions.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from genfield import placement, registry
from genfield.errors import UserError
from genfield.machine import fixed
from genfield.nets import initial, layers
from genfield.nets.layers import Dropout

GIVEN = ("shape", "num_classes", "rngs")


class Pair(NamedTuple):
    """A network as pure functions, as one's own may be.

    init(key, shape, num_classes) -> params, a pytree of arrays
    apply(params, x, t, cond, *, key, train) -> [B, *shape], [B] or a fields.Prediction; t [B] and
      labels [B] are always there (labels where there are classes, else None)
    """

    init: Callable
    apply: Callable


class Built(NamedTuple):
    """A network built for a shape: how it starts, how it is called, what it can be told.

    init(key) -> params; run(params, x, t, cond, key, train, extra) -> output
    abstract: shapes of the parameters. dropout: whether training needs a key.
    """

    init: Callable
    run: Callable
    abstract: Any
    dropout: bool
    augmentation_size: int


def _check_class(record: registry.Network) -> None:
    """Raises UserError unless a class can be built: an nnx.Module that takes what it is given."""
    make = record.make
    if not issubclass(make, nnx.Module):
        raise UserError(f"net {record.name!r}: {make.__name__} is no flax.nnx.Module")
    known = registry.parameters(record.target)
    lacking = [name for name in GIVEN if name not in known]
    if lacking:
        raise UserError(
            f"net {record.name!r}: the constructor of {make.__name__} must take shape, num_classes "
            f"and rngs beside its own fields; it lacks {lacking[0]!r}"
        )


def built(record: registry.Network, section, shape: tuple[int, ...], num_classes: int) -> Built:
    """The network of a section for examples of a shape; raises UserError where it does not fit."""
    table = {record.name: record}
    if not inspect.isclass(record.make):
        pair = registry.build("net", table, section)
        return _of_pair(record.name, pair, shape, num_classes)
    _check_class(record)
    given = {"shape": shape, "num_classes": num_classes}
    ours = issubclass(record.make, layers.Network)

    def construct(rngs):
        return registry.build("net", table, section, rngs=rngs, **given)

    return _of_package(construct, record) if ours else _of_module(construct, record)


class _OneKey(nnx.Rngs):
    """One key for all parameters: their values are never computed, and counting keys is slow."""

    def params(self):
        return self["default"].key[...]


def _of_package(construct: Callable, record: registry.Network) -> Built:
    network = nnx.eval_shape(lambda: construct(_OneKey(0)))  # `initial.draw` makes the values
    graph, state = nnx.split(network)
    abstract = nnx.to_pure_dict(state)

    def init(key):
        leaves, tree = jax.tree.flatten(abstract)
        initials = nnx.to_pure_dict(state, lambda variable: variable.initial)
        initials = jax.tree.leaves(initials, is_leaf=lambda a: isinstance(a, initial.Initial))
        return tree.unflatten(initial.draw(key, leaves, initials))

    def run(params, x, t, cond, key, train, extra):
        drops = train and network.dropout > 0
        params = fixed.completed(params, missing)

        def whole(params, x, t, cond, extra):
            keys = nnx.Rngs(dropout=key) if drops else None
            return nnx.merge(graph, params)(x, t, cond, keys, **extra)

        if drops and kinds != {Dropout}:  # what else it draws is of the whole batch
            placement.check_summed(dtype)
            call = placement.together(whole, record.stack, record.blocks, dtype)
        else:
            call = placement.apart(whole, record.stack, record.blocks, dtype)
        return call(params, x, t, cond, extra)

    dtype = getattr(network, "compute", jnp.float32)
    modules = (module for _, module in nnx.iter_graph(network))
    kinds = {type(module) for module in modules if isinstance(module, nnx.Dropout)}
    missing = fixed.values(record.fixed, abstract)
    return Built(init, run, abstract, network.dropout > 0, network.augmentation_size)


def _of_module(construct: Callable, record: registry.Network) -> Built:
    """An ordinary nnx.Module: it starts by its own rngs, and dropout gets a key at each call."""
    module = nnx.eval_shape(lambda: construct(nnx.Rngs(0)))
    graph, params, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    if jax.tree.leaves(rest):
        kinds = sorted({type(v).__name__ for _, v in nnx.to_flat_state(rest)})
        raise UserError(
            f"net {record.name!r} keeps {', '.join(kinds)} beside its parameters: examples must "
            "not hang on each other or on earlier batches; take a layer norm or a group norm "
            "instead"
        )

    def init(key):
        return nnx.to_pure_dict(nnx.split(construct(nnx.Rngs(key)), nnx.Param, ...)[1])

    def run(params, x, t, cond, key, train, extra):
        draws = train and key is not None
        key = jax.random.key(0) if key is None else key
        fresh = lambda a: (
            key if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else jnp.zeros(a.shape, a.dtype)
        )
        streaming = jax.tree.map(fresh, streams)

        def whole(params, x, t, cond, extra):
            network = nnx.merge(graph, params, streaming)
            network.train() if draws else network.eval()
            return network(x, t, cond, **extra)

        call = placement.together(whole, record.stack, record.blocks)
        return call(params, x, t, cond, extra)

    abstract = nnx.to_pure_dict(params)
    return Built(init, run, abstract, bool(jax.tree.leaves(streams)), 0)


def _of_pair(name: str, pair, shape: tuple[int, ...], num_classes: int) -> Built:
    try:
        pair = Pair(*pair)
    except TypeError as error:
        raise UserError(
            f"net {name!r} must give a pair of functions, init(key, shape, num_classes) and "
            f"apply(params, x, t, cond, *, key, train), not {pair!r}"
        ) from error
    theirs = jax.eval_shape(lambda key: pair.init(key, shape, num_classes), jax.random.key(0))
    names, tree = _names(theirs), jax.tree.structure(theirs)

    def init(key):
        leaves = jax.tree.leaves(pair.init(key, shape, num_classes))
        return dict(zip(names, leaves, strict=True))

    def run(params, x, t, cond, key, train, extra):
        def whole(params, x, t, cond):
            params = tree.unflatten([params[name] for name in names])
            return pair.apply(params, x, t, cond, key=key, train=train)

        return placement.together(whole)(params, x, t, cond)

    return Built(init, run, jax.eval_shape(init, jax.random.key(0)), False, 0)


def _names(tree) -> list[str]:
    """Names of a tree's leaves: checkpoints hold a plain dict, whatever classes the tree has."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
