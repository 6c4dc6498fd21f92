"""Where compiled programs are kept, so that the next start need not compile them anew."""

import contextlib
import hashlib
import os
import platform
import time
from pathlib import Path

from genfield.errors import local
from genfield.machine.logbook import say

KEPT = 30 * 24 * 3600  # seconds since a program was last read, after which it goes
CPU = Path("/proc/cpuinfo")
FACTS = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "isa")
FACTS += ("CPU implementer", "CPU variant", "CPU part", "cpu")  # as Arm and POWER have them


def keep(asked: str | None) -> Path | None:
    """Turns JAX's compilation cache on, and returns its folder; None where it is off.

    JAX_COMPILATION_CACHE_DIR, or whoever told JAX of a folder before, wins. Programs for a CPU
    hold instructions that another may lack, and JAX's keys do not tell CPUs apart: so each kind of
    CPU has a folder of its own within the one that is asked for. A folder that cannot be written is
    told in a line, and programs are compiled as without.

    Args:
      asked: `config.compilation_cache`: a folder; None: one in the user's cache; "": none.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    given = jax.config.jax_compilation_cache_dir
    if given:
        return Path(given)
    if asked == "":
        return None
    folder = (default() if asked is None else Path(asked).expanduser().absolute()) / kind_of_cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        say(f"compiled programs are not kept: cannot write in {folder} ({error.strerror})")
        return None
    _forget(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()  # it may have looked for its folder before
    return folder


def default() -> Path:
    """`compiled` in $GENFIELD_CACHE, $XDG_CACHE_HOME/genfield or ~/.cache/genfield."""
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    own = os.environ.get("GENFIELD_CACHE") or f"{shared}/genfield"
    return local(own, "the cache folder") / "compiled"


def kind_of_cpu() -> str:
    """Sixteen hex digits, the same on machines with the same model and features of the CPU.

    Where the system does not tell these, they are of this very machine.
    """
    about = [platform.system(), platform.machine()]
    try:
        lines = CPU.read_text().split("\n\n")[0].splitlines()  # of the first core
        about += sorted(line for line in lines if line.partition(":")[0].strip() in FACTS)
    except OSError:
        about.append(platform.node())
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]


def _forget(folder: Path) -> None:
    """Removes programs that nobody has read for long."""
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            known = file.stat()
            if time.time() - max(known.st_atime, known.st_mtime) > KEPT:
                file.unlink()
