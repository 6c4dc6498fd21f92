"""Faults of what is around a run: limits, its folder, its data, its config, a second process.

None of these needs the shim.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import invariants, shim
from .driver import Kind, in_turn
from .problems import (
    CONFIG,
    MODES,
    PROBLEMS,
    data_of,
    examples,
    images_of,
    page_of,
    reference,
    write_data,
    write_page,
)
from .signals import send, state, until_used

MEGABYTE = 1 << 20
BEGUN = 0.3  # processor seconds of an interpreter before which nothing keeps a signal waiting
OBEYED = 30.0  # seconds in which a signal ends a run whose data are slow


class Fault:
    """A fault that is drawn from a seed; what it is at a run is said in `what`."""

    name = "none"

    def __init__(self, seed: int):
        self.seed, self.what, self.seconds = seed, "", 0.0
        self.draw = random.Random(f"{self.name} {seed}")
        self.share = self.draw.random()

    def aim(self, facts) -> None:
        """When it strikes, in processor seconds of the run."""
        self.seconds = self.share * facts.seconds

    def __str__(self):
        return f"{self.name} ({self.what or f'at {self.seconds:.2f} s'})"


# ---- Limits of a process


class OpenFiles(Fault):
    """Few files may be open at once."""

    name = "file_descriptors"

    def __init__(self, seed: int):
        super().__init__(seed)
        self.spare = self.draw.randint(4, 40)
        self.what = f"{self.spare} more"

    def child(self) -> None:
        """In the run's process, which has some open already."""
        most = len(os.listdir("/proc/self/fd")) + self.spare
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Memory(Fault):
    """The address space ends; what C++ says and does then is its own affair."""

    name = "memory"

    def __init__(self, seed: int):
        super().__init__(seed)
        self.spare = int(2 ** self.draw.uniform(4, 10.5))
        self.what = f"{self.spare} MB more"

    def child(self) -> None:
        """In the run's process, which has some memory already."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + self.spare * MEGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def answered(self, out) -> str | None:
        """It ends well, or with a word; a crash of C++ has one of its own."""
        return None if out.code == 0 or out.output.strip() else f"exit code {out.code}, no word"


class FileSize(Fault):
    """No file may be larger."""

    name = "file_size"

    def __init__(self, seed: int):
        super().__init__(seed)
        self.most = int(2 ** self.draw.uniform(13, 17))
        self.what = f"{self.most} bytes"

    def child(self) -> None:
        """In the run's process."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.most))


# ---- The folder of the run, its config, its data


class Moved(Fault):
    """Something is not where it was, from some instant on; afterwards it is put back.

    what is moved: the workdir.
    """

    name = "deleted_workdir"

    def place(self, workdir: Path) -> Path:
        """What is moved."""
        return workdir

    def aside(self, workdir: Path) -> Path:
        """Where to."""
        return workdir.with_name(f"{workdir.name}.moved")

    def parent(self, pid: int, workdir: Path) -> None:
        """Beside the run."""
        until_used(pid, self.seconds)
        if state(pid) != "Z" and self.place(workdir).exists():
            self.place(workdir).rename(self.aside(workdir))

    def landed(self, out) -> bool:
        """Whether it met the run."""
        return self.struck

    struck = True

    wanted: Path | None = None

    def meet(self, problem, workdir: Path, home: Path, counted) -> None:
        """What the run must come to."""
        self.mode, self.wanted = problem.mode, reference(problem.mode, home)

    def mend(self, workdir: Path) -> None:
        """Puts it back; what the run made in its place goes, but a whole result of its own."""
        place, aside = self.place(workdir), self.aside(workdir)
        self.struck = aside.exists()
        if not self.struck:
            return
        if place.is_dir() and self._whole(place):  # begun where nothing was yet: it is as good
            shutil.rmtree(aside)
            return
        if place.is_dir():
            shutil.rmtree(place)
        aside.rename(place)

    def _whole(self, place: Path) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return not invariants.check(PROBLEMS[self.mode], place, self.wanted)
        return False


class NoData(Moved):
    """The data file vanishes; what is read by memory map lives on."""

    name = "vanishing_data"

    def place(self, workdir: Path) -> Path:
        """The file."""
        return data_of(workdir)

    def aside(self, workdir: Path) -> Path:
        """Beside it."""
        return workdir.with_name(f"{workdir.name}.moved.npy")


class SlowData(shim.AtFiles):
    """Each read of the images takes long, as from a server far away; SIGTERM may come meanwhile."""

    def __init__(self, seed: int):
        super().__init__("slow_data", seed)
        draw = random.Random(f"slow_data {seed}")
        self.waits, self.share = int(2 ** draw.uniform(2, 9)), draw.random()
        self.ends = draw.random() < 0.5

    def aim(self, facts) -> None:
        """When SIGTERM comes, in processor seconds of the run."""
        self.seconds = max(self.share * facts.seconds, BEGUN)

    def meet(self, problem, workdir: Path, home: Path, counted) -> None:
        """Where the images are."""
        count = workdir.with_name(f"{workdir.name}.calls")
        self.told = dict(slow=self.waits, under=images_of(problem, workdir), count=count)

    def parent(self, pid: int, workdir: Path) -> None:
        """Beside the run: a signal is obeyed, however slow the data are."""
        if not self.ends:
            return
        until_used(pid, self.seconds)
        asked = time.monotonic()
        send(pid, signal.SIGTERM)
        while state(pid) != "Z":
            time.sleep(0.02)
        self.took = time.monotonic() - asked

    took = 0.0

    def answered(self, out) -> str | None:
        """It goes on, or has ended soon after it was told to."""
        late = f"it ended {self.took:.0f} s after SIGTERM" if self.took > OBEYED else None
        return late or super().answered(out)

    def __str__(self):
        return f"slow_data ({self.waits} ms a read{', SIGTERM' if self.ends else ''})"


def _written(file: Path) -> int | None:
    """When a file was written, if it is there."""
    return file.stat().st_mtime_ns if file.exists() else None


class OtherData(Fault):
    """The data file changes in place, is cut, or becomes another one; afterwards it is put back."""

    name = "changing_data"

    def __init__(self, seed: int):
        super().__init__(seed)
        self.what = self.draw.choice(("changed", "cut", "replaced"))

    def meet(self, problem, workdir: Path, home: Path, counted) -> None:
        """What the start before has written."""
        self.before = _written(workdir / "data.json")

    def parent(self, pid: int, workdir: Path) -> None:
        """Beside the run, which has read what the data are."""
        until_used(pid, self.seconds)
        while _written(workdir / "data.json") == self.before:
            if state(pid) == "Z":
                return
            time.sleep(0.01)
        self.struck = state(pid) != "Z"
        file = data_of(workdir)
        if self.what == "cut":
            os.truncate(file, 4096)
        elif self.what == "changed":
            with file.open("r+b") as stream:
                stream.seek(file.stat().st_size // 2)
                stream.write(np.ones(64, np.float32).tobytes())
        else:
            other = file.with_name(f"{file.stem}.other.npy")
            np.save(other, examples(1))
            other.replace(file)

    struck = False

    def landed(self, out) -> bool:
        """Whether the run was there."""
        return self.struck

    def mend(self, workdir: Path) -> None:
        """Puts the old one back."""
        write_data(workdir)


class Config(Fault):
    """The page, or the run's config.json, is another one before the run goes on."""

    name = "changed_config"

    def __init__(self, seed: int):
        super().__init__(seed)
        self.what = self.draw.choice(("comment", "width", "seed", "syntax", "gone"))

    def meet(self, problem, workdir: Path, home: Path, counted) -> None:
        """Before the run starts."""
        page, old = page_of(workdir), CONFIG.read_text()
        if not (workdir / "config.json").exists():  # nothing has begun that could be another
            self.what = "comment"
        text = {
            "comment": f"# a comment\n{old}",
            "width": old.replace("width=16", "width=24"),
            "seed": old.replace("return config", "config.seed = 7\n    return config"),
            "syntax": old[:-40],
        }
        if self.what == "gone":
            page.unlink()
        else:
            page.write_text(text[self.what])

    def mend(self, workdir: Path) -> None:
        """The page as it was."""
        write_page(workdir)


class Killed(Fault):
    """A kill before another fault, so that there is something to go on from."""

    name = "killed"

    def parent(self, pid: int, workdir: Path) -> None:
        """Beside the run."""
        until_used(pid, self.seconds)
        if state(pid) != "Z":
            os.kill(pid, 9)

    def landed(self, out) -> bool:
        """It counts as no fault: the one behind it does."""
        return False

    def answered(self, out) -> str | None:
        """Nobody can say anything."""
        return None


def after_a_kill(make: Callable[[int], Fault]) -> Callable[[int], list[Fault]]:
    """seed -> a kill, and then the fault."""
    return lambda seed: [Killed(seed), make(seed)]


# ---- Two processes


class Twice(Fault):
    """The same command is started once more while it runs."""

    name = "two_processes"

    def __init__(self, seed: int):
        super().__init__(seed)
        self.second = None

    def meet(self, problem, workdir: Path, home: Path, counted) -> None:
        """Which command."""
        self.problem, self.home = problem.mode, home

    def parent(self, pid: int, workdir: Path) -> None:
        """Beside the run: the second is told of the first, or works when that is done."""
        from .driver import answered

        until_used(pid, self.seconds)
        out = other_zygote(self.home).run(PROBLEMS[self.problem], workdir)
        self.what = out.output.strip().rpartition("\n")[2][:160]
        self.second = out.code, answered(out)

    def answered(self, out) -> str | None:
        """Both went on, or said in a line why not; one of them came to its end."""
        from .driver import answered

        if self.second[1]:
            return f"the second: {self.second[1]}"
        if out.code and self.second[0]:
            return f"both ended with an error: {out.output[-500:]}; {self.what}"
        return answered(out)


_other = []


def other_zygote(home: Path):
    """A second fork server, for the second process."""
    from .driver import Zygote

    if not _other:
        _other.append(Zygote(home))
    return _other[0]


KINDS = {
    "file_descriptors": Kind(in_turn(OpenFiles), MODES),
    "memory": Kind(in_turn(Memory), MODES),
    "file_size": Kind(in_turn(FileSize), MODES),
    "deleted_workdir": Kind(in_turn(Moved), MODES),
    "vanishing_data": Kind(in_turn(NoData), ("train_arrays",)),
    "changing_data": Kind(in_turn(OtherData), ("train_arrays",)),
    "changed_config": Kind(after_a_kill(Config), ("train_page",)),
    "two_processes": Kind(Twice, MODES),
}
if shim.COMPILER:  # what another machine has just written is of use to one that goes on
    KINDS["slow_data"] = Kind(in_turn(SlowData), ("train_pictures", "prepare"))
    KINDS["stale"] = Kind(after_a_kill(shim.Make("stale")), ("train",))
