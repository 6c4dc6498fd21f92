"""Classifier-free guidance, in one convention: u + w (c - u), w the scale.

Scale 0 is the unconditional field, 1 the conditional one, larger values overshoot it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from genfield.fields import Field, Prediction, displacement, evaluations, expand, squared_norm


def classifier_free(field: Field, scale: float, null_cond: Any, *, on: str = "direction") -> Field:
    """A guided field, by one call on a doubled batch.

    Args:
      field: a conditional field.
      scale: guidance scale w of u + w (c - u) (Ho & Salimans, arXiv:2207.12598, with w shifted
        by one: their w = 0 is scale 1 here).
      null_cond: the condition that means "none": a scalar, or a pytree of them, as `cond`.
      on: for a Prediction, what is guided: "direction" (v, for gradient descent; the distance
        stays the conditional one) or "displacement" (u v, for sphere tracing; the distance is
        its length).
    Returns:
      A field that needs `cond` and counts as 2 evaluations a call.
    Raises:
      ValueError: unknown `on`, or the guided field is called without `cond`.
    """
    if on not in ("direction", "displacement"):
        raise ValueError(f"guidance on {on!r}: known are 'direction', 'displacement'")

    def guide(conditional, unconditional):
        return unconditional + scale * (conditional - unconditional)

    def guided(x, t=None, cond=None):
        if cond is None:
            raise ValueError("a guided field needs `cond`, the condition to move towards")
        null = jax.tree.map(lambda c, n: jnp.full_like(c, n), cond, null_cond)
        twice = lambda a, b: jnp.concatenate([a, b])
        both = field(
            twice(x, x), None if t is None else twice(t, t), jax.tree.map(twice, cond, null)
        )
        c, u = (jax.tree.map(lambda a, i=i: jnp.split(a, 2)[i], both) for i in (0, 1))
        if not isinstance(both, Prediction):
            return guide(c, u)
        if on == "direction":
            return Prediction(guide(c.direction, u.direction), c.distance)
        step = guide(displacement(c), displacement(u))
        length = jnp.sqrt(squared_norm(step))
        return Prediction(step / expand(jnp.maximum(length, 1e-12), step), length)

    guided.evaluations = 2 * evaluations(field)
    return guided
