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


class Pieces(NamedTuple):
    """A sampler's run in pieces, which whoever holds the carry may stop and take up again.

    `sample` is these pieces in one call; the program runs one compiled `advance`, whose bounds are
    arguments, a second's worth of steps at a time.

    Attributes:
      begin: (field, x, cond) -> the carry, a pytree of arrays.
      advance: (key, field, carry, cond, first, last) -> the carry after steps first … last - 1;
        it comes back early where nothing is left to do.
      share: (carry, last) -> float32 in [0, 1], of any shape: how much is done; all 1: finished.
      finish: (field, carry) -> Samples.
      steps: how many there are at most; None: not known, as of adaptive solvers.
    """

    begin: Callable
    advance: Callable
    share: Callable
    finish: Callable
    steps: int | None


def pieces(sampler: Sampler, num_steps: int, trace: int | None = None) -> Pieces:
    """The pieces of `sample`; a trace is filled as the steps are made."""

    def begin(field, x, cond=None):
        positions = None
        if trace is not None:
            empty = jnp.zeros((1 + num_steps // trace, *x.shape), x.dtype)
            positions = empty.at[0].set(x)
        return sampler.init(x, num_steps), positions

    def advance(key, field, carry, cond, first, last):
        def step(k, carry):
            state, positions = carry
            state = sampler.step(fold_in(key, k), field, state, cond)
            if trace is not None:  # each step of a block writes the place that its last one keeps
                positions = positions.at[k // trace + 1].set(state.x, mode="drop")
            return state, positions

        if trace is not None or not sampler.stops:
            return jax.lax.fori_loop(first, last, step, carry)
        more = lambda at: (at[0] < last) & ~jnp.all(at[1][0].done)
        once = lambda at: (at[0] + 1, step(*at))
        return jax.lax.while_loop(more, once, (jnp.int32(first), carry))[1]

    def share(carry, last):
        part = jnp.float32(last / num_steps)
        return jnp.where(jnp.all(carry[0].done), 1.0, part) if sampler.stops else part

    def finish(field, carry):
        state, positions = carry
        nfe = state.nfe * evaluations(field)
        return Samples(x=state.x, nfe=nfe, trace=positions, info=sampler.info(state))

    return Pieces(begin, advance, share, finish, num_steps)


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
    run = pieces(sampler, num_steps, trace)
    carry = run.advance(key, field, run.begin(field, x, cond), cond, 0, num_steps)
    return run.finish(field, carry)


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
    key, outs = typed(key), []
    for i, (sampler, num_steps) in enumerate(stages):
        x = outs[-1].x if outs else x
        every = stage_trace(trace, num_steps)
        run = dict(num_steps=num_steps, cond=cond, trace=every)
        outs.append(sample(fold_in(key, i), field, x, sampler, **run))
    return joined(outs, [num_steps for _, num_steps in stages], trace)


def stage_trace(trace: int | None, num_steps: int) -> int | None:
    """The trace of one stage of a chain."""
    return None if trace is None else min(trace, num_steps)


def joined(outs: Sequence[Samples], lengths: Sequence[int], trace: int | None) -> Samples:
    """What the stages of a chain gave, each of so many steps, as one; see `chain`."""
    nfe, traces, info = 0, [], {}
    for i, (out, num_steps) in enumerate(zip(outs, lengths, strict=True)):
        nfe, info = nfe + out.nfe, info | out.info
        if trace is not None:
            traces.append(out.trace if i == 0 else out.trace[1:])
            if num_steps % stage_trace(trace, num_steps):
                traces.append(out.x[None])  # where a stage ends, the next one starts
    return Samples(
        x=outs[-1].x, nfe=nfe, trace=jnp.concatenate(traces) if traces else None, info=info
    )
