"""Samplers of the stochastic differential equations that have the marginals of a velocity's flow.

Of a velocity v on the straight path from normal noise, the process dx = (v + w s) dt + √(2w) dW has
at each t the law of the path, whichever w(t) >= 0: s is the score, which v knows
(`fields.velocity_to_score`). SiT (Ma et al., arXiv:2401.08740) calls 2w the diffusion coefficient
and compares the w below; what its text leaves open is as in its code.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield import registry
from genfield.fields import direction, velocity_to_score
from genfield.registry import Fraction, OneOf, Positive
from genfield.rng import normal
from genfield.sampling.core import Sampler, advance, start

LAST_SIZE = 0.04  # of SiT's last step: as long as ten of its other 249
DIFFUSIONS = {  # w(t), of a norm n; on the straight path "sigma" and "linear" are one
    "constant": lambda t, n: n,
    "sbdm": lambda t, n: n * (1 - t) / t,
    "sigma": lambda t, n: n * (1 - t),
    "linear": lambda t, n: n * (1 - t),
    "decreasing": lambda t, n: 0.25 * jnp.square(n * jnp.cos(jnp.pi * t) + 1),
    "increasing_decreasing": lambda t, n: n * jnp.square(jnp.sin(jnp.pi * t)),
}
LAST_STEPS = ("none", "mean", "tweedie", "euler")
DIFFUSION = Annotated[str, OneOf(DIFFUSIONS)]
LAST_STEP = Annotated[str, OneOf(LAST_STEPS)]


def sde_euler(
    diffusion: DIFFUSION = "sigma",
    norm: Positive = 1.0,
    t_min: Fraction = 0.0,
    last_step: LAST_STEP = "mean",
    last_step_size: Fraction | None = None,
) -> Sampler:
    """Euler-Maruyama's steps of dx = (v + w s) dt + √(2w) dW; one evaluation each; for a velocity.

    The defaults are those of SiT's code; its 250 steps are 249 even ones and the last, as here.

    Args:
      diffusion: w, of DIFFUSIONS. norm: its factor, within the square of "decreasing".
      t_min: where t begins; "sbdm", infinite at 0, needs one above it.
      last_step: how the last step goes to t = 1, without noise. "mean": by the drift v + w s.
        "tweedie": to E[x1 | x]; "euler": by v: on the straight path these two are one. "none":
        there is no last step, all are even and noisy.
      last_step_size: how long it is; None: LAST_SIZE.
    Raises:
      ValueError: times that do not rise, a size of no last step, "sbdm" from t = 0. UserError: an
        unknown diffusion or last step.
    """
    return _sampler(diffusion, norm, t_min, last_step, last_step_size, heun=False)


def sde_heun(
    diffusion: DIFFUSION = "sigma",
    norm: Positive = 1.0,
    t_min: Fraction = 0.0,
    last_step: LAST_STEP = "mean",
    last_step_size: Fraction | None = None,
) -> Sampler:
    """`sde_euler` with Heun's rule for the drift, after the noise of the step; two evaluations.

    The step to t = 1, where the score is infinite, is Euler's: one evaluation.
    """
    return _sampler(diffusion, norm, t_min, last_step, last_step_size, heun=True)


def times(
    num_steps: int, t_min: float = 0.0, last_step: str = "mean", last_step_size: float | None = None
) -> Array:
    """Where these samplers stand: even times from t_min on, and the last step to 1.

    Returns:
      Float32 [num_steps + 1]: num_steps even times to 1 - last_step_size, then 1. Without a last
      step all are even; of one step, [t_min, 1].
    """
    if last_step == "none":
        return jnp.asarray(np.linspace(t_min, 1.0, num_steps + 1), jnp.float32)
    size = LAST_SIZE if last_step_size is None else last_step_size
    even = np.linspace(t_min, 1.0 - size, num_steps)
    return jnp.asarray(np.append(even, 1.0), jnp.float32)


def _check(diffusion: str, t_min: float, last_step: str, last_step_size: float | None) -> None:
    registry.choose("diffusion", diffusion, DIFFUSIONS)
    registry.choose("last_step", last_step, LAST_STEPS)
    if last_step == "none" and last_step_size is not None:
        raise ValueError("last_step='none' has no last_step_size: leave it out")
    size = LAST_SIZE if last_step_size is None else last_step_size
    if not 0 < size < 1 or not 0 <= t_min < 1 - (last_step != "none") * size:
        raise ValueError(
            f"times need 0 <= t_min < 1 - last_step_size < 1, got t_min={t_min} and "
            f"last_step_size={size}"
        )
    if diffusion == "sbdm" and t_min == 0:
        raise ValueError("diffusion='sbdm' is infinite at t = 0: set t_min, such as 0.001")


def _sampler(diffusion, norm, t_min, last_step, last_step_size, heun: bool) -> Sampler:
    _check(diffusion, t_min, last_step, last_step_size)
    if not norm > 0:
        raise ValueError(f"norm must be positive, got {norm}")
    by_velocity, noiseless = last_step in ("tweedie", "euler"), last_step != "none"
    w = lambda t: DIFFUSIONS[diffusion](t, norm)

    def slope(field, x, t, cond, last=False):
        """The drift v + w s; v alone where the last step asks for it."""
        each = jnp.full(x.shape[:1], t)
        velocity = direction(field(x, each, cond))
        drift = velocity + w(t) * velocity_to_score(velocity, x, each)
        return jnp.where(last & by_velocity, velocity, drift)

    def step(key, field, state, cond):
        k, grid = state.memory
        t, following, last = grid[k], grid[k + 1], k + 2 == len(grid)
        h, x = following - t, state.x
        noise = jnp.where(last & noiseless, 0.0, jnp.sqrt(2 * w(t) * h)) * normal(key, x)
        if not heun:
            x = x + h * slope(field, x, t, cond, last) + noise
            return advance(state, x, 1, memory=(k + 1, grid))
        x = x + noise
        first = slope(field, x, t, cond, last)
        euler = x + h * first
        corrected = lambda: x + 0.5 * h * (first + slope(field, euler, following, cond))
        x = jax.lax.cond(last, lambda: euler, corrected)
        return advance(state, x, jnp.where(last, 1, 2), memory=(k + 1, grid))

    def init(x, num_steps):
        return start(x, memory=(jnp.int32(0), times(num_steps, t_min, last_step, last_step_size)))

    return Sampler(init=init, step=step)


def _times(bound, num_steps: int) -> Array:
    return times(num_steps, *(bound[name] for name in ("t_min", "last_step", "last_step_size")))


METHODS = tuple(
    registry.Sampler(
        name=make.__name__,
        make=make,
        follows="velocity",
        clock=True,
        noisy=lambda bound: True,
        needs_output=None,
        product="direction",
        step_scales_field=False,
        levels=None,
        steps=None,
        adaptive=False,
        times=_times,
        scored=True,
    )
    for make in (sde_euler, sde_heun)
)
