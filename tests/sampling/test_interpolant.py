"""The SDEs of a velocity: against NumPy's loop, the law that they keep, and what is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import executed
from programs import TINY_DIGITS

from genfield import registry, rng, sampling
from genfield.errors import UserError
from genfield.program import config_io, experiment
from genfield.sampling import interpolant

MEAN, STD = 0.7, 0.4
T_MIN = {name: 0.05 if name == "sbdm" else 0.0 for name in interpolant.DIFFUSIONS}
MAKE = {"euler": sampling.sde_euler, "heun": sampling.sde_heun}
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def velocity(x, t, cond=None):
    """E[x1 - x0 | x] of x1 ~ N(MEAN, STD²) on the straight path, by Gaussian conditioning."""
    t = t[:, None]
    z = (x - t * MEAN) / ((1 - t) ** 2 + (t * STD) ** 2)
    return MEAN + t * STD**2 * z - (1 - t) * z


def coefficient(name, t, n):
    """w(t), as SiT's text and code have it."""
    if name == "sbdm":  # (α'/α) σ² - σ σ' of α = t, σ = 1 - t
        return n * ((1 - t) ** 2 / t + (1 - t))
    if name == "decreasing":
        return (n * np.cos(np.pi * t) + 1) ** 2 / 4
    if name == "increasing_decreasing":
        return n * np.sin(np.pi * t) ** 2
    return n if name == "constant" else n * (1 - t)


def by_hand(noises, x, diffusion, norm, t_min, last_step, size, heun):
    """SiT's loop in float64: `noises` [steps, *x.shape]."""
    steps = len(noises)
    grid = np.linspace(t_min, 1, steps + 1)
    if last_step != "none":
        grid = np.append(np.linspace(t_min, 1 - size, steps), 1)

    def drift(x, t):
        v = velocity(x, np.full(len(x), t))
        return v + coefficient(diffusion, t, norm) * (t * v - x) / (1 - t)

    for k, (t, following) in enumerate(itertools.pairwise(grid)):
        h = following - t
        if k == steps - 1 and last_step == "mean":
            return x + h * drift(x, t)
        if k == steps - 1 and last_step == "euler":
            return x + h * velocity(x, np.full(len(x), t))
        if k == steps - 1 and last_step == "tweedie":
            v = velocity(x, np.full(len(x), t))
            return x / t + (1 - t) ** 2 / t * (t * v - x) / (1 - t)
        noise = np.sqrt(2 * coefficient(diffusion, t, norm) * h) * noises[k]
        if not heun:
            x = x + h * drift(x, t) + noise
            continue
        x = x + noise
        first = drift(x, t)
        mean = first if following == 1 else (first + drift(x + h * first, following)) / 2
        x = x + h * mean
    return x


CASES = [(name, "mean", heun) for name in interpolant.DIFFUSIONS for heun in (False, True)]
CASES += [("sigma", last, heun) for last in ("none", "tweedie", "euler") for heun in (False, True)]


@pytest.mark.parametrize(("diffusion", "last_step", "heun"), CASES)
def test_steps_are_those_of_the_published_loop(diffusion, last_step, heun):
    size, steps = None if last_step == "none" else 0.1, 6
    t_min = T_MIN[diffusion]
    made = MAKE["heun" if heun else "euler"](diffusion, 0.8, t_min, last_step, size)
    keys, start = (
        jax.random.split(jax.random.key(1), 5),
        jax.random.normal(jax.random.key(2), (5, 2)),
    )
    run = lambda k, x: sampling.sample(k, velocity, x, made, num_steps=steps)
    out = quick(run)(keys, start)
    noises = [rng.normal(rng.fold_in(keys, k), start) for k in range(steps)]
    noises, x = np.asarray(noises, np.float64), np.asarray(start, np.float64)
    expected = by_hand(noises, x, diffusion, 0.8, t_min, last_step, size, heun)
    np.testing.assert_allclose(out.x, expected, rtol=2e-5, atol=2e-5)
    assert set(np.asarray(out.nfe).tolist()) == {2 * steps - 1 if heun else steps}


def exact_law(made, steps, start, monkeypatch):
    """Mean and std of a sampler's samples from N(*start): the field is affine, and so are they.

    They follow from where 0 and 1 go without noise, and 0 with a noise of 1 in a single step.
    """
    key, rows = jax.random.key(3), steps + 2
    own = jax.random.key_data(jax.vmap(lambda k: rng.fold_in(key, k))(jnp.arange(steps)))

    def unit(now, like):
        step = jnp.argmax(jnp.all(own == jax.random.key_data(now)[None], axis=1))
        return (jnp.arange(rows) == step + 2)[:, None].astype(jnp.float32)

    monkeypatch.setattr(interpolant, "normal", unit)
    x = (jnp.arange(rows) == 1)[:, None].astype(jnp.float32)
    out = quick(lambda x: sampling.sample(key, velocity, x, made, num_steps=steps).x)(x)
    mean, *gains = np.asarray(out, np.float64)[:, 0]
    gains = np.array(gains) - mean
    gains[0] *= start[1]
    return mean + gains[0] / start[1] * start[0], np.sqrt(np.sum(gains**2))


@pytest.mark.parametrize("solver", MAKE)
@pytest.mark.parametrize("diffusion", [n for n in interpolant.DIFFUSIONS if n != "linear"])
def test_the_law_of_the_data_is_reached_as_steps_grow(diffusion, solver, monkeypatch):
    t_min = T_MIN[diffusion]
    made = MAKE[solver](diffusion, t_min=t_min, last_step="none")
    start = t_min * MEAN, np.sqrt((1 - t_min) ** 2 + (t_min * STD) ** 2)  # of the path, at t_min
    laws = [exact_law(made, steps, start, monkeypatch) for steps in (32, 512)]
    errors = np.abs(np.array(laws) - (MEAN, STD))
    assert (errors[:, 0] < 1e-5).all()  # the mean is that of the flow, to rounding
    assert errors[1, 1] < 2.5e-3 and errors[1, 1] < errors[0, 1] / 10, errors


@pytest.mark.parametrize("last_step", ["none", "mean"])
def test_the_record_says_at_which_times_the_field_is_called(last_step):
    record = interpolant.METHODS[0]
    section, seen = {"t_min": 0.1, "last_step": last_step}, []

    def listening(x, t, cond=None):
        seen.append(float(t[0]))
        return velocity(x, t)

    sampler = record.make(**section)
    run = lambda x: sampling.sample(jax.random.key(0), listening, x, sampler, num_steps=4)
    executed(run, jnp.ones((2, 1)))
    expected = record.times(registry.bound(record, section), 4)
    np.testing.assert_allclose(sorted(seen), expected[:-1], rtol=1e-6)
    assert expected[-1] == 1


def test_of_one_step_all_is_the_last_one_and_times_end_at_one():
    np.testing.assert_allclose(interpolant.times(1, 0.2), [0.2, 1.0])
    np.testing.assert_allclose(interpolant.times(3, 0.0), [0.0, 0.48, 0.96, 1.0], rtol=1e-6)
    np.testing.assert_allclose(interpolant.times(2, 0.5, "none"), [0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(diffusion="sbdm"), "infinite at t = 0: set t_min"),
        (dict(last_step="none", last_step_size=0.04), "leave it out"),
        (dict(t_min=0.97), "times need"),
        (dict(last_step_size=0.0), "times need"),
        (dict(norm=0.0), "norm must be positive"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, says):
    for make in MAKE.values():
        with pytest.raises(ValueError, match=says):
            make(**options)
    with pytest.raises(UserError, match="unknown diffusion 'sigmas': did you mean 'sigma'"):
        sampling.sde_euler("sigmas")


def tiny(**changes):
    config = config_io.load(str(TINY_DIGITS))
    config.loss = dict(name="flow_matching")
    config.sampler = dict(name="sde_euler", num_steps=2)
    for section, value in changes.items():
        config[section] = value
    return config


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (tiny(loss=dict(name="equilibrium_matching")), "equilibrium_matching teaches a gradient"),
        (tiny(loss=dict(name="flow_matching", time_input=False)), "this field has no t"),
        (tiny(path_noise=0.1), "config.path_noise is not 0"),
        (tiny(coupling=dict(name="exact_assignment")), "config.coupling chooses the noise"),
    ],
)
def test_a_field_without_a_score_is_refused_in_one_line(config, says, tmp_path):
    with pytest.raises(UserError, match=says):
        experiment.prepare(config, tmp_path)
