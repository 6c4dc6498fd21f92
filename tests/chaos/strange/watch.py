"""What a process does while it reads a file: what it opens, starts and runs, and its memory."""

import contextlib
import os
import resource
import sys
import sysconfig
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[3]
# Where a program may read: its own code, what the kernel says, and nothing else.
LIBRARIES = {
    os.path.realpath(place)
    for place in (
        sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"),
        ROOT, "/proc", "/sys", "/dev", "/etc/localtime", "/usr/share/zoneinfo", "/etc/mime.types",
        *(place for place in sys.path if place),
    )
}  # fmt: skip
STARTS = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
    "subprocess.Popen", "socket.connect", "socket.bind", "urllib.Request", "webbrowser.open",
    "ctypes.dlopen", "pickle.find_class", "marshal.loads", "code.__new__",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod",
    "os.truncate", "shutil.rmtree", "shutil.move", "shutil.copyfile",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_state = {"room": None, "found": None, "on": False}


def _hook(event: str, arguments: tuple) -> None:
    if not _state["on"]:
        return
    if event == "open":
        _opened(*arguments)
    elif event in STARTS:
        if not (event == "marshal.loads" or _imports(arguments, event) or _ours(arguments)):
            _tell("executed", f"{event} {str(arguments)[:200]}")
    elif event == "exec" and arguments[0].co_filename == "<string>" and not _library():
        _tell("executed", f"exec of {arguments[0].co_names}")
    elif event in CHANGES:
        below = next((a for a in arguments[1:] if isinstance(a, int) and a >= 0), None)
        if event in ("os.remove", "os.rmdir") and below is not None:  # relative to a folder
            arguments = (f"/proc/self/fd/{below}/{arguments[0]}",)
        for place in arguments[:2]:
            if isinstance(place, str | bytes | os.PathLike) and not _inside(place):
                _tell("path", f"{event} {os.fsdecode(place)[:200]!r}")


def _imports(arguments, event: str) -> bool:
    """Whether a library is being loaded because a module is imported for the first time."""
    return event == "ctypes.dlopen" and (arguments[0] is None or _library())


def _ours(arguments: tuple) -> bool:
    """Whether this is the process in which a file of HDF5 is read first."""
    command = list(arguments[1]) if len(arguments) > 1 and arguments[1] else []
    return command[:-1] == [sys.executable, "-P", "-m", "genfield.hdf5"] and _inside(command[-1])


def _library() -> bool:
    """Whether an import is under way."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        if frame.f_code.co_name == "namedtuple" or frame.f_code.co_filename.endswith(
            ("dataclasses.py", "attr/_make.py", "inspect.py", "functools.py")
        ):
            return True
        frame = frame.f_back
    return False


def _opened(place, mode, flags) -> None:
    if isinstance(place, int) or place is None:
        return
    if flags & WRITES and not _inside(place) and str(place) != os.devnull:
        _tell("path", f"wrote {os.fsdecode(place)[:200]!r}")
    elif not _inside(place):
        real = os.path.realpath(place)
        if not any(real == root or real.startswith(f"{root}/") for root in LIBRARIES):
            _tell("path", f"read {os.fsdecode(place)[:200]!r}")


def _inside(place) -> bool:
    real, room = os.path.realpath(os.fsdecode(place)), _state["room"]
    return any(real.startswith(f"{room}/{part}") for part in ("box/", "cache", "tmp"))


def _tell(kind: str, text: str) -> None:
    _state["on"] = False  # a report opens files of its own
    _state["found"].append((kind, text))
    _state["on"] = True


def settle(room: Path, space: int) -> None:
    """This process reads hostile files from here on, in a room of its own."""
    room = room.resolve()
    for name in ("box", "cache", "tmp"):
        (room / name).mkdir(exist_ok=True)
    os.chdir(room)
    os.environ |= {
        "GENFIELD_CACHE": f"{room}/cache",
        "TMPDIR": f"{room}/tmp",
        "HOME": f"{room}/tmp",
    }
    os.environ |= {"HF_HOME": f"{room}/cache/hf", "HF_DATASETS_CACHE": f"{room}/cache/datasets"}
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # C libraries, and the program's own lines
    sys.stderr = open(os.devnull, "w")
    _state["room"] = str(room)
    sys.addaudithook(_hook)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + space, size + space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))


@contextlib.contextmanager
def watching(room: Path, found: list, bound: int):
    """Adds what is wrong of the block to a list, as (kind, words)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = _memory("VmRSS")
    out, sys.stdout = sys.stdout, open(os.devnull, "w")
    _state.update(found=found, on=True)
    try:
        yield
    finally:
        _state["on"] = False
        sys.stdout.close()
        sys.stdout = out
    used = _memory("VmHWM") - before
    if used > bound:
        found.append(("memory", f"{used >> 20} MB"))


def told(error: BaseException) -> str:
    """An exception in a line: its type, its words, and the last place of it in the package."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "genfield" in f.filename]
    words = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {words} ({' '.join(ours[-3:])})"
