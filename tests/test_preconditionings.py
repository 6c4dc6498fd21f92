"""Preconditionings against EDM's Table 1, written out in NumPy; their ranges, laws, weightings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from genfield import losses, paths
from genfield.configuration import base
from genfield.errors import UserError
from genfield.preconditionings import PRECONDITIONINGS, iddpm_index
from genfield.program import parts, sampler

SIGMA = np.array([0.03, 0.5, 2.0, 60.0])
X = np.random.default_rng(0).normal(size=(4, 3)) * 3
SLOPE = np.array([1.0, -2.0, 0.5])


def inner(x, t, cond):
    """A network whose output hangs on all that it is given."""
    return jnp.sin(x * SLOPE[None]) + 0.1 * jnp.cos(t)[:, None] + cond[:, None]


def alpha_bar(j):
    """Cosine schedule of iDDPM, with C_2 = 0.008 and M = 1000."""
    return np.sin(0.5 * np.pi * j / 1000 / 1.008) ** 2


def table():
    u = [0.0]
    for j in range(1000, 0, -1):
        u.append(np.sqrt((u[-1] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), 0.001) - 1))
    return np.array(u[::-1])


def vp_time(sigma):
    return (np.sqrt(0.1**2 + 2 * 19.9 * np.log(1 + sigma**2)) - 0.1) / 19.9


def nearest(sigma):
    return np.abs(sigma[:, None] - table()[None]).argmin(axis=1)


ones = np.ones_like
TABLE_1 = {  # c_skip, c_out, c_in, c_noise of the levels, data of standard deviation 0.7
    "edm": (
        lambda s: 0.49 / (s**2 + 0.49),
        lambda s: s * 0.7 / np.sqrt(s**2 + 0.49),
        lambda s: 1 / np.sqrt(s**2 + 0.49),
        lambda s: np.log(s) / 4,
    ),
    "uedm": (
        lambda s: 0.49 / (s**2 + 0.49),
        lambda s: s * 0.7 / np.sqrt(s**2 + 0.49),
        lambda s: 1 / np.sqrt(s**2 + 0.49),
        lambda s: 0 * s,
    ),
    "vp": (ones, lambda s: -s, lambda s: 1 / np.sqrt(s**2 + 1), lambda s: 999 * vp_time(s)),
    "ve": (ones, lambda s: s, ones, lambda s: np.log(s / 2)),
    "iddpm": (ones, lambda s: -s, lambda s: 1 / np.sqrt(s**2 + 1), lambda s: 999 - nearest(s)),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_denoisers_are_table_1(name):
    skip, out, scale, noise = (c(SIGMA)[:, None] for c in TABLE_1[name])
    cond = np.array([0.0, 1.0, 2.0, 3.0])
    angles = np.float32(noise) if name in ("vp", "iddpm") else noise
    network = np.sin(scale * X * SLOPE[None]) + 0.1 * np.cos(angles) + cond[:, None]
    denoiser = PRECONDITIONINGS[name].denoiser(inner, 0.7)
    found = denoiser(
        jnp.asarray(X, jnp.float32), jnp.asarray(SIGMA, jnp.float32), jnp.asarray(cond)
    )
    np.testing.assert_allclose(found, skip * X + out * network, rtol=2e-4, atol=2e-4)


def test_ranges_are_table_1():
    """σ(ε_t), σ(1) of VP; 0.02 and 100 of VE; the ends of iDDPM's table."""
    sigma = lambda t: np.sqrt(np.exp(0.5 * 19.9 * t**2 + 0.1 * t) - 1)
    ends = {"vp": (sigma(1e-5), sigma(1.0)), "ve": (0.02, 100.0)}
    ends |= {"iddpm": (table()[-2], table()[0])}
    for name, (lowest, highest) in ends.items():
        known = PRECONDITIONINGS[name]
        np.testing.assert_allclose([known.lowest, known.highest], [lowest, highest], rtol=1e-5)
    assert 2.02e4 < ends["iddpm"][1] < 2.03e4 and 0.0063 < ends["iddpm"][0] < 0.0066
    assert iddpm_index(jnp.array([1e6, 1e-4])).tolist() == [0, 1000]


def test_laws_of_noise_levels_are_those_of_training():
    draw = lambda name, n: np.asarray(
        parts.create(configured(name)).times(jax.random.key(0), n), np.float64
    )
    even = (np.arange(20_000) + 0.5) / 20_000
    vp = np.sort(vp_time(draw("vp", 20_000)))
    np.testing.assert_allclose(vp, 1e-5 + (1 - 1e-5) * even, atol=0.02)
    ve = np.sort(np.log(draw("ve", 20_000)))
    np.testing.assert_allclose(ve, np.log(0.02) + np.log(5000) * even, atol=0.15)
    iddpm = draw("iddpm", 20_000)
    assert np.isin(np.float32(iddpm), np.float32(table()[:-1])).all()
    np.testing.assert_allclose(np.sort(nearest(iddpm)) / 1000, even, atol=0.02)


def configured(name):
    config = base()
    config.path, config.loss = "variance_exploding", ConfigDict({"name": "denoising"})
    config.preconditioning, config.time = name, ConfigDict(dict(PRECONDITIONINGS[name].time))
    config.loss.weighting = PRECONDITIONINGS[name].weighting
    config.sampler = ConfigDict({"name": "edm_heun", "num_steps": 4})
    return config


@pytest.mark.parametrize(
    ("name", "section", "words"),
    [
        ("ve", {"name": "edm_heun"}, r"from noise level 80 to 0.002, .*'ve' is for 0.02 to 100"),
        ("iddpm", {"name": "edm_euler"}, r"to 0.002, .*'iddpm' is for 0.006\d+ to 2.029e\+04"),
        (
            "vp",
            {"name": "edm_heun", "sigma_min": 0.004, "sigma_max": 200.0},
            r"is for 0.001 to 152",
        ),
    ],
)
def test_a_sampler_beyond_the_levels_of_training_is_one_line(name, section, words):
    config = configured(name)
    config.sampler = ConfigDict(section | {"num_steps": 4})
    with pytest.raises(UserError, match=words + ".*set config.sampler.sigma_min") as caught:
        sampler.create_sampler(config)
    assert len(str(caught.value).splitlines()) == 1
    known = PRECONDITIONINGS[name]
    config.sampler.update(sigma_min=max(0.002, known.lowest), sigma_max=min(80.0, known.highest))
    sampler.create_sampler(config)


def test_weightings_and_sums_of_the_denoising_loss():
    x1 = jnp.asarray(X, jnp.float32)
    sample = paths.interpolate(paths.variance_exploding, x1 * 0 + 1, x1, jnp.asarray(SIGMA))
    field = lambda x, t=None, cond=None: 0.5 * x
    squares = np.square(0.5 * (X + SIGMA[:, None]) - X)
    edm = (SIGMA**2 + 0.49) / (SIGMA * 0.7) ** 2
    for weighting, weight in (("edm", edm), ("inverse_variance", SIGMA**-2)):
        fields = {"sigma_data": 0.7, "weighting": weighting}
        mean, _ = losses.denoising(field, sample, **fields)
        total, _ = losses.denoising(field, sample, **fields, reduction="sum")
        np.testing.assert_allclose(mean, weight * squares.mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(total, weight * squares.sum(axis=1), rtol=1e-5)
    with pytest.raises(UserError, match="unknown reduction 'total'"):
        losses.denoising(field, sample, reduction="total")
