"""The loop that every fixed-step sampler shares, and what it returns."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from genfield.fields import Field, checked, evaluations, expand
from genfield.rng import fold_in, typed


class State(NamedTuple):
    """What a sampler carries from step to step."""

    x: Array  # [B, *D]
    nfe: Array  # [B] int32, calls of the field
    done: Array  # [B] bool: this sample moves no more and costs no more
    memory: Any = ()  # the sampler's own: the last step, the time grid, counters


class Sampler(NamedTuple):
    """init(x, num_steps) -> State; step(key, field, state, cond) -> State."""

    init: Callable[[Array, int], State]
    step: Callable[[Array, Field, State, Any], State]
    info: Callable[[State], dict] = lambda state: {}  # what the sampler says at the end, [B] each
    stops: bool = False  # whether its samples can be done before the last step


class Samples(NamedTuple):
    """The result of sampling."""

    x: Array  # [B, *D]
    nfe: Array  # [B] int32, network evaluations: field calls times their cost
    trace: Array | None  # [1 + steps // trace, B, *D], the start first; None unless asked for
    info: dict  # per-sample figures of the sampler, e.g. HMC's "acceptance"


def start(x: Array, memory: Any = ()) -> State:
    """A fresh State at x."""
    zeros = jnp.zeros(x.shape[:1], jnp.int32)
    return State(x=x, nfe=zeros, done=zeros > 0, memory=memory)


def advance(state: State, x: Array, calls: int, memory: Any = ()) -> State:
    """The next State: finished samples stay where they are and count nothing."""
    keep = expand(state.done, x)
    return State(
        x=jnp.where(keep, state.x, x),
        nfe=state.nfe + jnp.where(state.done, 0, calls),
        done=state.done,
        memory=memory,
    )


def sample(
    key: Array,
    field: Field,
    x: Array,
    sampler: Sampler,
    *,
    num_steps: int,
    cond: Any = None,
    trace: int | None = None,
) -> Samples:
    """Runs `sampler` for `num_steps` steps from x, or until all samples are done.

    Args:
      key: drives the sampler's own noise; step k uses fold_in(key, k). One key, or keys [B], one
        a sample: then the noise of a sample does not depend on the batch that it is in.
      field: what the sampler follows. x: start points [B, *D], float32.
      cond: conditions, a pytree of [B, ...].
      trace: also return the positions after every `trace` steps.
    Raises:
      ValueError: num_steps or trace is not positive; keys of another number than the samples.
    """
    if num_steps < 1 or (trace is not None and trace < 1):
        raise ValueError(f"num_steps and trace must be positive, got {num_steps} and {trace}")
    key, field = typed(key), checked(field)
    if key.shape not in ((), x.shape[:1]):
        raise ValueError(f"key must be one key, or one a sample: {len(x)}, not {key.shape}")

    def body(state, k):
        return sampler.step(fold_in(key, k), field, state, cond), None

    def run(state, steps):
        return jax.lax.scan(body, state, steps)[0]

    def traced(state, steps):
        state = run(state, steps)
        return state, state.x

    state, positions = sampler.init(x, num_steps), None
    steps = jnp.arange(num_steps)
    if trace is None and sampler.stops:
        more = lambda carry: (carry[1] < num_steps) & ~jnp.all(carry[0].done)
        once = lambda carry: (body(*carry)[0], carry[1] + 1)
        state, _ = jax.lax.while_loop(more, once, (state, jnp.int32(0)))
    elif trace is None:
        state = run(state, steps)
    else:
        whole = num_steps // trace * trace
        state, positions = jax.lax.scan(traced, state, steps[:whole].reshape(-1, trace))
        positions = jnp.concatenate([x[None], positions])
        if whole < num_steps:
            state = run(state, steps[whole:])
    nfe = state.nfe * evaluations(field)
    return Samples(x=state.x, nfe=nfe, trace=positions, info=sampler.info(state))


def chain(
    key: Array,
    field: Field,
    x: Array,
    stages: Sequence[tuple[Sampler, int]],
    *,
    cond: Any = None,
    trace: int | None = None,
) -> Samples:
    """Runs several samplers one after the other: [(sampler, num_steps), ...].

    Evaluations add up, `info` is the union, and traces are joined: each stage's positions after
    every `trace` of its steps, and its end.
    """
    key, nfe, traces, info = typed(key), 0, [], {}
    for i, (sampler, num_steps) in enumerate(stages):
        stage_trace = None if trace is None else min(trace, num_steps)
        out = sample(
            fold_in(key, i),
            field,
            x,
            sampler,
            num_steps=num_steps,
            cond=cond,
            trace=stage_trace,
        )
        x, nfe, info = out.x, nfe + out.nfe, info | out.info
        if trace is not None:
            traces.append(out.trace if i == 0 else out.trace[1:])
            if num_steps % stage_trace:
                traces.append(x[None])  # where a stage ends, the next one starts
    return Samples(x=x, nfe=nfe, trace=jnp.concatenate(traces) if traces else None, info=info)
