"""What reproduce/distance_tables.py makes of samples, and that it goes on where it was."""

import json
import sys

import jax
import numpy as np
import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "reproduce"))

import distance_tables as study


def test_figures_of_images_themselves():
    images, labels = study.digits()
    chosen = np.concatenate([np.flatnonzero(labels == k)[:50] for k in range(10)])
    chosen = chosen.reshape(10, 50).T.ravel()  # classes 0 to 9 in turn
    found = study.judge(images[chosen], classes=True)
    assert found["right_class"] == 1.0
    assert found["reached"] == len(chosen) / len(images)
    np.testing.assert_allclose(found["contrast"], 1.0, atol=0.02)
    grey = study.judge(0.5 * images[chosen], classes=False)
    np.testing.assert_allclose(grey["contrast"], 0.5, atol=0.02)
    assert grey["fd"] > 5 * found["fd"] and "right_class" not in grey
    assert study.judge(np.full((10, 64), np.nan), False) == {"fd": np.inf}


def test_what_v_may_see_of_u():
    """The derivative of v by the parameters of u: none but where they are trained through."""
    x, cond, grows = np.ones((3, 64), np.float32), np.arange(3), []
    for name in study.READINGS:
        init, field = study.march(name)
        params = jax.jit(init)(0)
        total = lambda u, field=field, params=params: field(params | {"u": u})(
            x, None, cond
        ).direction.sum()
        slopes, before = jax.jit(jax.grad(total))(params["u"]), total(params["u"])
        other = jax.tree.map(lambda a: a + 0.1, params["u"])
        grows.append((bool(abs(total(other) - before) > 1e-4), bool(slopes["last"]["bias"] != 0)))
    assert grows == [(False, False), (True, False), (True, True)]


def test_models_that_are_there_are_not_trained_again(tmp_path, monkeypatch):
    asked = []

    def measure(name, seed, workdir):
        asked.append((name, seed))
        figures = {"fd": 1.0 + seed, "right_class": 0.5, "contrast": 1.0, "reached": 0.1}
        return {s: {f"{step:g}": figures for step in steps} for s, steps in study.SCANNED.items()}

    monkeypatch.setattr(study, "measure", measure)
    monkeypatch.setattr(study, "draw_matchings", lambda workdir, step: step)
    for seeds in (1, 1, 2):
        monkeypatch.setattr(sys, "argv", ["", f"--workdir={tmp_path}", f"--seeds={seeds}"])
        study.main()
    assert asked == [(name, seed) for seed in range(2) for name in study.ROWS]
    assert len(json.loads((tmp_path / "rows.json").read_text())) == len(study.ROWS)
    assert "| no classes | 1.5 (1 to 2) |" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_a_training_of_few_steps(monkeypatch, tmp_path):
    """Through all of it once, coupled."""
    monkeypatch.setattr(study, "STEPS", 3)
    found = study.measure("classes, OT coupling", 0, tmp_path)
    assert set(found) == set(study.SCANNED)
    assert all(np.isfinite(f["fd"]) for steps in found.values() for f in steps.values())
    assert list(tmp_path.glob("*.npz"))
