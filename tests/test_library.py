"""The library as it is imported: lazy names, one line for a wrong argument, guidance, old names."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT

import genfield
from genfield import guidance, losses, paths, sampling
from genfield.fields import Prediction
from genfield.program import experiment

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 4))
SAMPLE = paths.interpolate(paths.linear, X, X + 1, jnp.full(6, 0.3))
RUNS = ROOT / "tests" / "golden" / "runs"


def test_names_come_when_they_are_asked_for_and_bring_no_flax():
    script = """
import sys, genfield
assert not {m for m in sys.modules if m.startswith("genfield.")}, sys.modules.keys()
names = "losses sampling couplings paths fields scores guidance Field Prediction Path PathSample"
for name in [*names.split(), "Sampler", "Loss", "sample", "interpolate"]:
    assert getattr(genfield, name) is not None and name in dir(genfield)
assert not {"flax", "grain", "orbax", "ml_collections", "clu", "matplotlib"} & set(sys.modules)
for name in ("nets", "metrics", "data", "open_run", "load_parameters", "Run"):
    assert getattr(genfield, name) is not None
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    with pytest.raises(AttributeError, match="no attribute 'loses'"):
        genfield.loses  # noqa: B018


LOSSES = [
    losses.flow_matching,
    losses.equilibrium_matching,
    losses.denoising,
    losses.lines_matching,
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "field, sample, words",
    [
        (lambda x: x, SAMPLE, r"called as field\(x, t, cond\)"),
        (lambda x, t=None, cond=None: x[:, :1], SAMPLE, r"the field gave \(6, 1\)"),
        (lambda x, t=None, cond=None: x, X, r"takes a paths.PathSample"),
        (3.0, SAMPLE, "a field is a function"),
    ],
)
def test_a_wrong_argument_of_a_loss_is_one_line(loss, field, sample, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        loss(field, sample)
    assert len(str(caught.value).splitlines()) == 1


def test_a_wrong_field_of_a_sampler_is_one_line():
    with pytest.raises(TypeError, match=r"this one takes \(x\)"):
        sampling.sample(KEY, lambda x: x, X, sampling.euler(), num_steps=2)


# Guidance


def conditional(x, t=None, cond=None):
    """c = 2 x, and x for the null class 9."""
    return x * jnp.where(cond == 9, 1.0, 2.0)[:, None]


def with_distance(x, t=None, cond=None):
    return Prediction(conditional(x, t, cond), jnp.full(len(x), 3.0))


LABELS = jnp.zeros(6, jnp.int32)


def test_guidance_of_some_channels_leaves_the_others_conditional():
    guided = guidance.classifier_free(conditional, 3.0, 9, channels=3)
    out = guided(X, None, LABELS)
    np.testing.assert_allclose(out[:, :3], 4 * X[:, :3], rtol=1e-6)
    np.testing.assert_allclose(out[:, 3:], 2 * X[:, 3:], rtol=1e-6)
    with pytest.raises(ValueError, match="channels must be 1 to 4"):
        guidance.classifier_free(conditional, 3.0, 9, channels=5)(X, None, LABELS)


def test_guidance_in_an_interval_of_times():
    guided = guidance.classifier_free(conditional, 3.0, 9)
    field = guidance.interval(guided, conditional, 0.2, 0.6)
    t = jnp.array([0.0, 0.2, 0.4, 0.6, 0.7, 1.0])
    inside = np.array([0, 1, 1, 1, 0, 0])[:, None]
    np.testing.assert_allclose(field(X, t, LABELS), X * (2 + 2 * inside), rtol=1e-6)
    for level, factor in ((0.1, 2.0), (0.5, 4.0)):
        out = jax.jit(field)(X, jnp.full(6, level), LABELS)
        np.testing.assert_allclose(out, factor * X, rtol=1e-6)
    assert field.evaluations == 2
    with pytest.raises(ValueError, match="needs a clock"):
        field(X, None, LABELS)
    with pytest.raises(ValueError, match="low <= high"):
        guidance.interval(guided, conditional, 0.6, 0.2)


@pytest.mark.parametrize("on", ["direction", "displacement"])
def test_autoguidance_leads_away_from_the_weaker_network(on):
    weak = lambda x, t=None, cond=None: Prediction(x, jnp.full(len(x), 1.0))
    out = guidance.autoguidance(with_distance, weak, 2.0, on=on)(X, None, LABELS)
    if on == "direction":  # b + 2 (a - b), a = 2x, b = x
        np.testing.assert_allclose(out.direction, 3 * X, rtol=1e-6)
        np.testing.assert_allclose(out.distance, 3.0)
    else:  # a u = 6x, b u = x
        step = out.direction * out.distance[:, None]
        np.testing.assert_allclose(step, 11 * X, rtol=1e-5)
    assert guidance.autoguidance(with_distance, weak, 2.0).evaluations == 2
    one = guidance.autoguidance(with_distance, weak, 1.0)(X, None, LABELS)
    np.testing.assert_allclose(one.direction, 2 * X, rtol=1e-6)


# Runs of older versions, kept as they were written


@pytest.fixture(params=["moons", "digits"])
def old_run(request, tmp_path) -> Path:
    return shutil.copytree(RUNS / request.param, tmp_path / request.param)


def test_an_old_run_opens_resumes_and_samples(old_run, capsys):
    from genfield.main import main

    params = genfield.load_parameters(old_run)
    opened = genfield.open_run(old_run)
    assert opened.step == 4
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(opened.params))
    sampled = ["genfield", f"--workdir={old_run}", "--mode=sample", "--config.sample.num=8"]
    assert main(sampled) == 0
    again = opened.sample(8).x
    with np.load(old_run / "samples" / "step_4.npz") as file:
        drawn = file["arr_0"]
    if opened.experiment.data.pixels:
        again = genfield.data.to_uint8(again)
    np.testing.assert_allclose(drawn.astype(float), again.astype(float), rtol=1e-4, atol=1e-4)
    steps = ["genfield", f"--workdir={old_run}", "--config.train.steps=6"]
    assert main([*steps, "--config.mesh.data=-1"]) == 0
    record = json.loads((ROOT / "tests" / "golden" / "freeze.json").read_text())["runs"]
    lines = record[f"{old_run.name} resumed"]["lines"]
    rows = [json.loads(line) for line in (old_run / "metrics.jsonl").read_text().splitlines()]
    found = {f"step {r['step']} {r['split']}": r for r in rows}
    for step in (5, 6):
        then, now = lines[f"step {step} train"], found[f"step {step} train"]
        np.testing.assert_allclose(now["loss"], then["loss"], rtol=2e-3)


def test_a_run_gives_samples_of_labels_and_of_keys(tmp_path):
    opened = genfield.open_run(shutil.copytree(RUNS / "digits", tmp_path / "digits"))
    key = jax.random.key(5)
    one, same = opened.sample(4, labels=3, key=key).x, opened.sample(4, labels=[3] * 4, key=key).x
    np.testing.assert_array_equal(one, same)
    assert (one != opened.sample(4, labels=3).x).any()
    with pytest.raises(genfield.errors.UserError, match=r"11 is no class of this run"):
        opened.sample(2, labels=11)


def test_a_run_that_samples_twice_traces_its_sampler_once(tmp_path, monkeypatch):
    traced, prepare = [], experiment.prepare

    def counted(*arguments, **options):
        exp = prepare(*arguments, **options)

        def follow(field, cond):
            traced.append(field)
            return exp.sampler.follow(field, cond)

        return exp._replace(sampler=exp.sampler._replace(follow=follow))

    monkeypatch.setattr(experiment, "prepare", counted)
    opened = genfield.open_run(shutil.copytree(RUNS / "digits", tmp_path / "digits"))
    once, pieces = opened.sample(4).x, len(traced)
    assert (once == opened.sample(4).x).all()
    assert len(traced) == pieces == 3  # its start, its steps, its end


@pytest.mark.parametrize("name", ["jobs", "checkpoint"])
def test_old_names_work_and_say_the_new_one(name, tmp_path):
    import importlib

    module = importlib.import_module(f"genfield.{name}")
    copy = shutil.copytree(RUNS / "moons", tmp_path / "moons")
    with pytest.warns(UserWarning, match=r"is now genfield\.(open_run|load_parameters)"):
        found = module.open_run(copy) if name == "jobs" else module.load(copy)
    if name == "jobs":
        exp, params, step = found
        assert step == 4 and exp.objective.field(params)
    else:
        assert set(found) == {"field"}


def test_configs_resolve_as_they_did():
    """Every config and variant, against the record that tests/golden/freeze.py keeps."""
    script = ROOT / "tests" / "golden" / "freeze.py"
    done = subprocess.run(
        [sys.executable, str(script), "--only=configs"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "230 entries, 0 differences" in done.stdout
