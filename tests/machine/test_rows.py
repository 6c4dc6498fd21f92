"""Rows of a global batch by the devices that hold them, wherever these stand in the mesh.

Several processes, whose devices are permuted, do what one process with one device does.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import rows_by_shard
import tiny_statistics
from programs import ROOT

from genfield.machine import sharding
from genfield.plan import collectives, hlo
from genfield.program import evaluate, experiment

BATCH = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    draw, file = np.random.default_rng(0), tmp_path_factory.mktemp("images") / "images.npz"
    levels = draw.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    np.savez(file, train_images=levels, train_labels=draw.integers(0, 3, 60))
    return file


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory) -> Path:
    """What one process finds on one device."""
    folder = tmp_path_factory.mktemp("alone")
    rows_by_shard.save(folder, images, jax.devices()[:1], (1, 1), bits=False)
    tiny_statistics.save(folder / "statistics.npz", jax.devices()[:1])
    return folder


def together(count: int, devices: int, images: Path, folder: Path, *bits: str) -> None:
    """The same by `count` processes of so many devices each, in a permuted order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0"}
    env["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    script = [sys.executable, str(ROOT / "tests" / "rows_by_shard.py"), address, str(count)]
    started = [
        subprocess.Popen([*script, str(rank), str(folder), str(images), *bits], env=env, **pipes)
        for rank in range(count)
    ]
    for process in started:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output


def check_same(count: int, alone: Path, folder: Path) -> None:
    one = dict(np.load(alone / "0.npz"))
    several = [dict(np.load(folder / f"{rank}.npz")) for rank in range(count)]
    rows = np.concatenate([found["rows"] for found in several])
    np.testing.assert_array_equal(np.sort(rows), one["rows"])
    scattered = [np.any(np.diff(found["rows"]) > 1) for found in several]
    assert any(scattered) or np.any(np.diff(rows) < 0)
    for name, values in one.items():
        if name.startswith(("x1", "label")):  # what each process was fed is its part, to the bit
            whole = np.concatenate([found[name] for found in several])[np.argsort(rows)]
            np.testing.assert_array_equal(whole, values)
        elif name != "rows":  # and all have the same figures
            for found in several:
                np.testing.assert_array_equal(found[name], several[0][name])
            close = 1e-4 if name.startswith("bits") else 1e-5  # along an ODE solved to 1e-5
            np.testing.assert_allclose(several[0][name], values, rtol=close, atol=close)
    files = [dict(np.load(part / "statistics.npz")) for part in (alone, folder)]
    for name, values in files[0].items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(files[1][name], values, rtol=1e-9, atol=1e-12 * scale)


def test_four_processes_in_a_permuted_order_are_one(images, alone, tmp_path):
    together(4, 2, images, tmp_path)
    check_same(4, alone, tmp_path)


@pytest.mark.slow
def test_eight_processes_in_a_permuted_order_are_one(images, alone, tmp_path):
    """In the bits per dimension too."""
    rows_by_shard.save(alone, images, jax.devices()[:1], (1, 1), bits=True)
    together(8, 1, images, tmp_path, "bits")
    check_same(8, alone, tmp_path)


def sent(program, exp, *arguments) -> list[collectives.Collective]:
    text = program.lower(exp.abstract.params, *arguments).compile().as_text()
    return collectives.find(hlo.parse(text), exp.mesh.size)


@pytest.fixture
def split(images, tmp_path):
    """On eight devices, with a batch of a size that nothing else has."""
    config = rows_by_shard.config_of(images, (4, 2))
    config.batch_size = BATCH
    return experiment.prepare(config, tmp_path, devices=jax.devices())


def shape(exp, dtype, *of_one) -> jax.ShapeDtypeStruct:
    place = sharding.batch_sharding(exp.mesh)
    return jax.ShapeDtypeStruct((BATCH, *of_one), dtype, sharding=place)


def test_held_out_losses_gather_nothing(split):
    batch = {"x1": shape(split, np.uint8, 4, 4, 3), "label": shape(split, np.int32)}
    assert not sent(evaluate.jit_losses(split), split, batch, np.int32(0))


@pytest.mark.slow
def test_likelihoods_gather_nothing_of_the_batch(split):
    """Only whether all are done is agreed on."""
    pixels, index = shape(split, np.uint8, 4, 4, 3), np.arange(BATCH, dtype=np.int32)
    bits = evaluate.Evaluator(split)._log_prob
    found = sent(bits, split, jax.random.key(0), pixels, index)
    assert found and {one.kind for one in found} == {"all-reduce"}
    assert not [one for one in found if any(BATCH in array.dims for array in one.arrays)]


def test_eight_devices_add_up_the_statistics_of_one(alone, tmp_path):
    tiny_statistics.save(tmp_path / "statistics.npz", jax.devices())
    one, eight = (dict(np.load(part / "statistics.npz")) for part in (alone, tmp_path))
    for name, values in one.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(eight[name], values, rtol=1e-9, atol=1e-12 * scale)
