"""Adaptive compute: when a sample is finished, and giving its place to another.

EqM section 3.3 (a gradient's norm), DM section 5.6 and Table 4 (a distance that rises).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.fields import Field, Prediction, direction, evaluations, expand, squared_norm
from genfield.registry import NotNegative
from genfield.rng import typed
from genfield.sampling.core import Pieces, Sampler, Samples, State


class Rule(NamedTuple):
    """init(x [B, *D]) -> memory; update(memory, output) -> (memory, stop [B]).

    `output` is what the field said at the step's first call; a sample stops after that step.
    """

    init: Callable[[Array], Any]
    update: Callable[[Any, Any], tuple[Any, Array]]


def gradient_norm(threshold: NotNegative) -> Rule:
    """Stops where the gradient's 2-norm is below the threshold (EqM section 3.3: 10 on latents)."""

    def update(memory, output):
        return memory, jnp.sqrt(squared_norm(direction(output))) < threshold

    return Rule(lambda x: (), update)


def rising_distance(patience: int = 10) -> Rule:
    """Stops where the predicted distance has risen for `patience` steps in a row (DM Table 4).

    Raises:
      ValueError: patience is not positive. TypeError, when used: the field has no distance.
    """
    if patience < 1:
        raise ValueError(f"patience must be positive, got {patience}")

    def init(x):
        return jnp.full(x.shape[:1], jnp.inf, x.dtype), jnp.zeros(x.shape[:1], jnp.int32)

    def update(memory, output):
        if not isinstance(output, Prediction):
            raise TypeError("rising_distance needs a field that returns fields.Prediction")
        last, rises = memory
        rises = jnp.where(output.distance > last, rises + 1, 0)
        return (output.distance, rises), rises >= patience

    return Rule(init, update)


def stopping(sampler: Sampler, rule: Rule) -> Sampler:
    """`sampler`, each of whose samples stops by a rule: it moves no more and costs no more."""

    def init(x, num_steps):
        state = sampler.init(x, num_steps)
        return state._replace(memory=(state.memory, rule.init(x)))

    def step(key, field, state, cond):
        outputs = []

        def heard(x, t=None, cond=None):
            outputs.append(field(x, t, cond))
            return outputs[-1]

        heard.evaluations = evaluations(field)
        inner, memory = state.memory
        state = sampler.step(key, heard, state._replace(memory=inner), cond)
        memory, stop = rule.update(memory, outputs[0])
        return state._replace(done=state.done | stop, memory=(state.memory, memory))

    info = lambda state: sampler.info(state._replace(memory=state.memory[0]))
    return Sampler(init, step, info, stops=True)


def refill(
    key: Array,
    field: Field,
    x: Array,
    sampler: Sampler,
    *,
    num_steps: int,
    slots: int,
    cond: Any = None,
) -> Samples:
    """`sample` with a batch of `slots`, where each finished sample leaves its place to the next.

    So the evaluations that stopping saves become saved time; `sample` can only stop once all are
    finished. The samples are those of `sample` with the same key for each.

    Args:
      key: one key, of which sample i gets fold_in(key, i), or keys [N], one a sample.
      x: start points [N, *D], N above `slots` by a factor that makes the last ones cheap.
      sampler: its memory must be one entry a sample (no clock): gradient samplers.
      num_steps: at most, for each sample. slots: samples that the field sees at once.
      cond: a pytree of [N, ...].
    Raises:
      ValueError: slots or num_steps not positive, or a sampler with a clock.
    """
    if slots < 1 or num_steps < 1:
        raise ValueError(f"slots and num_steps must be positive, got {slots} and {num_steps}")
    key = typed(key)
    if key.ndim == 0:
        key = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(x)))
    run = refill_pieces(sampler, num_steps, slots)
    carry = run.begin(field, x, cond)
    return run.finish(field, run.advance(key, field, carry, cond, 0, len(x) * num_steps))


class Slots(NamedTuple):
    """What `refill` carries: n samples through some slots; every array has an axis in front."""

    x: Array  # [n, *D], where the samples start
    index: Array  # [slots], of the sample in each; n: nothing is left for this slot
    k: Array  # [slots], its step
    state: State
    following: Array  # [1], the next sample to enter
    out: tuple  # x, nfe and info of the finished ones, [n] each


def refill_pieces(sampler: Sampler, num_steps: int, slots: int) -> Pieces:
    """The pieces of `refill`, with keys [N]."""
    results = lambda state: (state.x, state.nfe, sampler.info(state))

    def begin(field, x, cond=None):
        n, here = len(x), min(slots, len(x))
        state = sampler.init(x[:here], num_steps)
        if any(leaf.shape[:1] != (here,) for leaf in jax.tree.leaves(state)):
            raise ValueError("refill needs a sampler without a clock: its steps are not in time")
        empty = jax.tree.map(lambda a: jnp.zeros((n, *a.shape[1:]), a.dtype), results(state))
        following, k = jnp.full((1,), here, jnp.int32), jnp.zeros(here, jnp.int32)
        return Slots(x, jnp.arange(here), k, state, following, empty)

    def step(key, field, at: Slots, cond) -> Slots:
        n, index = len(at.x), at.index
        row = jnp.minimum(index, n - 1)
        here = jax.tree.map(lambda c: c[row], cond)
        state = sampler.step(jax.vmap(jax.random.fold_in)(key[row], at.k), field, at.state, here)
        finished = (state.done | (at.k + 1 >= num_steps)) & (index < n)
        place = jnp.where(finished, index, n)
        keep = lambda a, value: a.at[place].set(value, mode="drop")
        out = jax.tree.map(keep, at.out, results(state))
        taken = at.following + jnp.cumsum(finished) - 1
        index = jnp.where(finished, jnp.minimum(taken, n), index)
        fresh = sampler.init(at.x[jnp.minimum(index, n - 1)], num_steps)
        enter = lambda new, old: jnp.where(expand(finished, old), new, old)
        state = jax.tree.map(enter, fresh, state)
        k = jnp.where(finished, 0, at.k + 1)
        return Slots(at.x, index, k, state, at.following + jnp.sum(finished), out)

    def advance(key, field, at: Slots, cond, first, last):
        more = lambda carry: (carry[0] < last) & jnp.any(carry[1].index < len(at.x))
        once = lambda carry: (carry[0] + 1, step(key, field, carry[1], cond))
        return jax.lax.while_loop(more, once, (jnp.int32(first), at))[1]

    def share(at: Slots, last):
        waiting = jnp.maximum(len(at.x) - at.following, 0)
        return 1 - (waiting + jnp.sum(at.index < len(at.x))) / len(at.x)

    def finish(field, at: Slots):
        x, nfe, info = at.out
        return Samples(x=x, nfe=nfe * evaluations(field), trace=None, info=info)

    return Pieces(begin, advance, share, finish, None)


METHODS = (
    registry.StopRule(name="gradient_norm", make=gradient_norm, needs_output=None, scales=True),
    registry.StopRule(
        name="rising_distance",
        make=rising_distance,
        needs_output=("predicted", "potential", "energy"),
        scales=False,
    ),
)
