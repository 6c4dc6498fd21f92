"""The one error that a user can mend, and how a command line tells it: one line, exit code 2.

`tell` prints all that the commands say: no terminal, pipe or encoding can end a run.
"""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

REMOTE = re.compile(r"[A-Za-z][\w+.-]+://")
SHORT = re.compile(r"\d+ requested and \d+ written")  # as NumPy tells a full disk, without a number
OS_CODE = re.compile(r"os_error_code='(\d+)'")  # as TensorStore, below orbax, tells the system's
OF_GLOO = "Gloo context initialization failed: "  # with the system's words behind, no number
EXIT_CODE = 2
LONGEST = 2000  # letters of a line

# What the system says of files and disks by the names of its errors, and how that is mended.
OF_FILES = {
    "ENOSPC EDQUOT EACCES EPERM EROFS ENOTDIR EISDIR": "Make room or choose another path",
    "EMFILE ENFILE": "Raise the limit of open files (ulimit -n)",
    "EFBIG": "Raise the limit of a file's size (ulimit -f)",
    "ENOMEM": "Raise the limit of memory (ulimit -v), or free some",
    "EIO ESTALE ENXIO ENODEV EREMOTEIO ETIMEDOUT ENOTCONN EHOSTDOWN EBUSY": (
        "See to the disk or its server; the same command goes on"
    ),
    "EEXIST": "Another process made it, or it was not seen before; the same command goes on",
    "ENOENT ENOTEMPTY": (
        "It was changed while the program was at work: put it back; the same command goes on"
    ),
}


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are UserErrors, which end with how to mend them."""

    def __init__(self, program: str, mend: str, **options):
        super().__init__(program, **options)
        self.mend = mend

    def error(self, message):
        raise UserError(f"{message}: {self.mend}")


def tell(text: str, *, end: str = "\n", error: bool = False) -> None:
    """Prints, on stderr where it is an error; what cannot be printed is let go.

    A letter that the terminal's encoding lacks becomes a question mark. A pipe whose reader has
    left, a disk that is full under a redirected output, or no terminal at all, lose the text and
    nothing else.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, end=end, file=stream, flush=True)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        tell(text.encode(encoding, "replace").decode(encoding), end=end, error=error)
    except (OSError, ValueError, AttributeError):  # closed, broken, or None
        _silence(error)


def _silence(error: bool) -> None:
    """A stream that cannot be written any more is replaced by one that swallows everything."""
    name = "stderr" if error else "stdout"
    setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


class UserError(ValueError):
    """A mistake in a config, a path or a file: one line that says what and how to mend it.

    It may quote a file of a stranger: what would steer a terminal is written as its number, and
    beyond LONGEST letters the middle is left out.
    """

    def __init__(self, message: object):
        super().__init__(_line(str(message)))


def _line(text: str) -> str:
    text = re.sub(r"\s*\n\s*", " ", text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 500]} … {text[-497:]}"


def remote(place: object) -> bool:
    """Whether a path names another machine, as gs://bucket/run or s3://bucket/run."""
    return REMOTE.match(str(place)) is not None


def local(place: object, what: str) -> Path:
    """A path of this machine, ~ expanded; `what` names it in messages.

    Raises:
      UserError: it names another machine: nothing here reads or writes there, and a local folder
        called gs: would lose what is meant to be kept.
    """
    if remote(place):
        raise UserError(
            f"{what} {place} is not on this machine's disk: copy it there, or mount it (gcsfuse, "
            "mountpoint-s3, NFS) and pass the mounted folder"
        )
    return Path(str(place)).expanduser()


def mendable(error: Exception) -> str | None:
    """What the user can do about an error that is no bug of the program; None if it is one."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if told := _of_files(error):
        return told
    flags = getattr(sys.modules.get("jax"), "config", None)
    watched = flags and (flags.jax_debug_nans or flags.jax_debug_infs)
    if watched and isinstance(error, FloatingPointError):
        return (
            f"{text.splitlines()[0]}: JAX_DEBUG_NANS or JAX_DEBUG_INFS is set; leave it unset, and "
            "the step that is not finite is found, written down and told"
        )
    if _no_memory(error) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return (
            f"out of memory ({text.partition(chr(10))[0]}): lower config.batch_size or "
            "config.sample.batch_size, raise config.optimizer.accumulate, or shrink config.net"
        )
    return None


def of_system(error: BaseException) -> int | None:
    """The system's number of an error of files, Python's, TensorStore's or of Gloo, by which
    processes on CPUs speak with each other; None of others."""
    if isinstance(error, FileExistsError):  # etils raises it without a number
        return errno.EEXIST
    if isinstance(error, OSError):
        return errno.ENOSPC if SHORT.fullmatch(str(error)) else error.errno
    if code := OS_CODE.search(str(error)):
        return int(code[1])
    if OF_GLOO in str(error):
        codes = (errno.EMFILE, errno.ENFILE)
        return next((code for code in codes if os.strerror(code) in str(error)), None)
    return None


def of_machine(error: BaseException | None) -> str | None:
    """What the machine lacks just now, by this error or one that it came of, and how to mend it.

    None: the error is of a file or of the program, and will come again.
    """
    names = "EMFILE ENFILE ENOMEM EIO ESTALE ETIMEDOUT ENOSPC EROFS EACCES EPERM"
    codes = [getattr(errno, name, -1) for name in names.split()]
    while error is not None:
        if _no_memory(error) or of_system(error) in codes:
            return mendable(error)
        error = error.__cause__ or error.__context__
    return None


def _no_memory(error: BaseException) -> bool:
    """Whether the host has no more, which a thread that cannot start says in its own way."""
    own = isinstance(error, RuntimeError) and str(error) == "can't start new thread"
    return own or isinstance(error, MemoryError) or "std::bad_alloc" in str(error)


def _of_files(error: Exception) -> str | None:
    """What is wrong with a file or its disk, and how to mend it; None: something else is."""
    code, text = of_system(error), str(error)
    for names, mend in OF_FILES.items():
        if code in [getattr(errno, name, -1) for name in names.split()]:
            place = getattr(error, "filename", None)
            if not isinstance(error, OSError) and (quoted := re.search(r'"(/[^"]*)"', text)):
                place = quoted[1]
            where = "this process" if code in (errno.EMFILE, errno.ENFILE) else "the disk"
            return f"{place or where}: {os.strerror(code)}. {mend}"
    return None


def told(command: Callable[[], object]) -> int:
    """Runs a command: 0, or 2 with one line on stderr where the user can mend what went wrong."""
    try:
        command()
        return 0
    except Exception as error:
        message = mendable(error)
        if message is None:
            raise
        message = re.sub(r"\s*\n\s*", " ", message)
        tell(f"genfield: error: {message}", error=True)
        return EXIT_CODE
