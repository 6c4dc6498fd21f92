"""python -m genfield.autoencoder: what it writes, a resume to the bit, and mistakes in one line."""

import json

import jax
import numpy as np
import own_images
import pytest

from genfield import pretrained
from genfield.autoencoder import objective
from genfield.autoencoder.__main__ import main
from genfield.data import to_unit
from genfield.features import autoencoder_kl as kl
from genfield.machine import logbook, preemption
from genfield.pretrained.autoencoders import FILE

COUNT = 24
CONFIG = kl.Config(
    block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=2
)
FLAGS = ("--widths=4,8", "--groups=2", "--latent_channels=2", "--perceptual=none", "--batch_size=8")
LONG = ("--crop=8", "--steps=120", "--learning_rate=1e-2")


def smooth(number: int) -> np.ndarray:
    """An image between two greys, [12, 12, 3] uint8."""
    first, second = np.random.default_rng(number).integers(0, 256, 2)
    share = np.linspace(0, 1, 12)[:, None, None]
    return np.broadcast_to(first + (second - first) * share, (12, 12, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with train/ and test/."""
    place = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        own_images.write(place / "train" / f"{number:02}.png", smooth(number))
    for number in range(8):
        own_images.write(place / "test" / f"{number}.png", smooth(100 + number))
    return place


def train(images, out, *flags: str) -> int:
    """Runs the command; its exit code."""
    return main(["genfield.autoencoder", f"--images={images}", f"--out={out}", *FLAGS, *flags])


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The folder of one training."""
    out = tmp_path_factory.mktemp("trained")
    assert train(images, out, *LONG) == 0
    return out


def test_it_learns_and_is_opened_again(images, trained):
    found = pretrained.autoencoder(trained)
    assert found.info.config == CONFIG
    pictures = to_unit(np.stack([smooth(i) for i in range(COUNT)]))
    mean, std = (np.asarray(a, np.float64) for a in found.encode(pictures))
    error = np.abs(np.asarray(found.decode(mean.astype(np.float32))) - pictures).mean()
    untrained = kl.random(CONFIG, 0)
    begun = kl.decode(untrained, kl.encode(untrained, pictures, CONFIG)[0], CONFIG)
    assert error < 0.4 * np.abs(np.asarray(begun) - pictures).mean()
    # The factor brings the latents of the training images, drawn from the posterior, to one.
    deviation = np.sqrt(np.mean(mean**2 + std**2) - mean.mean() ** 2)
    np.testing.assert_allclose(found.info.scaling_factor * deviation, 1, rtol=1e-4)


def test_what_is_told(trained):
    rows = logbook.read_metrics(trained)
    train = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in train] == [50, 100]
    assert train[-1]["l1"] < train[0]["l1"] and {"kl", "loss", "grad_norm"} < set(train[0])
    held = [row for row in rows if row["split"] == "eval"]
    assert [row["step"] for row in held] == [120] and held[0]["psnr"] > 10
    assert (trained / "reconstructions" / "step_120.png").stat().st_size > 200


def test_a_stopped_training_goes_on_to_the_bit(images, trained, tmp_path, monkeypatch, capsys):
    calls = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(preemption, "reached", lambda: next(calls) == 6)
        assert train(images, tmp_path, *LONG) == preemption.EXIT_CODE
    assert "saved step 6 of 120; the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / FILE).exists()
    assert train(images, tmp_path, *LONG) == 0
    assert "resuming at step 6" in capsys.readouterr().out
    assert (tmp_path / FILE).read_bytes() == (trained / FILE).read_bytes()
    assert train(images, tmp_path, *LONG, "--kl=1e-3") == 2
    assert "holds a training with kl=1e-06, not 0.001" in capsys.readouterr().err
    assert train(images, tmp_path, *LONG, "--steps=5") == 2
    assert "is at step 120, beyond --steps=5" in capsys.readouterr().err


def test_the_loss_is_as_it_is_written():
    weights = objective.Weights(kl=0.5, perceptual=2.0)
    apart = lambda a, b: (a - b).reshape(len(a), -1).mean(1) ** 2
    made = objective.create(
        CONFIG, pixels="l2", weights=weights, distance=apart, crop=None, dtype="float32"
    )
    params = {"autoencoder": kl.random(CONFIG, 1)}
    levels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    drawn = made.draw(jax.random.key(0), {"x1": levels})
    loss, terms = made.loss(params, drawn, None, True)
    images, part = to_unit(levels), params["autoencoder"]
    np.testing.assert_array_equal(drawn["images"], images)
    mean, std = (np.asarray(a, np.float64) for a in kl.encode(part, images, CONFIG))
    latents = (mean + std * np.asarray(drawn["noise"])).astype(np.float32)
    off = np.asarray(kl.decode(part, latents, CONFIG), np.float64) - images
    squared = (off**2).mean((1, 2, 3))
    divergence = 0.5 * (mean**2 + std**2 - 1 - np.log(std**2)).sum((1, 2, 3)) / (8 * 8 * 3)
    perceptual = off.mean((1, 2, 3)) ** 2
    np.testing.assert_allclose(terms["kl"], divergence, rtol=1e-4)
    wanted = squared + 0.5 * divergence + 2 * perceptual
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)


def test_crops_are_squares_of_the_images():
    weights = objective.Weights()
    made = objective.create(
        CONFIG, pixels="l1", weights=weights, distance=None, crop=4, dtype="float32"
    )
    levels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    crops = np.asarray(made.draw(jax.random.key(0), {"x1": levels})["images"])
    assert crops.shape == (4, 4, 4, 1)
    corners = set()
    for crop, image in zip(crops, to_unit(levels), strict=True):
        row, column = np.argwhere(image[..., 0] == crop[0, 0, 0])[0]
        np.testing.assert_array_equal(crop, image[row : row + 4, column : column + 4])
        corners.add((int(row), int(column)))
    assert len(corners) > 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--size=9",), "--size=9 must be a multiple of 2"),
        (("--size=8", "--crop=10"), "--crop=10 is larger than --size=8"),
        (("--crop=16",), "--crop=16 is larger than the images, 12x12x3"),
        (("--widths=4,8,8,8",), "the images are 12x12x3, and 4 --widths need sides divisible by 8"),
        (("--groups=3",), "--groups=3 does not divide 4 of --widths"),
        (("--batch_size=100",), "100"),
        (("--kl=-1",), "--kl"),
        (("--steps=0",), "--steps"),
        (("--images=/nowhere",), "--images=/nowhere does not exist"),
        (("--unknown=1",), "unknown"),
    ],
)
def test_mistakes_are_one_line(images, tmp_path, capsys, flags, words):
    assert train(images, tmp_path / "out", *flags) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and words in told[0]
    assert not (tmp_path / "out" / FILE).exists()


def test_the_options_are_kept(trained):
    told = json.loads((trained / "training.json").read_text())
    assert told["crop"] == 8 and told["perceptual"] == "none" and told["widths"] == [4, 8]
