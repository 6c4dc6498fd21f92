"""How a run on a CPU may keep memory between steps: glibc is told to give none back.

XLA asks for the scratch of each step anew and frees it after. glibc maps such large pieces from the
kernel and unmaps them, so that every step touches fresh pages: 220,000 page faults a step of a
U-Net of 64 channels. From one heap that is kept there are none. Results are the same. A heap that
is never trimmed grows: a training may take 2.6 times its memory, so it is asked for
(docs/performance.md).
"""

import ctypes
import os
import platform
import sys

TURNS_ON = "GENFIELD_KEEP_MEMORY"  # set to 1
# mallopt's numbers in malloc.h, and what they are set to.
NO_MAPPING = (-4, 0)  # M_MMAP_MAX: large pieces come from the heap, too
NO_TRIMMING = (-1, -1)  # M_TRIM_THRESHOLD: what is free at its end stays
ONE_HEAP = (-8, 1)  # M_ARENA_MAX: the heaps of further threads are too small for large pieces


def keep(on: str) -> bool:
    """Keeps freed memory in the process, where the environment asks for that; whether it does.

    Only on a CPU, with glibc, and where the environment has no settings of malloc of its own.

    Args:
      on: the platform that JAX will run on.
    """
    if os.environ.get(TURNS_ON) != "1":
        return False
    own = "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    own = own or any(name.startswith("MALLOC_") for name in os.environ)
    if on != "cpu" or own or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        print(
            f"{TURNS_ON}: only on CPUs, with glibc and no other settings of malloc", file=sys.stderr
        )
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*option) for option in (NO_MAPPING, NO_TRIMMING, ONE_HEAP))
