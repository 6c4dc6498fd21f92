"""What is printed never ends a run: encodings, closed pipes, full disks, no terminal at all."""

import errno
import io
import logging
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from programs import SMALL, run

from genfield import errors
from genfield.machine import preemption
from genfield.program import command

SHORT = SMALL | {"train.steps": 2, "checkpoint.every": 2, "evaluate.num_samples": 8}


def broken_pipe():
    """A stream whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def full_disk():
    return open("/dev/full", "w", encoding="utf-8")


STREAMS = [lambda: None, broken_pipe, closed, full_disk]


@pytest.mark.parametrize("make", STREAMS)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_cannot_be_written_loses_the_text_alone(monkeypatch, make, name):
    monkeypatch.setattr(sys, name, make())
    for _ in range(2):
        errors.tell("α … ×", error=name == "stderr")
    print("and whoever prints after it", file=getattr(sys, name))


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "? 3 ?"), ("latin-1", "? 3 ×")])
def test_a_letter_that_the_terminal_lacks_becomes_a_question_mark(monkeypatch, encoding, shown):
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding=encoding))
    errors.tell("… 3 ×")
    assert held.getvalue().decode(encoding) == shown + "\n"


@pytest.mark.parametrize("make", [lambda: None, broken_pipe])
def test_a_run_ends_well_with_nobody_to_read_it(monkeypatch, tmp_path, make):
    monkeypatch.setattr(sys, "stdout", make())
    monkeypatch.setattr(sys, "stderr", make())
    assert run(tmp_path / "run", small=SHORT) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_mistake_is_told_on_a_terminal_of_any_encoding(tmp_path):
    """The line itself holds what ascii lacks; its exit code is that of a mistake."""
    argv = [sys.executable, "-m", "genfield.compare", str(tmp_path / "α"), str(tmp_path / "b")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(argv, env=environment, capture_output=True, timeout=120)
    assert done.returncode == errors.EXIT_CODE
    assert done.stderr.startswith(b"genfield: error: ") and b"Traceback" not in done.stderr


def test_a_closed_terminal_is_heard_and_nohup_is_left_alone():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        for found, kept in ((signal.SIG_DFL, False), (signal.SIG_IGN, True)):
            signal.signal(signal.SIGHUP, found)
            preemption.install()
            assert (signal.getsignal(signal.SIGHUP) == signal.SIG_IGN) is kept
            assert signal.getsignal(signal.SIGHUP) != signal.SIG_DFL
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


WRITING = (
    'RESOURCE_EXHAUSTED: Error writing "a/0" in OCDBT database at local file "/run/checkpoints/": '
    "No space left on device [os_error_code='28']"
)
JOINING = (
    "UNKNOWN: Gloo context initialization failed: [enforce fail at gloo/tcp/socket.cc:24] "
    "rv != -1. -1 vs -1. socket: Too many open files"
)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError(WRITING), r"^/run/checkpoints/: No space left on device\. Make room or choose"),
        (OSError(errno.EMFILE, "x", "/a"), r"^/a: Too many open files\. Raise the limit of open"),
        (RuntimeError(JOINING), r"^this process: Too many open files\. Raise the limit of open"),
        (OSError("90 requested and 0 written"), "^the disk: No space left on device"),
        (OSError(errno.EIO, "x"), r"^the disk: Input/output error\. See to the disk or its server"),
        (FileNotFoundError(errno.ENOENT, "x", "/a"), "^/a: No such file .* put it back"),
        (OSError(errno.EFBIG, "x", "/a"), "^/a: File too large. .*ulimit -f"),
        (FileExistsError("Cannot rename /a"), "^the disk: File exists.* the same command goes on"),
        (MemoryError(), "^out of memory"),
        (RuntimeError("can't start new thread"), "^out of memory"),
    ],
)
def test_errors_of_files_and_memory_are_one_line_whoever_tells_them(error, says, capsys):
    def raised():
        raise error

    assert errors.told(raised) == errors.EXIT_CODE
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(says, line.removeprefix("genfield: error: "))


@pytest.mark.parametrize("error", [KeyError("a"), OSError(errno.EBADF, "x"), ValueError("[28]")])
def test_errors_of_the_program_keep_their_traceback(error):
    def raised():
        raise error

    with pytest.raises(type(error)):
        errors.told(raised)


def failed_save() -> logging.LogRecord:
    """What orbax logs of a save that fails, with its traceback."""
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        about = sys.exc_info()
    return logging.LogRecord("absl", logging.ERROR, "/a/future.py", 1, "Save failed", (), about)


def test_what_orbax_logs_and_raises_is_told_once_and_all_else_in_one_line():
    record = failed_save()
    assert not command._in_one_line(record)
    record.module = "storage_backend"
    assert command._in_one_line(record)
    told = logging.Formatter().format(record)
    assert told == "Save failed: [Errno 28] No space left on device"


def test_a_loop_of_events_that_is_closed_is_not_told(capsys):
    for text in ("Event loop is closed", "another"):
        about = SimpleNamespace(exc_value=RuntimeError(text), object=None)
        command._untold(lambda about: print(about.exc_value), about)
    assert capsys.readouterr().out == "another\n"
