"""Two processes of four devices each: the same run as one process of eight, and one of one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from programs import ROOT, TINY_DIGITS, arguments, losses, run

from genfield.machine import checkpoint
from genfield.main import main

TINY = dict(small={}, mesh__fsdp=2)


def launch(argv: list[str], **options) -> subprocess.Popen:
    """launch/local.sh with two processes, in a process group of its own."""
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    command = [str(ROOT / "launch" / "local.sh"), "2", *argv[1:]]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True, **pipes)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    process = launch(arguments(workdir, TINY_DIGITS, **TINY))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return workdir, output


def test_two_processes_train_as_one_does(two_processes, tmp_path):
    workdir, _ = two_processes
    assert run(tmp_path, TINY_DIGITS, on=8, **TINY) == 0
    expected, found = losses(tmp_path), losses(workdir)
    assert expected.keys() == found.keys() and len(found) >= 5
    for key, values in expected.items():  # loss, its terms, and the gradient's norm
        chex.assert_trees_all_close(found[key], values, rtol=1e-5)
    a, b = (checkpoint.load(w, step=4, item="params") for w in (workdir, tmp_path))
    chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-5)


def test_only_one_process_speaks_and_all_are_counted(two_processes):
    workdir, output = two_processes
    assert output.count("batch 16 (8 a process)") == 1
    assert "process 0/2  8 x cpu  mesh (data 4, fsdp 2)" in output
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["process_count"] == 2 and summary["device_count"] == 8


def test_one_process_goes_on_where_two_stopped(two_processes, tmp_path):
    workdir, _ = two_processes
    assert run(workdir, TINY_DIGITS, on=8, **(TINY | {"train__steps": 6})) == 0
    assert run(tmp_path, TINY_DIGITS, on=8, **(TINY | {"train__steps": 6})) == 0
    a, b = (checkpoint.load(w, step=6, item="params") for w in (workdir, tmp_path))
    chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-5)


def test_two_processes_write_the_images_of_one(two_processes, tmp_path):
    workdir, _ = two_processes
    fields = {"mesh.fsdp": 1, "sample.batch_size": 2, "sample.num": 20, "sample.shard_size": 8}
    fields["sample.name"] = "both"
    for number in ("one", "two"):
        shutil.copytree(workdir, tmp_path / number)
        argv = arguments(tmp_path / number, TINY_DIGITS, "--mode=sample", small=fields)
        if number == "one":
            assert main(argv) == 0
        else:
            process = launch(argv)
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, output
    files = [dict(np.load(tmp_path / n / "samples" / "both.npz")) for n in ("one", "two")]
    assert files[0]["arr_0"].shape == (20, 8, 8, 1)
    jax.tree.map(np.testing.assert_array_equal, *files)


def test_sigterm_stops_both_processes_at_one_step(tmp_path):
    argv = arguments(tmp_path, train__steps=100_000, train__log_every=100, checkpoint__every=50_000)
    process = launch(argv)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step ") and "left" in line:
            break
    process.send_signal(signal.SIGTERM)
    output = "".join(lines) + process.communicate(timeout=600)[0]
    assert process.returncode == 143, output
    assert "Traceback" not in output
    saved = int(output.split("saved step ")[1].split(" ")[0])
    assert (tmp_path / "checkpoints" / str(saved)).exists()
    params = checkpoint.load(tmp_path, step=saved, item="params")
    leaves = jax.tree.leaves(params)
    assert leaves and all(np.isfinite(leaf).all() for leaf in leaves)
    assert run(tmp_path, train__steps=saved + 10, train__log_every=100) == 0
