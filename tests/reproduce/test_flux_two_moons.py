"""The divergence of reproduce/flux_two_moons.py against fields of known divergence."""

import json
import sys

import jax
import numpy as np
import pytest
from programs import ROOT

from genfield.data import toys

sys.path.insert(0, str(ROOT / "reproduce"))

import flux_two_moons as study


@pytest.fixture(scope="module")
def problem():
    return study.Poisson(70)


def test_the_centres_have_the_moments_of_batches():
    many = np.concatenate([toys.two_moons(jax.random.key(k), study.BATCH) for k in range(100)])
    np.testing.assert_allclose(study.centres().mean(0), many.mean(0), atol=5e-3)
    np.testing.assert_allclose(np.cov(study.centres().T), np.cov(many.T), rtol=5e-3, atol=5e-3)


def test_the_score_is_the_slope_of_the_log_density():
    x, h = np.random.default_rng(0).normal(size=(20, 2)), 1e-5
    log = lambda x: np.log(study.law(x)[0])
    slope = np.stack([(log(x + d) - log(x - d)) / (2 * h) for d in h * np.eye(2)], -1)
    np.testing.assert_allclose(study.law(x)[1], slope, atol=1e-6)


def test_the_divergence_sees_gradients_and_not_what_keeps_the_law(problem):
    _, s = study.law(problem.points)
    scale = np.sum(problem.density * problem.score**2)
    exact = problem.distances(s)
    assert exact["J"] < 1e-9 and exact["error"] < 1e-9
    turned = problem.distances(s + np.stack([-s[:, 1], s[:, 0]], -1))
    assert turned["J"] < 0.03
    np.testing.assert_allclose(turned["error"], 1.0, rtol=0.02)
    # The slope of x²/2 + 0.3 x y is all seen.
    gradient = problem.points @ np.array([[1.0, 0.3], [0.3, 0.0]])
    square = np.sum(problem.density * problem.normal(gradient) ** 2)
    found = problem.distances(s + gradient)
    np.testing.assert_allclose(found["J"], np.sqrt(square / scale), rtol=0.01)
    both = problem.distances(s + gradient + np.stack([-s[:, 1], s[:, 0]], -1))
    np.testing.assert_allclose(both["J"], found["J"], rtol=0.02)


def test_rows_that_are_there_are_not_trained_again(tmp_path, monkeypatch):
    asked, names = [], list(study.grid_of_rows())[:2]

    def measure(row, seeds):
        asked.append(seeds)
        return {str(seed): {"J": 0.1, "error": 0.2, "W2": 0.3} for seed in seeds}

    monkeypatch.setattr(study, "measure", measure)
    run = lambda seeds: monkeypatch.setattr(
        sys, "argv", ["", f"--workdir={tmp_path}", f"--seeds={seeds}", "--only", *names]
    )
    run(2)
    study.main()
    first = len(asked)
    study.main()
    assert asked == [[0, 1]] * first and first
    run(3)
    study.main()
    assert asked[first:] == [[2]] * first
    found = json.loads((tmp_path / "rows.json").read_text())
    assert len(found) == first and all(len(runs) == 3 for runs in found.values())
    monkeypatch.setattr(sys, "argv", ["", f"--workdir={tmp_path}", "--only", "unheard"])
    with pytest.raises(SystemExit, match="no row 'unheard'; known: denoising"):
        study.main()
    assert "0.1 | 0.2 | 0.3 | 3" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("net", ["vector", "gradient"])
@pytest.mark.slow
def test_a_training_of_few_steps(monkeypatch, net):
    """Through all of it once: the fitted law has a player of its own."""
    monkeypatch.setattr(study, "STEPS", 3)
    row = study.grid_of_rows()[f"cross_chain, fitted, {net}, norm 0.1"]
    found = study.measure(row, [0])
    assert set(found) == {"0"} and all(np.isfinite(v) for v in found["0"].values())
