"""Where compiled programs are kept, so that the next start need not compile them anew."""

import contextlib
import hashlib
import os
import platform
import time
import zlib
from pathlib import Path

from genfield.errors import local
from genfield.machine.logbook import say

KEPT = 30 * 24 * 3600  # seconds since a program was last read, after which it goes
CHECKED = "checked"  # its time says when all programs were last known to be whole
SLACK = 60.0  # seconds that clocks of a file system and a machine may differ
ENDING, ZSTD = "-cache", b"\x28\xb5\x2f\xfd"  # of the files that JAX writes
CPU = Path("/proc/cpuinfo")
FACTS = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "isa")
FACTS += ("CPU implementer", "CPU variant", "CPU part", "cpu")  # as Arm and POWER have them


def keep(asked: str | None) -> Path | None:
    """Turns JAX's compilation cache on, and returns its folder; None where it is off.

    JAX_COMPILATION_CACHE_DIR, or whoever told JAX of a folder before, wins. Programs for a CPU
    hold instructions that another may lack, and JAX does not promise to tell CPUs apart: so each
    kind of CPU has a folder of its own within the one that is asked for. A folder that cannot be
    written is told in a line, and programs are compiled as without.

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
    tidy(folder)
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


def tidy(folder: Path) -> None:
    """Removes programs that nobody has read for long, and those that a kill left half-written.

    JAX writes a program under its own name, and where there is one already, none: of a part it
    would warn, and compile anew, at every start. What was whole before is not read again.
    """
    stamp = folder / CHECKED
    last, begun = stamp.stat().st_mtime if stamp.exists() else 0.0, time.time()
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            known = file.stat()
            if time.time() - max(known.st_atime, known.st_mtime) > KEPT:
                file.unlink()
            elif known.st_mtime >= last - SLACK and file.name.endswith(ENDING):
                if not whole(file.read_bytes()):
                    file.unlink()
    stamp.touch()
    os.utime(stamp, (begun, begun))


def whole(packed: bytes) -> bool:
    """Whether a program as JAX packs it comes to its end; it uses zstd where it finds that."""
    if packed.startswith(ZSTD):
        return _unpacks(packed)
    rest = zlib.decompressobj()
    try:
        rest.decompress(packed)
    except zlib.error:
        return False
    return rest.eof


def _unpacks(packed: bytes) -> bool:
    """`whole` of zstd; what this Python cannot unpack is left alone."""
    try:
        import zstandard
    except ImportError:
        return True
    try:
        zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError:
        return False
    return True
