"""What was computed near a limit of memory is not kept."""

import errno
import re
import resource
import subprocess
import sys
import threading
from unittest import mock

import numpy as np
import pytest
from programs import trained

from genfield.errors import UserError
from genfield.machine import headroom, peers
from genfield.main import main
from genfield.prepare.writer import Shard

NONE = (resource.RLIM_INFINITY,) * 2


@pytest.fixture
def limited(monkeypatch, tmp_path):
    """(bytes that a limit leaves, of which limit) -> sets it, as this process sees it."""

    def limit(left, which=resource.RLIMIT_AS, used=1 << 30):
        status = tmp_path / "status"
        status.write_text(f"Name:\tx\nVmPeak:\t {used >> 10} kB\nVmData:\t {used >> 10} kB\n")
        monkeypatch.setattr(headroom, "STATUS", status)
        of = lambda asked: (used + left,) * 2 if asked == which else NONE
        monkeypatch.setattr(headroom.resource, "getrlimit", of)

    return limit


@pytest.mark.parametrize("which", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_a_process_that_came_near_its_limit_says_so(which, limited):
    limited(headroom.MARGIN, which)
    headroom.check()
    limited(headroom.MARGIN - 1024, which)
    with pytest.raises(UserError, match=r"ulimit -[vd] is 1,114,111 kB.*not kept"):
        headroom.check()


def test_a_process_without_a_limit_reads_nothing(monkeypatch):
    monkeypatch.setattr(headroom.resource, "getrlimit", lambda which: NONE)
    monkeypatch.setattr(headroom, "STATUS", None)
    headroom.check()


def test_the_kernel_is_read(monkeypatch):
    monkeypatch.setattr(headroom.resource, "getrlimit", lambda which: (1 << 60, 1 << 60))
    headroom.check()
    monkeypatch.setattr(headroom.resource, "getrlimit", lambda which: (1 << 20, 1 << 20))
    with pytest.raises(UserError, match="memory came to its end"):
        headroom.check()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return trained(tmp_path_factory)


def contents(folder) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): p.read_bytes() for p in files if not p.name.startswith(("events", ".lock"))}


@pytest.mark.parametrize(
    "mode",
    ["--mode=train --config.train.steps=24", "--mode=sample", "--mode=evaluate"],
)
def test_a_command_near_its_limit_keeps_nothing(mode, workdir, limited, capsys):
    before = contents(workdir)
    limited(0)
    assert main(["genfield", f"--workdir={workdir}", *mode.split()]) == 2
    assert "memory came to its end (ulimit -v" in capsys.readouterr().err
    kept = contents(workdir)
    assert {name for name in kept if "checkpoints" in name and name not in before} == set()
    assert not [name for name in kept.keys() ^ before.keys() if re.search(r"npz$|card\.", name)]


def test_a_shard_near_its_limit_takes_no_more(limited, tmp_path):
    shard = Shard(tmp_path, 0, 0, 4, (2,), np.float32)
    shard.open()
    limited(0)
    with pytest.raises(UserError, match="memory came to its end"):
        shard.append(np.zeros((2, 2)), {"first": 0, "last": 2})
    assert not shard.lines
    shard.let_go()


def ended(script: str) -> tuple[int, list[str]]:
    """How a program in a process of its own ends: its code, and its lines on stderr."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.process
def test_a_process_that_waits_for_ever_near_its_limit_ends():
    """As where a library has lost a thread to it: the watch ends it, with its line."""
    script = (
        "import resource, sys, threading\n"
        "from genfield.program import command\n"
        "def waits(argv):\n"
        "    limit = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (limit + (1 << 20),) * 2)\n"
        "    threading.Event().wait()\n"
        "command.leave(['genfield'], waits)\n"
    )
    code, [line] = ended(script)
    assert code == 2 and line.startswith("genfield: error: memory came to its end")


def test_few_files_that_may_be_open_are_told_before_processes_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(headroom.resource, "getrlimit", lambda which: (20, 1 << 20))
    with pytest.raises(
        UserError, match=r"at most 20 files may be open \(ulimit -n\), of which \d+"
    ):
        peers.find("127.0.0.1:1", 2, 1)
    monkeypatch.setattr(headroom.resource, "getrlimit", lambda which: (1 << 20, 1 << 20))
    with headroom.joining():
        pass


@pytest.mark.process
def test_a_process_that_may_open_no_file_any_more_while_it_joins_ends():
    """Process 0, which would wait five minutes for the other, and the other for it."""
    script = (
        "import resource, socket, threading\n"
        "from genfield.machine import headroom, peers\n"
        "from genfield.program import command\n"
        "with socket.socket() as free:\n"
        "    free.bind(('127.0.0.1', 0))\n"
        "    port = free.getsockname()[1]\n"
        "def lowers():\n"
        "    while not headroom._files:\n"
        "        pass\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))\n"
        "def joins(argv):\n"
        "    threading.Thread(target=lowers).start()\n"
        "    peers.find(f'127.0.0.1:{port}', 2, 0)\n"
        "command.leave(['genfield'], joins)\n"
    )
    code, lines = ended(script)
    [line] = [line for line in lines if line.startswith("genfield: ")]  # JAX may speak as well
    assert code == 2 and line.startswith("genfield: error: at most 8 files may be open")


@pytest.mark.process
def test_a_process_that_begins_near_its_limit_ends():
    """Python itself waits for ever for a thread that finds no memory to begin."""
    script = (
        "import resource\n"
        "from genfield.program import command\n"
        "limit = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit + (9 << 20),) * 2)\n"
        "command.leave(['genfield'], lambda argv: None)\n"
    )
    code, [line] = ended(script)
    assert code == 2 and line.startswith("genfield: error: memory came to its end")


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_a_process_that_has_no_memory_to_look_is_near_its_limit(error, monkeypatch):
    told = []
    monkeypatch.setattr(headroom, "check", mock.Mock(side_effect=error))
    headroom.watch(told.append)
    assert [str(one) for one in told] == [headroom.NO_MEMORY]


def test_a_look_that_fails_by_something_else_is_no_limit(monkeypatch):
    """As where no file may be opened any more, which those say that open some."""
    told, looked = [], threading.Event()
    fails = [OSError(errno.EMFILE, "Too many open files"), UserError("memory came to its end")]
    monkeypatch.setattr(headroom, "check", mock.Mock(side_effect=fails))
    monkeypatch.setattr(headroom, "INTERVAL", 0.0)
    headroom.watch(lambda error: (told.append(error), looked.set()))
    assert looked.wait(60) and told == fails[1:]
