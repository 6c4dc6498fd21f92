"""Freed memory that stays with the process, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

TOUCH = """
import resource, sys
from genfield.machine import allocator
print(allocator.keep(sys.argv[1]))
import numpy as np
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(1 << 23)
before = faults()
for _ in range(4):
    np.ones(1 << 23)
print(faults() - before)
"""
GLIBC = platform.libc_ver()[0] == "glibc" and sys.platform == "linux"


def run(on: str, **environment: str) -> tuple[str, int]:
    """Whether memory is kept, and the page faults of four further arrays of 64 MiB."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", TOUCH, on]
    made = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=True
    )
    kept, faults = made.stdout.split()
    return kept, int(faults)


@pytest.mark.process
@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_large_arrays_touch_no_fresh_pages_on_a_cpu():
    """And do where it is not asked for, where malloc has its own settings, and on a GPU's host."""
    asked = {"GENFIELD_KEEP_MEMORY": "1"}
    kept, few = run("cpu", **asked)
    assert kept == "True" and few < 1000
    for off in (run("cpu"), run("cpu", MALLOC_ARENA_MAX="2", **asked), run("gpu", **asked)):
        assert off[0] == "False" and off[1] > few + 100
