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
    """By the stream functions of another script on the paper's grid; a finer one comes nearer."""
    scale = np.sqrt(controllable.gram(num=200).diagonal())
    thetas = np.array([[0.0, 0.0, 0.0], [2.5, 0.0, 0.0], [0.0, 5.0, 0.0]])
    expected = controllable.mixing_speed(scale, thetas)
    for theta, speed in zip(thetas, expected, strict=True):
        mix = jnp.asarray(controllable.mixed(theta, "preserving", scale))
        field = lambda x, mix=mix: study.score(x) + controllable.perturbation(x, mix)
        assert study.mixing_speed(field) == pytest.approx(speed, rel=0.05)
    # A steeper score crosses between the modes more seldom.
    assert study.mixing_speed(study.given()["the score × 1.5"]) < 0.7 * expected[0]


def test_what_breaks_the_law_is_seen(monkeypatch):
    monkeypatch.setattr(study, "CELLS", 80)
    found = {name: study.distance(field) for name, field in study.given().items()}
    assert found["the score"] < 1e-6 and found["the score, turned"] < 0.01
    assert found["the score × 1.5"] == pytest.approx(0.5, rel=1e-3)


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
@pytest.mark.parametrize("name", ["denoising", "Flux Matching", "proxy, λ = 0.1"])
def test_a_training_of_few_steps(monkeypatch, name):
    """Through all of it once."""
    monkeypatch.setattr(study, "STEPS", 3)
    found = study.row(name, [0])
    assert set(found["0"]) == set(study.COLUMNS)
    assert all(np.isfinite(v) for v in found["0"].values())
