"""Networks by name: `create(config, key) -> (apply, params)`, params a plain nested dict."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genfield import registry
from genfield.errors import UserError
from genfield.nets.adm import ADM
from genfield.nets.bind import Built, Pair, built
from genfield.nets.edm_unet import DDPMPP, NCSNPP
from genfield.nets.kinetics import RNAKinetics
from genfield.nets.mlp import MLP
from genfield.nets.sit import SiT
from genfield.nets.transformer import Transformer
from genfield.nets.unet import UNet

__all__ = [
    "ADM",
    "DDPMPP",
    "MLP",
    "NCSNPP",
    "Pair",
    "RNAKinetics",
    "SiT",
    "Transformer",
    "UNet",
    "count_parameters",
    "create",
    "known",
]


@functools.cache
def known() -> Mapping[str, registry.Network]:
    """The networks of the package, by name."""
    return registry.Methods(registry.find(__name__))[registry.Network]


def create(
    config: Mapping[str, Any],
    key: jax.Array | None,
    *,
    shape: tuple[int, ...],
    num_classes: int = 0,
    table: Mapping[str, registry.Network] | None = None,
) -> tuple[Callable, dict]:
    """Builds the network of a config section.

    Args:
      config: `name` and fields of that network.
      key: a PRNG key; None returns ShapeDtypeStructs for parameters and computes nothing.
      shape: of one example, channels last: (2,), (32, 32, 3).
      num_classes: 0 for an unconditional network. Label `num_classes` is the null class.
      table: networks by name; None: those of the package.
    Returns:
      apply: `apply(params, x, t=None, cond=None, *, key=None, train=False)`, see `_apply`.
      params: nested dicts of arrays. `jax.jit(lambda key: create(config, key, ...)[1])`
        works, with `out_shardings` for large networks.
    Raises:
      UserError: unknown network or field, or a network that does not fit the shape.
    """
    shape = tuple(int(side) for side in shape)
    record = registry.entry("net", known() if table is None else table, config)
    network = built(record, config, shape, num_classes)
    params = network.abstract if key is None else network.init(key)
    return _apply(record.name, network, shape, num_classes), params


def _apply(name: str, network: Built, shape: tuple[int, ...], num_classes: int) -> Callable:
    def apply(params, x, t=None, cond=None, *, key=None, train=False):
        """The network's output, float32.

        Args:
          params: as `create` returned them.
          x: [B, *shape].
          t: [B], or None for the time input off: t = 0 (Equilibrium Matching's rule).
          cond: [B] integer labels, or None for the null class; or a mapping with `label` (the
            same) and `augmentation`: [B, augmentation_size] numbers, None for zeros.
          key: a PRNG key for dropout, needed where `train` and the network has dropout.
          train: dropout on.
        Returns:
          [B, *shape]; [B] for a scalar network; a `fields.Prediction` with a distance head.
        Raises:
          UserError: wrong shapes or dtypes, labels without classes, dropout without a key; labels
            out of range where they are known (not while JAX traces).
        """
        cond, augmentation = _split(cond)
        t, cond = _check_inputs(x, t, cond, shape, num_classes)
        extra = _check_augmentation(augmentation, x.shape[0], network.augmentation_size)
        if train and network.dropout and key is None:
            raise UserError(f"training net {name!r} with dropout needs key=<a PRNG key>")
        return network.run(params, x.astype(jnp.float32), t, cond, key, train, extra)

    return apply


def _split(cond):
    """Labels and augmentation of a condition."""
    if not isinstance(cond, Mapping):
        return cond, None
    for name in cond:
        registry.choose("condition", name, {"label": "[B]", "augmentation": "[B, size]"})
    return cond.get("label"), cond.get("augmentation")


def _check_augmentation(augmentation, batch: int, size: int) -> dict:
    """What the network is called with beyond x, t and labels."""
    if augmentation is None:
        return {}
    if not size:
        raise UserError("an augmentation was given to a net built without augmentation_size")
    if augmentation.shape != (batch, size):
        raise UserError(
            f"the net takes augmentations of shape {(batch, size)}, not {augmentation.shape}"
        )
    return {"augmentation": augmentation.astype(jnp.float32)}


def _check_inputs(x, t, cond, shape, num_classes):
    """Times as float32 [B] and labels as int32 [B] (None without classes), defaults filled in."""
    if x.shape[1:] != shape or x.ndim != len(shape) + 1:
        raise UserError(f"the net takes x of shape [B, *{shape}], not {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"the net takes x as floats, not {x.dtype}")
    batch = x.shape[:1]
    t = jnp.zeros(batch, jnp.float32) if t is None else jnp.asarray(t, jnp.float32)
    if t.shape != batch:
        raise UserError(f"the net takes t of shape {batch}, not {t.shape}")
    if not num_classes:
        if cond is not None:
            raise UserError("labels were given to a net built with num_classes=0")
        return t, None
    cond = jnp.full(batch, num_classes, jnp.int32) if cond is None else jnp.asarray(cond)
    if cond.shape != batch or not jnp.issubdtype(cond.dtype, jnp.integer):
        raise UserError(
            f"the net takes integer labels of shape {batch}, not {cond.dtype} {cond.shape}"
        )
    if not isinstance(cond, jax.core.Tracer) and cond.is_fully_addressable:
        _check_range(np.asarray(cond), num_classes)
    return t, cond


def _check_range(labels: np.ndarray, num_classes: int) -> None:
    """Raises UserError where labels have no row: a lookup would give NaN, or that of another."""
    wrong = labels[(labels < 0) | (labels > num_classes)]
    if len(wrong):
        raise UserError(
            f"label {wrong[0]} is no class: the net takes 0 to {num_classes - 1}, and "
            f"{num_classes} for none"
        )


def count_parameters(params) -> int:
    """The number of scalars in a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
