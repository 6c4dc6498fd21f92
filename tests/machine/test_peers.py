"""Which GPUs are whose, and which host holds up the others."""

import functools
import json
import threading
from types import SimpleNamespace
from unittest import mock

import jax
import pytest

from genfield.errors import UserError
from genfield.machine import peers
from genfield.program import command


@pytest.mark.parametrize(
    "seen, on_node, tasks, task, own",
    [
        ("0,1,2,3,4,5,6,7", 8, "8(x2)", 3, [3]),  # all tasks see all GPUs: each takes its own
        ("0,1,2,3,4,5,6,7", 8, "2", 1, [4, 5, 6, 7]),
        ("0,1,2,3,4,5,6,7", 8, "1(x4)", 0, [0, 1, 2, 3, 4, 5, 6, 7]),  # one task a node
        ("0", 8, "8", 5, [0]),  # bound by Slurm: each sees its own only, as number 0
        ("0,1", 8, "4(x2)", 3, [0, 1]),
    ],
)
def test_a_task_takes_its_own_gpus(seen, on_node, tasks, task, own):
    environ = {
        "CUDA_VISIBLE_DEVICES": seen,
        "SLURM_GPUS_ON_NODE": str(on_node),
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_LOCALID": str(task),
    }
    assert peers.own_gpus(environ) == own


def test_elsewhere_a_process_takes_what_it_sees():
    assert peers.own_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}) is None
    assert peers.own_gpus({"SLURM_LOCALID": "1"}) is None


def test_more_tasks_than_gpus_are_a_mistake():
    environ = {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_LOCALID": "0", "SLURM_GPUS_ON_NODE": "2"}
    with pytest.raises(UserError, match="4 tasks on a node with 2 GPUs"):
        peers.own_gpus(environ | {"SLURM_STEP_TASKS_PER_NODE": "4"})


def test_the_host_that_the_others_wait_for_is_named():
    paces = {n: [f"host-{n}", 1.0, 0.05] for n in range(4)}
    assert peers.slow(paces) is None
    paces[2] = ["host-2", 1.0, 0.9]
    assert peers.slow(paces) == (
        "slow host: of a step of 1 s process 2 on host-2 needs 0.9 s of it before its devices "
        "start, the others 0.05 s"
    )
    everywhere = {n: [f"host-{n}", 1.0, 0.9] for n in range(4)}  # slow, but nobody more than others
    assert peers.slow(everywhere) is None
    assert "process 1 on b" in peers.slow({0: ["a", 1.0, 0.1], 1: ["b", 1.0, 0.8]})


@pytest.mark.parametrize("own", [False, True])
def test_of_why_a_process_ends_there_is_one_line(own, monkeypatch, capsys):
    """Its own, or that of the process which ended before it; never both."""
    monkeypatch.setattr(peers, "_leaves", threading.Event())
    monkeypatch.setattr(peers, "GRACE", 0.0)
    ended = []
    monkeypatch.setattr(peers.os, "_exit", ended.append)
    told = lambda key, wait: json.dumps([2, "c", 2])

    def mistake(argv):
        raise UserError("process 2 on c: it cannot be read")

    if own:
        assert command.main([], functools.partial(command._speaking, mistake)) == 2
    peers._heed(SimpleNamespace(blocking_key_value_get=told), 1)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("genfield: error: process 2 on c") and ended == ([] if own else [2])


def test_devices_that_cannot_be_asked_for_as_one_died_are_no_mistake(monkeypatch):
    """What JAX says of the coordination service, while it looks for devices, waits for the line."""
    gone = "UNAVAILABLE: Socket closed while calling CoordinationService/GetKeyValue"
    waited = []
    monkeypatch.setattr(peers, "_limit", 10)
    monkeypatch.setattr(peers.time, "sleep", waited.append)
    for text in (gone, "Unknown backend cuda"):
        monkeypatch.setattr(jax, "devices", mock.Mock(side_effect=RuntimeError(text)))
        with pytest.raises(UserError, match="JAX finds no device"):
            command.check_devices()
    assert waited == [10 + peers.MARGIN]
