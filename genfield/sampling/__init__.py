"""Samplers: pairs of pure functions, run by `sample` (one) or `chain` (several in turn).

    samples = sampling.sample(key, field, x, sampling.gradient_descent(0.003), num_steps=250)

A sampler's `init(x, num_steps)` makes a State and `step(key, field, state, cond)` advances it;
`solve_ode` and `probability_flow` integrate adaptively. All report the network evaluations used
per sample. Gradient samplers step against their field, the others along it: `fields.negate` turns
the field of one kind into that of the other.
"""

from genfield.sampling.core import Sampler, Samples, State, chain, sample
from genfield.sampling.diffusion import (
    edm_euler,
    edm_heun,
    predictor_corrector,
    reverse_ve,
)
from genfield.sampling.diffusion_flow import probability_flow
from genfield.sampling.editing import ascent, inpaint, interpolate, midway, pace
from genfield.sampling.gradient import gradient_descent, nesterov, sphere_tracing
from genfield.sampling.interpolant import sde_euler, sde_heun
from genfield.sampling.mcmc import hamiltonian, langevin
from genfield.sampling.multistep import multistep, schedule
from genfield.sampling.ode import SOLVERS, euler, heun, solve_ode
from genfield.sampling.stopping import gradient_norm, refill, rising_distance, stopping

__all__ = [
    "SOLVERS",
    "Sampler",
    "Samples",
    "State",
    "ascent",
    "chain",
    "edm_euler",
    "edm_heun",
    "euler",
    "gradient_descent",
    "gradient_norm",
    "hamiltonian",
    "heun",
    "inpaint",
    "interpolate",
    "langevin",
    "midway",
    "multistep",
    "nesterov",
    "pace",
    "predictor_corrector",
    "probability_flow",
    "refill",
    "reverse_ve",
    "rising_distance",
    "sample",
    "schedule",
    "sde_euler",
    "sde_heun",
    "solve_ode",
    "sphere_tracing",
    "stopping",
]
