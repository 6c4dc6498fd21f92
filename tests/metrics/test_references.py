"""References as ADM publishes them: images, statistics, or both, in any combination."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_network

from genfield import configuration, features
from genfield.data import npz, sets
from genfield.data.sets import ImageSet
from genfield.errors import UserError
from genfield.machine import sharding
from genfield.metrics import images, known, reference

ALL = ("frechet", "sfid", "kid", "inception_score", "precision_recall")
LEVELS = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """The tiny network in place of the real ones, and a cache folder of the test's own."""
    monkeypatch.setattr(features, "create", tiny_network.create)
    monkeypatch.setattr(features, "default", lambda: "inception_v3")
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "cache"))


def judge_of(metrics, **fields):
    section = configuration.base().evaluate
    section.update(batch_size=16, **fields)
    mesh = sharding.make_mesh(SimpleNamespace(data=1, fsdp=1), jax.devices()[:1])
    return images.create_judge(section, mesh, [known()[name] for name in metrics])


@pytest.fixture
def measured():
    """What the tiny network says of LEVELS."""
    judge = judge_of(ALL)
    of = ImageSet("test", "0", 60, (8, 8, 3), lambda rows: LEVELS[rows])
    return images.statistics(judge, images.blocks(of, judge.mesh, 16))


def published(folder, measured, *, arr_0=True, pool=True, spatial=True, shift=1.0):
    """A file as ADM's VIRTUAL_imagenet256_labeled.npz; its means are off by `shift`, to be told."""
    arrays = {"arr_0": LEVELS} if arr_0 else {}
    for there, output in ((pool, "pool"), (spatial, "spatial")):
        if there:
            mean, covariance = measured.gaussians[output]
            arrays |= dict(zip(reference.NAMES[output], (mean + shift, covariance), strict=True))
    np.savez(folder / "VIRTUAL_imagenet256_labeled.npz", **arrays)
    return str(folder / "VIRTUAL_imagenet256_labeled.npz")


@pytest.mark.parametrize("pool, spatial", [(True, True), (True, False), (False, False)])
def test_what_a_file_has_is_taken_and_the_rest_is_measured(pool, spatial, measured, tmp_path):
    path = published(tmp_path, measured, pool=pool, spatial=spatial)
    judge = judge_of(ALL)
    told = []
    opened = reference.open_reference(path, judge, told.append)
    stored = ["mu, sigma"] * pool + ["mu_s, sigma_s"] * spatial
    assert not stored or told[-1].startswith(f"reference: {', '.join(stored)} as stored")
    found, _ = reference.load(opened, judge)
    for there, output in ((pool, "pool"), (spatial, "spatial")):
        mean, covariance = measured.gaussians[output]
        np.testing.assert_allclose(found.gaussians[output][0], mean + there, rtol=1e-5)
        np.testing.assert_allclose(found.gaussians[output][1], covariance, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.features["pool"], measured.features["pool"], rtol=1e-5)
    figures = images.compare(judge, measured, found)
    assert figures["precision"] == figures["recall"] == 1
    assert figures["fid"] == pytest.approx(12.0 * pool, abs=1e-4)  # 12 features, each off by one
    assert figures["sfid"] == pytest.approx(32.0 * spatial, abs=1e-4)


def test_statistics_alone_serve_what_needs_no_images(measured, tmp_path):
    path = published(tmp_path, measured, arr_0=False)
    judge = judge_of(("frechet", "sfid", "inception_score"))
    opened = reference.open_reference(path, judge)
    assert opened.images is None and opened.manifest["file_hash"]
    found, _ = reference.load(opened, judge)
    assert found.count is None and {*found.gaussians} == {"pool", "spatial"}
    with pytest.raises(UserError, match="without images or features, which precision_recall need"):
        reference.open_reference(path, judge_of(("precision_recall",)))
    path = published(tmp_path, measured, arr_0=False, spatial=False)
    with pytest.raises(UserError, match="has no mu_s: it cannot serve spatial statistics"):
        reference.open_reference(path, judge_of(("frechet", "sfid")))


@pytest.mark.parametrize("fields", [{"features": "efficientnet_lite0"}, {"features_seed": 3}])
def test_another_network_measures_the_images_and_says_so(fields, measured, tmp_path):
    """Statistics without a manifest are the trained Inception's, and no other network's."""
    judge, told = judge_of(("frechet", "kid"), **fields), []
    path = published(tmp_path, measured)
    opened = reference.open_reference(path, judge, told.append)
    assert told[0] == (
        f"reference: the statistics in {path} are Inception's; its images are measured instead"
    )
    assert opened.stored == {} and opened.manifest["count"] == 60
    found, _ = reference.load(opened, judge)
    assert found.count == 60
    only = published(tmp_path, measured, arr_0=False)
    with pytest.raises(UserError, match="such statistics are of the trained Inception graph"):
        reference.open_reference(only, judge)


def test_a_large_file_is_read_from_the_disk(measured, tmp_path, monkeypatch):
    """50,000 images of 256x256 are 9.8 GB: they are mapped, and give the same."""
    path = published(tmp_path, measured, pool=False, spatial=False)
    whole = sets.open_images(path)
    monkeypatch.setattr(npz, "MAPPED", 1000)
    stored = npz.read_npz(Path(path), "", mapped=True)
    assert isinstance(stored["arr_0"], np.memmap) and not stored["arr_0"].flags.writeable
    mapped = sets.open_images(path)
    rows = np.array([3, 59, 0])
    np.testing.assert_array_equal(mapped.read(rows), whole.read(rows))
    np.testing.assert_array_equal(mapped.read(rows), LEVELS[rows])
    assert mapped.identity == whole.identity
    np.savez_compressed(tmp_path / "small.npz", arr_0=LEVELS)
    np.testing.assert_array_equal(
        sets.open_images(str(tmp_path / "small.npz")).read(rows), LEVELS[rows]
    )
    np.savez(tmp_path / "objects.npz", arr_0=np.array([{}] * 1000))
    with pytest.raises(UserError, match="Python objects"):
        sets.open_images(str(tmp_path / "objects.npz"))
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:200] + data[300:])  # with a hole
    with pytest.raises(UserError, match=r"is not a readable \.npz file"):
        sets.open_images(path)
