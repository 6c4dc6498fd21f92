"""One process at a time writes in a folder: a lock that ends with whoever holds it.

The kernel keeps it (flock), so that a process that is killed leaves nothing behind that would have
to be cleared away. Its file says who holds it, and is gone when they are done.
"""

import contextlib
import fcntl
import functools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from genfield.errors import UserError, tell

FILE = ".lock"  # of a workdir: whoever trains or evaluates in it
WAITS = 0.1  # seconds between two tries
ASKED = 0.25  # seconds, in which one who only asks whether it is held has let go of it


class Lock:
    """A lock that this process holds until `release`."""

    def __init__(self, file: Path, descriptor: int):
        self.file, self.descriptor = file, descriptor
        self.folder = os.stat(file.parent)

    def check(self) -> None:
        """Raises UserError where the folder is another one than was locked, or none."""
        folder = self.file.parent
        if not (folder.exists() and os.path.samestat(os.stat(folder), self.folder)):
            raise UserError(
                f"{folder} was moved or removed while this process wrote there: put it "
                "back; the same command goes on, or begins anew where it is gone"
            )

    def release(self) -> None:
        """Lets others in; its file goes."""
        try:
            if _is_at(self.file, self.descriptor):
                self.file.unlink()
        except OSError as error:  # the folder cannot be written any more
            told = f"{self.file} stays, and holds nobody up ({error.strerror})"
            tell(f"genfield: warning: {told}", error=True)
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


def take(file: Path, does: str, instead: str, patience: float = 0.0) -> Lock | None:
    """Takes the lock of a file, whose folder is made.

    Args:
      does: what its holder does, as "trains in /runs/digits"; told to those who come later.
      instead: what these can do but wait.
      patience: seconds in which it is tried again.
    Returns:
      None where the file system knows no locks, which is told in a line.
    Raises:
      UserError: another process holds it; says which, on which machine and since when.
    """
    end = time.monotonic() + max(patience, ASKED)
    try:
        file.parent.mkdir(exist_ok=True)  # what it lies in is there, or was taken away
    except OSError as error:
        raise UserError(f"cannot make {file.parent}: {error.strerror}") from error
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            held = _holder(descriptor)
            os.close(descriptor)
            if time.monotonic() >= end:
                raise UserError(f"{held}: wait for its end, stop it, or {instead}") from error
            time.sleep(WAITS)
            continue
        except OSError as error:
            Lock(file, descriptor).release()
            _tell_without(file.parent, error.strerror)
            return None
        if _is_at(file, descriptor):
            break
        os.close(descriptor)  # its holder has just removed it
    facts = {"does": does, "host": os.uname().nodename, "process": os.getpid()}
    with contextlib.suppress(OSError):  # a full disk: nobody learns who holds it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(facts | {"since": _now()}).encode() + b"\n", 0)
    return Lock(file, descriptor)


def check(file: Path, instead: str) -> None:
    """Raises UserError, as `take`, where another process holds the lock; many may ask at once."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody, or it is told when the lock is taken
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        held = _holder(descriptor)
        raise UserError(f"{held}: wait for its end, stop it, or {instead}") from error
    except OSError:  # no locks here
        return
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Removes the files of locks that nobody holds, of processes that were killed."""
    for file in folder.glob("*.lock"):
        with contextlib.suppress(UserError, OSError):
            if lock := take(file, "", ""):
                lock.release()


@contextlib.contextmanager
def held(file: Path, does: str, instead: str, patience: float = 0.0) -> Iterator[None]:
    """Around what writes; of several processes that work together, process 0 holds it for all.

    Raises:
      UserError: as `take`, on all processes; or the folder was moved or removed meanwhile.
    """
    import jax

    from genfield.machine import processes  # which brings JAX: not before mistakes are told

    lock = None
    with processes.together():
        if jax.process_index() == 0:
            lock = take(file, does, instead, patience)
    try:
        yield
        with processes.together():
            if lock is not None:
                lock.check()
    finally:
        if lock is not None:
            lock.release()


@functools.cache
def _tell_without(folder: Path, reason: str) -> None:
    tell(
        f"genfield: warning: no locks in {folder} ({reason}): nothing keeps a second process from "
        "writing there too",
        error=True,
    )


def _is_at(file: Path, descriptor: int) -> bool:
    """Whether an open file is the one that others find, too."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _holder(descriptor: int) -> str:
    """Who holds a lock, in words."""
    try:
        facts = json.loads(os.pread(descriptor, 4096, 0))
        where = f"process {facts['process']} on {facts['host']}"
        return f"{where} {facts['does']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is about to write it
        return "another process writes there"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
