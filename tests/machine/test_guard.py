"""The guard above a process, with processes that end in every way; who is dead, in words."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from programs import ROOT

from genfield.machine import guard

# As JAX's coordination service ends a process whose peer has died.
FATAL = (
    "F1128 17:26:57.209184   11844 client.h:80] Terminating process because the JAX distributed "
    "service detected fatal errors. absl::Status: "
)
UNHEALTHY = "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n"
POLLED = (
    "E1128 17:26:57.208016   11833 coordination_service.cc:1549] [1124] Use error polling to "
    f"propagate the following error to all tasks: {UNHEALTHY}1\nThe tasks have crashed.\n"
)
SILENT = (
    f"{POLLED}{FATAL}{UNHEALTHY}/job:jax_worker/replica:0/task:1\n2\nThe tasks have crashed.\n"
    "*** Check failure stack trace: ***\n    @     0x7f40  absl::LogMessage::Flush()\n"
)
CLOSED = (
    f"{FATAL}UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was "
    "preempted\nAdditional GRPC error information: Socket closed\n"
)
TIME = f"{FATAL}DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/"
NO_THREAD = "F1129 17:23:00.682070    8904 env.cc:93] Check failed: ret == 0 (11 vs. 0)\n"
AGAIN = "ABORTED: 2 unexpectedly tried to connect with a different incarnation."
HOSTS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "text, named",
    [
        (POLLED, "process 1 on b gave no sign of life"),
        (SILENT, "process 1 on b, process 2 on c gave no sign of life"),
        (CLOSED, "process 0 on a cannot be reached"),
        (TIME + "Heartbeat", "process 0 on a cannot be reached"),
        (TIME + "RegisterTask", "not all processes have come"),
        (f"{FATAL}{AGAIN}", "process 2 on c ended while the job began"),
    ],
)
def test_the_dead_are_named_by_what_jax_says(text, named):
    assert guard.blame(text.encode(), HOSTS).startswith(named)


def test_other_words_blame_nobody():
    assert guard.blame(b"E1128 17:26:57.2 1 gpu.cc:1] out of memory", HOSTS) is None
    assert "process 1 gave" in guard.blame(POLLED.encode(), [])  # no host known


BELOW = """
import os, signal, subprocess, sys, time
from genfield.machine import guard
guard.inform(index=3, hosts=["a", "b", "c", "d"])
err = lambda text: os.write(2, text.encode())
"""


def guarded(tmp_path, code: str) -> subprocess.Popen:
    """A guard above a process that runs the code."""
    (tmp_path / "below.py").write_text(BELOW + code)
    above = "import os, time; from genfield.machine.guard import Guard; os._exit("
    above += f"Guard(time.monotonic).run([{sys.executable!r}, {str(tmp_path / 'below.py')!r}]))"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env.pop(guard.CHANNEL, None)
    return subprocess.Popen([sys.executable, "-c", above], env=env, **pipes)


def ended(tmp_path, code: str) -> tuple[int, str, str]:
    """The exit code of a guard, and all that it and its process printed."""
    process = guarded(tmp_path, code)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


def test_a_process_that_jax_aborts_becomes_one_line_and_a_code(tmp_path):
    thread = "Traceback (most recent call last):\n  File\nTimeoutError: barrier\n"
    code, out, errors = ended(
        tmp_path,
        f"print('step 1', flush=True); err('warning\\n'); err({thread + SILENT!r})\nos.abort()",
    )
    assert code == guard.EXIT_CODE == 75 and out == "step 1\n"
    assert errors == (
        "warning\ngenfield: error: process 1 on b, process 2 on c gave no sign of life and counts "
        "as dead; exit code 75: the same command goes on from the last checkpoint\n"
    )


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_an_end_of_its_own_is_passed_on_with_all_its_words(code, tmp_path):
    words = f"half a line\nTraceback (most recent call last):\nE1128 17:26:57.2 1 x.cc:1] b\n{code}"
    assert ended(tmp_path, f"err({words!r}); os._exit({code})") == (code, "", words)


@pytest.mark.parametrize("end", ["os._exit(2)", "os.abort()"])
def test_of_an_end_of_its_own_that_jax_cuts_short_its_own_line_is_left(end, tmp_path):
    """Process 0 leaves first, and JAX begins to end one that tells its line already."""
    own = "genfield: error: process 0 on a: it cannot be read\n"
    code = f"guard.inform(own=2); err({own!r}); err({CLOSED!r}); err({own!r}); err('@ 0x7f40'); "
    assert ended(tmp_path, f"{code}{end}") == (2, "", 2 * own)


def test_what_jax_tells_of_the_others_is_nothing_beside_an_end_of_its_own(tmp_path):
    """The others end by the same error, and one of them earlier."""
    own = "genfield: error: step 8 is not finite\n"
    rest = "Traceback (most recent call last):\nValueError: its own\n"
    code = f"guard.inform(own=2); err({own!r}); err({POLLED + POLLED + rest!r}); os._exit(2)"
    assert ended(tmp_path, code) == (2, "", own + rest)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_process_that_dies_alone_is_named_by_its_own_guard(number, tmp_path):
    words = "E1128 17:26:57.2 1 gpu.cc:1] why\n"
    code, _, errors = ended(tmp_path, f"err({words!r}); os.kill(os.getpid(), {int(number)})")
    assert code == guard.EXIT_CODE
    assert errors.startswith(f"{words}genfield: error: process 3 on d was ended by {number.name}")
    assert len(errors.splitlines()) == 2


def test_where_another_left_by_its_own_error_its_code_is_the_code(tmp_path):
    code, _, errors = ended(
        tmp_path, f"guard.inform(left=[2, 'c', 2]); err({CLOSED!r}); os.abort()"
    )
    line = "genfield: error: process 2 on c ended with exit code 2: its own lines say why\n"
    assert (code, errors) == (2, line)


def test_a_child_that_keeps_the_pipes_keeps_nobody_waiting(tmp_path):
    """As the service of a logger does, which outlives its run."""
    begun = time.monotonic()
    code, _, errors = ended(
        tmp_path,
        "subprocess.Popen(['sleep', '20'], stdout=subprocess.DEVNULL)\nerr('last'); os._exit(5)",
    )
    assert (code, errors) == (5, "last") and time.monotonic() - begun < 15


def test_what_is_no_omen_of_an_abort_is_let_go(tmp_path):
    """A traceback of a process that lives on is only late."""
    now = [0.0]
    above = guard.Guard(lambda: now[0])
    read, write = os.pipe()
    keep = os.dup(2)
    os.dup2(write, 2)
    try:
        above.take(b"Traceback (most recent call last):\nValueError: a thread's")
        above.rest()
        now[0] = guard.HOLD + 1
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):
            os.read(read, 100)
        above.rest()
        above.take(b" own\nnext\n")
        above.take(CLOSED.encode())  # this ends in an abort, however long JAX writes before it
        now[0] += 2 * guard.HOLD
        above.rest()
    finally:
        os.dup2(keep, 2)
    assert guard.blame(above.held, HOSTS).startswith("process 0 on a cannot be reached")
    expected = b"Traceback (most recent call last):\nValueError: a thread's own\nnext\n"
    assert os.read(read, 1000) == expected
    for fd in (read, write, keep):
        os.close(fd)


def test_what_comes_before_an_abort_is_held_for_as_long_as_jax_may_take():
    """Whose limit the process tells."""
    now = [0.0]
    above = guard.Guard(lambda: now[0])
    above.hear(b'{"limit": 60}\n')
    above.take(b"Exception in thread Thread-3\nValueError: a peer is gone\n")
    now[0] += 60
    above.rest()
    assert above.held.count(b"\n") == 2
    above.held = b""  # which would be let go


def test_the_others_are_told_of_one_that_never_came(tmp_path):
    """It ends before it has joined: another joins in its place, and tells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env.pop(guard.CHANNEL, None)
    start = lambda code, *flags: subprocess.Popen(
        [sys.executable, "-c", code, *flags], env=env, stderr=subprocess.PIPE, text=True
    )
    comes = f"from genfield.machine import peers; peers.join({address!r}, 2, 0); "
    waits = start(comes + "import time; time.sleep(100)")
    below = [sys.executable, "-c", "raise SystemExit('no such file')"]
    below += [f"--coordinator={address}", "--num_processes", "2", "-process_id=1"]
    above = "import os, time; from genfield.machine.guard import Guard; "
    above += f"os._exit(Guard(time.monotonic).run({below!r}))"
    fails = start(above)
    assert fails.communicate(timeout=600)[1] == "no such file\n" and fails.returncode == 1
    line = waits.communicate(timeout=600)[1].splitlines()[-1]
    assert waits.returncode == 1
    assert line.startswith("genfield: error: process 1 on ") and "ended with exit code 1" in line


@pytest.mark.parametrize(
    ("text", "end", "stands"),
    [(f"{FATAL}{AGAIN}\n", 6, ""), (NO_THREAD, 6, "in"), ("no file", 0, "in")],
)
def test_none_stands_in_for_one_that_ends_with_the_others(text, end, stands):
    """They know: it would join nobody, and keep its guard for a minute."""
    dies = f"import os; os.write(2, {text.encode()!r}); os.abort() if {end} else os._exit(2)"
    above = "import os, time; from genfield.machine.guard import Guard; "
    above += "Guard.stand_in = lambda *_: print('in', end='', flush=True); "
    above += f"os._exit(Guard(time.monotonic).run([{sys.executable!r}, '-c', {dies!r}]))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env.pop(guard.CHANNEL, None)
    done = subprocess.run([sys.executable, "-c", above], env=env, capture_output=True, text=True)
    assert done.returncode == (guard.EXIT_CODE if end else 2) and done.stdout == stands


def test_signals_reach_the_process_and_it_dies_with_its_guard(tmp_path):
    waits = "signal.signal(signal.SIGTERM, lambda *_: os._exit(143))\nerr('r'); time.sleep(60)"
    process = guarded(tmp_path, waits)
    assert process.stderr.read(1) == "r"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    if sys.platform != "linux":
        return
    process = guarded(tmp_path, "guard.stand()\nprint(os.getpid(), flush=True); time.sleep(60)")
    below = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        try:
            os.kill(below, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(below, signal.SIGKILL)
    raise AssertionError("a process outlived its guard")
