"""Samplers: pairs of pure functions, run by `sample` (one) or `chain` (several in turn).

    samples = sampling.sample(key, field, x, sampling.gradient_descent(0.003), num_steps=250)

A sampler's `init(x, num_steps)` makes a State and `step(key, field, state, cond)` advances it;
`solve_ode` and `probability_flow` integrate adaptively. All report the network evaluations used
per sample.
"""

from genfield.sampling.core import Sampler, Samples, State, chain, sample
from genfield.sampling.diffusion import (
    edm_euler,
    edm_heun,
    predictor_corrector,
    probability_flow,
    reverse_ve,
)
from genfield.sampling.gradient import gradient_descent, nesterov, sphere_tracing
from genfield.sampling.mcmc import hamiltonian, langevin
from genfield.sampling.multistep import multistep, schedule
from genfield.sampling.ode import SOLVERS, euler, heun, solve_ode
from genfield.sampling.stopping import RULES, gradient_norm, refill, rising_distance, stopping

SAMPLERS = {
    "gradient_descent": gradient_descent,
    "nesterov": nesterov,
    "sphere_tracing": sphere_tracing,
    "euler": euler,
    "heun": heun,
    "langevin": langevin,
    "hamiltonian": hamiltonian,
    "edm_heun": edm_heun,
    "edm_euler": edm_euler,
    "reverse_ve": reverse_ve,
    "predictor_corrector": predictor_corrector,
    "multistep": multistep,
}

__all__ = [
    "RULES",
    "SAMPLERS",
    "SOLVERS",
    "Sampler",
    "Samples",
    "State",
    "chain",
    "edm_euler",
    "edm_heun",
    "euler",
    "gradient_descent",
    "gradient_norm",
    "hamiltonian",
    "heun",
    "langevin",
    "multistep",
    "nesterov",
    "predictor_corrector",
    "probability_flow",
    "refill",
    "reverse_ve",
    "rising_distance",
    "sample",
    "schedule",
    "solve_ode",
    "sphere_tracing",
    "stopping",
]
