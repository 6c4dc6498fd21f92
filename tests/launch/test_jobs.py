"""Several processes as schedulers start them: one dies, stands still, is slow, makes a mistake."""

import os
import re
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import scheduler
from programs import ROOT, SMALL, arguments

from genfield.machine import checkpoint

# A process 2 whose data are slow, and hosts that are compared at every line.
CONFIG = f"""
import os, time
from genfield.machine import peers
from genfield.program import config_io, match_sets

get_config = lambda: config_io.load({str(ROOT / "configs" / "flow_matching_two_moons.py")!r})
peers.EVERY = 0.5
if os.environ.get("SLURM_PROCID") == os.environ.get("SLOW"):
    batches = match_sets.batches

    def slow(*arguments):
        for batch in batches(*arguments):
            time.sleep(0.05)
            yield batch

    match_sets.batches = slow
"""
LONG = SMALL | {
    "train.steps": 1_000_000,
    "train.log_every": 10,
    "checkpoint.every": 20,
    "sampler.num_steps": 2,
    "mesh.data": -1,
}
AGAIN = "exit code 75: the same command goes on from the last checkpoint"
TIMEOUT = 600  # seconds; only a hang takes so long


def log(folder: Path, number: int) -> str:
    file = folder / f"{number}.log"
    return file.read_text() if file.exists() else ""


def wait_for(condition, what: str):
    end = time.monotonic() + TIMEOUT
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.2)
    return found


def saved(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def errors(folder: Path, number: int) -> list[str]:
    """What a process says beside its progress, without JAX's greeting."""
    plain = re.compile(r"step |process 0|batch |compiling|held-out|resuming|genfield: train|slow h")
    rows = log(folder, number).splitlines()
    ours = [row for row in rows if "[Gloo]" not in row and "peer ranks" not in row]
    return [row for row in ours if row and not plain.match(row)]


def only_error(folder: Path, number: int) -> str:
    found = errors(folder, number)
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def config(tmp_path, monkeypatch):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    monkeypatch.setenv("SLOW", "none")
    yield file
    scheduler.kill(tmp_path)


def test_of_four_tasks_a_slow_one_is_named_and_one_that_dies_ends_the_job(
    config, tmp_path, monkeypatch
):
    monkeypatch.setenv("SLOW", "2")
    workdir = tmp_path / "run"
    argv = arguments(workdir, config, "--dead_after=10", small=LONG)
    job = scheduler.slurm_job(tmp_path, argv, 4)
    wait_for(lambda: "slow host: " in log(tmp_path, 0) and saved(workdir), log(tmp_path, 0))
    scheduler.strike(tmp_path, 3, signal.SIGKILL)
    struck = time.monotonic()
    output, _ = job.communicate(timeout=TIMEOUT)
    assert time.monotonic() - struck < 20
    line = next(row for row in log(tmp_path, 0).splitlines() if row.startswith("slow host"))
    found = re.search(r"process 2 on \S+ needs ([\d.e-]+) s .*, the others ([\d.e-]+) s", line)
    assert found and float(found[1]) > float(found[2]), line
    assert (tmp_path / "codes").read_text() == "75 75 75 75" and job.returncode == 75
    for number in range(3):
        found = only_error(tmp_path, number)
        assert re.match(r"genfield: error: process 3 on \S+ gave no sign of life", found)
        assert found.endswith(AGAIN)
    assert "process 3 on " in log(tmp_path, 3) and "was ended by SIGKILL" in log(tmp_path, 3)
    assert "back to the queue" in output
    assert (tmp_path / "scontrol").read_text().startswith("requeue ")
    params = checkpoint.load(workdir, step=saved(workdir)[-1], item="params")  # by one process
    leaves = jax.tree.leaves(params)
    assert leaves and all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.slow
def test_the_job_that_is_queued_again_goes_on_and_saves_at_a_signal(config, tmp_path):
    """Slurm, eight tasks: the first process dies, then the job is preempted."""
    workdir = tmp_path / "run"
    argv = arguments(workdir, config, "--dead_after=10", small=LONG)
    for number in range(2):
        job = scheduler.slurm_job(tmp_path, argv, 8)
        wanted = saved(workdir)[-1] + 20 if number else 20
        wait_for(lambda n=wanted: saved(workdir)[-1:] >= [n], log(tmp_path, 0))
        if number == 0:
            scheduler.strike(tmp_path, 0, signal.SIGKILL)
            output, _ = job.communicate(timeout=TIMEOUT)
            assert job.returncode == 75, output
            for other in range(1, 8):
                found = only_error(tmp_path, other)
                assert re.match(r"genfield: error: process 0 on \S+ cannot be reached", found)
        else:
            job.send_signal(signal.SIGTERM)
            output, _ = job.communicate(timeout=TIMEOUT)
            assert job.returncode == 143, output
            assert "resuming at step" in log(tmp_path, 0)
    assert len((tmp_path / "scontrol").read_text().splitlines()) == 2


@pytest.mark.slow
def test_eight_hosts_of_two_slices_find_their_places(config, tmp_path):
    """As GKE tells them; JAX asks whether this is a TPU's machine, which the config answers."""
    config.write_text(
        "from jax._src.clusters import cloud_tpu_cluster\n"
        f"cloud_tpu_cluster.running_in_cloud_tpu_vm = True\n{CONFIG}"
    )
    small = LONG | {"train.steps": 30}
    hosts = scheduler.tpu_hosts(tmp_path, arguments(tmp_path / "run", config, small=small), 2, 4)
    assert [host.wait(TIMEOUT) for host in hosts] == [0] * 8, log(tmp_path, 0)
    assert "process 0/8  8 x cpu" in log(tmp_path, 0)
    assert saved(tmp_path / "run")[-1] == 30


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2])
def test_a_process_that_stands_still_for_30_s_ends_nothing(number, config, tmp_path):
    """At the limit as it ships."""
    workdir = tmp_path / "run"
    job = scheduler.slurm_job(tmp_path, arguments(workdir, config, small=LONG), 4)
    wait_for(lambda: saved(workdir), log(tmp_path, 0))
    process = scheduler.strike(tmp_path, number, signal.SIGSTOP)
    time.sleep(30)
    os.kill(process, signal.SIGCONT)
    step = saved(workdir)[-1]
    wait_for(lambda: saved(workdir)[-1] >= step + 40, log(tmp_path, 0))
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=TIMEOUT)
    assert job.returncode == 143, output


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2])
def test_a_process_that_stops_for_ever_is_noticed_within_60_s(number, config, tmp_path):
    """At the limit as it ships."""
    workdir = tmp_path / "run"
    job = scheduler.slurm_job(tmp_path, arguments(workdir, config, small=LONG), 4)
    wait_for(lambda: saved(workdir), log(tmp_path, 0))
    process = scheduler.strike(tmp_path, number, signal.SIGSTOP)
    struck = time.monotonic()
    others = [n for n in range(4) if n != number]
    while time.monotonic() - struck < 62 and not all(AGAIN in log(tmp_path, n) for n in others):
        time.sleep(0.2)
    took = time.monotonic() - struck
    os.kill(process, signal.SIGKILL)
    job.communicate(timeout=TIMEOUT)
    assert took < 62 and job.returncode == 75
    for other in others:
        found = only_error(tmp_path, other)
        assert re.match(rf"genfield: error: process {number} on \S+ ", found)


@pytest.mark.slow
def test_one_that_makes_a_mistake_ends_the_others_with_its_own_code(config, tmp_path):
    """Nothing is queued again: the mistake would only be made again."""
    config.write_text(
        CONFIG.replace("time.sleep(0.05)", 'raise UserError("bad: row 7")').replace(
            "import os, time", "import os, time\nfrom genfield.errors import UserError"
        )
    )
    workdir, environ = tmp_path / "run", pytest.MonkeyPatch()
    with environ.context() as patch:
        patch.setenv("SLOW", "1")
        job = scheduler.slurm_job(tmp_path, arguments(workdir, config, small=LONG), 4)
    output, _ = job.communicate(timeout=TIMEOUT)
    assert job.returncode == 2, output
    assert errors(tmp_path, 1) == ["genfield: error: bad: row 7"]
    for other in (0, 2, 3):
        found = only_error(tmp_path, other)
        assert re.match(r"genfield: error: process 1 on \S+ ended with exit code 2", found)
    assert not (tmp_path / "scontrol").exists()
