"""Samplers that descend a field without a clock: EqM eq. 8-9, DM eq. 9-10.

The field is a gradient, which points away from the data: `fields.negate` makes one of a velocity.
"""

from genfield import registry
from genfield.fields import direction, displacement
from genfield.registry import Positive
from genfield.sampling.core import Sampler, advance, start


def gradient_descent(step_size: Positive) -> Sampler:
    """x <- x - η f(x), f the gradient (EqM eq. 8) or a Prediction's direction (DM eq. 10)."""

    def step(key, field, state, cond):
        gradient = direction(field(state.x, None, cond))
        return advance(state, state.x - step_size * gradient, 1)

    return Sampler(init=lambda x, num_steps: start(x), step=step)


def nesterov(step_size: Positive, momentum: float) -> Sampler:
    """x_{k+1} = x_k - η f(x_k + μ (x_k - x_{k-1})) (EqM eq. 9)."""

    def step(key, field, state, cond):
        previous = state.memory
        gradient = direction(field(state.x + momentum * (state.x - previous), None, cond))
        return advance(state, state.x - step_size * gradient, 1, memory=state.x)

    return Sampler(init=lambda x, num_steps: start(x, memory=x), step=step)


def sphere_tracing(step_size: Positive = 1.0) -> Sampler:
    """x <- x - η u(x) v(x) (DM eq. 9); η = 1 jumps by the whole predicted distance."""

    def step(key, field, state, cond):
        return advance(state, state.x - step_size * displacement(field(state.x, None, cond)), 1)

    return Sampler(init=lambda x, num_steps: start(x), step=step)


METHODS = (
    registry.Sampler(
        name="gradient_descent",
        make=gradient_descent,
        follows="gradient",
        clock=False,
        noisy=lambda bound: False,
        needs_output=None,
        product="direction",
        step_scales_field=True,
        levels=None,
        steps=None,
        adaptive=False,
    ),
    registry.Sampler(
        name="nesterov",
        make=nesterov,
        follows="gradient",
        clock=False,
        noisy=lambda bound: False,
        needs_output=None,
        product="direction",
        step_scales_field=True,
        levels=None,
        steps=None,
        adaptive=False,
    ),
    registry.Sampler(
        name="sphere_tracing",
        make=sphere_tracing,
        follows="gradient",
        clock=False,
        noisy=lambda bound: False,
        needs_output=("predicted", "potential"),
        product="displacement",
        step_scales_field=True,
        levels=None,
        steps=None,
        adaptive=False,
    ),
)
