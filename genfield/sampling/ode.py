"""Samplers that integrate a velocity from t = 0 to 1: fixed steps, and adaptive by diffrax.

The field is a velocity, which points to the data: `fields.negate` makes one of a gradient.
"""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.fields import Field, direction, evaluations
from genfield.registry import Positive, PositiveInt
from genfield.sampling.core import Sampler, Samples, advance, start


def _clock(x: Array, num_steps: int):
    """Memory of a fixed-step solver: the step index and the number of steps."""
    return start(x, memory=(jnp.int32(0), jnp.int32(num_steps)))


def _times(state) -> tuple[Array, Array, Array, tuple]:
    """t and next t as [B], the step, and the advanced clock."""
    k, n = state.memory
    like = jnp.zeros(state.x.shape[:1], jnp.float32)
    # k/n rather than a running sum, so that the last step ends at exactly 1.
    return like + k / n, like + (k + 1) / n, 1.0 / n, (k + 1, n)


def euler() -> Sampler:
    """x <- x + h v(x, t), order 1; one evaluation a step."""

    def step(key, field, state, cond):
        t, _, h, clock = _times(state)
        return advance(state, state.x + h * direction(field(state.x, t, cond)), 1, memory=clock)

    return Sampler(init=_clock, step=step)


def heun() -> Sampler:
    """The explicit trapezoidal rule, order 2; two evaluations a step."""

    def step(key, field, state, cond):
        t, t_next, h, clock = _times(state)
        v = direction(field(state.x, t, cond))
        v_next = direction(field(state.x + h * v, t_next, cond))
        return advance(state, state.x + 0.5 * h * (v + v_next), 2, memory=clock)

    return Sampler(init=_clock, step=step)


# Solver, and its evaluations for n attempted steps: Dopri5 reuses its last stage as the next
# step's first.
SOLVERS: dict[str, tuple[Callable, Callable]] = {
    "dopri5": (diffrax.Dopri5, lambda n: 6 * n + 1),
    "heun_adaptive": (diffrax.Heun, lambda n: 2 * n),
}
FIRST_STEP = 0.01  # share of the interval; given, so that no evaluations go into guessing it


def solve_ode(
    field: Field,
    x: Array,
    *,
    cond: Any = None,
    method: str = "dopri5",
    rtol: Positive = 1e-5,
    atol: Positive = 1e-5,
    t0: float = 0.0,
    t1: float = 1.0,
    max_steps: PositiveInt = 4096,
    per_sample: bool = True,
    trace: int | None = None,
) -> Samples:
    """Integrates dx/dt = v(x, t) adaptively from t0 to t1 (t1 < t0 runs in reverse).

    Args:
      x: start points [B, *D]. cond: a pytree of [B, ...].
      method: "dopri5" or "heun_adaptive". rtol, atol: tolerances of the step-size control.
      per_sample: every sample has its own steps, so that its result does not depend on its
        batch; otherwise one step size serves the batch, which is cheaper.
      trace: so many even intervals of time, at whose ends positions are kept [trace + 1, B, *D];
        between steps they are the solver's own interpolation. None: none are.
    Returns:
      Samples; nfe counts attempted steps, accepted or not.
    Raises:
      ValueError: unknown method. diffrax's own error: max_steps were not enough.
    """
    if method not in SOLVERS:
        raise ValueError(f"unknown ODE method {method!r}; known: {', '.join(sorted(SOLVERS))}")
    solver, count = SOLVERS[method]
    kept = {"t1": True} if trace is None else {"ts": jnp.linspace(t0, t1, trace + 1)}

    def solve(x, cond):  # x [b, *D]
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, _: direction(field(y, jnp.full(y.shape[:1], t), cond))),
            solver(),
            t0=t0,
            t1=t1,
            dt0=FIRST_STEP * (t1 - t0),
            y0=x,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            saveat=diffrax.SaveAt(**kept),
            max_steps=max_steps,
        )
        return solution.ys, solution.stats["num_steps"]

    if per_sample:
        one = lambda x, cond: solve(x[None], jax.tree.map(lambda c: c[None], cond))
        ys, num_steps = jax.vmap(one, out_axes=(1, 0))(x, cond)
        ys = ys[:, :, 0]
    else:
        ys, num_steps = solve(x, cond)
    nfe = jnp.broadcast_to(count(num_steps) * evaluations(field), x.shape[:1]).astype(jnp.int32)
    return Samples(x=ys[-1], nfe=nfe, trace=None if trace is None else ys, info={})


METHODS = (
    registry.Sampler(
        name="euler",
        make=euler,
        follows="velocity",
        clock=True,
        noisy=lambda bound: False,
        needs_output=None,
        product="direction",
        step_scales_field=True,
        levels=None,
        steps=None,
        adaptive=False,
    ),
    registry.Sampler(
        name="heun",
        make=heun,
        follows="velocity",
        clock=True,
        noisy=lambda bound: False,
        needs_output=None,
        product="direction",
        step_scales_field=True,
        levels=None,
        steps=None,
        adaptive=False,
    ),
    *(
        registry.Sampler(
            name=name,
            make=functools.partial(solve_ode, method=name),
            follows="velocity",
            clock=True,
            noisy=lambda bound: False,
            needs_output=None,
            product="direction",
            step_scales_field=False,
            levels=None,
            steps=None,
            adaptive=True,
        )
        for name in SOLVERS
    ),
)
