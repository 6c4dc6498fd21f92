"""The train state and the step that changes it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from genfield import rng
from genfield.machine import finite as numbers
from genfield.machine import fixed as fixed_arrays
from genfield.machine.digests import named_path
from genfield.program.objective import Objective


class TrainState(NamedTuple):
    """Everything that training changes; float32 but for the step."""

    step: Array  # int32, optimiser steps taken
    params: dict  # by role: {"field": …}
    ema: dict  # as params; {} where no average is kept
    optimizer: Any  # optax state


def held(state: TrainState) -> dict:
    """What a checkpoint holds of a state, by name."""
    return {"params": state.params, "ema": state.ema, "optimizer": state.optimizer}


def create_state(params: dict, tx: optax.GradientTransformation, ema: bool) -> TrainState:
    """The state at step 0; call it under jit with `out_shardings`."""
    average = jax.tree.map(jnp.copy, params) if ema else {}
    return TrainState(jnp.int32(0), params, average, tx.init(params))


def with_parameters(state: TrainState, given: dict[str, Any]) -> TrainState:
    """`state` with these arrays, by their paths, in place of those drawn and of their average."""

    def replaced(path, drawn):
        new = given.get(named_path(path))
        place = lambda: jax.make_array_from_callback(new.shape, drawn.sharding, new.__getitem__)
        return drawn if new is None else place()

    changed = lambda tree: jax.tree_util.tree_map_with_path(replaced, tree)
    return state._replace(params=changed(state.params), ema=changed(state.ema))


class Attempt(NamedTuple):
    """All that a step computes, before it is judged.

    Attributes:
      data: the batch. drawn: of it, as `Objective.draw` gives it. loss, terms: means. grads: of the
        parameters. norm: of the gradient. state: the one after the step.
    """

    data: dict
    drawn: Any
    loss: Array
    terms: dict
    grads: dict
    norm: Array
    state: TrainState


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    key: Array,
    *,
    steep: bool = False,
    **options,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """A pure step(state, batch) -> (state, metrics), to be jitted.

    Args:
      key: of the run; step k draws from fold_in(key, k) and from nothing else.
      steep: the new state is looked at too, before it is kept. The learning rates of which
        `optimizer.steep` speaks need it: others cannot make it anything but finite from a finite
        gradient, and the pass over it would cost time, memory, and the last bits of earlier runs.
      options: as `make_attempt` takes them.
    Returns:
      A step whose batch may carry "step", the step it belongs to. A step whose loss, gradient or
      state is not finite changes nothing, and neither does a batch of another step: so the state
      stays as it was before the first non-finite step, however late the loop notices. metrics:
      scalars "loss", "grad_norm", "finite" and the loss's terms.
    """
    attempt = make_attempt(objective, tx, key, **options)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        tried = attempt(state, batch)
        finite = jnp.isfinite(tried.loss) & jnp.isfinite(tried.norm)
        finite &= numbers.everywhere(held(state))
        if steep:
            finite &= numbers.everywhere(held(tried.state))
        apply = finite & (batch.get("step", state.step) == state.step)
        new = jax.tree.map(lambda a, b: jnp.where(apply, a, b), tried.state, state)
        metrics = {"loss": tried.loss, "grad_norm": tried.norm, "finite": finite, **tried.terms}
        return new, metrics

    return step


def make_attempt(
    objective: Objective,
    tx: optax.GradientTransformation,
    key: Array,
    *,
    ema_rate: float = 0.0,
    ema_ramp_up: float = 0.0,
    ema_warmup: bool = False,
    accumulate: int = 1,
    draw_batch: Callable[[Array], dict] | None = None,
    fixed: tuple[tuple[str, ...], ...] = (),
) -> Callable[[TrainState, dict], Attempt]:
    """attempt(state, batch): a step with all that it computes on the way.

    Args:
      ema_rate: of the average, a step. ema_ramp_up: > 0: its half-life is at most this share of
        the steps so far (EDM's implementation has 0.05), so that early weights are soon forgotten.
        ema_warmup: the rate is at most (1 + n) / (10 + n) after n steps (flow_matching's code).
      accumulate: microbatches; what is drawn does not depend on it, only dropout does.
      draw_batch: key -> batch, for problems drawn on the device; then `batch` holds no data.
      fixed: paths of parameters that stay as they are, to the bit, in the average too.
    """

    def mean_loss(params, drawn, key):
        loss, terms = objective.loss(params, drawn, key, True)
        return jnp.mean(loss), jax.tree.map(jnp.mean, terms)

    gradient = jax.value_and_grad(mean_loss, has_aux=True)

    def accumulated(params, drawn, key):
        if accumulate == 1:
            return gradient(params, drawn, key)

        def one(total, part):
            index, drawn = part
            out = gradient(params, drawn, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, out), None

        parts = microbatches(drawn, accumulate, objective.group_size)
        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda a: a[0], parts[1]), key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(one, zeros, parts)
        return jax.tree.map(lambda a: a / accumulate, total)

    def attempt(state: TrainState, batch: dict) -> Attempt:
        step_key = jax.random.fold_in(key, state.step)
        data = batch_at(step_key, batch, draw_batch) | {"step": state.step}
        drawn = objective.draw(rng.draw_key(step_key), data)
        (loss, terms), grads = accumulated(state.params, drawn, rng.dropout_key(step_key))
        norm = optax.global_norm(grads)
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = _ramped(ema_rate, ema_ramp_up, ema_warmup, state.step + 1)
        ema = _averaged(state.ema, params, rate, fixed) if state.ema else {}
        new = TrainState(state.step + 1, params, ema, optimizer)
        return Attempt(data, drawn, loss, terms, grads, norm, new)

    return attempt


def microbatches(drawn, accumulate: int, group: int) -> tuple[Array, Any]:
    """The numbers of the microbatches, and what was drawn, [accumulate, B / accumulate, …].

    A microbatch has every k-th group, so that each device keeps its share of it.
    """

    def split(a):
        parts = a.reshape(-1, accumulate, group, *a.shape[1:])
        return jnp.swapaxes(parts, 0, 1).reshape(accumulate, -1, *a.shape[1:])

    return jnp.arange(accumulate), jax.tree.map(split, drawn)


def _averaged(ema: dict, params: dict, rate: Array | float, fixed: tuple) -> dict:
    """The average a step later; arrays at the paths `fixed` are those of `params`."""
    ema = optax.incremental_update(params, ema, 1 - rate)
    return fixed_arrays.put(ema, {path: fixed_arrays.at(params, path) for path in fixed})


def _ramped(rate: float, ramp_up: float, warmup: bool, steps: Array) -> Array | float:
    """The decay of an average after so many steps."""
    if not rate:
        return rate
    if ramp_up:
        rate = 0.5 ** (1 / jnp.minimum(math.log(0.5) / math.log(rate), ramp_up * steps))
    return jnp.minimum(rate, (1 + steps) / (10 + steps)) if warmup else rate


def batch_at(step_key: Array, batch: dict, draw_batch: Callable | None) -> dict:
    """The data of a step: what the batch holds, or what the device draws for it."""
    if draw_batch is None or "x1" in batch:
        return {k: v for k, v in batch.items() if k != "step"}
    return draw_batch(rng.data_key(step_key))


def check_finite(step: int, metrics: dict) -> None:
    """Raises FloatingPointError naming the step and the offending figures."""
    if not metrics["finite"]:
        bad = {k: float(v) for k, v in metrics.items() if not math.isfinite(v)}
        raise FloatingPointError(f"step {step}: {bad or 'its state'} is not finite")
