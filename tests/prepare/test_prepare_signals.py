"""Preparing in processes of their own: real kills, Ctrl-C, and Slurm's share of the work."""

import signal
import socket
import time

import numpy as np
import prepared
import pytest
from own_images import fill

from genfield.data import shards

SIZE = 8


def test_a_killed_process_goes_on_and_ctrl_c_is_obeyed(tmp_path):
    """Real signals, at moments that the journal tells."""
    levels = np.random.default_rng(0).integers(0, 256, (6000, SIZE, SIZE, 3), np.uint8)
    np.savez(tmp_path / "images.npz", train_images=levels, train_labels=np.arange(6000) % 7)
    options = dict(pixels=True, size=SIZE, batch_size=2, shard_size=2500)
    out, journal = tmp_path / "out", tmp_path / "out" / "shards" / "00000.jsonl"
    size = lambda: journal.stat().st_size if journal.exists() else 0
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 143)):
        before, process = size(), prepared.start(tmp_path / "images.npz", out, **options)
        while size() < before + 2000 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        sent = time.monotonic()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output
        assert time.monotonic() - sent < 10 and "Traceback" not in output
        assert not (out / shards.FINISHED).exists()
    assert "the same command goes on" in output
    assert prepared.prepare(tmp_path / "images.npz", out, **options | {"batch_size": 500}) == 0
    found = shards.open_shards(out)
    np.testing.assert_array_equal(np.concatenate(found.arrays), levels)
    np.testing.assert_array_equal(found.labels, np.arange(6000) % 7)


def as_slurm(images, out, **options) -> list[tuple[int, str]]:
    """Two processes, as Slurm tells JAX of them: exit codes, and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in (0, 1):
        env = {
            "SLURM_JOB_ID": str(port),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_TASKS_PER_NODE": "2",
        }
        options |= dict(pixels=True, size=SIZE, distributed=True, env=env)
        started.append(prepared.start(images, out, **options))
    told = [process.communicate(timeout=120)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, told, strict=True)]


@pytest.mark.slow
def test_slurm_s_processes_find_their_share(tmp_path):
    images = fill(tmp_path / "images", [f"{c}/{i}" for c in ("a", "b") for i in range(10)])
    for code, output in as_slurm(images, tmp_path / "out", shard_size=5):
        assert code == 0, output
    assert shards.open_shards(tmp_path / "out").manifest["count"] == 20


@pytest.mark.slow
def test_a_process_that_fails_leaves_the_others_at_work(tmp_path):
    images = fill(tmp_path / "images", [f"{c}/{i}" for c in ("a", "b") for i in range(10)])
    (images / "b" / "3.png").write_bytes(b"no image")
    (code, output), (failed, said) = as_slurm(images, tmp_path / "out", shard_size=10)
    assert failed == 2 and "b/3.png" in said
    assert code == 0 and "1 of 2 shards are still to come" in output, output
