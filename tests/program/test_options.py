"""Options that rely on one which is off: each is refused in one line, and no page breaks a rule."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from programs import MOONS, ROOT, SMALL, TINY_DIGITS, arguments, losses, run

from genfield.data.pipeline import Latents
from genfield.errors import UserError
from genfield.main import main
from genfield.program import config_io, defaults, options
from genfield.program.methods import package
from genfield.registry import DataSource

sys.path.insert(0, str(ROOT / "tests" / "golden"))
from freeze_inputs import CONFIGS

PAGES = [
    name
    for file, variants in CONFIGS.items()
    for name in [file, *(f"{file}:{variant}" for variant in variants)]
]
SHORT = SMALL | {"train.steps": 2, "checkpoint.every": 1, "evaluate.num_samples": 8}
LABELLED = {"data.labels": True, "label_dropout": 0.1}


def broken(config, mode: str, labels: bool, pixels: bool, latents=None, starts=None) -> list[str]:
    data = SimpleNamespace(
        num_classes=10 * labels, pixels=pixels, latents=latents, starts=starts
    )  # fmt: skip
    return [line for _, line in options.complaints(config, data, package(), mode)]


@pytest.mark.parametrize("name", PAGES)
def test_no_page_has_an_option_that_hangs_in_the_air(name):
    config = config_io.load(str(ROOT / "configs" / name))
    source = package()[DataSource][config.data.name]
    labels = bool(config.data.get("labels", source.holds == "latents"))
    for mode in options.SAMPLING:
        latents = Latents(1.0) if source.holds == "latents" else None
        assert broken(config, mode, labels, source.holds == "images", latents) == []


# (what is set, labels, what is said, what mends it)
TABLE = [
    ({"label_dropout": 0.1}, False, "config.label_dropout drops labels", LABELLED),
    ({"ema.ramp_up": 0.05}, False, "config.ema.ramp_up is of an average", {"ema.rate": 0.9}),
    ({"optimizer.level_learning_rate": 1.0}, False, "level_learning_rate is of players", None),
    ({"optimizer.discriminator_b1": 0.1}, False, "discriminator_b1 is of players", None),
    (
        {"augmentation_center": "edm"},
        False,
        "of an augmentation that is off",
        {"augmentation": 0.1},
    ),
    ({"sigma_data": 1.0}, False, "config.sigma_data is for losses of noise levels", None),
    (
        {"sample.guidance_scale": 2.0, "label_dropout": 0.0},
        True,
        "guidance_scale leads away from the null class",
        {"label_dropout": 0.1},
    ),
    (
        {"sample.guidance_interval": (0.2, 0.8)},
        True,
        "guidance_interval is of a guidance that is off",
        {"sample.guidance_scale": 2.0, "label_dropout": 0.1},
    ),
    ({"sample.guidance_channels": 1}, True, "guidance_channels is of a guidance", None),
    ({"evaluate.reference": "x.npz"}, True, "config.evaluate.reference is of image", None),
    ({"evaluate.features_seed": 0}, True, "config.evaluate.features_seed is of image", None),
    (
        {
            "evaluate.reference": "x.npz",
            "evaluate.reference_split": "test",
            "evaluate.metrics": ("frechet",),
        },
        True,
        "reference_split is of the data",
        {"evaluate.reference_split": "train"},
    ),
    ({"autoencoder": "vae"}, True, "config.autoencoder decodes latents", None),
    ({"autoencoder_sha256": "0" * 64}, True, "config.autoencoder_sha256 is of an autoenc", None),
    ({"autoencoder_dtype": "bfloat16"}, True, "config.autoencoder_dtype is of an autoenc", None),
    ({"evaluate.labels": "random"}, False, "config.evaluate.labels is of labels", LABELLED),
]


@pytest.mark.parametrize(("fields", "labels", "line", "mend"), TABLE)
def test_it_is_said_and_what_it_says_mends_it(fields, labels, line, mend):
    [told] = broken(_config(fields), "train", labels, pixels=True)
    assert line in told and ":" in told
    mended = _config(fields | mend if mend else {})
    assert broken(mended, "train", labels or "data.labels" in (mend or {}), pixels=True) == []


def _config(fields: dict):
    config = defaults.base()
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize(
    ("loss", "idle"),
    [
        ("flux_matching", ["discriminator_b1"]),
        ("adversarial_lines_matching", ["level_learning_rate"]),
        ("denoising", ["discriminator_b1", "level_learning_rate"]),
    ],
)
def test_a_field_counts_where_a_player_of_this_very_loss_reads_it(loss, idle):
    fields = {"optimizer.level_learning_rate": 1.0, "optimizer.discriminator_b1": 0.1}
    config = _config(fields | {"loss.name": loss, "optimizer.b1": 0.7})
    told = " ".join(broken(config, "train", labels=False, pixels=True))
    found = [name for name in ("discriminator_b1", "level_learning_rate") if name in told]
    assert found == idle and "config.optimizer.b1" not in told


def test_pixels_are_rounded_of_images_alone():
    config = defaults.base()
    config.sample.rounding = "shift"
    assert "is of pixels" in broken(config, "sample", False, pixels=False)[0]
    assert broken(config, "sample", False, pixels=True) == []
    assert "is of pixels" in broken(config, "sample", False, False, Latents(1.0))[0]
    config.autoencoder = "vae"
    assert broken(config, "sample", False, False, Latents(1.0)) == []


def test_labels_of_examples_are_not_drawn_at_random():
    config = _config({"evaluate.labels": "random"})
    assert broken(config, "sample", True, pixels=True) == []
    [told] = broken(config, "sample", True, pixels=True, starts=object())
    assert "config.evaluate.labels is of labels that samples are free in" in told


def test_every_rule_has_a_row():
    told = broken(_config({"sample.rounding": "shift"}), "sample", False, pixels=False)
    for fields, labels, *_ in TABLE:
        told += broken(_config(fields), "train", labels, pixels=True)
    for rule in options.RULES:
        assert any(line.endswith(rule.why) for line in told), rule.why


def test_the_program_refuses_before_it_trains_and_leaves_nothing(tmp_path, capsys):
    assert run(tmp_path / "run", label_dropout=0.5) == 2
    assert "config.label_dropout drops labels, and there are none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_goes_on_and_is_told(tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "run"
    monkeypatch.setattr(options, "RULES", ())  # as before these rules
    assert run(workdir, small=SHORT, label_dropout=0.5) == 0
    monkeypatch.undo()
    assert run(workdir, small=SHORT | {"train.steps": 3}, label_dropout=0.5) == 0
    assert "ignored, as since this run began: config.label_dropout" in capsys.readouterr().out
    argv = arguments(workdir, MOONS, small=SHORT | {"train.steps": 4}, label_dropout=0.5)
    assert main([*argv, "--config.sample.rounding=shift"]) == 2  # what may change, is to be mended


def test_sampling_refuses_guidance_that_was_never_trained(tmp_path, capsys):
    workdir = tmp_path / "run"
    small = SHORT | {"data.labels": True, "label_dropout": 0.0}
    small = {k: v for k, v in small.items() if not k.startswith("net.")}
    assert run(workdir, TINY_DIGITS, small=small) == 0
    argv = ["genfield", f"--workdir={workdir}", "--mode=sample"]
    assert main([*argv, "--config.sample.guidance_scale=3.0"]) == 2
    assert "which this run never trains" in capsys.readouterr().err


def test_two_checkpoints_cannot_be_asked_for(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    argv = ["genfield", f"--workdir={tmp_path}", "--mode=sample", "--best", "--step=3"]
    assert main(argv) == 2
    assert "--step and --best name two checkpoints" in capsys.readouterr().err


METRICS, FORMATS, INTERVAL = "evaluate.metrics", "sample.formats", "sample.guidance_interval"


@pytest.mark.parametrize(
    ("field", "flags", "value"),
    [
        (METRICS, [f"--config.{METRICS}=('w2',)", f"--config.{METRICS}=('a',)"], ("a",)),
        (FORMATS, [f"--config.{FORMATS}", "('npz',)", f"--config.{FORMATS}=('png',)"], ("png",)),
        (INTERVAL, [f"--config.{INTERVAL}=(1.0,2.0)", f"--config.{INTERVAL}=()"], ()),
        ("train.steps", ["--config.train.steps=7", "--config.train.steps", "5"], 5),
        ("sample.use_ema", ["--noconfig.sample.use_ema", "--config.sample.use_ema=true"], True),
        ("sample.use_ema", ["--config.sample.use_ema", "--noconfig.sample.use_ema"], False),
        ("sampler.name", ["--config.sampler.name=heun", "--config.sampler.name=euler"], "euler"),
    ],
)
def test_of_a_flag_given_twice_the_last_one_counts(field, flags, value):
    config = config_io.override(defaults.base(), flags)
    section, name = field.split(".")
    assert config[section][name] == value


def test_another_number_of_steps_says_what_becomes_of_the_schedule(tmp_path, capsys):
    small = SHORT | {"optimizer.schedule": "cosine", "optimizer.learning_rate": 0.004}
    assert run(tmp_path, small=small | {"train.steps": 4}) == 0
    rates = [
        row["learning_rate"] for (_, split), row in losses(tmp_path).items() if split == "train"
    ]
    expected = 0.002 * (1 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    capsys.readouterr()
    assert run(tmp_path, small=small | {"train.steps": 8}) == 0
    assert (
        "train.steps is 8 and was 4: the schedule is another, with a learning rate of 0.002 here, "
        "where it was 0\n"
    ) in capsys.readouterr().out
    flat = small | {"optimizer.schedule": "constant", "train.steps": 2}
    for steps in (2, 3):
        assert run(tmp_path / "flat", small=flat | {"train.steps": steps}) == 0
    assert "the schedule is another" not in capsys.readouterr().out


PLACES = ["gs://bucket/run", "s3://bucket/run", "hdfs://host/run", "https://host/run"]


@pytest.mark.parametrize("place", PLACES)
def test_another_machine_s_path_is_refused_wherever_it_stands(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "run"
    for argv in (
        arguments(place),
        arguments(here, initial_parameters=place),
        arguments(here, TINY_DIGITS, data__path=place, small={}),
        [*arguments(here, TINY_DIGITS, small={})[:3], f"--config.evaluate.reference={place}"],
        ["genfield", f"--workdir={here}", "--mode=evaluate", f"--samples={place}"],
    ):
        assert main(argv) == 2
        assert "is not on this machine's disk" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_library_refuses_it_too():
    import genfield

    for opened in (genfield.open_run, genfield.load_parameters):
        with pytest.raises(UserError, match="is not on this machine's disk"):
            opened("gs://bucket/run")
