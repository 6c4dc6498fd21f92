"""The exact minimisers of reproduce/plane_minimisers.py against sampling."""

import sys

import numpy as np
import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "reproduce"))

import plane_minimisers as study

TARGETS = study.moons(20, 1)


@pytest.mark.parametrize("x", [(-2.0, 3.0), (4.0, 0.5), (0.3, -1.5)])
def test_minimisers_are_means_over_pairs(x):
    """Random targets and times, weighted by the density of the noise that they need."""
    rng, x = np.random.default_rng(0), np.array(x)
    s, t = TARGETS[rng.integers(len(TARGETS), size=400_000)], rng.uniform(0, 1, (400_000, 1))
    x0 = (x - t * s) / (1 - t)
    square = ((x0[:, None] - study.modes()) ** 2).sum(-1)
    weight = np.exp(-0.5 * square / np.sqrt(0.1)).sum(1) / (1 - t[:, 0]) ** 2
    mean = lambda values, by: by @ values / by.sum()
    r2 = ((x - s) ** 2).sum(1)
    capped = weight / np.maximum(1 - t[:, 0], 0.05) ** 2
    expected = {
        "FM": mean(s - x0, weight),
        "reweighted FM": mean(s - x0, capped),
        "DEL": mean((s - x) / np.sqrt(r2 + 0.01)[:, None], weight),
        "OSL": mean(s - x, weight / (r2 + 0.01)),
    }
    found = study.minimisers(x, TARGETS)
    for loss, vector in expected.items():
        error = np.linalg.norm(found[loss] - vector)
        assert error < 0.03 * np.linalg.norm(vector) + 0.01, (loss, found[loss], vector)


def test_a_time_that_is_given_leaves_pairs_of_that_time():
    weight = study.posterior(np.array([-1.0, 2.5]), TARGETS)
    given = np.where(np.arange(study.NODES) == 40, weight, 0)
    t = study.times()[0][40]
    vectors = study.minimisers(np.array([-1.0, 2.5]), TARGETS, given)
    mean = (given.sum(1) @ TARGETS) / given.sum()
    np.testing.assert_allclose(vectors["FM"], (mean - [-1.0, 2.5]) / (1 - t), rtol=1e-9)


def test_a_walk_is_measured():
    corner = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    found = study.of_walk(corner, np.array([[1.0, 1.5], [9.0, 9.0]]))
    np.testing.assert_allclose(
        [found["detour"], found["turns"], found["end"]], [np.sqrt(2), 90.0, 0.5]
    )
