"""Latents as pixels: sampled, shown, measured and studied; on any mesh, and without their data."""

import json
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_latents
import tiny_network
from PIL import Image
from programs import MOONS, ROOT, run
from safetensors.numpy import load_file, save_file

import genfield
from genfield import features, pretrained
from genfield.data.pipeline import Latents
from genfield.data.pixels import to_uint8, to_unit
from genfield.errors import UserError
from genfield.machine import sharding
from genfield.program import config_io, decoder, experiment, generate
from genfield.study.__main__ import main as study

CONFIG = ROOT / "tests" / "tiny_latents.py"
METRICS = ("frechet", "sfid", "kid", "inception_score", "precision_recall")


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """The tiny feature network in place of the real ones, and a cache of the test's own."""
    monkeypatch.setattr(features, "create", tiny_network.create)
    monkeypatch.setattr(features, "default", lambda: "inception_v3")
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Latents, an autoencoder, a reference, and a run that knows no autoencoder."""
    folder = tmp_path_factory.mktemp("home")
    tiny_latents.latents(folder / "latents")
    tiny_latents.autoencoder(folder / "vae")
    tiny_latents.autoencoder(folder / "vae16", latent_channels=16)
    levels = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(folder / "reference.npz", arr_0=levels)
    assert tiny_run(folder, folder / "run") == 0
    return folder


def tiny_run(home, workdir, *extra: str, **fields) -> int:
    return run(
        workdir, CONFIG, *extra, small={"data.path": home / "latents"},
        **({"evaluate__figures": False} | fields),
    )  # fmt: skip


def drawn(home, name: str, *extra: str, **fields) -> dict:
    """What --mode=sample writes."""
    flags = ["--mode=sample", f"--config.sample.name={name}", *extra]
    assert tiny_run(home, home / "run", *flags, **fields) == 0
    with np.load(home / "run" / "samples" / f"{name}.npz") as file:
        return dict(file)


def decoded(home, latents: np.ndarray) -> np.ndarray:
    """Images of scaled latents, by the autoencoder itself."""
    made = pretrained.autoencoder(home / "vae")
    return np.asarray(made.decode(latents / tiny_latents.SCALE))


def made(home, mesh=None, latents=Latents(tiny_latents.SCALE), **fields) -> decoder.Decoder:
    """A decoder of the run on a mesh of its own."""
    config = config_io.from_file(home / "run" / "config.json")
    config.autoencoder = str(home / "vae")
    config.update(fields)
    mesh = mesh or mesh_of(1)
    data = SimpleNamespace(shape=tiny_latents.SHAPE, latents=latents)
    return decoder.create_decoder(config, data, mesh, decoder.open_weights(config))


def mesh_of(n: int):
    return sharding.make_mesh(SimpleNamespace(data=n, fsdp=1), jax.devices()[:n])


def some(num: int, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, *tiny_latents.SHAPE)).astype(np.float32)


# The decoder


@pytest.mark.parametrize("devices, num, at_once", [(1, 7, 3), (1, 4, 8), (8, 40, 2), (8, 24, 3)])
def test_images_are_those_of_the_autoencoder_in_parts_and_on_any_mesh(
    devices, num, at_once, home, monkeypatch
):
    monkeypatch.setattr(decoder, "PIXELS", at_once * 8 * 8)
    latents = Latents(scale=0.5, shift=0.25)
    x, decode = some(num), made(home, mesh_of(devices), latents)
    put = jax.device_put(x, sharding.batch_sharding(decode.mesh))
    told = []
    images, finite = decode(put, levels=False, on_part=told.append)
    expected = pretrained.autoencoder(home / "vae").decode(x / 0.5 + 0.25)
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-5)
    assert np.asarray(finite).all() and images.sharding.is_equivalent_to(put.sharding, 4)
    assert len(told) == -(-num // devices // min(at_once, num // devices)) - 1
    levels, _ = decode(put)
    off = np.abs(np.asarray(levels).astype(int) - to_uint8(np.asarray(expected)))
    assert levels.dtype == np.uint8 and off.max() <= 1 and np.std(levels) > 5
    assert decode.spent.images == 2 * num and decode.spent.seconds > 0
    np.testing.assert_allclose(decode.on_host(x), expected, rtol=1e-4, atol=1e-5)


def test_the_partitioned_program_keeps_the_batch_split(home):
    """Each of eight devices decodes its own latents: no array is gathered, none is whole."""
    decode = made(home, mesh_of(8))
    place = sharding.batch_sharding(decode.mesh)
    x = jax.device_put(some(32), place)
    lowered = decode.decode(2, True).lower(decode.params, x, np.int32(0))
    program = lowered.compile().as_text()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in program
    assert re.search(r"f32\[4,4,4,4\]\S* parameter", program)  # of 32 latents a device holds four
    assert re.search(r"u8\[2,8,8,3\]", program) and not re.search(r"\[(8|16|32),8,8,3\]", program)


def test_a_part_of_a_batch_is_told_and_may_be_the_last(home, monkeypatch):
    monkeypatch.setattr(decoder, "PIXELS", 1)
    decode, told = made(home), []

    def stop(note):
        told.append(note)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(jax.numpy.asarray(some(5)), on_part=stop)
    assert told == ["decoding 1/5", "decoding 2/5"]


def test_rounding_is_that_of_the_config(home):
    x = some(3)
    float_images = made(home).on_host(x)
    for name in ("truncate", "shift"):
        config = dict(sample=dict(rounding=name))
        levels = made(home, **config).on_host(x, levels=True)
        off = np.abs(levels.astype(int) - to_uint8(float_images, name))
        assert (off > 0).mean() < 0.01  # at the edges of a level


def test_images_that_are_not_finite_are_said(home):
    x = some(3)
    x[1] = np.nan
    with pytest.raises(UserError, match="1 of 3 decoded images are NaN or infinite"):
        made(home).on_host(x)


def test_an_autoencoder_that_overflows_is_told_from_a_sampler_that_does(home, tmp_path, capsys):
    folder = tiny_latents.autoencoder(tmp_path / "vae")
    [file] = folder.glob("*.safetensors")
    state = load_file(file)
    for name in ("decoder.conv_norm_out.weight", "decoder.conv_out.weight"):
        state[name] *= np.float32(1e30)
    save_file(state, file)
    flags = ["--mode=sample", "--config.sample.name=overflow"]
    assert tiny_run(home, home / "run", *flags, autoencoder=folder) == 2
    assert "decoded images are NaN or infinite, and their latents are" in capsys.readouterr().err
    assert not (home / "run" / "samples" / "overflow.npz").exists()


def test_an_autoencoder_of_other_images_is_refused_and_another_file_is_said(home, capsys):
    with pytest.raises(UserError, match="makes images of 8x8 of these latents, and they were"):
        made(home, latents=Latents(0.5, size=32))
    made(home, latents=Latents(0.5, size=8, autoencoder="f00" * 21 + "f"))
    assert "is not the file that made the latents (f00f00f00f00)" in capsys.readouterr().out
    known = pretrained.autoencoder(home / "vae").info.hash
    made(home, latents=Latents(0.5, size=8, autoencoder=known))
    assert not capsys.readouterr().out


# Samples


def test_what_is_written_are_the_latents_decoded(home, capsys):
    latents = drawn(home, "latents")["arr_0"]
    assert "for pixels set config.autoencoder to the weights" in capsys.readouterr().out
    assert latents.shape == (8, *tiny_latents.SHAPE) and latents.dtype == np.float32
    formats = "--config.sample.formats=('png','npz')"
    pixels = drawn(home, "pixels", formats, autoencoder=home / "vae")["arr_0"]
    out = capsys.readouterr().out
    assert re.search(r"decoding: \d+\.\d s, \d+% of the time \(\S+ images/s\)", out)
    assert pixels.shape == (8, 8, 8, 3) and pixels.dtype == np.uint8
    off = np.abs(pixels.astype(int) - to_uint8(decoded(home, latents)))
    assert off.max() <= 1 and np.std(pixels) > 5
    files = sorted((home / "run" / "samples" / "pixels").glob("*.png"))
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(f)) for f in files]), pixels)
    grid = Image.open(home / "run" / "samples" / "pixels_grid.png")
    assert grid.size == (8 * (3 * 9 - 1), 8 * (3 * 9 - 1))  # three in a row, small ones enlarged


@pytest.mark.slow
def test_one_device_writes_what_eight_do(home):
    fields = dict(autoencoder=home / "vae", sample__num=20, sample__batch_size=2)
    one = drawn(home, "one", **fields)
    flags = ["--mode=sample", "--config.sample.name=eight"]
    assert run(
        home / "run", CONFIG, *flags, on=8, small={"data.path": home / "latents"}, **fields
    ) == 0  # fmt: skip
    with np.load(home / "run" / "samples" / "eight.npz") as file:
        off = np.abs(one["arr_0"].astype(int) - file["arr_0"])
    assert off.max() <= 1


def test_other_weights_are_other_samples(home, capsys):
    drawn(home, "mine", autoencoder=home / "vae")
    flags = ["--mode=sample", "--config.sample.name=mine"]
    assert tiny_run(home, home / "run", *flags) == 2
    assert "tells of samples that differ in autoencoder" in capsys.readouterr().err
    elsewhere = shutil.copytree(home / "vae", home / "moved")
    assert tiny_run(home, home / "run", *flags, autoencoder=elsewhere) == 0
    assert "already drawn" in capsys.readouterr().out


def test_a_run_decodes_without_its_data_and_opens_without_its_autoencoder(home, tmp_path):
    away = shutil.copytree(home / "run", tmp_path / "away")
    path = away / "config.json"
    config = json.loads(path.read_text())
    config["data"]["path"], config["autoencoder"] = "/gone", "/gone.safetensors"
    path.write_text(json.dumps(config))
    opened = genfield.open_run(away)
    latents = opened.sample(3).x
    assert latents.shape == (3, *tiny_latents.SHAPE)
    with pytest.raises(UserError, match=r"config\.autoencoder: no autoencoder at /gone"):
        opened.sample(3, pixels=True)
    opened = genfield.open_run(away, autoencoder=home / "vae")
    images = opened.sample(3, pixels=True).x
    np.testing.assert_allclose(images, decoded(home, latents), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(images, opened.decode(latents))
    with pytest.raises(UserError, match=r"samples are latents: open_run\(…, autoencoder=FILE\)"):
        genfield.open_run(home / "run").sample(3, pixels=True)


def test_a_record_of_before_tells_the_scale_by_its_config(home, tmp_path):
    away = shutil.copytree(home / "run", tmp_path / "away")
    known = json.loads((away / "data.json").read_text())
    assert known.pop("latents") == {
        **{"scale": tiny_latents.SCALE, "shift": 0.0, "autoencoder": None, "size": None}
    }
    (away / "data.json").write_text(json.dumps(known))
    opened = genfield.open_run(away, autoencoder=home / "vae")
    assert opened.experiment.data.latents == Latents(tiny_latents.SCALE)


def test_pairs_of_latents_stay_latents_that_can_be_decoded(home, tmp_path):
    flags = ["--mode=pairs", "--config.sample.num=20", f"--config.autoencoder={home / 'vae'}"]
    assert tiny_run(home, home / "run", *flags, evaluate__labels="random") == 0
    folder = home / "run" / "pairs" / "step_2"
    assert np.load(folder / "x1.npy").shape == (20, *tiny_latents.SHAPE)
    config = tiny_latents.get_config()
    config.data = {"name": "pairs", "path": str(folder)}
    config.autoencoder, config.batch_size = str(home / "vae"), 8
    exp = experiment.prepare(config, tmp_path)
    assert exp.data.latents == Latents(tiny_latents.SCALE) and exp.pictures
    assert exp.decoder.shape == (8, 8, 3)
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), np.arange(20) % 10)


# Figures


def test_latents_are_measured_as_pixels_and_the_card_says_by_what(home, tmp_path, capsys):
    """From training to the table: grids, figures, their card; and the file gives the same."""
    fields = dict(
        autoencoder=home / "vae", evaluate__metrics=("heldout_loss", *METRICS),
        evaluate__reference=home / "reference.npz", evaluate__num_samples=12,
        evaluate__labels="random", evaluate__figures=True,
        train__eval_every=1, train__eval_samples=12, checkpoint__best_metric="frechet",
    )  # fmt: skip
    assert tiny_run(home, tmp_path / "run", **fields) == 0
    out = capsys.readouterr().out
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if row["split"] == "eval" and "fid" in row] == [1, 2]
    assert {"fid", "sfid", "kid", "inception_score", "precision", "recall"} <= {*card["metrics"]}
    told = card["sampling"]["autoencoder"]
    assert told["hash"] == pretrained.autoencoder(home / "vae").info.hash
    assert told["scale"] == tiny_latents.SCALE and told["source"].startswith(str(home / "vae"))
    assert card["sampling"]["labels"] == "random" and card["sampling"]["rounding"] == "nearest"
    assert summary["decoding"]["images"] == 12 and 0 < summary["decoding"]["share"] < 1
    assert re.search(r"decoded by \S+ \w{12}, rounding nearest, 12 samples .*, random labels", out)
    assert "of the time (" in out
    for step in (1, 2):
        with Image.open(tmp_path / "run" / "samples" / f"step_{step}.png") as grid:
            assert grid.size == (8 * (3 * 9 - 1), 8 * (3 * 9 - 1))
    flags = ["--mode=sample", "--config.sample.num=12"]
    assert tiny_run(home, tmp_path / "run", *flags, **fields) == 0
    file = tmp_path / "run" / "samples" / "step_2.npz"
    with np.load(file) as written:
        labels = written["arr_1"]
    assert labels.tolist() != (np.arange(12) % 10).tolist()
    judged = fields | dict(evaluate__metrics=METRICS)
    flags = ["--mode=evaluate", f"--samples={file}"]
    assert tiny_run(home, tmp_path / "judged", *flags, **judged) == 0
    other = json.loads((tmp_path / "judged" / "card.json").read_text())["metrics"]
    for name in ("fid", "sfid", "kid", "inception_score", "precision"):
        assert other[name]["value"] == pytest.approx(card["metrics"][name]["value"], rel=1e-6)


def test_what_keeps_latents_from_being_measured_is_one_line(home, tmp_path, capsys):
    vae, reference = dict(autoencoder=home / "vae"), home / "reference.npz"
    frechet = dict(evaluate__metrics=("frechet",))
    for fields, message in (
        (frechet, "metric 'frechet' needs pixels, and the samples are latents: set config.autoen"),
        (frechet | vae, "set config.evaluate.reference to images, a folder or an .npz"),
        (dict(autoencoder=home / "nowhere"), r"config\.autoencoder: no autoencoder at"),
        (dict(autoencoder=reference), r"config\.autoencoder: .*reference.npz is a zip file"),
        (vae | dict(autoencoder_sha256="0" * 64), r"its SHA-256 begins with \w{64}, not 0{64}"),
        (dict(autoencoder=home / "vae16"), r"decodes latents \[H, W, 16\], and these data are"),
        (dict(autoencoder_dtype="bfloat16"), "config.autoencoder names none"),
        (dict(autoencoder_dtype="float64"), "unknown config.autoencoder_dtype 'float64'"),
        (dict(evaluate__labels="even"), "unknown config.evaluate.labels 'even'. Known: balanced"),
        (dict(sample__rounding="shift"), "is of pixels, and these data are no images"),
    ):
        assert tiny_run(home, tmp_path / "run", **fields) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and re.search(message, error), error
        assert not (tmp_path / "run" / "checkpoints").exists()
    png = ["--mode=sample", "--config.sample.formats=('png',)"]
    assert tiny_run(home, home / "run", *png) == 2
    assert "needs pixels: set it to ('npz',), or set config.autoencoder" in capsys.readouterr().err


def test_an_autoencoder_is_for_latents(tmp_path, home, capsys):
    assert run(tmp_path, MOONS, autoencoder=home / "vae") == 2
    assert "config.autoencoder decodes latents, and these data are none" in capsys.readouterr().err


# Labels


def test_random_labels_are_drawn_by_seed_and_index(home):
    config = config_io.from_file(home / "run" / "config.json")
    exp = experiment.prepare(config, home / "run")
    labels = lambda index, seed=0: generate.labels_of(exp, np.asarray(index), 10**6, seed=seed)
    np.testing.assert_array_equal(labels(range(12)), np.arange(12) % 10)
    config.evaluate.labels = "random"
    many = labels(range(20_000))
    counts = np.bincount(many, minlength=10)
    chi_squared = np.sum((counts - 2000) ** 2 / 2000)
    assert 2 < chi_squared < 28 and many.max() == 9  # 9 degrees of freedom, 0.1% above and 1% below
    np.testing.assert_array_equal(labels([7, 19_999, 3]), many[[7, 19_999, 3]])
    assert (labels(range(1000), 1) == many[:1000]).mean() < 0.2
    assert (many[1:] == many[:-1]).mean() == pytest.approx(0.1, abs=0.01)


def test_chosen_labels_come_before_random_ones(home):
    fields = dict(evaluate__labels="random", sample__labels=(3, 5))
    assert drawn(home, "chosen", **fields)["arr_1"].tolist() == [3, 5] * 4


# Studies


def test_images_of_one_s_own_are_encoded_for_editing(home, tmp_path):
    """Of strength 0 they come back as they were encoded; arrays are taken for latents."""
    levels = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3), np.uint8)
    for number, image in enumerate(levels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    mean, _ = pretrained.autoencoder(home / "vae").encode(to_unit(levels))
    latents = np.asarray(mean) * tiny_latents.SCALE
    np.save(tmp_path / "latents.npy", latents)
    shared = ["--strength=0", "--labels=3", f"--config.autoencoder={home / 'vae'}"]
    for place in (tmp_path, tmp_path / "latents.npy"):
        flags = [f"--workdir={home / 'run'}", f"--images={place}", *shared]
        assert study(["study", "edit_vary", *flags]) == 0
        with np.load(home / "run" / "studies" / "edit_vary.npz") as file:
            np.testing.assert_allclose(file["arr_0"], latents, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("denoise", ["--times=0.5", "--num=6", "--metric=frechet"]),
        ("neighbours", ["--num=6", "--shown=3", "--features=inception_v3"]),
        pytest.param("edit_invert", ["--num=3"], marks=pytest.mark.slow),
        pytest.param("edit_inpaint", ["--num=3", "--variations=2"], marks=pytest.mark.slow),
        pytest.param("compose", ["--num=3", "--classes=3,5"], marks=pytest.mark.slow),
    ],
)
def test_studies_show_and_measure_pixels(name, arguments, home, monkeypatch, capsys):
    shown = []
    call = decoder.Decoder.on_host

    def on_host(self, x, **options):
        shown.append(len(x))
        return call(self, x, **options)

    monkeypatch.setattr(decoder.Decoder, "on_host", on_host)
    flags = [f"--config.autoencoder={home / 'vae'}"]
    if name in ("denoise", "neighbours"):
        flags.append(f"--config.evaluate.reference={home / 'reference.npz'}")
        flags.append("--config.evaluate.metrics=('frechet',)")
    assert study(["study", name, f"--workdir={home / 'run'}", *arguments, *flags]) == 0
    out = capsys.readouterr().out
    assert shown and f"{name}.png" in out
    found = json.loads((home / "run" / "studies" / f"{name}.json").read_text())
    assert found["autoencoder"]["scale"] == tiny_latents.SCALE
    if name == "denoise":
        assert found["figures"]["rows"][0]["fid"] > 0
    if name == "neighbours":
        spaces = [row["space"] for row in found["figures"]["rows"]]
        assert spaces == ["data", "inception_v3"]
