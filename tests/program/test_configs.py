"""Every config trains a step in its smoke size, and lowers for eight devices in its full size."""

import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from meshes import devices
from ml_collections import ConfigDict
from programs import ROOT, smoke

from genfield import nets, shipped
from genfield.machine.tables import differences
from genfield.program import config_io, experiment, match_sets

CONFIGS = shipped.config_files(ROOT / "configs")
POINTS = [name for name in CONFIGS if "two_moons" in name]
IMAGES = [name for name in CONFIGS if name not in POINTS]
FULL = {  # config: parameters of its network, distance head included
    "flux_matching_cifar10.py": 35_746_307 + 2 * 97,  # with the normaliser and the horizon
    "flow_matching_cifar10.py": 55_676_419,
    "equilibrium_matching_cifar10.py": 55_676_419,
    "distance_marching_cifar10.py": 55_676_419 + 10_177,
    "flow_matching_imagenet256.py": 130_315_808,
    "equilibrium_matching_imagenet256.py": 130_315_808,
    "distance_marching_imagenet256.py": 130_315_808 + 62_801,
}


def load(*name_and_variant: str):
    return config_io.load(str(ROOT / "configs" / ":".join(name_and_variant)))


def write_data(config, folder: Path) -> None:
    """Files that a config's data section can read, of its shape."""
    generator = np.random.default_rng(0)
    if config.data.name == "images":
        pixels = generator.integers(0, 256, (config.batch_size, 32, 32, 3), np.uint8)
        labels = {
            "train_labels": np.arange(config.batch_size),
            "test_labels": np.arange(len(pixels[:16])),
        }
        np.savez(folder / "images.npz", train_images=pixels, test_images=pixels[:16], **labels)
        config.data.path = str(folder / "images.npz")
    elif config.data.name == "latents":
        size = 4 * (config.data.get("num_classes", 1000) or 16)  # none of a class is left out
        values = np.resize(generator.standard_normal(4096), (size, *config.data.shape))
        np.save(folder / "latents.npy", values.astype(np.float16))
        np.save(folder / "labels.npy", np.arange(size) // 4)
        config.data.path = str(folder)
    elif config.data.name == "pairs":
        images, side = config.net.name != "mlp", config.data.real.get("size") or 32
        settings = {"num_classes": 0, "class_names": [], "pixels": images}
        for name in ("x0", "x1"):
            shape = (100, side, side, 3) if images else (100, 2)
            np.save(folder / f"{name}.npy", generator.standard_normal(shape).astype(np.float32))
        (folder / "manifest.json").write_text(json.dumps({"num": 100, "settings": settings}))
        config.data.path = str(folder)
        if images:
            pixels = generator.integers(0, 256, (100, side, side, 3), np.uint8)
            np.savez(folder / "real.npz", train_images=pixels, test_images=pixels)
            config.data.real.path, config.data.real.labels = str(folder / "real.npz"), False
    elif config.data.name == "cells":
        pytest.importorskip("scvelo", reason="cells need genfield[cells]")
        data = os.environ.get("GENFIELD_DATA") or pytest.skip("GENFIELD_DATA is unset: no cells")
        config.data.path = str(Path(data) / "cells" / "dentategyrus_100obs.h5ad")


def train_a_step(config, folder):
    """One step on one device; the loss."""
    exp = experiment.prepare(config, folder / "run")
    batch = {"step": np.int32(0)} | next(match_sets.batches(exp, 0))
    paired = config.data.name == "pairs"
    assert ("x0" in batch) == (paired or config.match_size > config.batch_size)
    state, metrics = experiment.jit_train_step(exp)(exp.init(), batch)
    assert int(state.step) == 1
    return float(metrics["loss"])


@pytest.mark.parametrize("name", [n for n in CONFIGS if "digits" not in n or "distance" in n])
def test_a_smoke_step_is_finite(name, tmp_path):
    config = smoke(load(name))
    write_data(config, tmp_path)
    assert np.isfinite(train_a_step(config, tmp_path))


@functools.cache
def counted(net: str, shape: tuple, num_classes: int) -> int:
    """The parameters of a network in its full size; pages share networks."""
    _, params = nets.create(ConfigDict(json.loads(net)), None, shape=shape, num_classes=num_classes)
    return nets.count_parameters(params)


def count(config, shape: tuple, num_classes: int = 0) -> int:
    return counted(config.net.to_json(sort_keys=True), shape, num_classes)


OTHER_DATA = ("cells", "digits", "springs")


@pytest.mark.parametrize("name", [n for n in IMAGES if not any(w in n for w in OTHER_DATA)])
def test_the_network_fits_the_data_in_its_full_size(name):
    config = load(name)
    side = config.data.get("size") or config.data.get("real", {}).get("size") or 32
    shape = tuple(config.data.get("shape", (side, side, 3)))
    assert count(config, shape) > 1e6


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CONFIGS if "digits" in n])
def test_a_full_step_on_digits_is_finite(name, tmp_path):
    assert np.isfinite(train_a_step(load(name), tmp_path))


UNETS_ALIKE = (
    "flow_matching_cifar10.py",
    "equilibrium_matching_cifar10.py",
    "flux_matching_cifar10.py",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in UNETS_ALIKE)) for n in FULL]
)
def test_the_full_size_lowers_for_eight_devices(name, tmp_path):
    """Shapes and shardings of the whole train step, with the paper's settings; nothing is run."""
    config = load(name)
    config.mesh.data, config.mesh.fsdp = 2, 4
    write_data(config, tmp_path)
    with devices(8):
        exp = experiment.prepare(config, tmp_path / "run")
    assert nets.count_parameters(exp.abstract.params) == FULL[name]
    step = experiment.jit_train_step(exp)
    x1 = jax.ShapeDtypeStruct((config.batch_size, *exp.data.shape), np.float32)
    batch = {"step": jax.ShapeDtypeStruct((), np.int32), "x1": x1}
    if exp.data.num_classes:
        batch["label"] = jax.ShapeDtypeStruct((config.batch_size,), np.int32)
    text = step.lower(exp.abstract, batch).as_text()
    assert "num_partitions = 8" in text and "fsdp" in text


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_imagenet_variants_carry_the_published_sizes(size):
    depth, width = {"S": (12, 384), "B": (12, 768), "L": (24, 1024), "XL": (28, 1152)}[size]
    config = load("flow_matching_imagenet256.py", f"{size}/8")
    _, params = nets.create(config.net, None, shape=(32, 32, 4), num_classes=1000)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params["blocks"])}
    assert (depth, width, 3 * width) in shapes


@pytest.mark.parametrize("method", ["flow_matching", "equilibrium_matching", "distance_marching"])
def test_the_medium_network_has_ten_to_fifteen_million_parameters(method):
    config = load(f"{method}_cifar10.py", "medium")
    assert 10e6 < count(config, (32, 32, 3)) < 15e6
    assert config.checkpoint.best_metric == "frechet" and config.train.eval_samples


@pytest.mark.parametrize(
    ("name", "variant", "shape", "num_classes", "expected"),
    [
        ("edm_cifar10.py", "full", 32, 0, 55_733_891),
        ("edm_cifar10.py", "cond", 32, 10, 55_735_299),
        ("lines_cifar10.py", "adversarial,sot", 32, 10, 55_735_299),
        ("edm_afhq64.py", None, 64, 0, 61_805_571),
        ("lines_afhq64.py", "perceptual", 64, 0, 61_805_571),
        ("edm_imagenet64.py", None, 64, 1000, 295_899_267),
        ("lines_imagenet64.py", "l2", 64, 1000, 295_899_267),
    ],
)
def test_teachers_and_their_lines_have_the_published_sizes(
    name, variant, shape, num_classes, expected
):
    config = load(name, *([variant] if variant else []))
    assert count(config, (shape, shape, 3), num_classes) == expected


@pytest.mark.parametrize(
    ("name", "variant"),
    [("flow_matching_cifar10.py", "full"), ("flow_matching_imagenet256.py", "B/2")],
)
def test_the_baseline_without_time_differs_in_nothing_else(name, variant):
    plain, uncond = load(name, variant), load(name, f"{variant}_uncond")
    assert plain.loss.time_input and not uncond.loss.time_input
    found = {name for name, *_ in differences(plain.to_dict(), uncond.to_dict())}
    assert found <= {"loss.time_input", "evaluate.paper.fid"}
