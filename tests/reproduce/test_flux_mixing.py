"""The mixing proxy: eq. 35 of any field against the one of fields that keep the law."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "reproduce"))

import controllable
import flux_mixing as study


def test_rates_between_cells():
    z = np.array([-3.0, -1e-9, 0.0, 2.0])
    expected = [-3 / np.expm1(-3), 1.0, 1.0, 2 / np.expm1(2)]
    np.testing.assert_allclose(study.bernoulli(z), expected, rtol=1e-8)


def test_the_mixing_speed_is_that_of_fields_that_keep_the_law():
    """By the stream functions of another script, on the paper's grid."""
    scale = np.sqrt(controllable.gram(num=200).diagonal())
    thetas = np.array([[0.0, 0.0, 0.0], [2.5, 0.0, 0.0], [0.0, 5.0, 0.0]])
    expected = controllable.mixing_speed(scale, thetas)
    mixes = [jnp.asarray(controllable.mixed(theta, "preserving", scale)) for theta in thetas]
    of = lambda x, mix: study.score(x) + controllable.perturbation(x, mix)
    several = lambda x: jnp.stack([of(x, mix) for mix in mixes] + [1.5 * study.score(x)], 1)
    *found, steeper = study.mixing_speeds(several)
    np.testing.assert_allclose(found, expected, rtol=0.05)
    assert steeper < 0.7 * found[0]  # it crosses between the modes more seldom


def test_what_breaks_the_law_is_seen(monkeypatch):
    monkeypatch.setattr(study, "CELLS", 80)
    known = study.given().values()
    several = lambda x: jnp.stack([field(x) for field in known], axis=1)
    score, faster, turned = study.distances(several)
    assert score < 1e-6 and turned < 0.01
    assert faster == pytest.approx(0.5, rel=1e-3)


def test_rows_that_are_there_are_not_measured_again(tmp_path, monkeypatch):
    asked = []

    def row(name, seeds):
        asked.append((name, seeds))
        run = {
            "J": 0.1,
            "M_mix": 0.2 + (name == "denoising"),
            "proxy": 0.5,
            "early": 1.0,
            "W2": 2.0,
        }
        return {str(seed): run for seed in seeds}

    monkeypatch.setattr(study, "row", row)
    study.plane(tmp_path, 2, ["denoising"])
    text = study.plane(tmp_path, 3, ["denoising"])
    assert asked == [(name, s) for s in ([0, 1], [2]) for name in ("the score", "denoising")]
    assert "| denoising | 0.1 | 6 | 1 | 1 | 2 | 3 |" in text
    assert len(json.loads((tmp_path / "rows.json").read_text())["denoising"]) == 3
    with pytest.raises(SystemExit, match="no row 'unheard'; known: the score"):
        study.plane(tmp_path, 3, ["unheard"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["the score, turned", "denoising", "proxy, λ = 0.1"])
def test_a_training_of_few_steps(monkeypatch, name):
    """Through all of it once."""
    small = {"STEPS": 3, "POINTS": 50, "EARLY": 0.5, "LATE": 0.5, "JUDGED": 1, "CELLS": 60}
    for what, value in small.items():
        monkeypatch.setattr(study, what, value)
    study.walker.cache_clear()
    found = study.row(name, [0, 1])
    assert set(found["0"]) == set(study.COLUMNS) and found["0"] != found["1"]
    assert all(np.isfinite(v) for run in found.values() for v in run.values())
    study.walker.cache_clear()
