"""Where reproduce/denoising.py sends noisy images, and that it goes on where it was."""

import json
import sys

import numpy as np
import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "reproduce"))

import denoising as study


def test_noisy_images_are_of_their_bin():
    x, t = study.noisy(0, 19)
    assert x.shape == (study.NUM, 64) and 0.9025 <= t.min() and t.max() <= 0.95
    images, _ = study.tables.digits()
    near = np.sqrt(((x[:20, None] / t[:20, None] - images) ** 2).sum(-1).min(1))
    assert (near < 2 * np.sqrt(64) * 0.1).all()  # nearly clean


@pytest.mark.parametrize("name", ["OSL", "FM", "OSL and DEL"])
def test_one_step(name):
    x, t = (a[:4] for a in study.noisy(0, 5))
    start = study.tables.march("no classes")[0] if "DEL" in name else study.field_of(name)[0]
    params, field = start(0), study.model(name)[1]
    out = field(params)(x)
    if name == "OSL and DEL":
        expected = x - np.asarray(out.distance)[:, None] * np.asarray(out.direction)
    else:
        expected = x + (1 if name == "OSL" else 1 - t) * np.asarray(out)
    np.testing.assert_allclose(study.denoiser(name)(params, x, t), expected, rtol=1e-5, atol=1e-5)


def test_models_that_are_there_are_not_trained_again(tmp_path, monkeypatch):
    asked = []

    def measure(name, seed, workdir):
        asked.append((name, seed))
        found = {"bins": [1.0 + seed] * study.BINS} if name in study.DENOISERS else {}
        ways = [way for way, row in study.WAYS.items() if row[0] == name]
        for way in ways:
            np.save(workdir / f"{way.replace(' ', '_')}.npy", np.zeros((11, study.STRIP, 64)))
        return found | {way: [2.0] * (1 + study.LOOKS) for way in ways}

    monkeypatch.setattr(study, "measure", measure)
    for seeds in (1, 2):
        monkeypatch.setattr(sys, "argv", ["", f"--workdir={tmp_path}", f"--seeds={seeds}"])
        with monkeypatch.context() as first:
            if seeds == 1:
                first.setattr(study, "picture", lambda *args: None)
                first.setattr(study, "strips", lambda *args: None)
            study.main()
    names = (*study.DENOISERS, study.TIMED)
    assert asked == [(name, seed) for seed in range(2) for name in names]
    assert set(json.loads((tmp_path / "rows.json").read_text())) == set(names)
    assert "| OSL | 1.5 (1 to 2) |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "denoising.png").exists() and (tmp_path / "strips.png").exists()


@pytest.mark.slow
def test_a_training_of_few_steps(monkeypatch, tmp_path):
    """Through all of it once."""
    monkeypatch.setattr(study.tables, "STEPS", 3)
    for name in ("reweighted FM", study.TIMED):
        study.model.cache_clear()
        found = study.measure(name, 0, tmp_path)
        assert found and np.isfinite([v for values in found.values() for v in values]).all()
