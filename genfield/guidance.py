"""Fields made of fields: guidance, sums, multiples, and fields of which a part of x is known.

Guidance has one convention: u + w (c - u), w the scale. Scale 0 is the unconditional field, 1 the
conditional one, larger values overshoot it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from genfield.fields import Field, Prediction, displacement, evaluations, expand, squared_norm


def classifier_free(
    field: Field,
    scale: float,
    null_cond: Any,
    *,
    on: str = "direction",
    channels: int | None = None,
) -> Field:
    """A guided field, by one call on a doubled batch.

    Args:
      field: a conditional field.
      scale: guidance scale w of u + w (c - u) (Ho & Salimans, arXiv:2207.12598, with w shifted
        by one: their w = 0 is scale 1 here).
      null_cond: the condition that means "none": a scalar, or a pytree of them, as `cond`.
      on: for a Prediction, what is guided: "direction" (v, for gradient descent; the distance
        stays the conditional one) or "displacement" (u v, for sphere tracing; the distance is
        its length).
      channels: so many of the first channels are guided and the others stay conditional; None: all.
        EqM's published sampling guides 3 of the 4 channels of its latents.
    Returns:
      A field that needs `cond` and counts as 2 evaluations a call.
    Raises:
      ValueError: unknown `on`, channels that are not there, or the guided field is called without
        `cond`.
    """
    _check_product(on)

    def guided(x, t=None, cond=None):
        if cond is None:
            raise ValueError("a guided field needs `cond`, the condition to move towards")
        null = jax.tree.map(lambda c, n: jnp.full_like(c, n), cond, null_cond)
        twice = lambda a, b: jnp.concatenate([a, b])
        both = field(
            twice(x, x), None if t is None else twice(t, t), jax.tree.map(twice, cond, null)
        )
        c, u = (jax.tree.map(lambda a, i=i: jnp.split(a, 2)[i], both) for i in (0, 1))
        return _guide(c, u, scale, on, channels)

    guided.evaluations = 2 * evaluations(field)
    return guided


def autoguidance(
    field: Field, weak: Field, scale: float, *, on: str = "direction", channels: int | None = None
) -> Field:
    """A field led away from what a weaker network would do: b + w (a - b), b the weaker one.

    (Karras et al., arXiv:2406.02507, eq. 2.) Both are called with the same x, t and cond.

    Args:
      weak: of a smaller or a less trained network on the same data.
      scale: w; 1 is `field` itself. on, channels: as `classifier_free`.
    """
    _check_product(on)

    def guided(x, t=None, cond=None):
        return _guide(field(x, t, cond), weak(x, t, cond), scale, on, channels)

    guided.evaluations = evaluations(field) + evaluations(weak)
    return guided


def interval(guided: Field, field: Field, low: float, high: float) -> Field:
    """`guided` at times (or noise levels) in [low, high], and `field` outside.

    (Kynkäänniemi et al., arXiv:2404.07724.) Where all of a batch lie outside, only `field` is
    called; evaluations are counted as if `guided` were called everywhere.

    Raises:
      ValueError: not low <= high; when called: no t.
    """
    if not low <= high:
        raise ValueError(f"a guidance interval needs low <= high, got {low} and {high}")

    def within(x, t=None, cond=None):
        if t is None:
            raise ValueError("a guidance interval is one of times: the field needs a clock")
        inside = (t >= low) & (t <= high)

        def some():
            inner, outer = guided(x, t, cond), field(x, t, cond)
            return jax.tree.map(lambda a, b: jnp.where(expand(inside, a), a, b), inner, outer)

        whole = lambda: jax.lax.cond(jnp.all(inside), lambda: guided(x, t, cond), some)
        return jax.lax.cond(jnp.any(inside), whole, lambda: field(x, t, cond))

    within.evaluations = evaluations(guided)
    return within


def _check_product(on: str) -> None:
    if on not in ("direction", "displacement"):
        raise ValueError(f"guidance on {on!r}: known are 'direction', 'displacement'")


def _guide(c, u, scale: float, on: str, channels: int | None):
    """u + w (c - u) of two outputs of a field."""

    def guide(conditional, unconditional):
        moved = unconditional + scale * (conditional - unconditional)
        if channels is None:
            return moved
        if not 0 < channels <= moved.shape[-1]:
            raise ValueError(f"channels must be 1 to {moved.shape[-1]}, got {channels}")
        return jnp.concatenate([moved[..., :channels], conditional[..., channels:]], axis=-1)

    if not isinstance(c, Prediction):
        return guide(c, u)
    if on == "direction":
        return Prediction(guide(c.direction, u.direction), c.distance)
    step = guide(displacement(c), displacement(u))
    length = jnp.sqrt(squared_norm(step))
    return Prediction(step / expand(jnp.maximum(length, 1e-12), step), length)


def conditioned(field: Field, cond: Any) -> Field:
    """The field under one condition for all samples, whichever it is called with.

    Args:
      cond: one example's condition, without the batch axis: a label, or a pytree.
    """

    def fixed(x, t=None, cond_of_call=None):
        whole = lambda c: jnp.broadcast_to(c, (len(x), *jnp.shape(c)))
        return field(x, t, jax.tree.map(whole, cond))

    fixed.evaluations = evaluations(field)
    return fixed


def compose(
    fields: Sequence[Field], weights: Sequence[float] | None = None, *, on: str = "direction"
) -> Field:
    """The weighted sum of fields: the gradient of the summed energies (EqM section 5.4).

    Args:
      fields: all return vectors, or all a Prediction. They are called with the same `x`, `t` and
        `cond`; `conditioned` gives each its own condition.
      weights: one a field; 1 each where left out, as in the paper.
      on: for Predictions, which energies are summed. "direction": U = Σ w u, so that the direction
        is Σ w v and the distance Σ w u, a true pair where v = ∇u (for gradient descent, Langevin,
        HMC). "displacement": Σ w u²/2, whose gradient is Σ w u v; the distance is its length (for
        sphere tracing; with weights that sum to one, a whole step goes to the mean of where the
        fields would go).
    Returns:
      A field that counts as the sum of the fields' evaluations.
    Raises:
      ValueError: no fields, another number of weights, unknown `on`. TypeError, when called: only
        some fields return a Prediction.
    """
    fields = list(fields)
    weights = [1.0] * len(fields) if weights is None else list(weights)
    if not fields or len(weights) != len(fields):
        raise ValueError(f"compose needs a weight a field, got {len(fields)} and {len(weights)}")
    if on not in ("direction", "displacement"):
        raise ValueError(f"composition on {on!r}: known are 'direction', 'displacement'")
    total = lambda parts: sum(w * part for w, part in zip(weights, parts, strict=True))

    def composed(x, t=None, cond=None):
        outputs = [field(x, t, cond) for field in fields]
        predictions = [isinstance(output, Prediction) for output in outputs]
        if not any(predictions):
            return total(outputs)
        if not all(predictions):
            raise TypeError("compose needs fields of one kind: some return a Prediction, some not")
        if on == "direction":
            return Prediction(
                total([o.direction for o in outputs]), total([o.distance for o in outputs])
            )
        step = total([displacement(o) for o in outputs])
        length = jnp.sqrt(squared_norm(step))
        return Prediction(step / expand(jnp.maximum(length, 1e-12), step), length)

    composed.evaluations = sum(map(evaluations, fields))
    return composed


def scaled(field: Field, factor: Array | float) -> Field:
    """The field with its vector times `factor`, its distance as it was.

    Gradient descent, NAG, sphere tracing, Euler and Heun then take `factor` times their step, while
    clocks go on as they were (EqM Fig. 7's step sizes, its flow-matching baseline included). As an
    argument of a jitted function the factor changes without compiling anew.
    """

    def times(x, t=None, cond=None):
        output = field(x, t, cond)
        if isinstance(output, Prediction):
            return output._replace(direction=factor * output.direction)
        return factor * output

    times.evaluations = evaluations(field)
    return times


def held(field: Field, known: Callable[[Array | None], Array], free: Array) -> Field:
    """The field where a part of x is known: it sees that part as it is, not as x has it.

    The gradient of a field without t is zero in the known part. So a field that is the gradient of
    an energy becomes that of the energy on the rest, exactly, and any sampler that descends or
    explores it stays within what is known. Fields with a clock keep what they say of the known
    part, which no sample follows (`sampling.inpaint`).

    Args:
      known: t [B] or None -> [B, *D], what the known part is there; the rest of it is not read.
      free: True where x is not known; broadcasts against x.
    """

    def restricted(x, t=None, cond=None):
        output = field(jnp.where(free, x, known(t)), t, cond)
        if t is not None:
            return output
        if isinstance(output, Prediction):
            return output._replace(direction=jnp.where(free, output.direction, 0.0))
        return jnp.where(free, output, 0.0)

    restricted.evaluations = evaluations(field)
    return restricted
