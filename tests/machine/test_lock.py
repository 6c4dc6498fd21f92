"""Locks: who holds one is told; a killed process holds none; a file system without them is told."""

import errno
import os
import re
import signal
import subprocess
import sys

import pytest

from genfield.errors import UserError
from genfield.machine import lock

HOLDS = """
import sys, time
from pathlib import Path
from genfield.machine import lock
held = lock.take(Path(sys.argv[1]), "trains in x", "choose another --workdir")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path's lock."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / lock.FILE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_is_told_who_holds_the_lock(tmp_path, other):
    with pytest.raises(UserError) as caught:
        lock.check(tmp_path / lock.FILE, "take another")
    told = rf"process {other.pid} on {re.escape(os.uname().nodename)} trains in x, since 20\d\d-"
    assert re.match(told, str(caught.value)) and str(caught.value).endswith("or take another")


def test_a_killed_process_holds_no_lock_and_its_file_goes_with_the_next_one(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / lock.FILE).exists()
    lock.check(tmp_path / lock.FILE, "take another")
    lock.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_those_who_ask_at_once_do_not_hold_each_other_up(tmp_path, monkeypatch):
    """As the processes of a job that goes on after a kill, which left its file."""
    (tmp_path / lock.FILE).write_text("{}")
    real, inside = lock.fcntl.flock, []

    def flock(descriptor, how):
        real(descriptor, how)
        if not inside:
            inside.append(True)
            lock.check(tmp_path / lock.FILE, "take another")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    lock.check(tmp_path / lock.FILE, "take another")
    assert inside


def test_a_lock_is_taken_when_its_holder_ends_in_time(tmp_path, other, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (other.kill(), other.wait()))
    lock.take(tmp_path / lock.FILE, "", "", patience=60).release()


def test_the_holder_takes_its_file_along_and_the_next_one_its_own(tmp_path, monkeypatch):
    file, real, first = tmp_path / lock.FILE, lock.fcntl.flock, []

    def flock(descriptor, how):  # the holder leaves between the opening and the lock
        if first:
            first.pop().release()
        real(descriptor, how)

    first.append(lock.take(file, "", ""))
    monkeypatch.setattr(lock.fcntl, "flock", flock)
    second = lock.take(file, "", "")
    with pytest.raises(UserError):
        lock.take(file, "", "")
    second.release()
    assert not file.exists()


def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, capsys):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    assert lock.take(tmp_path / lock.FILE, "", "") is None
    with lock.held(tmp_path / lock.FILE, "", ""):
        assert list(tmp_path.iterdir()) == []
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"genfield: warning: no locks in {tmp_path} (No locks available)")


def test_a_sweep_leaves_those_that_are_held(tmp_path):
    held = lock.take(tmp_path / ".a.lock", "", "")
    (tmp_path / ".b.lock").touch()
    lock.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / ".a.lock"]
    held.release()


def test_a_folder_that_is_moved_while_it_is_locked_is_told(tmp_path):
    file = tmp_path / "run" / lock.FILE
    told = "run was moved or removed while this process wrote there"
    with pytest.raises(UserError, match=told), lock.held(file, "", ""):
        file.parent.rename(tmp_path / "moved")
        file.parent.mkdir()
        file.touch()  # of another process
    assert file.exists()
