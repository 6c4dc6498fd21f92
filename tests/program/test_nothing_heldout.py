"""A run whose data hold nothing out trains on all, and what wants held-out data says so."""

import numpy as np
import prepared
import pytest
import tiny_latents
from programs import ROOT, losses

from genfield import open_run
from genfield.main import main
from genfield.study.__main__ import main as study

CONFIG = ROOT / "tests" / "tiny_latents.py"
NONE = "nothing is held out (config.data.heldout_fraction=0)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    random = np.random.default_rng(0)
    mean = random.standard_normal((64, *tiny_latents.SHAPE)).astype(np.float32)
    labels = np.arange(64) % 10
    place = tmp_path_factory.mktemp("latents") / "prepared"
    return prepared.latents(place, mean, np.full_like(mean, 0.5), labels)


def command(folder, workdir, *extra: str) -> int:
    path = f"--config.data.path={folder}"
    return main(["genfield", f"--config={CONFIG}", f"--workdir={workdir}", path, *extra])


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    steps = ("--config.train.steps=4", "--config.train.eval_every=2")
    assert command(folder, workdir, *steps) == 0
    return workdir


def test_it_trains_on_all_and_says_what_goes_without(folder, tmp_path, capsys):
    assert command(folder, tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "64 to train on, none held out, 10 classes" in out and out.count(NONE) == 1
    assert {split for _, split in losses(tmp_path / "run")} == {"train", "sample"}


def test_it_samples_evaluates_and_opens(trained, capsys):
    for mode in ("sample", "evaluate"):
        assert main(["genfield", f"--workdir={trained}", f"--mode={mode}"]) == 0
    assert NONE in capsys.readouterr().out
    assert open_run(trained).sample(2).x.shape == (2, *tiny_latents.SHAPE)


def test_the_best_and_studies_of_examples_say_so(trained, capsys):
    assert main(["genfield", f"--workdir={trained}", "--mode=sample", "--best"]) == 2
    assert "has a 'loss' to be best in" in capsys.readouterr().err
    assert study(["study", "denoise", f"--workdir={trained}"]) == 2
    err = capsys.readouterr().err
    assert "wants held-out examples" in err and err.count("\n") == 1


def test_a_resume_goes_on_to_the_bit(folder, trained, tmp_path):
    from genfield.machine import checkpoint

    steps = "--config.train.steps={}"
    for number in (2, 4):
        assert command(folder, tmp_path / "run", steps.format(number)) == 0
    a, b = (checkpoint.load(w, step=4, item="params") for w in (trained, tmp_path / "run"))
    for name, values in checkpoint.named_leaves(a).items():
        np.testing.assert_array_equal(values, checkpoint.named_leaves(b)[name])
