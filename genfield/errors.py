"""The one error that a user can mend, and how a command line tells it: one line, exit code 2."""

import argparse
import errno
import re
import sys
from collections.abc import Callable

MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
EXIT_CODE = 2


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are UserErrors, which end with how to mend them."""

    def __init__(self, program: str, mend: str, **options):
        super().__init__(program, **options)
        self.mend = mend

    def error(self, message):
        raise UserError(f"{message}: {self.mend}")


class UserError(ValueError):
    """A mistake in a config, a path or a file: one line that says what and how to mend it."""


def mendable(error: Exception) -> str | None:
    """What the user can do about an error that is no bug of the program; None if it is one."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and error.errno in MENDABLE:
        return f"{error.filename or 'the disk'}: {error.strerror}. Make room or choose another path"
    if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return (
            f"out of memory ({text.splitlines()[0]}): lower config.batch_size or "
            "config.sample.batch_size, raise config.optimizer.accumulate, or shrink config.net"
        )
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
        print(f"genfield: error: {message}", file=sys.stderr, flush=True)
        return EXIT_CODE
