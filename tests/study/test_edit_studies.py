"""The editing studies end to end on tiny runs: what is kept, what is refused, what is written."""

import json

import numpy as np
import pytest
from PIL import Image

from genfield.data import to_uint8
from genfield.program.open_run import open_run
from genfield.study import editing
from genfield.study import subject as subjects
from genfield.study.__main__ import main


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(subjects, "PER_DRAWN", 500)


@pytest.fixture
def findings(capsys):
    """findings(name, workdir, *arguments) -> figures and arrays of a study, its pictures there."""

    def runs(name, workdir, *arguments):
        code = main(["study", name, f"--workdir={workdir}", *arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        pictures = [line for line in out.splitlines() if line.startswith("picture: ")]
        for line in pictures:
            with Image.open(line.removeprefix("picture: ")) as picture:
                assert picture.width > 100
        assert pictures
        folder = workdir / "studies"
        with np.load(folder / f"{name}.npz") as file:
            arrays = dict(file)
        return json.loads((folder / f"{name}.json").read_text())["figures"], arrays

    return runs


def refused(capsys, *argv):
    assert main(["study", *map(str, argv)]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    return err[0]


@pytest.mark.parametrize("part, rows, columns", [("left", 8, 4), ("center", 4, 4)])
def test_inpainted_images_keep_what_is_known_to_the_bit(digit_flow, findings, part, rows, columns):
    arguments = ("--num=3", "--variations=2", f"--mask={part}", "--resample=2")
    figures, arrays = findings("edit_inpaint", digit_flow, *arguments)
    hidden = arrays["mask"]
    assert hidden.shape == (8, 8, 1) and hidden.sum() == rows * columns
    assert arrays["arr_0"].dtype == np.uint8 and len(arrays["arr_0"]) == 6
    np.testing.assert_array_equal(arrays["arr_0"][:, ~hidden], arrays["inputs"][:, ~hidden])
    assert (arrays["arr_0"][:, hidden] != arrays["inputs"][:, hidden]).mean() > 0.5
    np.testing.assert_array_equal(arrays["inputs"][::2], arrays["inputs"][1::2])
    assert figures["rows"][0]["changed_known"] == 0 and figures["rows"][0]["spread_hidden"] > 0
    assert figures["resample"] == 2 and figures["rows"][0]["nfe"] == 2 * 2 * 4


@pytest.mark.parametrize("known", ["path", "still"])
def test_inpainting_without_a_clock(digits, findings, known):
    figures, arrays = findings("edit_inpaint", digits, "--num=2", f"--known={known}")
    hidden = arrays["mask"]
    np.testing.assert_array_equal(arrays["arr_0"][:, ~hidden], arrays["inputs"][:, ~hidden])
    assert figures["rows"][0]["changed_known"] == 0 and figures["resample"] == 1
    assert ("pace" in figures["known"]) == (known == "path")


def test_inpainted_points_are_compared_with_the_conditional_law(moons, flow, edm, findings):
    for workdir, sampler in (
        (moons, ()),
        (flow, ()),
        (edm, ()),
        (flow, ("--config.sampler={'name':'dopri5','rtol':0.01,'atol':0.01}",)),
        (edm, ("--config.sampler={'name':'probability_flow','rtol':0.01,'atol':0.01}",)),
    ):
        figures, arrays = findings("edit_inpaint", workdir, "--num=4", *sampler)
        assert arrays["mask"].tolist() == [False, True]
        np.testing.assert_array_equal(arrays["arr_0"][:, 0], arrays["inputs"][:, 0])
        slices = figures["conditionals"]
        assert len(slices) == 4 and all(row["w1"] >= 0 for row in slices)
        # Two moons, symmetric about their centre: so are the middle known values' true laws.
        assert slices[0]["true_mean"] > 0.5 and slices[3]["true_mean"] < -0.5
        assert slices[0]["true_std"] < 0.1


def test_a_mask_and_images_of_ones_own(digit_flow, findings, tmp_path):
    hidden = np.zeros((8, 8), np.uint8)
    hidden[2:4, 5] = 255
    Image.fromarray(hidden).save(tmp_path / "mask.png")
    levels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "own.npz", levels)
    given = (f"--mask={tmp_path / 'mask.png'}", f"--images={tmp_path / 'own.npz'}", "--labels=7")
    _, arrays = findings("edit_inpaint", digit_flow, "--num=3", "--variations=1", *given)
    np.testing.assert_array_equal(arrays["mask"][..., 0], hidden > 0)
    np.testing.assert_array_equal(arrays["inputs"], levels[:3])
    assert arrays["arr_1"].tolist() == [7, 7, 7]


@pytest.mark.parametrize("run_", ["digit_flow", "digits", "moons", "flow", "edm"])
def test_strength_0_is_the_input_and_1_plain_sampling(run_, request, findings):
    workdir = request.getfixturevalue(run_)
    one = ("--num=4", *(("--labels=3",) if run_ in ("digit_flow", "digits") else ()))
    figures, arrays = findings("edit_vary", workdir, *one, "--strength=0,0.5,1")
    x = arrays["arr_0"].reshape(3, 4, *arrays["arr_0"].shape[1:]).astype(np.float32)
    np.testing.assert_array_equal(x[0], arrays["inputs"])
    assert (x[1] != x[0]).any() and (x[1] != x[2]).any()
    _, plain = findings("edit_interpolate", workdir, *one, "--weights=2")
    ends = plain["arr_0"].reshape(4, 2, *x.shape[2:])[:, 0].astype(np.float32)
    drawn = open_run(workdir).sample(4, labels=3 if len(one) > 1 else None).x
    drawn = to_uint8(drawn).astype(np.float32) if drawn.ndim > 2 else drawn
    level = 1 if arrays["arr_0"].dtype == np.uint8 else 1e-4  # batches of other sizes round
    np.testing.assert_allclose(x[2], drawn, rtol=1e-4, atol=level)
    np.testing.assert_allclose(ends, drawn, rtol=1e-4, atol=level)
    rows = figures["rows"]
    assert rows[0]["rmse"] == 0 and rows[0]["steps"] == 0
    if run_ in ("flow", "digit_flow"):
        assert [row.get("time") for row in rows] == [None, 0.5, 0]
        assert [row["steps"] for row in rows] == [0, 2, 4]


def test_interpolation_is_spherical_of_normal_noise_alone(digit_flow, moons, findings):
    figures, arrays = findings("edit_interpolate", digit_flow, "--num=2", "--weights=3")
    assert figures["line"] == "spherical" and len(arrays["arr_0"]) == 6
    assert 0.85 < figures["rows"][1]["noise_rms"] < 1.15
    assert arrays["arr_1"].tolist() == [0, 0, 0, 1, 1, 1]
    figures, arrays = findings("edit_interpolate", moons, "--num=2", "--weights=3")
    assert figures["line"] == "linear"
    noise = arrays["noise"].reshape(2, 3, 2)
    np.testing.assert_allclose(noise[:, 1], noise[:, ::2].mean(1), rtol=1e-5, atol=1e-6)


def test_inversion_goes_back_to_what_it_came_from(digit_flow, flow, edm, findings):
    for workdir in (digit_flow, flow, edm):
        figures, arrays = findings("edit_invert", workdir, "--num=4", "--num_steps=8,32")
        few, many = figures["rows"]
        assert many["rmse"] < few["rmse"] and many["rmse"] < 0.2
        assert arrays["noise"].shape == arrays["inputs"].shape
    adaptive = "--config.sampler={'name':'dopri5'}"
    [row] = findings("edit_invert", flow, "--num=4", adaptive)[0]["rows"]
    assert row["rmse"] < 1e-3
    adaptive = "--config.sampler={'name':'probability_flow'}"
    [row] = findings("edit_invert", edm, "--num=4", adaptive)[0]["rows"]
    assert row["rmse"] < 1e-2
    figures, _ = findings("edit_invert", digit_flow, "--num=4", "--labels=3")
    assert figures["labels_back"] == "given"


def test_what_a_method_does_not_allow_is_one_line_that_says_why(
    moons, flow, edm, digit_flow, capsys, tmp_path
):
    of = lambda workdir: f"--workdir={workdir}"
    line = refused(capsys, "edit_invert", of(moons))
    assert "has no clock" in line and "'name':'heun'" in line
    noisy = "--config.sampler={'name':'edm_heun','num_steps':4,'churn':3.0}"
    assert "draws noise of its own" in refused(capsys, "edit_invert", of(edm), noisy)
    jump = "--config.sampler={'name':'multistep'}"
    assert "jumps to the data" in refused(capsys, "edit_invert", of(edm), jump)
    assert "normal source" in refused(capsys, "edit_inpaint", of(flow), "--resample=3")
    assert "normal source" in refused(capsys, "edit_inpaint", of(moons), "--resample=3")
    assert "choose left or right" in refused(capsys, "edit_inpaint", of(flow), "--mask=top")
    assert "none of left, right" in refused(capsys, "edit_inpaint", of(digit_flow), "--mask=middle")
    missing = f"--mask={tmp_path}/no.png"
    assert "cannot be read" in refused(capsys, "edit_inpaint", of(digit_flow), missing)
    np.save(tmp_path / "all.npy", np.ones((8, 8)))
    whole = f"--mask={tmp_path / 'all.npy'}"
    assert "hides all" in refused(capsys, "edit_inpaint", of(digit_flow), whole)
    assert "between 0 and 1" in refused(capsys, "edit_vary", of(flow), "--strength=1.5")
    assert "--labels names 2" in refused(capsys, "edit_vary", of(digit_flow), "--labels=1,2")
    assert "class in --labels" in refused(capsys, "edit_vary", of(digit_flow), "--labels=12")
    assert "a run with classes" in refused(capsys, "edit_vary", of(flow), "--labels=1")
    assert "at least 2" in refused(capsys, "edit_interpolate", of(flow), "--weights=1")
    assert "Known: auto, linear" in refused(capsys, "edit_interpolate", of(flow), "--line=round")


def test_masks_by_name():
    image = (4, 6, 3)
    halves = {name: editing.mask(name, image) for name in editing.MASKS}
    assert (halves["left"] ^ halves["right"]).all() and (halves["top"] ^ halves["bottom"]).all()
    assert halves["left"][:, :3].all() and halves["top"][:2].all()
    assert halves["center"].sum() == 2 * 4 * 3 and not halves["center"][0].any()
    assert editing.mask("right", (3,)).tolist() == [False, True, True]
