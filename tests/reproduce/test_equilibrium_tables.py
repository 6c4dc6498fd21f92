"""reproduce/equilibrium_tables.py: what is kept, how a step is chosen, and fields over c(t)."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "reproduce"))

import equilibrium_runs as runs
import equilibrium_tables as tables

from genfield.sampling import Samples


def test_the_data_are_those_of_the_digits_config():
    images, _ = runs.data()["train"]
    assert images.shape == (1500, 8, 8, 1) and len(runs.data()["test"][0]) == 297
    assert runs.judged(np.full_like(images, np.nan))["fd"] == np.inf
    found = runs.judged(*runs.data()["test"])
    assert found["fd"] == pytest.approx(0.416, abs=5e-4)  # as the driver says
    assert found["right"] == pytest.approx(296 / 297)


def test_a_velocity_of_a_field_over_its_decay():
    """The field c(t) (x0 - x1) over c(t), whichever decay."""
    x, t = jnp.ones((3, 8, 8, 1)), jnp.array([0.1, 0.85, 0.95])
    for name, given in (("truncated", {"a": 0.8, "multiplier": 4.0}), ("linear", {})):
        decay = runs.losses.decays.DECAYS[name](**given)
        field = lambda x, t, cond=None, c=decay: x * c(t)[:, None, None, None]
        found = runs._over(field, name, tuple(given.items()))(x, t)
        np.testing.assert_allclose(found, x, rtol=1e-5)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Samples that are best at a travel of 2 for seed 0, and a count of those drawn."""
    asked = []

    def drawn(row, params, sampler, step, num_steps, **more):
        travel = step * num_steps * row.size
        asked.append((params, round(float(travel), 6), more["noise"] if "noise" in more else 1))
        return Samples(jnp.full((4, 8, 8, 1), abs(travel - 2.0) + params), None, None, {})

    monkeypatch.setattr(runs, "drawn", drawn)
    monkeypatch.setattr(runs, "judged", lambda x: {"fd": float(x.mean()), "right": 0.5})
    monkeypatch.setattr(runs, "kept", lambda *a: (jnp.arange(3.0), np.full(3, 16.0)))
    made = lambda: tables.Study(tmp_path, 3)
    return made, asked


def test_a_step_is_chosen_by_one_seed_on_other_noise_and_kept(study):
    make, asked = study
    travel, found = make().best(tables.Way("λ = 4"))
    assert travel == 2.0 and [run["fd"] for run in found] == pytest.approx([0, 1, 2], abs=1e-5)
    choice, counted = asked[: len(tables.TRAVELS)], asked[len(tables.TRAVELS) :]
    assert [seed for seed, *_ in choice] == [0] * len(tables.TRAVELS)
    assert {noise for *_, noise in choice} == {tables.OTHER_NOISE}
    assert counted == [(0, 2.0, 1), (1, 2.0, 1), (2, 2.0, 1)]
    again = make().best(tables.Way("λ = 4"))
    assert again == (travel, found) and len(asked) == len(choice) + 3
    text = tables.fig9(make())  # a loss of 16 over λ², and samples at a travel of 3
    assert "| 4 | 2 | 1 (" in text and "to 2) | 0.5 | 1 | 32.85 | 2 (1 to 3) |" in text


def test_longer_travels_are_tried_while_the_longest_is_the_best(study, monkeypatch):
    make, _ = study
    monkeypatch.setattr(tables, "TRAVELS", (0.7, 1.0))
    travel, _ = make().best(tables.Way("constant"))
    assert travel == 2.0 and "constant, GD, 2.8, tried" in make().kept.found


def test_a_field_with_a_clock_is_refused_by_samplers_without(study):
    make, _ = study
    lines = tables.table4(make()).splitlines()
    assert [line.count("refused") for line in lines[2:9]] == [2, 2, 2, 0, 0, 0, 0]
    width = lines[0].count("|")
    assert all(line.count("|") == width for line in lines)


@pytest.mark.slow
def test_rows_of_every_kind_train_a_little(monkeypatch):
    monkeypatch.setattr(runs, "NET", runs.NET | {"width": 16})
    runs.network.cache_clear()
    for name in ("λ = 4", "constant, t", "dot", "squared norm"):
        row = tables.ROWS[name]
        row = row._replace(first=min(row.first, 2))
        params, loss = runs.trained(row, [0, 1], 5)
        assert loss.shape == (2,) and np.isfinite(loss).all()
        one = runs.of_seed(params, 1)
        sampler = "Euler" if row.clock else "GD"
        assert np.isfinite(runs.drawn(row, one, sampler, 0.01, 2, num=3).x).all()
    runs.network.cache_clear()
