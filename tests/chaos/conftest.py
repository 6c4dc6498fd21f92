"""What the tests of this folder share: a home that is kept, and its fork server."""

import logging
import tempfile
from pathlib import Path

import pytest

from .driver import Zygote

HOME = Path(tempfile.gettempdir()) / "genfield_chaos"


@pytest.fixture(scope="package")
def zygote():
    """A fork server, whose home keeps programs and references for the next tests."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # as the program has it
    with Zygote(HOME) as zygote:
        yield zygote
