"""The studies end to end on tiny runs, and what they say of mistakes."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network
from PIL import Image
from sklearn.datasets import load_digits

from genfield import features
from genfield.data import pixels
from genfield.errors import UserError
from genfield.metrics import path_geometry
from genfield.program import generate
from genfield.program.open_run import open_run
from genfield.study import cli, noises, ood, straightness, sweep
from genfield.study import subject as subjects
from genfield.study.__main__ import main

DESCENT = "--config.sampler={'name':'gradient_descent','num_steps':3,'step_size':0.1}"


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """The tiny feature network in place of the real ones, and a cache folder of the test's own."""
    monkeypatch.setattr(features, "create", tiny_network.create)
    monkeypatch.setattr(features, "default", lambda: "inception_v3")
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subjects, "PER_DRAWN", 500)


@pytest.fixture
def findings(capsys):
    """findings(name, workdir, *arguments) -> the json of a study, whose pictures are there."""

    def runs(name, workdir, *arguments: str) -> dict:
        code = main(["study", name, f"--workdir={workdir}", *arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        for line in out.splitlines():
            if line.startswith("picture: "):
                with Image.open(line.removeprefix("picture: ")) as picture:
                    assert picture.width > 100
        [path] = [line for line in out.splitlines() if line.startswith("figures: ")]
        text = open(path.removeprefix("figures: ")).read()
        assert "NaN" not in text and "Infinity" not in text
        found = json.loads(text)
        assert found["study"] == name and found["sampler"]["name"] and found["seed"] == 1
        return found

    return runs


def table(found: dict, key: str) -> dict:
    return {row[key]: row for row in found["figures"]["rows"]}


# Denoising


def test_denoise_points(moons, findings):
    found = findings("denoise", moons, DESCENT, "--times=0,0.5,1", "--num=64")
    rows = table(found, "t")
    assert rows[1]["mse_of_input"] == 0
    # With the same noise at every t, an input's error falls as (1-t)².
    assert rows[0.5]["mse_of_input"] == pytest.approx(rows[0]["mse_of_input"] / 4, rel=1e-5)
    assert rows[0]["nfe"] == 3 and rows[0]["chamfer"] > found["figures"]["heldout"]["chamfer"] > 0
    assert rows[0]["to_data"] > rows[1]["to_data"] > 0
    expected = {"times": [0, 0.5, 1], "num": 64, "metric": "auto", "max_train": 50_000}
    assert found["options"] == expected
    # At t = 0 the outputs are the run's own samples.
    subject = opened(moons, DESCENT)
    x = generate.make_drawer(subject.exp)(subject.params, 64, subject.seed).x
    x1, _ = subjects.heldout(subject.exp, 64)
    assert rows[0]["mse"] == pytest.approx(np.mean((x - x1) ** 2), rel=1e-4)


def opened(workdir, *overrides) -> subjects.Subject:
    """The subject of a study, without running one."""
    held = {}

    def keep(subject):
        held["subject"] = subject
        return subjects.Findings({}, [("none",)], [])

    cli.STUDIES["keep"] = subjects.Study(keep, straight=False)
    try:
        assert main(["study", "keep", f"--workdir={workdir}", *overrides]) == 0
    finally:
        del cli.STUDIES["keep"]
    return held["subject"]


def test_denoise_images_under_their_own_labels(digits, findings):
    found = findings("denoise", digits, "--times=0.5,1", "--num=16", "--metric=frechet")
    rows = table(found, "t")
    assert found["figures"]["labels"] == "the examples' own" and rows[1]["mse_of_input"] == 0
    assert rows[0.5]["fid"] > 0 and found["figures"]["examples"] == 16


def test_denoise_says_what_it_does_with_a_clock(flow, findings):
    sampler = "--config.sampler={'name':'euler','num_steps':2}"
    found = findings("denoise", flow, "--times=0,0.9", "--num=64", "--metric=none", sampler)
    assert (
        "taken for noise" in found["figures"]["start"] and "w2" not in found["figures"]["rows"][0]
    )


# Out of distribution


def test_ood_of_points(moons, findings):
    found = findings("ood", moons, "--num=64")
    rows = {row["set"]: row for row in found["figures"]["auroc"]}
    assert {"uniform", "noise", "checkerboard", "spirals", "average"} <= set(rows)
    assert "two_moons" not in rows
    assert all(0 <= row["distance"] <= 1 for row in rows.values())
    mean = np.mean([row["distance"] for name, row in rows.items() if name != "average"])
    assert rows["average"]["distance"] == pytest.approx(mean)


def test_ood_of_images(digits, findings, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for i in range(5):  # of any sizes
        Image.new("RGB", (20 + i, 30 - 3 * i), (50 * i, 0, 0)).save(other / f"{i}.png")
    levels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "grey.v1.npz", levels)
    both = f"--other={other},{tmp_path / 'grey.v1.npz'}"
    found = findings("ood", digits, "--num=16", both, "--name=ood_red")
    rows = {row["set"]: row for row in found["figures"]["auroc"]}
    sets = ["constant", "uniform", "shuffled", "blurred", "noise", "other", "grey", "wrong_label"]
    assert list(rows) == [*sets, "average"]
    assert found["figures"]["condition"] == "the null class"
    assert set(rows["other"]) == {"set", "distance", "displacement", "gradient_norm"}
    assert (digits / "studies" / "ood_red.json").exists()


def test_other_images_take_the_shape_of_the_data(digits, tmp_path):
    subject = opened(digits)
    levels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "same.npz", levels)
    out = subjects.images_elsewhere(subject.exp, str(tmp_path / "same.npz"), 5, "--other")
    assert out.shape == (5, 8, 8, 1)
    given = {image.tobytes() for image in levels}
    assert all(image.tobytes() in given for image in pixels.to_uint8(out))


def test_classes_left_out_of_training_are_a_set(some, findings):
    found = findings("ood", some, "--num=32")
    rows = {row["set"]: row for row in found["figures"]["auroc"]}
    sets = ["constant", "uniform", "shuffled", "blurred", "noise", "other_classes", "wrong_label"]
    assert list(rows) == [*sets, "average"]
    subject = opened(some)
    assert subject.exp.data.num_classes == 5 and subject.exp.data.class_names[0] == "4"
    x = ood._other_classes(subject.exp, 10**6)["other_classes"]
    raw = load_digits()
    levels = np.round(raw.images[raw.target > 4] * 255 / 16).astype(np.uint8)
    known = {image.tobytes() for image in levels}
    assert len(x) > 32 and all(image.tobytes() in known for image in pixels.to_uint8(x))


def test_a_run_on_other_classes_is_another_run(some, capsys):
    again = "--config.data.classes=(0,1,2,3,4)"
    says(capsys, ["study", "ood", f"--workdir={some}", again], ["different run", "data.classes"])


def test_a_velocity_is_scored_at_the_data(flow, findings):
    found = findings("ood", flow, "--num=64")
    assert found["figures"]["time"] == 1
    assert set(found["figures"]["auroc"][0]) == {"set", "gradient_norm", "dot_energy"}


# Composition


def test_two_classes_of_one_run(digits, findings):
    found = findings("compose", digits, "--classes=3,5", "--num=16")
    rows = table(found, "samples")
    assert [rows[name]["nfe"] for name in ("A", "B", "A + B")] == [2, 2, 4]
    assert found["figures"]["on"] == "displacement" and 0 <= rows["A"]["nearest is A"] <= 1


@pytest.mark.slow
def test_guidance_is_of_each_class(transformer, findings):
    scale = "--config.sample.guidance_scale=2"
    found = findings("compose", transformer, "--classes=3,5", "--num=16", scale)
    rows = table(found, "samples")
    assert [rows[name]["nfe"] for name in ("A", "B", "A + B")] == [4, 4, 8]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoise", "diagnose", "neighbours", "ood", "sweep"])
def test_every_study_of_a_predicted_direction(name, transformer, findings):
    findings(name, transformer, "--num=16")


def test_a_run_with_itself_is_itself(moons, findings):
    found = findings("compose", moons, DESCENT, f"--with={moons}", "--weights=0.5,0.5", "--num=64")
    rows = table(found, "samples")
    for name, value in rows["A"].items():
        if name not in ("samples", "nfe"):
            assert rows["A + B"][name] == pytest.approx(value, rel=1e-4)
    assert rows["A + B"]["nfe"] == 2 * rows["A"]["nfe"]


# Step sizes


def test_a_sweep_compiles_once_and_agrees_with_configured_steps(moons, findings, monkeypatch):
    arguments = ("--step_sizes=0.05,0.2", "--num_steps=2,3", "--num=64")
    once = findings("sweep", moons, DESCENT, *arguments)
    stages, other = sweep.sampler.stages, dict(step_scales_field=False)
    nonlinear = lambda s: s._replace(method=dataclasses.replace(s.method, **other))
    monkeypatch.setattr(sweep.sampler, "stages", lambda *a: [nonlinear(s) for s in stages(*a)])
    each = findings("sweep", moons, DESCENT, *arguments)
    assert len(once["figures"]["rows"]) == 4 and once["figures"]["plotted"] == "chamfer"
    for a, b in zip(once["figures"]["rows"], each["figures"]["rows"], strict=True):
        assert a.keys() == b.keys()
        assert a["nfe"] == a["num_steps"]
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5)


def test_a_sweep_says_what_diverges(flow, findings):
    sampler = "--config.sampler={'name':'euler','num_steps':4}"
    found = findings("sweep", flow, sampler, "--step_sizes=0.25,1e37", "--num=64")
    fine, lost = found["figures"]["rows"]
    assert fine["diverged"] == 0 and lost["diverged"] > 0 and "w2" not in lost
    assert found["figures"]["configured"]["step_size"] == 0.25


# Neighbours


def test_neighbours_of_samples(digits, findings):
    found = findings("neighbours", digits, "--num=16", "--k=2", "--shown=4")
    rows = table(found, "space")
    assert set(rows) == {"pixels", "inception_v3"}
    assert found["figures"]["network"]["hash"] == "tinyNone"
    first = found["figures"]["pixels"]["nearest"][0]
    assert len(first["index"]) == 2 and first["distance"][0] <= first["distance"][1]


def test_copies_of_training_images_are_found(digits, findings, monkeypatch):
    def make_drawer(exp, trace=None):
        def draw(params, num, seed, on_batch=None):
            images = exp.data.examples["train"].gather(np.arange(num))["x1"]
            return generate.Samples(pixels.to_unit(images), np.ones(num), None, {})

        return draw

    monkeypatch.setattr(generate, "make_drawer", make_drawer)
    found = findings("neighbours", digits, "--num=16", "--features=none", "--name=copies")
    row = found["figures"]["rows"][0]
    assert row["samples"] == 0 and row["auroc"] == 1 and row["closer_than_1%"] == 1
    nearest = found["figures"]["pixels"]["nearest"]
    assert [each["index"][0] for each in nearest] == list(range(8))


# Preferable noises


def test_preferable_noises_of_points(flow, findings):
    found = findings("noises", flow, "--num=64", "--num_steps=8", "--match_size=24")
    rows = table(found, "paths")
    assert list(rows) == ["preferable", "random", "matched"]
    assert rows["matched"]["length"] < rows["random"]["length"]
    # Matching moves noises, none is left out.
    assert rows["matched"]["noise_norm"] == pytest.approx(rows["random"]["noise_norm"])
    assert found["figures"]["examples"] == 64 and found["figures"]["nfe"] == 16
    straight = found["figures"]["straightness"]
    assert 0 <= straight["relative"] and straight["length"] > 0
    trip = found["figures"]["round_trip"]
    assert trip["error"] < 0.05 * trip["length"]
    assert set(found["figures"]["lines_that_cross"]) == {"random", "matched", "preferable"}


def test_preferable_noises_of_a_known_flow(flow, monkeypatch):
    """Of v = x1 - x0 where all data are noise times 1/2: straight, without loss, never crossing."""
    subject = opened(flow)

    def field(params, key=None, train=False):
        return lambda x, t=None, cond=None: -x / (2 - t)[:, None]  # of x_t = (1 - t/2) x0

    exp = subject.exp._replace(objective=subject.exp.objective._replace(field=field))
    monkeypatch.setattr(noises, "source", lambda subject, n: subjects.source(subject, n)[::-1])
    found = noises.noises(subject._replace(exp=exp), num=40, num_steps=4, match_size=40)
    rows = {row["paths"]: row for row in found.figures["rows"]}
    x1, _ = noises._examples(exp, subject.seed, 40, "train")
    length = np.linalg.norm(x1, axis=1).mean()  # x0 = 2 x1
    assert rows["preferable"]["length"] == pytest.approx(length, rel=1e-4)
    assert rows["preferable"]["loss"] < 1e-6 < rows["random"]["loss"]
    assert found.figures["straightness"]["relative"] < 1e-4
    assert found.figures["lines_that_cross"]["preferable"] == 0
    assert found.figures["round_trip"]["error"] < 1e-4


def test_preferable_noises_of_images(digit_flow, findings):
    flags = ("--num=16", "--num_steps=2", "--num_times=2", "--split=test")
    found = findings("noises", digit_flow, *flags)
    row = table(found, "paths")["random"]
    assert row["noise_std"] == pytest.approx(1, abs=0.1) and row["noise_norm"] < 10
    assert found["figures"]["split"] == "test"
    exp = opened(digit_flow).exp
    x1, label = noises._examples(exp, 0, 10**6, "train")
    assert len(x1) == len(label) == exp.data.sizes["train"]
    few, _ = noises._examples(exp, 0, 9, "train")
    assert few.shape == (9, 8, 8, 1) and few.dtype == np.float32


# Distances


def test_diagnose_points(moons, findings):
    found = findings("diagnose", moons, DESCENT, "--num=64", "--bins=4", "--num_samples=16")
    rows = table(found, "r_to")
    assert set(rows) == {"x1 of the pair", "the nearest data"}
    assert found["figures"]["c0"] == 0.01
    bins = found["figures"]["x1 of the pair"]["t"]["distance"]
    assert bins["count"] == [16] * 4 and len(bins["edges"]) == 5
    sampling = found["figures"]["sampling"]
    assert len(sampling["distance"]["mean"]) == 4 and len(sampling["moved"]["q50"]) == 3


def test_diagnose_images(digits, findings):
    found = findings("diagnose", digits, "--num=16", "--num_samples=16")
    assert set(table(found, "r_to")) == {"x1 of the pair"}
    assert 0 <= found["figures"]["rows"][0]["distance_below_5%"] <= 1


# Mistakes


def test_help_lists_the_studies(capsys):
    assert main(["study", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}: " in out for name in cli.STUDIES)


MISTAKES = [
    (("",), "unknown study ''"),
    (("denoize",), "unknown study 'denoize'", "did you mean 'denoise'?", "sweep"),
    (("--workdir=x",), "name a study first", "diagnose"),
    (("denoise", "--tmes=0"), "unknown flag of denoise 'tmes'", "'times'"),
    (("denoise", "--times=a"), "--times=a must be a number"),
    (("denoise", "--times="), "--times is empty"),
    (("denoise", "--times=2"), "between 0 and 1"),
    (("denoise", "--num=0"), "--num must be positive"),
    (("denoise", "--num=nan"), "--num=nan must be a whole number"),
    (("denoise", "--num"), "--num needs a value"),
    (("denoise", "--metric=fid"), "'fid'", "frechet"),
    (("denoise", "--metric=frechet"), "needs image data"),
    (("denoise", "--config.sampler.step=1"), "step"),
    (("denoise", "--config.loss.c0=7.0"), "different run", "loss.c0"),
    (("denoise", "--step=77"), "77"),
    (("denoise", "--name=a/b"), "plain file name"),
    (("denoise", "--samples=x"), "--samples is not for studies"),
    (("denoise", "--mode=sample"), "--mode is not for studies"),
    (("ood", "--blur=inf"), "--blur must be finite"),
    (("ood", "--other=nowhere"), "images"),
    (("ood", "--other=a/svhn.tar,b/svhn.npz"), "would be called 'svhn', as is a/svhn.tar"),
    (("ood", "--other=noise"), "would be called 'noise', as is a set of this study"),
    (("compose",), "needs two classes", "--with="),
    (("compose", "--with=nowhere"), "holds no checkpoints"),
    (("compose", "--classes=1,2"), "without labels"),
    (("compose", "--with={moons}", "--weights=1"), "two numbers, got 1"),
    (("compose", "--with={moons}", "--on=both"), "'both'", "displacement"),
    (("compose", "--with={moons}", "--on=displacement"), "HMC"),
    (("compose", "--with={flow}"), "cannot be added", "what the loss teaches"),
    (("compose", "--with={digits}"), "the shape of the data"),
    (("neighbours",), "drawn anew each step"),
    (("noises",), "needs flow_matching", "distance_marching"),
    (("sweep", "--num_steps=2.5"), "--num_steps=2.5 must be", "whole number"),
    (("sweep", DESCENT, "--num=8", "--figure=fid"), "'fid'", "chamfer"),
]


@pytest.mark.parametrize("arguments, words", [(a, w) for a, *w in MISTAKES])
def test_a_mistake_is_one_line(arguments, words, moons, flow, digits, capsys):
    places = {"{moons}": moons, "{flow}": flow, "{digits}": digits}
    for mark, place in places.items():
        arguments = [a.replace(mark, str(place)) for a in arguments]
    says(capsys, ["study", *arguments, f"--workdir={moons}"], words)


def says(capsys, argv, words) -> None:
    code = main(argv)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("genfield: error: ")
    assert all(word in lines[0] for word in words), lines[0]


def test_mistakes_of_other_runs(digits, flow, tmp_path, capsys):
    says(capsys, ["study", "diagnose", f"--workdir={flow}"], ["needs distance_marching"])
    says(capsys, ["study", "noises", f"--workdir={flow}", "--split=all"], ["'all'", "train"])
    says(capsys, ["study", "noises", f"--workdir={flow}", "--num=1"], ["two examples or more"])
    says(capsys, ["study", "ood", f"--workdir={tmp_path}"], ["no checkpoints", "train first"])
    says(capsys, ["study", "ood"], ["--workdir is missing"])
    classes = ["study", "compose", f"--workdir={digits}", "--classes=3,10"]
    says(capsys, classes, ["labels 0 to 9", "not 10"])
    adaptive = "--config.sampler={'name':'dopri5'}"
    argv = ["study", "sweep", f"--workdir={flow}", adaptive]
    says(capsys, argv, ["'dopri5' chooses its own steps"])
    argv = ["study", "neighbours", f"--workdir={digits}", "--features=resnet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "create", REAL_CREATE)
        says(capsys, argv, ["resnet", "inception_v3"])


REAL_CREATE = features.create


@pytest.mark.slow
def test_the_same_command_finds_the_same(digits, findings):
    first, again = (findings("ood", digits, "--num=16", f"--name={n}") for n in ("a", "b"))
    assert first["figures"] == again["figures"]


def test_a_run_is_opened_from_its_workdir_alone(moons, tmp_path):
    exp, params, step = open_run(moons)
    assert step == 2 and exp.workdir == moons
    assert exp.objective.field(params)(np.zeros((8, 2), np.float32)).distance.shape == (8,)
    with pytest.raises(UserError, match="holds no checkpoints"):
        open_run(tmp_path / "nowhere")


def test_straightness(flow, edm, findings):
    found = findings("straightness", flow, "--num=20", "--num_steps=1,3")
    one, three = found["figures"]["rows"]
    assert one["nfe"] == 1 and one["deviation"] < 1e-5 < three["deviation"]  # a step is straight
    assert three["relative"] > 0 and "w2" in one
    found = findings("straightness", edm, "--num=20", "--num_steps=1,4", "--metric=none")
    one, four = found["figures"]["rows"]
    assert (one["nfe"], four["nfe"]) == (1, 7) and one["deviation"] < 1e-4 < four["deviation"]
    lines = "--config.sampler={'name':'multistep','indices':(0,3,5),'noise':'line'}"
    few = ["--num=20", "--metric=none"]
    rows = findings("straightness", edm, *few, lines, "--indices=0,0+3+5")["figures"]["rows"]
    assert [row["nfe"] for row in rows] == [1, 3] and rows[0]["deviation"] < 1e-4
    fine = findings("straightness", edm, *few, "--num_steps=64")["figures"]["rows"][0]
    adaptive = "--config.sampler={'name':'probability_flow','rtol':1e-3,'atol':1e-3}"
    [row] = findings("straightness", edm, *few, adaptive)["figures"]["rows"]
    np.testing.assert_allclose(row["deviation"], fine["deviation"], rtol=0.03)


def test_pictures_of_a_study_as_the_config_says(flow, capsys):
    """And what is no format is told before anything is drawn."""
    few = ["study", "straightness", f"--workdir={flow}", "--num=4", "--metric=none"]
    assert main([*few, "--num_steps=1", "--name=vectors", "--config.figures.format=svg"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("picture: ")]
    [path] = [Path(line.removeprefix("picture: ")) for line in shown]
    assert path.name == "vectors.svg" and path.read_text().startswith("<?xml")
    says(capsys, [*few, "--config.figures.format=gif"], ["figures.format", "pdf, png, svg"])


def test_straightness_of_an_adaptive_solver_is_that_of_small_steps(flow, findings):
    few = ["--num=20", "--metric=none"]
    [row] = findings("straightness", flow, *few, "--config.sampler={'name':'dopri5'}")["figures"][
        "rows"
    ]
    [fine] = findings("straightness", flow, *few, "--num_steps=64")["figures"]["rows"]
    np.testing.assert_allclose(row["deviation"], fine["deviation"], rtol=0.05)


def test_straightness_of_a_chain_counts_all_of_its_steps(flow, findings):
    chain = "{'name':'euler','num_steps':2,'then':{'name':'heun','num_steps':2}}"
    few = ["--num=20", "--metric=none", f"--config.sampler={chain}"]
    [row] = findings("straightness", flow, *few)["figures"]["rows"]
    assert row["nfe"] == 6 and row["deviation"] > 0


def test_samples_that_stop_are_straight_in_their_own_time():
    ends, last = np.array([[3.0, 0.0], [6.0, 2.0]], np.float32), np.array([3, 6])
    trace = jnp.asarray((np.minimum(np.arange(7)[:, None], last) / last)[..., None] * ends)
    times = straightness._own_times(trace)
    np.testing.assert_allclose(times[:, 0], [0, 1 / 3, 2 / 3, 1, 1, 1, 1], rtol=1e-6)
    found = path_geometry.straightness(trace, times)
    np.testing.assert_allclose(found.deviation, 0, atol=1e-5)
    assert path_geometry.straightness(trace).deviation[0] > 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config.sampler={'name':'dopri5'}", "--num_steps=2"], "chooses its own steps"),
        (["--config.sampler={'name':'multistep'}", "--num_steps=2"], "give --indices=0,0+1"),
        (["--config.sampler={'name':'multistep'}", "--indices=0-1"], "must be as 0,0+1,0+3+5"),
        (["--indices=0"], "are of multistep, not 'edm_heun'"),
    ],
)
def test_straightness_refuses(edm, flow, capsys, flags, says):
    workdir = flow if "dopri5" in flags[0] else edm
    assert main(["study", "straightness", f"--workdir={workdir}", *flags]) == 2
    assert says in capsys.readouterr().err
