"""Samplers that explore an energy: unadjusted Langevin and Hamiltonian Monte Carlo."""

import jax
import jax.numpy as jnp

from genfield import registry
from genfield.fields import Prediction, direction, expand, squared_norm
from genfield.registry import NotNegative, Positive, PositiveInt
from genfield.rng import normal, split, uniform
from genfield.sampling.core import Sampler, advance, start


def langevin(step_size: Positive, temperature: NotNegative = 1.0) -> Sampler:
    """Unadjusted Langevin: x <- x - η f(x) + √(2 η T) ξ, f the gradient of an energy.

    Its law tends to exp(-E/T) as η -> 0. One evaluation a step.
    """

    def step(key, field, state, cond):
        noise = normal(key, state.x)
        drift = step_size * direction(field(state.x, None, cond))
        scale = jnp.sqrt(2 * step_size * temperature)
        return advance(state, state.x - drift + scale * noise, 1)

    return Sampler(init=lambda x, num_steps: start(x), step=step)


def hamiltonian(
    step_size: Positive = 0.2,
    num_leapfrog: PositiveInt = 5,
    mass: Positive = 1.0,
    temperature: NotNegative = 0.0625,
) -> Sampler:
    """Metropolis-adjusted HMC on exp(-U/T); each sample accepts or rejects on its own.

    The field's Prediction gives U (distance) and ∇U (direction), so it must be a true gradient
    (`fields.potential_field`). T = σ² = 0.25² and the other defaults are DM's (appendix C.1);
    num_leapfrog + 1 evaluations a step, as counted there. `info["acceptance"]` is the share of
    accepted proposals, [B].

    Raises:
      TypeError: the field does not return a Prediction.
    """

    def step(key, field, state, cond):
        accepted, proposed = state.memory
        key_p, key_u = split(key)

        def energy(x):
            out = field(x, None, cond)
            if not isinstance(out, Prediction):
                raise TypeError("HMC needs a field that returns fields.Prediction (∇U, U)")
            return out.distance / temperature, out.direction / temperature

        def leapfrog(carry, _):
            x, p, gradient, _ = carry
            p = p - 0.5 * step_size * gradient
            x = x + step_size * p / mass
            u, gradient = energy(x)
            return (x, p - 0.5 * step_size * gradient, gradient, u), None

        p0 = jnp.sqrt(mass) * normal(key_p, state.x)
        u0, gradient0 = energy(state.x)
        carry = (state.x, p0, gradient0, u0)
        (x, p, _, u), _ = jax.lax.scan(leapfrog, carry, None, length=num_leapfrog)
        kinetic = lambda q: squared_norm(q) / (2 * mass)
        log_ratio = u0 + kinetic(p0) - u - kinetic(p)
        # A NaN ratio compares false: a diverged proposal is rejected.
        accept = jnp.log(uniform(key_u, u)) < log_ratio
        x = jnp.where(expand(accept, x), x, state.x)
        counters = (accepted + accept, proposed + 1)
        return advance(state, x, num_leapfrog + 1, memory=counters)

    def init(x, num_steps):
        return start(x, memory=(jnp.zeros(x.shape[:1], jnp.int32), jnp.int32(0)))

    def info(state):
        accepted, proposed = state.memory
        return {"acceptance": accepted / jnp.maximum(proposed, 1)}

    return Sampler(init=init, step=step, info=info)


METHODS = (
    registry.Sampler(
        name="langevin",
        make=langevin,
        follows="gradient",
        clock=False,
        noisy=lambda bound: True,
        needs_output=None,
        product="direction",
        step_scales_field=False,
        levels=None,
        steps=None,
        adaptive=False,
    ),
    registry.Sampler(
        name="hamiltonian",
        make=hamiltonian,
        follows="gradient",
        clock=False,
        noisy=lambda bound: True,
        needs_output=("potential", "energy"),
        product="direction",
        step_scales_field=False,
        levels=None,
        steps=None,
        adaptive=False,
    ),
)
