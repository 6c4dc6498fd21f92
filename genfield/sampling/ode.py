"""Samplers that integrate a velocity from t = 0 to 1: fixed steps, and adaptive by diffrax.

The field is a velocity, which points to the data: `fields.negate` makes one of a gradient.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.fields import Field, direction, evaluations
from genfield.registry import OneOf, Positive, PositiveInt
from genfield.sampling.core import Pieces, Sampler, Samples, advance, start

# EDM's grid (Karras et al., arXiv:2206.00364, eq. 5), by its noise levels σ and its ρ.
SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.002, 7.0


def _edm_times(k, n):
    """1 / (1 + σ_k), as the straight path has (1 - t) / t of noise to data; the last of n is 1."""
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    sigma = (high + (k / jnp.maximum(n - 1, 1)) * (low - high)) ** RHO
    return jnp.where(k == n, 1.0, 1 / (1 + sigma))


# (k, n) -> the time of point k of 0 … n. k / n rather than a running sum, so that the last is 1.
TIMES: dict[str, Callable] = {"even": lambda k, n: k / n, "edm": _edm_times}


def grid(times: str, num_steps: int) -> Array:
    """The times [num_steps + 1] of TIMES at which a solver of fixed steps stands."""
    return registry.choose("times", times, TIMES)(jnp.arange(num_steps + 1), num_steps)


def _clock(x: Array, num_steps: int):
    """Memory of a fixed-step solver: the step index and the number of steps."""
    return start(x, memory=(jnp.int32(0), jnp.int32(num_steps)))


def _times(state, times: str, step_size: float | None) -> tuple[Array, Array, Array, tuple]:
    """t and next t as [B], the step, and the advanced clock."""
    k, n = state.memory
    like, at = jnp.zeros(state.x.shape[:1], jnp.float32), registry.choose("times", times, TIMES)
    t, t_next = at(k, n), at(k + 1, n)
    if step_size is not None:
        h = step_size
    else:
        h = 1.0 / n if times == "even" else t_next - t
    return like + t, like + t_next, h, (k + 1, n)


def euler(
    step_size: Positive | None = None, times: Annotated[str, OneOf(TIMES)] = "even"
) -> Sampler:
    """x <- x + h v(x, t), order 1; one evaluation a step.

    step_size: h of every step, in the place of the time that it takes: EqM's integration sampler
      with η (arXiv:2510.02300, Table 7), which need not end where time does.
    times: "even", k / n; "edm", 1 / (1 + σ) of EDM's noise levels σ from 80 to 0.002, then 1, which
      flow_matching's code takes for CIFAR-10. It starts at t = 1/81.
    """
    registry.choose("times", times, TIMES)

    def step(key, field, state, cond):
        t, _, h, clock = _times(state, times, step_size)
        return advance(state, state.x + h * direction(field(state.x, t, cond)), 1, memory=clock)

    return Sampler(init=_clock, step=step)


def heun(
    step_size: Positive | None = None, times: Annotated[str, OneOf(TIMES)] = "even"
) -> Sampler:
    """The explicit trapezoidal rule, order 2; two evaluations a step. Arguments as `euler`."""
    registry.choose("times", times, TIMES)

    def step(key, field, state, cond):
        t, t_next, h, clock = _times(state, times, step_size)
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
    solve = _solver(method, rtol, atol, t0, t1, max_steps, trace)
    adjoint = diffrax.RecursiveCheckpointAdjoint()
    whole = lambda x, cond: solve(field, x, cond, adjoint, throw=True)
    solution = _each(whole, per_sample)(x, cond)
    return _samples(solution, method, evaluations(field), len(x), per_sample, trace)


def _solver(method, rtol, atol, t0, t1, max_steps, trace) -> Callable:
    """solve(field, x [b, *D], cond, adjoint, throw) -> diffrax's solution; one step size for x."""
    if method not in SOLVERS:
        raise ValueError(f"unknown ODE method {method!r}; known: {', '.join(sorted(SOLVERS))}")
    kept = {"t1": True} if trace is None else {"ts": jnp.linspace(t0, t1, trace + 1)}

    def solve(field, x, cond, adjoint, throw):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, _: direction(field(y, jnp.full(y.shape[:1], t), cond))),
            SOLVERS[method][0](),
            t0=t0,
            t1=t1,
            dt0=FIRST_STEP * (t1 - t0),
            y0=x,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            saveat=diffrax.SaveAt(**kept),
            max_steps=max_steps,
            adjoint=adjoint,
            throw=throw,
        )

    return solve


def _each(call: Callable, per_sample: bool) -> Callable:
    """call(x [b, *D], cond, …) for the batch, or for each sample of it by itself."""
    if not per_sample:
        return call
    row = lambda tree: jax.tree.map(lambda a: a[None], tree)
    return jax.vmap(lambda x, cond, *rest: call(x[None], row(cond), *rest))


def _samples(solution, method, cost, num, per_sample, trace) -> Samples:
    ys, num_steps = solution.ys, solution.stats["num_steps"]
    if per_sample:  # [B, positions, 1, *D]
        ys = jnp.moveaxis(ys, 0, 1)[:, :, 0]
    nfe = jnp.broadcast_to(SOLVERS[method][1](num_steps) * cost, (num,)).astype(jnp.int32)
    return Samples(x=ys[-1], nfe=nfe, trace=None if trace is None else ys, info={})


class Paused(diffrax.AbstractAdjoint):
    """diffrax's loop, going on from a state to its `last` step; stats["state"] is the one there.

    diffrax itself goes on from a solution, but rounds the time of the next step anew and forgets
    the positions that it has saved.
    """

    state: Any  # the arrays of the loop's state; None: where it starts
    last: Any  # None: no step is made

    def loop(self, *, throw, passed_solver_state, passed_controller_state, **kwargs):
        reached = []

        def outer(cond_fun, body_fun, init, max_steps, buffers):
            state = init if self.state is None else eqx.combine(self.state, init)
            if self.last is not None:
                limit = jnp.minimum(self.last, max_steps)
                more = lambda s: cond_fun(s) & (s.num_steps < limit)
                state = eqxi.while_loop(more, body_fun, state, buffers=buffers, kind="lax")
            reached.append(_arrays(state))
            return state

        inner = functools.partial(eqxi.while_loop, kind="lax")
        final, stats = self._loop(**kwargs, inner_while_loop=inner, outer_while_loop=outer)
        return final, stats | {"state": reached[0]}


def _arrays(state):
    """The state of a loop as arrays, of one type from step to step."""
    strong = lambda a: jax.lax.convert_element_type(a, jnp.result_type(a).type)
    return jax.tree.map(strong, eqx.filter(state, eqx.is_array_like))


def ode_pieces(
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t0: float = 0.0,
    t1: float = 1.0,
    max_steps: int = 4096,
    per_sample: bool = True,
    trace: int | None = None,
) -> Pieces:
    """The pieces of `solve_ode`; a step is one that the solver attempts."""
    solve, sign = _solver(method, rtol, atol, t0, t1, max_steps, trace), 1 if t1 > t0 else -1

    def states(field, last):
        def call(x, cond, state=None):
            return solve(field, x, cond, Paused(state, last), throw=False).stats["state"]

        return _each(call, per_sample)

    def begin(field, x, cond=None):
        return x, cond, states(field, None)(x, cond)

    def advance(key, field, carry, cond, first, last):
        return *carry[:2], states(field, last)(*carry)

    def share(carry, last):
        state, ends = carry[2], (jnp.float32(sign * t0), jnp.float32(sign * t1))
        part = jnp.minimum((state.tprev - ends[0]) / (ends[1] - ends[0]), 0.999)
        over = (state.tprev >= ends[1]) | (state.num_steps >= max_steps)
        return jnp.where(over, 1.0, part)

    def finish(field, carry):
        call = lambda x, cond, state: solve(field, x, cond, Paused(state, None), throw=True)
        solution = _each(call, per_sample)(*carry)
        return _samples(solution, method, evaluations(field), len(carry[0]), per_sample, trace)

    return Pieces(begin, advance, share, finish, None)


METHODS = (
    *(
        registry.Sampler(
            name=make.__name__,
            make=make,
            follows="velocity",
            clock=True,
            noisy=lambda bound: False,
            needs_output=None,
            product="direction",
            step_scales_field=True,
            levels=None,
            steps=None,
            adaptive=False,
            times=lambda bound, num_steps: grid(bound["times"], num_steps),
        )
        for make in (euler, heun)
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
            pieces=functools.partial(ode_pieces, method=name),
        )
        for name in SOLVERS
    ),
)
