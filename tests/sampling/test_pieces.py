"""A sampler run in pieces, wherever it is cut, gives what it gives in one, to the bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genfield import rng, sampling
from genfield.fields import Prediction
from genfield.sampling import core, diffusion_flow, ode
from genfield.sampling.stopping import refill_pieces

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 3))
COND = jnp.arange(6.0)
KEYS = jax.random.split(KEY, 6)


def field(x, t=None, cond=None):
    """Down to zero, at a speed that hangs on the time and on the condition."""
    speed = 1 + 0.1 * cond if t is None else 1 + 0.1 * cond + jnp.sin(t)
    return -speed[:, None] * x


def valley(x, t=None, cond=None):
    distance = jnp.sum(x**2, axis=1) * (1 + 0.1 * cond) / 2
    return Prediction((1 + 0.1 * cond)[:, None] * x, distance)


def denoiser(x, t, cond=None):
    return x / (1 + t**2 * (1 + 0.1 * cond))[:, None]


def uphill(x, t=None, cond=None):
    """A gradient, of which samples stop at different steps."""
    return (1 + cond)[:, None] * x


STOPS = sampling.stopping(sampling.gradient_descent(0.1), sampling.gradient_norm(0.5))
FIXED = {
    "euler": (sampling.euler(), field),
    "heun": (sampling.heun(), field),
    "sde_heun": (sampling.sde_heun(), field),
    "nesterov": (sampling.nesterov(0.1, 0.3), uphill),
    "langevin": (sampling.langevin(0.05), uphill),
    "hamiltonian": (sampling.hamiltonian(0.1, 2), valley),
    "edm_heun": (sampling.edm_heun(0.1, 10.0), denoiser),
    "edm_heun churn": (sampling.edm_heun(0.1, 10.0, churn=4.0), denoiser),
    "reverse_ve": (sampling.reverse_ve(0.1, 10.0), lambda x, t, cond: -denoiser(x, t, cond)),
    "stops": (STOPS, uphill),
}


def cut(pieces, followed, cuts, cond=COND):
    """The samples of pieces cut into so many steps each, over and over, and the shares on the way.

    One compiled program makes all of them.
    """

    @jax.jit
    def advance(carry, first, last):
        carry = pieces.advance(KEYS, followed, carry, cond, first, last)
        return carry, pieces.share(carry, last)

    carry, first, shares = jax.jit(lambda: pieces.begin(followed, X, cond))(), 0, [0.0]
    while shares[-1] < 1:
        last = first + cuts[len(shares) % len(cuts)]
        last = last if pieces.steps is None else min(last, pieces.steps)
        carry, share = advance(carry, first, last)
        shares.append(float(np.mean(share)) if np.any(share < 1) else 1.0)
        first = last
    assert advance._cache_size() == 1
    return jax.jit(lambda carry: pieces.finish(followed, carry))(carry), shares


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("trace", [None, 3])
@pytest.mark.parametrize("name", FIXED)
def test_fixed_steps_may_be_cut_anywhere(name, trace):
    sampler, followed = FIXED[name]
    whole = jax.jit(
        lambda: sampling.sample(KEYS, followed, X, sampler, num_steps=10, cond=COND, trace=trace)
    )()
    parts, shares = cut(core.pieces(sampler, 10, trace), followed, (1, 4, 2))
    same(parts, whole)
    assert shares == sorted(shares) and len(shares) > 3


def test_samples_that_have_all_stopped_end_the_pieces_early():
    """The slowest needs 1 - 0.1 per step from at most 3 to 0.5: far fewer than 1,000 steps."""
    parts, shares = cut(core.pieces(STOPS, 1_000), uphill, (5,))
    assert len(shares) < 20 and int(parts.nfe.max()) < 100
    same(parts, sampling.sample(KEYS, uphill, X, STOPS, num_steps=1_000, cond=COND))


@pytest.mark.parametrize("slots", [2, 4, 9])
def test_slots_may_be_cut_anywhere(slots):
    run = dict(num_steps=20, slots=slots)
    whole = jax.jit(lambda: sampling.refill(KEYS, uphill, X, STOPS, cond=COND, **run))()
    parts, shares = cut(refill_pieces(STOPS, **run), uphill, (1, 7))
    same(parts, whole)
    same(parts.x, sampling.sample(KEYS, uphill, X, STOPS, num_steps=20, cond=COND).x)
    assert shares == sorted(shares)


ADAPTIVE = {
    "dopri5": {},
    "together": dict(per_sample=False),
    "heun": dict(method="heun_adaptive", rtol=1e-3, atol=1e-3),
    "back": dict(t0=1.0, t1=0.0),
    "traced": dict(trace=4),
    "traced together": dict(trace=4, per_sample=False),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_steps_may_be_cut_anywhere(name):
    options = ADAPTIVE[name]
    whole = jax.jit(lambda: ode.solve_ode(field, X, cond=COND, **options))()
    parts, shares = cut(ode.ode_pieces(**options), field, (1, 3))
    same(parts, whole)
    assert shares == sorted(shares) and len(shares) > 3


def test_the_probability_flow_may_be_cut_anywhere():
    options = dict(method="dopri5", rtol=1e-3, sigma_min=0.1, sigma_max=10.0, sigma_data=0.5)
    score = lambda x, t, cond=None: (denoiser(x, t, cond) - x) / (t**2)[:, None]
    whole = jax.jit(lambda: sampling.probability_flow(score, X, cond=COND, **options))()
    same(cut(diffusion_flow.flow_pieces(**options), score, (2, 3))[0], whole)


def test_too_few_steps_of_a_solver_end_with_an_error_not_with_a_loop(monkeypatch):
    monkeypatch.setattr("equinox._errors.EQX_ON_ERROR", "raise")  # as it is but for the tests
    pieces = ode.ode_pieces(rtol=1e-6, atol=1e-6, max_steps=3)
    with pytest.raises(Exception, match=r"max_steps|maximum number of solver steps"):
        jax.block_until_ready(cut(pieces, field, (2,))[0])


def test_a_sample_is_still_differentiable_backwards():
    run = functools.partial(sampling.sample, KEY, num_steps=4, cond=COND)
    slope = jax.grad(lambda x: jnp.sum(run(field, x, sampling.euler()).x))(X)
    factors = np.prod([1 - (1 + 0.1 * np.arange(6) + np.sin(k / 4)) / 4 for k in range(4)], axis=0)
    np.testing.assert_allclose(slope, np.tile(factors[:, None], 3), rtol=1e-5)


def test_a_stage_of_a_chain_has_the_noise_of_its_number():
    stages = [(sampling.gradient_descent(0.1), 2), (sampling.langevin(0.05), 3)]
    whole = sampling.chain(KEYS, uphill, X, stages, cond=COND)
    first = sampling.sample(KEYS, uphill, X, stages[0][0], num_steps=2, cond=COND)
    keys = rng.fold_in(KEYS, 1)
    last = sampling.sample(keys, uphill, first.x, stages[1][0], num_steps=3, cond=COND)
    np.testing.assert_array_equal(whole.x, last.x)
