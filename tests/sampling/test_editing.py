"""Editing against a normal law in the plane whose fields and conditionals are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genfield import fields, paths, sampling

CORRELATION = 0.8
MEAN = np.array([[0.5, -1.0]], np.float32)
SPREADS = np.array([[1 + CORRELATION, 1 - CORRELATION]], np.float32)  # along (1, 1) and (1, -1)
AXES = np.array([[1, 1], [1, -1]], np.float32) / np.sqrt(2).astype(np.float32)
KNOWN = 1.5  # the first number, one standard deviation above its mean
SHIFT, VARIANCE = CORRELATION * (KNOWN - MEAN[0, 0]), 1 - CORRELATION**2  # of the second, given it
FREE = np.array([[False, True]])
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def velocity(x, t, cond=None):
    """E[x1 - x0 | x_t] for x1 ~ N(MEAN, C), x0 ~ N(0, I) on the linear path."""
    t = t[:, None]
    rate = (t * SPREADS - (1 - t)) / (t * t * SPREADS + (1 - t) ** 2)
    return MEAN + (rate * ((x - t * MEAN) @ AXES)) @ AXES


def denoiser(x, t, cond=None):
    """E[x1 | x1 + σ ε]."""
    gain = SPREADS / (SPREADS + t[:, None] ** 2)
    return MEAN + (gain * ((x - MEAN) @ AXES)) @ AXES


def energy(x, t=None, cond=None):
    """-log of the law, and its gradient."""
    return fields.potential_field(
        lambda z, t, cond: 0.5 * jnp.sum(((z - MEAN) @ AXES) ** 2 / SPREADS, axis=1)
    )(x)


def noise(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, 2)), jnp.float32)


def given(n):
    """The known number; what is hidden is no number, which would spread if it were read."""
    return jnp.asarray(np.tile([KNOWN, np.nan], (n, 1)), jnp.float32)


def inpainted(sampler, field, n, steps, **options):
    """By how much mean (in units of its shift) and variance miss the conditional; evaluations."""
    made = sampling.inpaint(sampler, given(n), FREE, **options)
    out = quick(lambda x: sampling.sample(jax.random.key(1), field, x, made, num_steps=steps))(
        noise(n)
    )
    assert (np.asarray(out.x[:, 0]) == np.float32(KNOWN)).all()  # to the bit
    y = np.asarray(out.x[:, 1], np.float64)
    return (y.mean() - MEAN[0, 1] - SHIFT) / SHIFT, y.var() / VARIANCE - 1, int(out.nfe[0])


def test_replacement_has_its_known_bias_and_resampling_takes_it_away():
    times = jnp.linspace(0, 1, 26)
    miss = {
        n: inpainted(sampling.heun(), velocity, 4000, 25, times=times, resample=n)
        for n in (1, 5, 20)
    }
    assert [nfe for *_, nfe in miss.values()] == [50, 250, 1000]
    assert miss[1][0] == pytest.approx(-0.57, abs=0.03) and miss[1][1] == pytest.approx(
        0.86, abs=0.1
    )
    assert abs(miss[5][0]) < 0.22 and abs(miss[5][1]) < 0.28
    assert abs(miss[20][0]) < 0.08 and abs(miss[20][1]) < 0.12


def test_the_same_down_noise_levels():
    levels = sampling.diffusion.noise_levels(18)
    keep = dict(times=levels, path=paths.variance_exploding)
    mean, variance, _ = inpainted(sampling.edm_heun(), denoiser, 4000, 18, **keep)
    assert -0.6 < mean < -0.45 and 0.8 < variance < 1.2
    mean, variance, nfe = inpainted(sampling.edm_heun(), denoiser, 4000, 18, **keep, resample=20)
    assert abs(mean) < 0.1 and abs(variance) < 0.15 and nfe == 20 * 35


@pytest.mark.parametrize(
    "sampler, steps",
    [(sampling.hamiltonian(0.2, 5, temperature=1.0), 60), (sampling.langevin(0.01), 400)],
    ids=["hamiltonian", "langevin"],
)
def test_samplers_of_an_energy_draw_from_the_conditional_law(sampler, steps):
    mean, variance, _ = inpainted(sampler, energy, 4000, steps)
    assert abs(mean) < 0.04 and abs(variance) < 0.08


@pytest.mark.parametrize(
    "sampler", [sampling.gradient_descent(0.1), sampling.nesterov(0.1, 0.3)], ids=["descent", "nag"]
)
def test_descent_ends_at_the_conditional_mean(sampler):
    mean, variance, _ = inpainted(sampler, energy, 16, 200)
    assert abs(mean) < 1e-4 and variance == pytest.approx(-1, abs=1e-6)
    mean, variance, _ = inpainted(sampler, energy, 16, 200, times=jnp.linspace(0, 1, 201) ** 0.1)
    assert abs(mean) < 0.02  # a known part that still moves is followed


def test_mistakes_of_inpaint_are_told():
    with pytest.raises(ValueError, match="resample must be positive"):
        sampling.inpaint(sampling.euler(), given(2), FREE, times=jnp.arange(3.0), resample=0)
    with pytest.raises(ValueError, match="1 without times"):
        sampling.inpaint(sampling.gradient_descent(0.1), given(2), FREE, resample=2)
    made = sampling.inpaint(sampling.euler(), given(2), FREE, times=jnp.linspace(0, 1, 4))
    with pytest.raises(ValueError, match="4 times are those of 3 steps"):
        sampling.sample(jax.random.key(0), velocity, noise(2), made, num_steps=4)


def test_a_start_on_the_way_goes_on_as_the_whole_way_would():
    key, x = jax.random.key(0), noise(16)
    for sampler, field, scale in (
        (sampling.heun(), velocity, 1.0),
        (sampling.edm_heun(sigma_max=5.0), denoiser, 5.0),
    ):
        trace = sampling.sample(key, field, x, sampler, num_steps=10, trace=1)
        rest = sampling.midway(sampler, 4, 10)
        out = sampling.sample(key, field, trace.trace[4], rest, num_steps=6)
        np.testing.assert_allclose(out.x, trace.x, rtol=1e-5, atol=1e-5)
        whole = 20 if scale == 1.0 else 19
        assert int(out.nfe[0]) == whole - 8
        assert sampling.midway(sampler, 0, 10) is sampler  # strength 1 is plain sampling
    with pytest.raises(ValueError, match="below 10, got 10"):
        sampling.midway(sampling.heun(), 10, 10)
    with pytest.raises(ValueError, match="6 of 10 steps are left, not 5"):
        sampling.sample(key, velocity, x, sampling.midway(sampling.heun(), 4, 10), num_steps=5)


def test_partly_noised_data_keep_their_law():
    """From any place on the path, samples of the law become samples of it."""
    n, key = 20_000, jax.random.key(0)
    z, x0 = noise(n, 1), noise(n, 2)
    x1 = MEAN + (z * np.sqrt(SPREADS)) @ AXES
    t = jnp.linspace(0, 1, 21)[8]
    made = sampling.midway(sampling.heun(), 8, 20)
    out = quick(lambda x: sampling.sample(key, velocity, x, made, num_steps=12).x)(
        t * x1 + (1 - t) * x0
    )
    covariance = np.cov(np.asarray(out).T)
    np.testing.assert_allclose(np.asarray(out).mean(0), MEAN[0], atol=0.03)
    np.testing.assert_allclose(covariance, [[1, 0.8], [0.8, 1]], atol=0.04)
    # They are still near to what they were made of, nearer than fresh ones.
    assert np.corrcoef(np.asarray(out)[:, 0], np.asarray(x1)[:, 0])[0, 1] > 0.2


@pytest.mark.parametrize("spherical", [True, False])
def test_interpolation_has_its_ends_to_the_bit(spherical):
    a, b = (jnp.asarray(np.random.default_rng(i).standard_normal((64, 4, 4, 3)), jnp.float32)
            for i in (0, 1))  # fmt: skip
    between = jax.jit(lambda w: sampling.interpolate(a, b, w, spherical=spherical))
    np.testing.assert_array_equal(between(0.0), a)
    np.testing.assert_array_equal(between(1.0), b)
    middle = np.asarray(between(0.5)).reshape(64, -1)
    expected = 0.5 * (np.asarray(a) + np.asarray(b)).reshape(64, -1)
    if spherical:  # of norm 1 on the unit sphere, and at equal angles of both
        unit = lambda x: x / jnp.linalg.norm(x.reshape(64, -1), axis=1).reshape(64, 1, 1, 1)
        on_sphere = np.asarray(sampling.interpolate(unit(a), unit(b), 0.5)).reshape(64, -1)
        np.testing.assert_allclose(np.linalg.norm(on_sphere, axis=1), 1, rtol=1e-5)
        cosines = [np.sum(on_sphere * np.asarray(unit(x)).reshape(64, -1), axis=1) for x in (a, b)]
        np.testing.assert_allclose(*cosines, rtol=1e-4)
        assert np.abs(middle.std() - 1) < 0.05 < 1 - expected.std()
    else:
        np.testing.assert_allclose(middle, expected, rtol=1e-6, atol=1e-7)


def test_interpolation_of_equal_and_of_opposite_noises_is_finite():
    a = noise(4)
    np.testing.assert_allclose(sampling.interpolate(a, a, 0.3), a, rtol=1e-6)
    assert np.isfinite(np.asarray(sampling.interpolate(a, -a, jnp.full(4, 0.3)))).all()


def order(errors):
    return np.log2(np.asarray(errors[:-1]) / np.asarray(errors[1:]))


@pytest.mark.parametrize("sampler, wanted", [(sampling.euler(), 1), (sampling.heun(), 3)])
def test_there_and_back_has_the_order_of_the_solver(sampler, wanted):
    """Of an even order p, the leading errors h^(p+1) of there and of back take each other away."""
    with jax.enable_x64():
        x1 = jnp.asarray(np.random.default_rng(0).standard_normal((64, 2)))
        errors = []
        for steps in (20, 40, 80):
            run = lambda field, x, steps=steps: (
                sampling.sample(jax.random.key(0), field, x, sampler, num_steps=steps).x
            )
            x0 = run(fields.backwards(velocity), x1)
            errors.append(float(jnp.abs(run(velocity, x0) - x1).max()))
    np.testing.assert_allclose(order(errors), wanted, atol=0.35)


def test_there_and_back_along_noise_levels_has_order_2_and_finds_normal_noise():
    x1 = MEAN + (noise(4000, 3) * np.sqrt(SPREADS)) @ AXES
    errors = []
    for steps in (8, 16, 32):
        levels = sampling.diffusion.noise_levels(steps, 0.002, 20.0)
        up = sampling.ascent(levels[::-1])
        out = sampling.sample(jax.random.key(0), denoiser, x1, up, num_steps=steps)
        assert int(out.nfe[0]) == 2 * (steps - 1)
        x0 = out.x / 20.0
        down = sampling.edm_heun(0.002, 20.0)
        again = sampling.sample(jax.random.key(0), denoiser, x0, down, num_steps=steps).x
        errors.append(float(jnp.abs(again - x1).mean()))
    assert (order(errors) > 1.6).all()
    np.testing.assert_allclose(np.cov(np.asarray(x0).T), np.eye(2), atol=0.08)


def test_the_pace_of_a_descent_is_that_of_its_rate():
    toward = lambda x, t=None, cond=None: x - 3.0
    trace = sampling.sample(
        jax.random.key(0), toward, noise(32), sampling.gradient_descent(0.2), num_steps=30, trace=1
    ).trace
    expected = (1 - 0.8 ** np.arange(31)) / (1 - 0.8**30)
    np.testing.assert_allclose(sampling.pace(trace), expected, rtol=1e-4, atol=1e-6)
