"""Networks by name: `create(config, rngs) -> (apply, params)`, params a plain nested dict.

The only place that splits or merges a Flax NNX module; the rest of the program sees a function.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from genfield import errors
from genfield.nets import initial
from genfield.nets.edm_unet import ADM, DDPMPP, NCSNPP
from genfield.nets.kinetics import RNAKinetics
from genfield.nets.mlp import MLP
from genfield.nets.sit import SiT
from genfield.nets.transformer import Transformer
from genfield.nets.unet import UNet

NETS = {
    "mlp": MLP,
    "unet": UNet,
    "ddpmpp": DDPMPP,
    "ncsnpp": NCSNPP,
    "adm": ADM,
    "sit": SiT,
    "transformer": Transformer,
    "rna_kinetics": RNAKinetics,
}


class _OneKey(nnx.Rngs):
    """One key for all parameters: their values are never computed, and counting keys is slow."""

    def params(self):
        return self["default"].key[...]


def create(
    config: Mapping[str, Any],
    rngs: jax.Array | None,
    *,
    shape: tuple[int, ...],
    num_classes: int = 0,
) -> tuple[Callable, dict]:
    """Builds the network of a config section.

    Args:
      config: `name` (a key of NETS) and fields of that network's constructor.
      rngs: a PRNG key; None returns ShapeDtypeStructs for parameters and computes nothing.
      shape: of one example, channels last: (2,), (32, 32, 3).
      num_classes: 0 for an unconditional network. Label `num_classes` is the null class.
    Returns:
      apply: `apply(params, x, t=None, cond=None, *, rngs=None, train=False)`, see `_bind`.
      params: nested dicts of float32 arrays. `jax.jit(lambda key: create(config, key, ...)[1])`
        works, with `out_shardings` for large networks.
    Raises:
      UserError: unknown network or field, or a network that does not fit the shape.
    """
    shape = tuple(int(side) for side in shape)

    def construct():
        return errors.build(
            "net", NETS, config, shape=shape, num_classes=num_classes, rngs=_OneKey(0)
        )

    network = nnx.eval_shape(construct)  # nothing is computed: `initial.draw` makes the values
    graph, state = nnx.split(network)
    apply = _bind(graph, network, shape, num_classes)
    params = nnx.to_pure_dict(state)
    if rngs is not None:
        leaves, tree = jax.tree.flatten(params)
        initials = nnx.to_pure_dict(state, lambda variable: variable.initial)
        initials = jax.tree.leaves(initials, is_leaf=lambda a: isinstance(a, initial.Initial))
        params = tree.unflatten(initial.draw(rngs, leaves, initials))
    return apply, params


def _bind(graph, network, shape: tuple[int, ...], num_classes: int) -> Callable:
    dropout, augmentation_size = network.dropout, network.augmentation_size

    def apply(params, x, t=None, cond=None, *, rngs=None, train=False):
        """The network's output, float32.

        Args:
          params: as `create` returned them.
          x: [B, *shape].
          t: [B], or None for the time input off: t = 0 (Equilibrium Matching's rule).
          cond: [B] integer labels, or None for the null class; or a mapping with `label` (the
            same) and `augmentation`: [B, augmentation_size] numbers, None for zeros.
          rngs: a PRNG key for dropout, needed where `train` and the network has dropout.
          train: dropout on.
        Returns:
          [B, *shape]; [B] for a scalar network; a `fields.Prediction` with a distance head.
        Raises:
          UserError: wrong shapes or dtypes, labels without classes, dropout without a key.
        """
        cond, augmentation = _split(cond)
        t, cond = _check_inputs(x, t, cond, shape, num_classes)
        extra = _check_augmentation(augmentation, x.shape[0], augmentation_size)
        keys = None
        if train and dropout > 0:
            if rngs is None:
                raise errors.UserError(f"training with dropout {dropout} needs rngs=<a PRNG key>")
            keys = nnx.Rngs(dropout=rngs)
        return nnx.merge(graph, params)(x.astype(jnp.float32), t, cond, keys, **extra)

    return apply


def _split(cond):
    """Labels and augmentation of a condition."""
    if not isinstance(cond, Mapping):
        return cond, None
    for name in cond:
        errors.choose("condition", name, {"label": "[B]", "augmentation": "[B, size]"})
    return cond.get("label"), cond.get("augmentation")


def _check_augmentation(augmentation, batch: int, size: int) -> dict:
    """What the network is called with beyond x, t and labels."""
    if augmentation is None:
        return {}
    if not size:
        raise errors.UserError("an augmentation was given to a net built without augmentation_size")
    if augmentation.shape != (batch, size):
        raise errors.UserError(
            f"the net takes augmentations of shape {(batch, size)}, not {augmentation.shape}"
        )
    return {"augmentation": augmentation.astype(jnp.float32)}


def _check_inputs(x, t, cond, shape, num_classes):
    """Times as float32 [B] and labels as int32 [B] (None without classes), defaults filled in."""
    if x.shape[1:] != shape or x.ndim != len(shape) + 1:
        raise errors.UserError(f"the net takes x of shape [B, *{shape}], not {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise errors.UserError(f"the net takes x as floats, not {x.dtype}")
    batch = x.shape[:1]
    t = jnp.zeros(batch, jnp.float32) if t is None else jnp.asarray(t, jnp.float32)
    if t.shape != batch:
        raise errors.UserError(f"the net takes t of shape {batch}, not {t.shape}")
    if not num_classes:
        if cond is not None:
            raise errors.UserError("labels were given to a net built with num_classes=0")
        return t, None
    cond = jnp.full(batch, num_classes, jnp.int32) if cond is None else jnp.asarray(cond)
    if cond.shape != batch or not jnp.issubdtype(cond.dtype, jnp.integer):
        raise errors.UserError(
            f"the net takes integer labels of shape {batch}, not {cond.dtype} {cond.shape}"
        )
    return t, cond


def count_parameters(params) -> int:
    """The number of scalars in a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
