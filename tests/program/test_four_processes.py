"""Four processes of two devices each, in any order: what one draws, and no one left waiting."""

import json
import os
import shutil
import socket
import subprocess
import sys

import four_processes
import jax
import numpy as np
import pytest
from programs import ROOT, TINY_DIGITS, run

from genfield.main import main

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A run, drawn from by four processes at once; its workdir, and what each was told."""
    workdir = tmp_path_factory.mktemp("four") / "run"
    assert run(workdir, TINY_DIGITS, small={}) == 0
    shutil.copytree(workdir, workdir.with_name("damaged"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    script = [sys.executable, four_processes.__file__, address]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ranks = range(four_processes.COUNT)
    started = [subprocess.Popen([*script, str(n), workdir], env=env, **pipes) for n in ranks]
    outputs = [process.communicate(timeout=600)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output
    told = [json.loads(workdir.with_name(f"told_{n}.json").read_text()) for n in ranks]
    return workdir, told


def samples(workdir, name: str) -> dict[str, np.ndarray]:
    with np.load(workdir / "samples" / f"{name}.npz") as file:
        return dict(file)


def alone(workdir, name: str, mode: str = "sample") -> None:
    """One process of one device draws what four did."""
    assert main(four_processes.command(workdir, name, mode)) == 0


def test_four_processes_write_the_samples_of_one(four):
    workdir, told = four
    assert [each["sample"] for each in told] == [[0]] * 4
    alone(workdir, "one")
    one, found = samples(workdir, "one"), samples(workdir, "four")
    assert found["arr_0"].shape == (40, 8, 8, 1) and list(found) == list(one)
    jax.tree.map(np.testing.assert_array_equal, found, one)
    assert not (workdir / "samples" / "four_shards").exists()


def test_four_processes_write_the_pairs_of_one(four):
    workdir, told = four
    assert [each["pairs"] for each in told] == [[0]] * 4
    alone(workdir, "one", "pairs")
    one, found = (
        {file.stem: np.load(file) for file in (workdir / "pairs" / name).glob("*.npy")}
        for name in ("one", "four")
    )
    assert found["x0"].shape == found["x1"].shape == (40, 8, 8, 1)
    assert found.keys() == one.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, one)
    np.testing.assert_array_equal(found["x0"], one["x0"])


def test_a_disk_that_is_full_for_one_ends_all_by_name(four):
    workdir, told = four
    for each in told:
        code, line = each["full disk"]
        assert code == 2 and "process 2 on " in line and "the_disk: No space left" in line
    parts = sorted(path.name for path in (workdir / "samples" / "cut_shards").iterdir())
    assert len(parts) >= 4 and "000000.npz" not in parts  # of no shard did one process have all


def test_what_four_processes_left_is_finished_by_one(four, tmp_path, capsys):
    folder = shutil.copytree(four[0], tmp_path / "run")
    alone(folder, "whole")
    capsys.readouterr()
    alone(folder, "cut")
    assert "of 40 samples are there already" in capsys.readouterr().out
    found, expected = samples(folder, "cut"), samples(folder, "whole")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_disks_that_are_not_shared_are_told_before_anything_is_drawn(four):
    workdir, told = four
    for each in told:
        code, line = each["two disks"]
        assert code == 2 and "process 3 on " in line and "on a disk that all share" in line
    assert not list((workdir / "samples" / "apart_shards").glob("*.npz"))
    for each in told:
        [line] = each["two folders"]
        assert "there here lacks what process 3 wrote in it" in line
    for folder in (workdir, workdir / "there", workdir.with_name("apart") / "there"):
        assert folder.is_dir() and not list(folder.glob(".process_*"))


def test_a_checkpoint_that_one_cannot_read_is_passed_over_by_all(four):
    workdir, told = four
    assert [each["checkpoint"][0] for each in told] == [0] * 4
    folder = workdir.with_name("damaged")
    told = json.loads((folder / "samples" / "older.json").read_text())
    assert told["settings"]["step"] == 2 and told["finished"] == ["npz"]
    assert (folder / "checkpoints" / "4").exists()  # a training alone moves it


def test_what_one_computed_near_its_limit_of_memory_is_stored_by_none(four):
    workdir, told = four
    for each in told:
        code, line, again, other = each["short of memory"]
        assert code == again == 2
        assert "process 3 on " in line and "process 3 on " in other
    assert not list((workdir / "samples" / "short_shards").glob("*.npz"))
    card = json.loads((workdir / "card.json").read_text())
    assert card["config"]["evaluate"]["num_samples"] != 24
    assert not list(workdir.glob("card.before_*"))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("data", "process 1 on HOST: it cannot be read"),
        ("image", "process 2 on HOST: it cannot be read"),
        ("features", "process 2 on HOST: net gives NaN or infinity for an image"),
    ],
)
def test_what_fails_on_one_process_is_told_on_all(four, what, says):
    for each in four[1]:
        assert says.replace("HOST", socket.gethostname()) in each[what][-1]


def test_pictures_of_split_parameters_are_drawn_once(four):
    workdir, told = four
    assert [each["moons"] for each in told] == [[0]] * 4
    figures = workdir.with_name("moons") / "figures"
    names = {"level_sets.png", "loss.png", "trajectories.png"}
    assert {path.name for path in figures.iterdir()} == names
