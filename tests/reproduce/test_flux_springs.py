"""The study of springs: its figures, its tables over seeds, and what it keeps of a run."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT

from genfield.data import springs

sys.path.insert(0, str(ROOT / "reproduce"))

import flux_springs as study

TINY = [
    *("--config.data.num_trajectories=80", "--config.data.length=4", "--config.batch_size=16"),
    *("--config.net.width=16", "--config.net.depth=1", "--config.net.num_heads=2"),
    *("--config.evaluate.num_samples=8", "--config.sample.batch_size=8"),
    *("--config.sampler.num_steps=2", "--config.loss.group_size=8"),
]


def test_departure_is_zero_on_simulated_trajectories():
    """Noise of standard deviation s departs by |noise after - a step of the noise before|."""
    x = np.asarray(springs.draw_trajectories(jax.random.key(0), 50))
    assert study.departure(x, springs.STEP_SIZE) < 1e-4
    noise = 0.01 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    step = jax.jacfwd(lambda s: springs.simulate(s[None], 2)[0, 1])
    slopes = np.asarray(jax.vmap(step)(jnp.asarray(x[:, :-1].reshape(-1, 4))))
    expected = 0.01 * np.sqrt(4 + np.square(slopes).sum((1, 2)).mean())
    np.testing.assert_allclose(study.departure(x + noise, springs.STEP_SIZE), expected, rtol=0.05)


def keep(workdir, steps: int, title: str, seed: int, w2: float):
    """What a measured run leaves."""
    target = study.folder(workdir / f"{steps}_steps", title, seed)
    target.mkdir(parents=True)
    run = {"W2": w2, "W2 to training": 1.0, "departure": 1.0, "standard deviation": 1.0}
    others = {study.NOISE: run | {"W2": 30.0}, study.REAL: run | {"W2": 5.0}}
    (target / "measured.json").write_text(json.dumps({title: run, **others}))
    drawn = np.random.default_rng(seed).normal(size=(study.SHOWN, 4, 4))
    np.savez(target / "shown.npz", **{name: drawn for name in (title, *others)})


def test_the_report_is_of_all_runs_that_are_there(tmp_path):
    for seed, w2 in enumerate((10.0, 20.0, 10.0)):
        keep(tmp_path, 400, "Flux, full", seed, w2)
    for seed, w2 in ((0, 9.0), (2, 9.5)):
        keep(tmp_path, 400, "Flux, causal", seed, w2)
    keep(tmp_path, 400, "DSM, full", 1, 16.0)
    keep(tmp_path, 1000, "DSM, full", 0, 8.0)
    text = study.report(tmp_path)
    assert "| Flux, full | 400 | 10 (10 to 20) | 1 | 1 | 1 | 3 |" in text
    assert "| DSM, full | 1000 | 8 | 1 | 1 | 1 | 1 |" in text
    # Of the seeds that have both.
    assert "| the mask, Flux | 400 | -0.075 (-0.1 to -0.05) | 2 |" in text
    assert "| Flux for DSM, full | 400 | 0.25 | 1 |" in text
    assert "the mask, DSM" not in text and "| 1000 |" in text
    assert (tmp_path / "springs.md").read_text() == text
    assert (tmp_path / "springs.png").stat().st_size > 10_000
    kept = json.loads((tmp_path / "springs.json").read_text())
    assert kept["400"]["Flux, full"]["1"]["W2"] == 20.0


def test_a_workdir_is_of_one_setting(tmp_path):
    study.same_flags(tmp_path, TINY)
    study.same_flags(tmp_path, TINY)
    with pytest.raises(SystemExit, match=r"config.batch_size=16.*: name another --workdir"):
        study.same_flags(tmp_path, [])


@pytest.mark.slow
@pytest.mark.parametrize("title", ["Flux, causal", "DSM, full"])
def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, title):
    """To the bit; and what was measured is not made again."""
    monkeypatch.setattr(study, "CHUNK", 2)
    whole, cut = (study.Recipe(title, 4, TINY, tmp_path / name) for name in ("whole", "cut"))
    figures = whole.kept(1)
    assert np.isfinite([figures["W2"], figures["departure"]]).all()
    target = study.folder(cut.workdir, title, 1)
    target.mkdir(parents=True)
    cut.steps = 2
    assert int(cut.train(target, 1).step) == 2
    cut.steps = 4
    state = cut.train(target, 1)
    again = whole.train(study.folder(whole.workdir, title, 1), 1)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    monkeypatch.setattr(whole, "train", None)
    assert whole.kept(1) == figures
