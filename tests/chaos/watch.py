"""What a process holds while it works, looked at from a thread: memory, arrays, programs, files.

    python -m tests.chaos.watch --out=FILE --every=0.25 train --workdir=… …

runs a command of genfield in this process and writes what was seen, a JSON object a line.
"""

import argparse
import ctypes
import gc
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path

COLLECT = 1.0  # seconds after which Python's collector is called: what waits for it is no growth
PAGE = os.sysconf("SC_PAGE_SIZE")
FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def allocated() -> dict[str, int]:
    """Bytes that malloc has given out, and those of its arenas that lie free (glibc)."""
    try:
        of = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return {}
    of.restype = _Mallinfo
    found = of()
    return {"malloc": found.uordblks + found.hblkhd, "malloc_free": found.fordblks}


def seen() -> dict[str, int]:
    """What this process holds now; of JAX only what has been started."""
    me = Path("/proc/self")
    out = {
        "rss": int((me / "statm").read_text().split()[1]) * PAGE,
        "maps": (me / "maps").read_bytes().count(b"\n"),
        "files": len(os.listdir(me / "fd")),
        "threads": len(os.listdir(me / "task")),
        "blocks": sys.getallocatedblocks(),
        **allocated(),
    }
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = getattr(bridge, "backends_are_initialized", lambda: False)  # it may be half imported
    if started():
        jax = sys.modules["jax"]
        out["arrays"] = len(jax.live_arrays())
        out["programs"] = len(jax.local_devices()[0].client.live_executables())
    return out


def last_step(file: Path) -> int:
    """Of the last line of metrics.jsonl; 0 before there is one."""
    try:
        with open(file, "rb") as lines:
            lines.seek(max(0, os.fstat(lines.fileno()).st_size - 4096))
            return json.loads(lines.read().rstrip(b"\n").rpartition(b"\n")[2])["step"]
    except (OSError, ValueError, KeyError):
        return 0


class Watch(threading.Thread):
    """Looks every so many seconds, until `stop`."""

    def __init__(self, out: Path, every: float, metrics: Path | None):
        super().__init__(daemon=True)
        self.out, self.every, self.metrics = out, every, metrics
        self.ended, self.error = threading.Event(), None

    def run(self) -> None:
        try:
            self._look()
        except Exception as error:  # told by `stop`
            self.error = error

    def _look(self) -> None:
        begun = collected = time.monotonic()
        with open(self.out, "w", buffering=1) as file:
            while not self.ended.wait(self.every):
                if due := time.monotonic() - collected > COLLECT:
                    gc.collect()
                    collected = time.monotonic()
                row = {"time": round(time.monotonic() - begun, 3), "collected": due, **seen()}
                if self.metrics is not None:
                    row["step"] = last_step(self.metrics)
                file.write(json.dumps(row) + "\n")

    def stop(self) -> None:
        self.ended.set()
        self.join()
        if self.error is not None:
            raise self.error


def main(argv: list[str]) -> int:
    """Runs a command under a watch; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=float, default=0.25)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    name, *given = options.command
    workdir = next((a.split("=", 1)[1] for a in given if a.startswith("--workdir=")), None)
    metrics = Path(workdir) / "metrics.jsonl" if name == "train" else None
    module, mode = "genfield.main", [f"--mode={name}"]
    if name == "prepare":
        module, mode = "genfield.prepare.__main__", []
    called = importlib.import_module(module).main
    watch = Watch(options.out, options.every, metrics)
    watch.start()
    code = called(["genfield", *mode, *given])
    watch.stop()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
