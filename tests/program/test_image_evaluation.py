"""Samples on disk, references, and the figures of images; with a network that compiles at once."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network
from PIL import Image
from programs import ROOT, TINY_DIGITS, run

from genfield import configuration, data, features, sampling
from genfield.data import npz, pixels, sets
from genfield.errors import UserError
from genfield.features.resize import CONVENTIONS
from genfield.machine import preemption, sharding
from genfield.main import main
from genfield.metrics import frechet, images, known, reference
from genfield.program import card, defaults, evaluate, sample_files, sampler

ALL = ("frechet", "sfid", "kid", "inception_score", "precision_recall")


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """The tiny network in place of the real ones, and a cache folder of the test's own."""
    monkeypatch.setattr(features, "create", tiny_network.create)
    monkeypatch.setattr(features, "default", lambda: "inception_v3")
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "cache"))


def mesh_of(n: int):
    return sharding.make_mesh(SimpleNamespace(data=n, fsdp=1), jax.devices()[:n])


def judge_of(n=1, metrics=ALL, batch_size=4, **fields):
    section = configuration.base().evaluate
    section.update(batch_size=batch_size, **fields)
    return images.create_judge(section, mesh_of(n), [known()[name] for name in metrics])


def pictures(num=50, seed=0, side=8) -> np.ndarray:
    """Smooth coloured noise, uint8."""
    values = np.random.default_rng(seed).normal(size=(num, side, side, 3)).cumsum(1).cumsum(2)
    return np.clip(128 + 12 * values, 0, 255).astype(np.uint8)


def image_set(levels: np.ndarray) -> sets.ImageSet:
    return sets.ImageSet("test", "0", len(levels), levels.shape[1:], lambda rows: levels[rows])


def measured(levels, n=1, **kwargs) -> images.Statistics:
    judge = judge_of(n, **kwargs)
    return images.statistics(judge, images.blocks(image_set(levels), judge.mesh, judge.batch_size))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run on digits whose samples are noisy: a checkpoint to sample from."""
    workdir = tmp_path_factory.mktemp("trained")
    assert run(workdir, TINY_DIGITS, small={}) == 0
    return workdir


# Statistics


@pytest.mark.parametrize("num", [5, 32, 50])
def test_statistics_are_those_of_all_features_at_once(num):
    levels = pictures(num)
    out = measured(levels, 8)
    network = tiny_network.create()
    x = features.resize.resize(levels, 16, "tf1_bilinear")
    expected = jax.tree.map(np.asarray, network.apply(network.params, x))
    assert out.count == num
    for name in ("pool", "spatial"):
        mean, covariance = out.gaussians[name]
        np.testing.assert_allclose(mean, expected[name].astype(np.float64).mean(0), rtol=1e-5)
        np.testing.assert_allclose(
            covariance,
            np.cov(expected[name].astype(np.float64), rowvar=False),
            rtol=1e-4,
            atol=1e-7,
        )
    np.testing.assert_allclose(out.features["pool"], expected["pool"], rtol=1e-5, atol=1e-6)


def test_one_device_gives_what_eight_do():
    levels = pictures(70)
    one, eight = measured(levels, 1), measured(levels, 8)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(one.features["pool"], eight.features["pool"])


def test_large_blocks_are_cut_for_the_network():
    levels = pictures(48)
    judge = judge_of(2, batch_size=5)  # 24 images a device in parts of five
    block = jax.device_put(levels, sharding.batch_sharding(judge.mesh))
    out = images.statistics(judge, [(block, np.arange(48))])
    np.testing.assert_allclose(out.features["pool"], measured(levels).features["pool"], rtol=1e-6)


def test_the_same_images_are_at_distance_zero_and_others_are_not():
    judge = judge_of()
    a, b = measured(pictures(60)), measured(pictures(60) // 2)
    same, other = images.compare(judge, a, a), images.compare(judge, b, a)
    assert abs(same["fid"]) < 1e-8 and abs(same["sfid"]) < 1e-8 and same["precision"] == 1
    assert other["fid"] > 0.01 and other["kid"] > same["kid"]
    expected = frechet.distance(*b.gaussians["pool"], *a.gaussians["pool"])
    assert other["fid"] == pytest.approx(expected, rel=1e-12)


def test_a_figure_is_named_after_its_network():
    few, many = measured(pictures(20)), measured(pictures(60))
    for seed, figure in ((None, "fid"), (5, "fd_inception_v3_random")):
        judge = judge_of(metrics=("frechet",), features_seed=seed)
        assert list(images.compare(judge, few, many)) == [figure]
    network = tiny_network.create("efficientnet_lite0")
    assert images.named("fid", network) == "fd_efficientnet_lite0"
    assert images.named("precision", network) == "precision_efficientnet_lite0"


def test_fewer_samples_than_features_are_said():
    judge = judge_of(metrics=("frechet",))
    with pytest.warns(UserWarning, match=r"10 samples for 12 features .* rank-deficient"):
        out = images.compare(judge, measured(pictures(10)), measured(pictures(60)))
    assert np.isfinite(out["fid"])


def test_resizing_is_selectable_and_changes_the_figures():
    levels = pictures(40, side=40)
    plain, smooth = measured(levels), measured(levels, resize="antialiased")
    assert np.abs(plain.features["pool"] - smooth.features["pool"]).max() > 1e-3
    with pytest.raises(UserError, match=r"config\.evaluate\.resize 'bicubic'.*tf1_bilinear"):
        judge_of(resize="bicubic")
    assert defaults.RESIZES == tuple(CONVENTIONS)


def test_roundings_are_those_of_published_code():
    x = np.linspace(-1.1, 1.1, 1001, dtype=np.float32)
    known = {
        "nearest": np.clip(np.rint((x + 1) * np.float32(127.5)), 0, 255),
        "truncate": np.clip((x + 1) * np.float32(127.5), 0, 255).astype(np.uint8),
        "shift": np.clip(x * np.float32(127.5) + np.float32(128), 0, 255).astype(np.uint8),
    }
    assert tuple(known) == defaults.ROUNDINGS == tuple(pixels.ROUNDINGS)
    for name, levels in known.items():
        np.testing.assert_array_equal(data.to_uint8(x, name), levels)
        np.testing.assert_array_equal(data.to_uint8(jnp.asarray(x), name), levels)


# References


def test_a_reference_is_measured_once_and_then_read(tmp_path):
    judge, of = judge_of(), image_set(pictures(60))
    told = []
    first, file = reference.load(reference.of_images(of, judge), judge, told.append)
    assert file.exists() and told[-1] == 60
    broken = of._replace(read=None)  # nothing is read again
    again, _ = reference.load(reference.of_images(broken, judge), judge, told.append)
    assert len(json.loads(str(np.load(file)["manifest"]))["pixels"]) == 16
    # Of a reference, no logits are kept.
    assert set(first.features) == set(again.features) == {"pool"}
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert reference.open_reference(str(file), judge).manifest["count"] == 60
    manifest = json.loads(str(np.load(file)["manifest"]))
    assert {k: manifest[k] for k in ("network", "resize", "count", "dtype")} == {
        "network": "inception_v3", "resize": "tf1_bilinear", "count": 60, "dtype": "uint8",
    }  # fmt: skip


def test_features_are_added_to_a_cache_that_has_none(tmp_path):
    of = image_set(pictures(60))
    few, more = judge_of(metrics=("frechet",)), judge_of(metrics=("kid",))
    reference.load(reference.of_images(of, few), few)
    out, file = reference.load(reference.of_images(of, more), more)
    assert len(out.features["pool"]) == 60 and {"mu", "features"} <= {*np.load(file).files}


@pytest.mark.parametrize("damage", ["cut", "manifest"])
def test_a_damaged_cache_is_made_anew(damage):
    judge, of = judge_of(), image_set(pictures(60))
    first, file = reference.load(reference.of_images(of, judge), judge)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        np.savez(file, **{**np.load(file), "manifest": np.array("{not json")})
    again, _ = reference.load(reference.of_images(of, judge), judge)
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_a_cache_that_cannot_be_written_costs_only_itself(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "file"))
    judge = judge_of()
    with pytest.warns(UserWarning, match="cannot keep the statistics"):
        out, file = reference.load(reference.of_images(image_set(pictures(60)), judge), judge)
    assert file is None and out.count == 60


def test_of_a_large_reference_a_fixed_choice_of_features_is_kept(monkeypatch):
    monkeypatch.setattr(reference, "KEPT", 10)
    judge, levels = judge_of(), pictures(60)
    out, _ = reference.load(reference.of_images(image_set(levels), judge), judge)
    whole = measured(levels)
    assert out.features["pool"].shape == (10, 12) and out.count == 60
    np.testing.assert_array_equal(out.gaussians["pool"][0], whole.gaussians["pool"][0])
    rows = [np.flatnonzero((whole.features["pool"] == f).all(1))[0] for f in out.features["pool"]]
    assert rows == sorted(rows) and rows != list(range(10))


def test_the_hash_of_a_reference_is_of_its_pixels_in_their_order(tmp_path):
    levels = pictures(60)
    folder = folder_of(**{f"{i:03}": image for i, image in enumerate(levels)})(tmp_path)
    np.savez(tmp_path / "images.npz", arr_0=levels)
    np.savez(tmp_path / "turned.npz", arr_0=levels[::-1])

    def pixels(path, n=1):
        judge = judge_of(n)
        opened = reference.of_images(sets.open_images(str(path)), judge)
        reference.load(opened, judge)
        return opened.manifest["pixels"]

    first = pixels(folder)
    assert first == pixels(tmp_path / "images.npz", 8) != pixels(tmp_path / "turned.npz")
    assert first == pixels(folder)  # read from the cache


def fid_of(workdir, samples, *extra):
    argv = ["genfield", "--mode=evaluate", f"--workdir={workdir}", f"--samples={samples}"]
    assert main([*argv, "--config.evaluate.metrics=('frechet',)", *extra]) == 0
    return json.loads((workdir / "card.json").read_text())["metrics"]["fid"]["value"]


def test_other_images_under_the_same_names_and_sizes_are_other_references(tmp_path):
    """Two folders whose files have equal names and sizes, and one whose files are replaced."""
    np.savez(tmp_path / "samples.npz", arr_0=pictures(40))
    config = tmp_path / "config.py"
    config.write_text(
        "from genfield import configuration\n"
        "def get_config():\n"
        "    config = configuration.base()\n"
        "    config.data = {'name': 'images', 'path': '.', 'heldout_split': None}\n"
        "    return config\n"
    )
    for name, levels in (("a", pictures(40)), ("b", pictures(40) // 3)):
        (tmp_path / name / "train").mkdir(parents=True)
        for i, image in enumerate(levels):
            Image.fromarray(image).save(tmp_path / name / "train" / f"{i}.png", compress_level=0)
    of = lambda name: fid_of(
        tmp_path / "run", tmp_path / "samples.npz", f"--config={config}",
        f"--config.data.path={tmp_path / name}",
    )  # fmt: skip
    assert of("b") > of("a") + 0.1
    folder = f"--config.evaluate.reference={tmp_path / 'a'}"
    before = fid_of(tmp_path / "run", tmp_path / "samples.npz", folder)
    for file in (tmp_path / "b" / "train").iterdir():
        (tmp_path / "a" / "train" / file.name).write_bytes(file.read_bytes())
    assert fid_of(tmp_path / "run", tmp_path / "samples.npz", folder) > before + 0.1


def test_a_link_in_a_circle_is_walked_once(tmp_path):
    folder = folder_of(a=LEVELS[0], b=LEVELS[1])(tmp_path)
    (folder / "loop").symlink_to(folder)
    assert sets.open_images(str(folder)).size == 2


def test_published_statistics_are_read(tmp_path):
    """As the ADM evaluator has them: mu, sigma, mu_s, sigma_s beside the images."""
    levels, judge = pictures(60), judge_of()
    out = measured(levels)
    arrays = {}
    for output, names in reference.NAMES.items():
        arrays |= dict(zip(names, out.gaussians[output], strict=True))
    np.savez(tmp_path / "statistics.npz", **arrays)
    np.savez(tmp_path / "batch.npz", arr_0=levels, **arrays)
    opened = reference.open_reference(str(tmp_path / "batch.npz"), judge)
    statistics, _ = reference.load(opened, judge)
    np.testing.assert_array_equal(statistics.gaussians["pool"][0], out.gaussians["pool"][0])
    assert len(statistics.features["pool"]) == 60
    with pytest.raises(UserError, match="without images or features, which kid, precision_recall"):
        reference.open_reference(str(tmp_path / "statistics.npz"), judge)
    only = judge_of(metrics=("frechet", "inception_score"))
    opened = reference.open_reference(str(tmp_path / "statistics.npz"), only)
    assert reference.load(opened, only)[0].count is None


def make_statistics(**changes):
    def make(folder):
        judge = judge_of(metrics=("frechet",))
        out = measured(pictures(60), metrics=("frechet",))
        manifest = reference.describe(image_set(pictures(60)), judge)
        file = folder / "reference.npz"
        reference.write(file, out, manifest | changes)
        return file

    return make


def save(name="reference.npz", **arrays):
    def make(folder):
        np.savez(folder / name, **arrays)
        return folder / name

    return make


def folder_of(**files):
    def make(folder):
        inside = folder / "images"
        inside.mkdir()
        for name, content in files.items():
            if isinstance(content, bytes):
                (inside / f"{name}.png").write_bytes(content)
            else:
                Image.fromarray(content).save(inside / f"{name}.png")
        return inside

    return make


def write(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def broken_link(folder):
    inside = folder_of(a=LEVELS[0])(folder)
    (inside / "gone.png").symlink_to(folder / "nowhere")
    return inside


LEVELS = pictures(6)
FLOATS = LEVELS.astype(np.float32) / 255
NOT_A_NUMBER = FLOATS.copy()
NOT_A_NUMBER[3, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "nowhere does not exist"),
        (folder_of(), "images holds no image that can be read; it has nothing"),
        (folder_of(a=b"not an image"), "cannot read the image a.png in .*: not an image"),
        (folder_of(a=LEVELS[0], b=LEVELS[1, :4]), "several sizes: a.png in .* is 8x8x3, b.png"),
        (save(arr_0=NOT_A_NUMBER), "arr_0 in .* has NaN, first in image 3"),
        (save(arr_0=FLOATS * 2 - 1), r"has values outside \[0, 1\], first in image 0"),
        (save(arr_0=LEVELS[..., :2]), r"uint8 \[6, 8, 8, 2\]: expected"),
        (save(arr_0=LEVELS.astype(np.int32)), r"int32 .*: expected uint8"),
        (save(arr_0=LEVELS[:0]), "is empty"),
        (save(other=LEVELS), "no images in .* expected train_images or one of .*; it has other"),
        (save(mu=np.zeros(5), sigma=np.zeros((5, 5))), r"mu \(5,\) .* has 12 features"),
        (save(mu=np.full(12, np.nan), sigma=np.eye(12)), "mu or sigma with NaN"),
        (save(mu=np.zeros(12), sigma=1j * np.eye(12)), "not of real numbers"),
        (save(mu=np.zeros(12), sigma=np.tri(12)), "a sigma that is not symmetric"),
        (make_statistics(count="many"), "a damaged manifest"),
        (make_statistics(source=None), "a damaged manifest"),
        (write("a.npy", b"\x93NUMPY"), "a.npy is damaged, or neither a folder nor a tar or zip"),
        (write("a.npz", b"text"), "a.npz is not a readable .npz file: it is no zip file"),
        (save(arr_0=np.zeros((5, 0, 8, 3), np.uint8)), r"uint8 \[5, 0, 8, 3\]: expected"),
        (save(arr_0=np.array([{}])), "it holds Python objects"),
        (broken_link, "cannot read the image .*gone.png: No such file"),
        (save(mu=np.zeros(12)), "has no sigma"),
        (make_statistics(resize="antialiased"), "made with resize 'antialiased', not 'tf1_bil"),
        (make_statistics(feature_hash="f00"), "made with feature_hash 'f00', not 'tinyNone'"),
        (make_statistics(network="vgg16"), "made with network 'vgg16'"),
        (save(mu=np.zeros(12), sigma=np.eye(12), manifest=np.array("{")), "a damaged manifest"),
    ],
)  # fmt: skip
def test_a_wrong_reference_is_one_line(make, message, tmp_path, capsys):
    path = make(tmp_path)
    np.savez(tmp_path / "samples.npz", arr_0=LEVELS)
    argv = ["genfield", "--mode=evaluate", f"--workdir={tmp_path / 'run'}"]
    argv += [f"--samples={tmp_path / 'samples.npz'}", f"--config.evaluate.reference={path}"]
    assert main([*argv, "--config.evaluate.metrics=('frechet',)"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("genfield: error: ")
    assert re.search(message, error), error
    assert not (tmp_path / "run" / "card.json").exists()


@pytest.mark.parametrize("cut", [0, 10, 200, 1000])
def test_a_truncated_npz_is_one_line(cut, tmp_path):
    path = save(arr_0=LEVELS)(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"reference\.npz is not a readable \.npz file"):
        reference.open_reference(str(path), judge_of(metrics=("frechet",)))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.evaluate.metrics=('frechet',)"], "something to compare with"),
        ([], "--samples needs image metrics"),
        (["--mode=train"], "add --mode=evaluate"),
        (["--best"], "leave out --step and --best"),
        (["--config.evaluate.features=resnet"], "unknown config.evaluate.features 'resnet'"),
        (["--config.evaluate.metrics=('frechet','fidd')"], "unknown metric 'fidd'"),
        (["--config.evaluate.metrics=('inception_score',)"], "takes 10 images or more"),
        (["--config.sample.name=../x"], "must be a file's name"),
        (["--config.sample.seed=4294967297"], "config.seed + config.sample.seed must be at most"),
    ],
)
def test_a_wrong_command_line_is_one_line(extra, message, tmp_path, capsys):
    np.savez(tmp_path / "samples.npz", arr_0=LEVELS)
    argv = ["genfield", "--mode=evaluate", f"--workdir={tmp_path / 'run'}"]
    argv += [f"--samples={tmp_path / 'samples.npz'}"]
    if "features" in " ".join(extra):
        argv.append("--config.evaluate.metrics=('frechet',)")
    assert main([*argv, *extra]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_floats_are_levels_where_they_lie_in_the_unit_interval():
    np.testing.assert_array_equal(npz.to_levels(FLOATS, "these"), LEVELS)


def test_images_on_disk_against_images_on_disk(tmp_path, capsys):
    samples = folder_of(**{f"{i:03}": image for i, image in enumerate(pictures(40, 1))})(tmp_path)
    np.savez(tmp_path / "reference.npz", arr_0=pictures(60))
    argv = ["genfield", "--mode=evaluate", f"--workdir={tmp_path / 'run'}", f"--samples={samples}"]
    argv.append(f"--config.evaluate.reference={tmp_path / 'reference.npz'}")
    assert main([*argv, f"--config.evaluate.metrics={ALL}"]) == 0
    made = json.loads((tmp_path / "run" / "card.json").read_text())
    assert made["samples"]["count"] == 40 and made["reference"]["count"] == 60
    assert made["features"]["resize"] == "tf1_bilinear" and made["features"]["hash"] == "tinyNone"
    judge = judge_of()
    expected = images.compare(judge, measured(pictures(40, 1)), measured(pictures(60)))
    assert made["metrics"].keys() == expected.keys()
    for name, value in expected.items():
        assert made["metrics"][name]["value"] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert "fid" in (tmp_path / "run" / "card.md").read_text()
    line = (
        r"inception_v3 tinyNone, resize tf1_bilinear, 40 samples against .*reference.npz \(\w{16}\)"
    )
    assert re.search(line, capsys.readouterr().out)
    # Another evaluation keeps the card of this one.
    assert main([*argv, "--config.evaluate.metrics=('frechet',)"]) == 0
    assert list(json.loads((tmp_path / "run" / "card.json").read_text())["metrics"]) == ["fid"]
    assert json.loads((tmp_path / "run" / "card.before_1.json").read_text()) == made


def test_a_metric_without_a_reference_needs_none(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=pictures(40))
    argv = ["genfield", "--mode=evaluate", f"--workdir={tmp_path / 'run'}"]
    argv += [f"--samples={tmp_path / 'samples.npz'}"]
    assert main([*argv, "--config.evaluate.metrics=('inception_score',)"]) == 0
    made = json.loads((tmp_path / "run" / "card.json").read_text())
    assert made["metrics"]["inception_score"]["value"] >= 1
    assert not (tmp_path / "cache").exists()


# A checkpoint


def test_a_checkpoint_is_measured_with_a_card(trained, capsys):
    extra = ["--mode=evaluate", "--config.evaluate.repeats=2", "--config.evaluate.num_samples=30"]
    fields = dict(evaluate__metrics=("heldout_loss", "frechet", "precision_recall"))
    assert run(trained, TINY_DIGITS, *extra, small={}, **fields) == 0
    line = "rounding nearest, 30 samples against digits, train ("
    assert line in capsys.readouterr().out
    made = json.loads((trained / "card.json").read_text())
    fid = made["metrics"]["fid"]
    assert len(fid["by_seed"]) == 2 and fid["by_seed"][0] != fid["by_seed"][1]
    assert fid["value"] == pytest.approx(np.mean(fid["by_seed"]))
    assert fid["sd"] == pytest.approx(np.std(fid["by_seed"], ddof=1))
    assert made["sampling"]["seeds"] == [1, 2] and made["sampling"]["num_samples"] == 30
    assert made["sampling"]["nfe"] == 2 and made["sampling"]["parameters"] == "ema"
    assert made["training"]["global_batch"] == 16 and made["training"]["steps"] == 4
    assert made["reference"]["source"] == "digits, train" and made["reference"]["count"] == 1500
    raw = dict(sample__use_ema=False, **fields)
    assert run(trained, TINY_DIGITS, *extra, small={}, **raw) == 0
    other = json.loads((trained / "card.json").read_text())
    assert other["sampling"]["parameters"] == "raw"
    assert other["training"]["parameters_digest"] != made["training"]["parameters_digest"]
    assert other["metrics"]["fid"]["value"] != fid["value"]


@pytest.mark.parametrize("num", [24, 37])
def test_what_evaluate_says_of_samples_is_what_their_file_gives(num, trained, tmp_path):
    """The figure of a checkpoint is that of the samples that `--mode=sample` writes."""
    fields = dict(evaluate__metrics=("frechet",), evaluate__num_samples=num)
    assert run(trained, TINY_DIGITS, "--mode=evaluate", small={}, **fields) == 0
    direct = json.loads((trained / "card.json").read_text())["metrics"]["fid"]["value"]
    name = dict(sample__num=num, sample__name=f"some{num}")
    assert run(trained, TINY_DIGITS, "--mode=sample", small={}, **name) == 0
    file = trained / "samples" / f"some{num}.npz"
    extra = ["--mode=evaluate", f"--samples={file}"]
    assert run(tmp_path / "out", TINY_DIGITS, *extra, small={}, **fields) == 0
    made = json.loads((tmp_path / "out" / "card.json").read_text())
    assert made["metrics"]["fid"]["value"] == pytest.approx(direct, rel=1e-6)


def test_training_measures_on_schedule_and_keeps_the_best(tmp_path):
    fields = dict(
        evaluate__metrics=("heldout_loss", "frechet"),
        evaluate__num_samples=16,
        train__eval_every=2,
        train__eval_samples=16,
        checkpoint__best_metric="frechet",
        checkpoint__every=2,
    )
    assert run(tmp_path, TINY_DIGITS, small={}, **fields) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = {row["step"]: row for row in rows if row["split"] == "eval"}
    assert rows.keys() == {2, 4} and all("fid" in row and "loss" in row for row in rows.values())
    assert all((tmp_path / "samples" / f"step_{step}.png").exists() for step in (2, 4))
    best = min(rows, key=lambda step: rows[step]["fid"])
    extra = ["--mode=sample", "--best", "--config.sample.name=best"]
    assert run(tmp_path, TINY_DIGITS, *extra, small={}, **fields) == 0
    told = json.loads((tmp_path / "samples" / "best.json").read_text())
    assert told["settings"]["step"] == best


def test_a_best_of_samples_stands_in_the_way_of_no_other_mode(tmp_path):
    fields = dict(
        evaluate__metrics=("frechet",), checkpoint__best_metric="frechet",
        evaluate__num_samples=16, train__eval_samples=16, train__eval_every=2,
    )  # fmt: skip
    assert run(tmp_path, TINY_DIGITS, small={}, **fields) == 0
    other = fields | dict(evaluate__metrics=("heldout_loss",))
    for mode in ("evaluate", "sample"):
        assert run(tmp_path, TINY_DIGITS, f"--mode={mode}", small={}, **other) == 0


def test_the_best_is_chosen_among_like_figures(tmp_path):
    """Figures of another number of samples come after; they do not compete with those before."""
    fields = dict(
        evaluate__metrics=("frechet",), checkpoint__best_metric="frechet",
        evaluate__num_samples=16, train__eval_samples=16, train__eval_every=2, checkpoint__keep=9,
    )  # fmt: skip
    assert run(tmp_path, TINY_DIGITS, small={}, **fields) == 0
    more = fields | dict(train__eval_samples=13, train__steps=8)
    assert run(tmp_path, TINY_DIGITS, small={}, **more) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = {row["step"]: row["fid"] for row in rows if row["split"] == "eval"}
    assert rows.keys() == {2, 4, 6, 8}
    extra = ["--mode=sample", "--best", "--config.sample.name=best"]
    assert run(tmp_path, TINY_DIGITS, *extra, small={}, **more) == 0
    told = json.loads((tmp_path / "samples" / "best.json").read_text())
    assert told["settings"]["step"] == min((6, 8), key=rows.get)


def test_an_evaluation_that_a_signal_cut_is_made_up_for(tmp_path, monkeypatch):
    fields = dict(
        evaluate__metrics=("frechet",), evaluate__num_samples=16,
        train__eval_samples=16, train__eval_every=2,
    )  # fmt: skip
    stop = iter([False] * 4 + [True])

    def reached():
        return next(stop, False)

    monkeypatch.setattr(preemption, "reached", reached)
    assert run(tmp_path, TINY_DIGITS, small={}, **fields) == preemption.EXIT_CODE
    monkeypatch.setattr(preemption, "reached", lambda: False)
    assert run(tmp_path, TINY_DIGITS, small={}, **fields) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "eval"] == [2, 4]


def test_samples_that_diverge_are_not_measured(trained, tmp_path, capsys):
    """Neither drawn into files, nor measured, nor the end of a training."""
    wild = ["--config.sampler.step_size=1e38", "--config.sampler.num_steps=30"]
    fields = dict(evaluate__metrics=("frechet",), evaluate__num_samples=16)
    for mode in ("sample", "evaluate"):
        extra = [f"--mode={mode}", "--config.sample.name=wild", *wild]
        assert run(trained, TINY_DIGITS, *extra, small={}, **fields) == 2
        assert "samples are NaN or infinite, the first is number" in capsys.readouterr().err
    assert not (trained / "samples" / "wild.npz").exists()
    fields |= dict(train__eval_samples=16, train__eval_every=2, checkpoint__best_metric="frechet")
    assert run(tmp_path, TINY_DIGITS, *wild, small={}, **fields) == 2  # at the very end
    assert re.search(r"not measured at step 2: \d+ of \d+ samples are NaN", capsys.readouterr().out)
    assert (tmp_path / "checkpoints" / "4").exists()


def test_too_few_samples_for_a_metric_are_noticed_first(tmp_path, capsys):
    fields = dict(evaluate__metrics=("precision_recall",), train__eval_samples=3)
    assert run(tmp_path, TINY_DIGITS, small={}, **fields) == 2
    assert "takes 4 samples or more: raise config.train.eval_samples" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_a_best_figure_of_samples_needs_samples(tmp_path, capsys):
    fields = dict(evaluate__metrics=("frechet",), checkpoint__best_metric="frechet")
    assert run(tmp_path, TINY_DIGITS, small={}, **fields) == 2
    assert "set config.train.eval_samples" in capsys.readouterr().err


def test_image_metrics_want_images(tmp_path, capsys):
    assert run(tmp_path, evaluate__metrics=("frechet",)) == 2
    assert "data 'two_moons' are none" in capsys.readouterr().err


# Samples on disk


SAMPLING = ["--mode=sample", "--config.sample.num=20", "--config.sample.shard_size=6"]


def noisy(*extra: str) -> list[str]:
    """Sampling with noise of its own, in shards of six."""
    section = "--config.sampler={'name': 'langevin', 'num_steps': 3, 'step_size': 0.01}"
    return [*SAMPLING, "--config.sample.batch_size=2", section, *extra]


def samples_of(workdir, name="step_4") -> dict:
    with np.load(workdir / "samples" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def test_one_device_writes_what_eight_do(trained, capsys):
    for name, num in (("one", 1), ("eight", 8)):
        extra = noisy(f"--config.sample.name={name}")
        assert run(trained, TINY_DIGITS, *extra, on=num, small={}) == 0
        assert "images/s" in capsys.readouterr().out
    one, eight = samples_of(trained, "one"), samples_of(trained, "eight")
    assert one["arr_0"].shape == (20, 8, 8, 1) and one["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(one["arr_1"], np.arange(20) % 10)
    jax.tree.map(np.testing.assert_array_equal, one, eight)
    assert len(np.unique(one["arr_0"], axis=0)) == 20  # no two alike


def test_a_kill_costs_a_shard_at_most(trained, monkeypatch):
    assert run(trained, TINY_DIGITS, *noisy("--config.sample.name=whole"), small={}) == 0
    written = []
    write = sample_files.Shards.write

    def killed(self, number, arrays):
        if number == 2:
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, arrays)

    monkeypatch.setattr(sample_files.Shards, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(trained, TINY_DIGITS, *noisy("--config.sample.name=cut"), small={})
    folder = trained / "samples" / "cut_shards"
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert written == [0, 1] and {*before} >= {"000000.npz", "000001.npz"}
    monkeypatch.setattr(
        sample_files.Shards, "write", lambda s, n, a: (written.append(n), write(s, n, a))
    )
    assert run(trained, TINY_DIGITS, *noisy("--config.sample.name=cut"), small={}) == 0
    assert written == [0, 1, 2, 3] and not folder.exists()
    jax.tree.map(
        np.testing.assert_array_equal, samples_of(trained, "whole"), samples_of(trained, "cut")
    )


def test_a_sample_is_drawn_with_the_label_that_is_written(trained, monkeypatch):
    """A field that goes where its label says: each image shows its own."""

    def go(key, field, x, cond, trace=None):
        shown = jnp.broadcast_to(cond.reshape(-1, 1, 1, 1) / 10 * 2 - 1, x.shape)
        none = jnp.zeros(len(x), jnp.int32)
        return sampling.Samples(shown.astype(x.dtype), none, None, {})

    go.stages = ()
    monkeypatch.setattr(sampler, "create_sampler", lambda *args, **methods: go)
    extra = [*SAMPLING, "--config.sample.name=labels", "--config.sample.batch_size=3"]
    assert run(trained, TINY_DIGITS, *extra, small={}) == 0
    drawn = samples_of(trained, "labels")
    shown = np.round(drawn["arr_0"][:, 0, 0, 0] / 255 * 10).astype(int)
    np.testing.assert_array_equal(shown, np.arange(20) % 10)
    np.testing.assert_array_equal(shown, drawn["arr_1"])


def test_a_damaged_shard_is_drawn_again(trained, monkeypatch):
    monkeypatch.setattr(sample_files.Shards, "finish", lambda self: [][1])
    with pytest.raises(IndexError):
        run(trained, TINY_DIGITS, *noisy("--config.sample.name=hurt"), small={})
    shard = trained / "samples" / "hurt_shards" / "000001.npz"
    shard.write_bytes(shard.read_bytes()[:-200] + bytes(200))
    monkeypatch.undo()
    assert run(trained, TINY_DIGITS, *noisy("--config.sample.name=hurt"), small={}) == 0
    assert run(trained, TINY_DIGITS, *noisy("--config.sample.name=hale"), small={}) == 0
    hurt, hale = samples_of(trained, "hurt"), samples_of(trained, "hale")
    jax.tree.map(np.testing.assert_array_equal, hurt, hale)


@pytest.mark.parametrize("formats", [("npz", "png"), ("png", "npz")])
def test_formats_can_be_asked_for_later(formats, trained, monkeypatch):
    """First one, killed in the middle, then the other, then both: nothing is missing."""
    name, write = f"later_{formats[0]}", sample_files.Shards.write
    ask = lambda *f: noisy(f"--config.sample.name={name}", f"--config.sample.formats={f}")

    def killed(self, number, arrays):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, arrays)

    monkeypatch.setattr(sample_files.Shards, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(trained, TINY_DIGITS, *ask(formats[0]), small={})
    monkeypatch.setattr(sample_files.Shards, "write", write)
    for wanted in ((formats[1],), formats):
        assert run(trained, TINY_DIGITS, *ask(*wanted), small={}) == 0
    stored = samples_of(trained, name)["arr_0"]
    files = sorted((trained / "samples" / name).glob("*.png"))
    read = np.stack([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_array_equal(read, stored[..., 0])


def test_finished_samples_are_not_drawn_again(trained, capsys):
    extra = noisy("--config.sample.name=done")
    assert run(trained, TINY_DIGITS, *extra, small={}) == 0
    capsys.readouterr()
    stamp = (trained / "samples" / "done.npz").stat().st_mtime_ns
    assert run(trained, TINY_DIGITS, *extra, small={}) == 0
    assert "already drawn" in capsys.readouterr().out
    assert (trained / "samples" / "done.npz").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("--config.sample.seed=9", "seed"),
        ("--config.sample.num=21", "num"),
        ("--config.sampler.num_steps=4", "sampler.num_steps"),
        ("--config.sample.use_ema=False", "parameters, parameters_digest"),
        ("--step=2", "parameters_digest, step"),
    ],
)
def test_samples_of_other_settings_are_not_mixed(change, names, trained, capsys):
    extra = noisy("--config.sample.name=mixed")
    assert run(trained, TINY_DIGITS, *extra, small={}) == 0
    before = (trained / "samples" / "mixed.npz").read_bytes()
    capsys.readouterr()
    assert run(trained, TINY_DIGITS, *extra, change, small={}) == 2
    assert f"differ in {names}: choose another" in capsys.readouterr().err
    assert (trained / "samples" / "mixed.npz").read_bytes() == before


def test_png_files_are_the_same_images(trained):
    extra = noisy("--config.sample.name=both", "--config.sample.formats=('npz','png')")
    assert run(trained, TINY_DIGITS, *extra, small={}) == 0
    stored = samples_of(trained, "both")["arr_0"]
    files = sorted((trained / "samples" / "both").glob("*.png"))
    read = np.stack([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_array_equal(read, stored[..., 0])
    extra = noisy("--config.sample.name=only", "--config.sample.formats=('png',)")
    assert run(trained, TINY_DIGITS, *extra, small={}) == 0
    assert not (trained / "samples" / "only.npz").exists()
    assert len(sets.open_images(str(trained / "samples" / "only")).read(np.arange(20))) == 20


def test_seeds_and_indices_alone_decide_a_sample(trained):
    few = noisy("--config.sample.name=few", "--config.sample.num=7", "--config.sample.batch_size=7")
    assert run(trained, TINY_DIGITS, *noisy("--config.sample.name=many"), small={}) == 0
    assert run(trained, TINY_DIGITS, *few, small={}) == 0
    many, few = samples_of(trained, "many")["arr_0"], samples_of(trained, "few")["arr_0"]
    # Another batch size is another program: equal up to its rounding, a level at most.
    assert np.abs(many[:7].astype(int) - few.astype(int)).max() <= 1


STOPPED = (
    "--config.sampler={'name': 'gradient_descent', 'num_steps': 9, 'step_size': 3.0, "
    "'stop': {'name': 'gradient_norm', 'threshold': 0.28}}"
)


def test_slots_are_about_time_not_about_images(trained):
    extra = [*SAMPLING, STOPPED, "--config.sample.batch_size=3"]
    for slots in (0, 2):
        more = [f"--config.sample.name=slots{slots}", f"--config.sample.slots={slots}"]
        assert run(trained, TINY_DIGITS, *extra, *more, small={}) == 0
    masked, refilled = samples_of(trained, "slots0"), samples_of(trained, "slots2")
    np.testing.assert_array_equal(refilled["nfe"], masked["nfe"])
    assert len(np.unique(masked["nfe"])) > 1
    assert np.abs(refilled["arr_0"].astype(int) - masked["arr_0"].astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["--config.sample.slots=2"], "config.sample.slots needs one sampler whose samples stop"),
        (["--config.sampler.stop.name=norm"], "unknown sampler.stop 'norm'"),
        (["--config.sampler.stop.name=gradient_norm"], "needs the field 'threshold'"),
    ],
)
def test_a_wrong_stop_is_one_line(fields, message, trained, capsys):
    assert run(trained, TINY_DIGITS, *SAMPLING, *fields, small={}) == 2
    assert message in capsys.readouterr().err


def test_a_format_must_be_known(trained, capsys):
    assert run(trained, TINY_DIGITS, *SAMPLING, "--config.sample.formats=('jpg',)", small={}) == 2
    assert "unknown config.sample.formats 'jpg'" in capsys.readouterr().err


# The card


def test_the_cards_of_two_runs_can_be_compared(tmp_path):
    made = {"metrics": {"fid": {"value": 2.0}}, "features": {"resize": "antialiased"}}
    other = {"metrics": {"fid": {"value": 3.0}}, "features": {"resize": "tf1_bilinear"}}
    card.write(tmp_path / "a", made)
    card.write(tmp_path / "b", other)
    command = [sys.executable, "-m", "genfield.compare", str(tmp_path / "a" / "card.json")]
    command.append(str(tmp_path / "b" / "card.json"))
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    assert "metrics.fid.value" in out.stdout and "features.resize" in out.stdout


def test_every_metric_has_its_place():
    by = lambda reads: {name for name, metric in known().items() if metric.reads == reads}
    assert by("features") == set(ALL)
    assert by("samples") == {"point_cloud"} and by("run") == {"heldout_loss", "bits_per_dim"}
    drawn = [metric for metric in known().values() if metric.reads != "run"]
    smaller = {metric.name: metric.smaller for metric in drawn if metric.smaller}
    points = known()["point_cloud"].smaller
    assert smaller == {
        **{"frechet": ("fid",), "sfid": ("sfid",), "kid": ("kid",)},
        "point_cloud": points,
    }
    assert evaluate.best_names([known()[name] for name in (*ALL, "point_cloud")]) == [
        *ALL[:3],
        *points,
    ]


@pytest.mark.parametrize(
    ("num", "metric", "message"),
    [
        (1, "frechet", "1 images: a covariance needs 2 samples or more"),
        (3, "precision_recall", "metric 'precision_recall': .* k=3, 3 points"),
        (5, "inception_score", "metric 'inception_score': .* 10 splits of 5 rows"),
    ],
)
def test_too_few_images_are_one_line(num, metric, message):
    judge = judge_of(metrics=(metric,))
    with pytest.raises(UserError, match=message):
        images.compare(judge, *(measured(pictures(n), metrics=(metric,)) for n in (num, 60)))
