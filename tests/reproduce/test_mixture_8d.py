"""The exact minimisers of the 8-D study, against sampling and against finer quadrature."""

import sys

import numpy as np
import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "reproduce"))

import mixture_8d as study

PROBLEM = study.make_problem(0)
PLACES = [
    (1 - share) * PROBLEM.sources[i] + share * PROBLEM.targets[j] + 0.2
    for share, i, j in ((0.0, 0, 0), (0.4, 1, 2), (0.8, 0, 3))
]


@pytest.mark.parametrize("place", range(len(PLACES)))
def test_minimisers_are_means_over_pairs(place):
    """Self-normalised importance sampling of (x0, x1, t) given x, written from the definitions."""
    x, rng = PLACES[place], np.random.default_rng(0)
    q = study.posterior(PROBLEM, x)
    node = rng.choice(len(q.weight), 100_000, p=q.weight)
    t = q.t[node][:, None]
    x1 = q.mean[node] + q.std[node][:, None] * rng.standard_normal((len(node), study.DIM))
    x0 = (x - t * x1) / (1 - t)
    r2 = ((x - x1) ** 2).sum(1, keepdims=True)
    near = 1 / (r2 + study.EPSILON)
    expected = {
        "FM": (x1 - x0).mean(0),
        "DEL": -((x - x1) / np.sqrt(r2 + study.C0)).mean(0),
        "OSL": (near * x1).sum(0) / near.sum() - x,
    }
    for loss, vector in expected.items():
        found = study.minimiser(PROBLEM, x, loss)
        np.testing.assert_allclose(found, vector, atol=0.02 * np.linalg.norm(vector), err_msg=loss)


def test_the_posterior_weighs_pairs_by_their_density():
    """Its mean of t, against pairs drawn from the prior and kept by a kernel around x."""
    low = study.Problem(PROBLEM.sources[:, :1], PROBLEM.targets[:, :1], 1.0, 1.0)
    rng, n, x = np.random.default_rng(1), 2_000_000, np.array([-1.0])
    x0 = low.sources[rng.integers(0, 2, n), 0] + rng.standard_normal(n)
    x1 = low.targets[rng.integers(0, 4, n), 0] + rng.standard_normal(n)
    t = rng.random(n)
    kernel = np.exp(-0.5 * (((1 - t) * x0 + t * x1 - x[0]) / 0.03) ** 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "DIM", 1)
        q = study.posterior(low, x)
    assert q.weight @ q.t == pytest.approx((kernel * t).sum() / kernel.sum(), abs=0.01)
    assert q.weight @ q.mean[:, 0] == pytest.approx((kernel * x1).sum() / kernel.sum(), abs=0.05)


@pytest.mark.parametrize("loss", study.LOSSES)
def test_the_quadrature_has_converged(loss):
    coarse = [study.minimiser(PROBLEM, x, loss) for x in PLACES]
    posterior, expected = study.posterior, study.expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "posterior", lambda p, x: posterior(p, x, 600))
        patch.setattr(study, "expected", lambda *a: expected(*a, num_nodes=300))
        fine = [study.minimiser(PROBLEM, x, loss) for x in PLACES]
    for a, b in zip(coarse, fine, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * np.linalg.norm(b))


def test_the_nearer_cluster_is_where_the_one_step_loss_points():
    """Fig. 23: FM > DEL > OSL in the angle to the nearest cluster, at both source means."""
    for start in PROBLEM.sources:
        nearest = PROBLEM.targets[np.argmin(((PROBLEM.targets - start) ** 2).sum(1))]
        angles = [
            study.angle(study.minimiser(PROBLEM, start, loss), nearest - start)
            for loss in ("FM", "DEL", "OSL")
        ]
        assert angles == sorted(angles, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_one_step_loss_is_robust_to_its_step_size_and_flow_matching_is_not(seed):
    """Fig. 26."""
    figures = study.study(seed)["final_log_density"]
    for step_size in (0.1, 0.2, 0.4, 0.8):
        assert min(figures["OSL"][step_size]) >= -18
    assert np.median(figures["FM"][0.4]) <= -700
