"""genfield's own networks as files, from runs and back, in published names where there are some."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_digits
from ml_collections import ConfigDict
from programs import ROOT
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from genfield import pretrained
from genfield.errors import UserError
from genfield.main import main
from genfield.program import experiment
from genfield.program.open_run import Run

RUNS = ROOT / "tests" / "golden" / "runs"
SIT = dict(name="sit", depth=1, width=16, num_heads=2, patch_size=4)


def same(a, b) -> bool:
    equal = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return all(jax.tree.leaves(equal))


def arguments(info, seed=0):
    x = np.random.default_rng(seed).normal(size=(3, *info.shape)).astype(np.float32)
    t = np.array([0.2, 0.5, 0.9], np.float32) if info.clock else None
    return x, t, np.array([0, 1, info.num_classes], np.int32) if info.num_classes else None


@pytest.fixture(scope="module", params=["moons", "digits"])
def run(request, tmp_path_factory) -> Path:
    """A run that an earlier version left."""
    return shutil.copytree(RUNS / request.param, tmp_path_factory.mktemp("run") / request.param)


def test_a_run_opens_like_a_file_and_its_export_is_the_same(run, tmp_path):
    model = pretrained.load(run)
    assert model.info.family == "run" and model.info.part == "ema"
    file = pretrained.export(run, tmp_path / "run.safetensors")
    again = pretrained.load(file)
    (tmp_path / "ordinary").touch()
    assert file.stat().st_mode == (tmp_path / "ordinary").stat().st_mode  # safetensors' own: 0600
    assert again.info.family == "genfield" and not file.with_suffix(".json").exists()
    assert again.description == model.description
    assert again.description.program["sampler"]["name"] == "sphere_tracing"
    assert same(again.params, model.params)
    given = arguments(model.info)
    assert same(again.field(*given), model.field(*given))
    assert pretrained.export(model, tmp_path / "b.safetensors").read_bytes() == file.read_bytes()
    plain = pretrained.load(run, ema=False)
    assert plain.info.part == "params" and not same(plain.params, model.params)
    with pytest.raises(UserError, match="is a run, which says what it is"):
        pretrained.load(run, kind="eqm")


def test_the_program_exports_a_checkpoint(tmp_path, capsys):
    run = shutil.copytree(RUNS / "moons", tmp_path / "moons")
    command = ["genfield", f"--workdir={run}", "--mode=export"]
    assert main(command) == 0 and main([*command, "--step=4"]) == 0  # the second is the same
    assert (run / "exports" / "step_4.safetensors").exists()
    assert "step 4, genfield's own" in capsys.readouterr().out
    place = tmp_path / "there" / "x.safetensors"
    assert main([*command, f"--out={place}"]) == 0
    assert same(pretrained.load(place).params, pretrained.load(run).params)
    for extra, words in [
        (["--kind=eqm", f"--out={place}"], "EqM has no place for distance_marching"),
        (["--kind=equ"], "unknown kind of weights 'equ'"),
        (["--out=x.pt"], "is a .safetensors file"),
        (["--step=3"], "no checkpoint of step 3"),
    ]:
        assert main([*command, *extra]) == 2
        assert words in capsys.readouterr().err
    assert main(["genfield", f"--workdir={run}", "--mode=sample", f"--out={place}"]) == 2
    assert "add --mode=export" in capsys.readouterr().err


def started(tmp_path, **changes) -> Run:
    """A run at its first step, which nothing has trained."""
    config = tiny_digits.get_config()
    config.net, config.sampler = ConfigDict(SIT), ConfigDict(dict(name="euler", num_steps=2))
    for name, value in changes.items():
        config[name] = ConfigDict(value) if isinstance(value, dict) else value
    exp = experiment.prepare(config, tmp_path / "run")
    keys = iter(jax.random.split(jax.random.key(1), 100))
    draw = lambda leaf: 0.2 * jax.random.normal(next(keys), leaf.shape)  # zeros would tell nothing
    return Run(exp, jax.tree.map(draw, exp.init().params), 0)


LEVELS = dict(path="variance_exploding", time=dict(name="log_normal"), loss=dict(name="denoising"))
LEVELS |= dict(sampler=dict(name="edm_heun", num_steps=2))
DDPM = dict(preconditioning="ddpm", sigma_data=1.0)
DDPM |= dict(sampler=dict(name="edm_heun", num_steps=2, sigma_min=0.0101, sigma_max=157.0))
EQM = dict(loss=dict(name="equilibrium_matching"))
CASES = {
    "flow_matching": (dict(loss=dict(name="flow_matching")), "sit", {}),
    "without t": (
        dict(loss=dict(name="flow_matching", time_input=False)),
        "sit",
        {"uncond": True},
    ),
    "equilibrium_matching": (EQM, "eqm", {"uncond": True, "ebm": "none"}),
    "narrow": (
        EQM | dict(net=SIT | dict(mlp_ratio=1.3, double_output=False)),
        "eqm",
        {"uncond": True, "ebm": "none"},
    ),
    "dot": (EQM | dict(energy="dot"), "eqm", {"uncond": True, "ebm": "dot"}),
    "squared_norm": (EQM | dict(energy="squared_norm"), "eqm", {"uncond": True, "ebm": "l2"}),
    "the other norm": (EQM | dict(energy="negative_squared_norm"), "genfield", {}),
    "ddpm": (LEVELS | DDPM, "dit", {}),
    "edm": (LEVELS | dict(preconditioning="edm", sigma_data=0.7), "genfield", {}),
    "no labels": (
        dict(data=dict(name="digits"), label_dropout=0.0, loss=dict(name="flow_matching")),
        "genfield",
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_trained_says_under_whose_names_it_is_written(case, tmp_path):
    changes, family, facts = CASES[case]
    run = started(tmp_path, **changes)
    file = pretrained.export(run, tmp_path / "x.safetensors")
    model = pretrained.load(file)
    assert model.info.family == family
    if family != "genfield":
        beside = json.loads(file.with_suffix(".json").read_text())
        named = {n: beside["config"][n] for n in ("uncond", "ebm") if n in beside["config"]}
        assert beside["kind"] == family and named == facts
        assert "blocks.0.attn.qkv.weight" in load_file(file)
    assert same(model.params, run.params["field"])
    given = arguments(model.info)
    assert same(model.field(*given), run.field(*given))


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """The run of an earlier version in the plane, opened."""
    return pretrained.load(
        shutil.copytree(RUNS / "moons", tmp_path_factory.mktemp("run") / "moons")
    )


def _with_header(source: Path, out: Path, change) -> Path:
    with safe_open(source, framework="np") as file:
        header = json.loads(file.metadata()["genfield"])
    change(header)
    save_file(load_file(source), out, {"genfield": json.dumps(header)})
    return out


HEADERS = {
    "none": (lambda h: h.pop("config"), "lacks the header of pretrained.export"),
    "newer": (
        lambda h: h["config"]["description"].update(spin=1),
        "its header is not one of this version",
    ),
    "no field": (
        lambda h: h["config"]["description"].update(teaches="spin"),
        "unknown field 'spin'",
    ),
    "no net": (
        lambda h: h["config"]["description"].update(net={"name": "mlp", "widht": 3}),
        "unknown field 'widht' for net 'mlp'",
    ),
    "other sizes": (
        lambda h: h["config"]["description"]["net"].update(width=32),
        "was expected",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_fit_is_one_line(name, moons, tmp_path):
    change, words = HEADERS[name]
    file = pretrained.export(moons, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=words) as caught:
        pretrained.load(_with_header(file, tmp_path / "y.safetensors", change))
    assert len(str(caught.value).splitlines()) == 1


def test_a_network_of_ones_own_is_not_written(moons, tmp_path):
    own = moons.description._replace(net={"name": "mine"})
    with pytest.raises(UserError, match=r"'mine' is one of your own.*pass on the run's folder"):
        pretrained.export(moons.params, tmp_path / "x.safetensors", like=own)
