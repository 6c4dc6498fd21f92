"""Flipped and truncated bytes in every kind of file of a run, at rest.

A case takes a workdir, whole or as a kill left it, changes bytes of one file, and runs the same
command again. It must come to what the undisturbed run came to, or end in one line that names the
file; with the file put back, it comes there all the same. What else differs must have been told.
"""

import random
import re
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

from genfield.machine.checkpoint import DAMAGED

from . import cases, invariants
from .driver import Kind, Outcome, Zygote, answered
from .problems import MODES, PROBLEMS
from .signals import Signal

WHOLE = 0.5  # of the cases; the others begin as a kill left them
# Names of which a run has many, by what they are; the first pattern that fits.
KINDS_OF_FILES = (
    (r"checkpoints/\d+/(\w+)/.*", r"checkpoint \1"),
    (r"checkpoints/.*", "checkpoint"),
    (r"events\..*", "events"),
    (r"(figures|samples|studies|pairs)/.*(\.\w+)", r"\1 \2"),
    (r"shards/.*(\.\w+)", r"shards \1"),
)
CLEAR = re.compile(
    r"damage|cannot be (read|used)|not a readable|cannot read|is not what|differ|corrupt|"
    r"no checkpoint asked for in .* is whole"
)


class Damage(NamedTuple):
    """What was done to which file of a workdir."""

    name: str
    change: str
    before: bytes

    def __str__(self):
        return f"{self.change} of {self.name} ({len(self.before):,} bytes)"


def kind_of(name: str) -> str:
    """What kind of a file of a run a name is."""
    for pattern, kind in KINDS_OF_FILES:
        if found := re.fullmatch(pattern, name):
            return found.expand(kind)
    return name


def damage(workdir: Path, draw: random.Random) -> Damage:
    """Changes one file: a kind is drawn, then a file of the kind, then what happens to it."""
    kinds: dict[str, list[str]] = {}
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir).as_posix()
        if path.is_file() and path.stat().st_size:
            kinds.setdefault(kind_of(name), []).append(name)
    name = draw.choice(kinds[draw.choice(sorted(kinds))])
    file = workdir / name
    before = file.read_bytes()
    raw, change = changed(before, draw)
    file.write_bytes(raw)
    return Damage(name, change, before)


def changed(raw: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Other bytes, and in words how: bits flipped, the end gone, a block of zeros, nothing left."""
    change, out = draw.choice(("flip", "flip", "cut", "zeros", "empty")), bytearray(raw)
    if change == "flip":
        at = draw.randrange(len(raw))
        out[at] ^= 1 << draw.randrange(8)
        return bytes(out), f"flip at {at}"
    if change == "cut":
        at = draw.randrange(len(raw))
        return raw[:at], f"cut at {at}"
    if change == "zeros":
        at = draw.randrange(len(raw))
        out[at : at + 512] = bytes(len(out[at : at + 512]))
        return bytes(out), f"zeros at {at}"
    return b"", "no bytes"


def case(zygote: Zygote, mode: str, seed: int, folder: Path) -> cases.Found:
    """One file of one workdir, and what the same command makes of it."""
    problem, draw = PROBLEMS[mode], random.Random(f"damage {mode} {seed}")
    wanted, facts = cases.made(zygote, problem)
    workdir = folder / f"{mode}_{seed}"
    shutil.rmtree(workdir, ignore_errors=True)
    found = cases.Case(zygote, problem, workdir, wanted)
    for beside in wanted.parent.glob("*.npz"):  # what the command reads of elsewhere
        copy = folder / beside.name
        if not copy.exists() or copy.stat().st_mtime_ns != beside.stat().st_mtime_ns:
            shutil.copy2(beside, copy)
    if draw.random() < WHOLE:
        shutil.copytree(wanted, workdir)
        restate(workdir, wanted)
    else:
        problem.prepare(workdir, zygote.home)
        kill = Signal(signal.SIGKILL, seed)
        kill.aim(facts)
        found._run(kill)
    if not any(path.is_file() for path in workdir.rglob("*")):
        return found.end()._replace(seed=seed)  # killed before it wrote anything
    done = damage(workdir, draw)
    found.struck = 1
    found.story.append(str(done))
    _opened(found, done, workdir)
    _again(found, done, workdir)
    shutil.rmtree(workdir, ignore_errors=True) if not found.lost + found.silent else None
    return cases.Found(mode, seed, 1, found.lost, found.silent, found.story, found.seconds)


def restate(workdir: Path, wanted: Path) -> None:
    """A copy of a run names its own folder, where the run named itself."""
    for file in [*workdir.rglob("*.json"), *workdir.rglob("*.md")]:
        text = file.read_text()
        if str(wanted) in text:
            file.write_text(text.replace(str(wanted), str(workdir)))


def _opened(found: cases.Case, done: Damage, workdir: Path) -> None:
    """`open_run` reads the folder, or says in one line why not."""
    from genfield.errors import UserError

    copy = workdir.with_name(f"{workdir.name}_opened")  # it moves damaged checkpoints aside
    shutil.copytree(workdir, copy)
    try:
        found.story.append(f"open_run: step {invariants.readable(copy)}")
    except UserError as error:
        found.story.append(f"open_run: {error}")
        if not (tells(str(error), done.name) and CLEAR.search(str(error))):
            found.silent.append(f"open_run after {done} does not name it: {error}")
    except Exception as error:
        found.lost.append(f"open_run after {done}: {type(error).__name__}: {error}")
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def tells(text: str, name: str) -> bool:
    """Whether a text names a file, or the checkpoint that it is of."""
    parts = name.split("/")
    place = "/".join(parts[:2]) if parts[0] == "checkpoints" and len(parts) > 1 else name
    return place in text or (len(parts) > 1 and parts[0] != "checkpoints" and parts[-1] in text)


def _again(found: cases.Case, done: Damage, workdir: Path) -> None:
    """The same command comes to the same, or tells of the file and goes on when it is back."""
    out = found._run()
    if says := answered(out):
        found.silent.append(f"after {done}: {says}")
    if out.code:
        if not tells(out.output, done.name):
            found.silent.append(f"after {done} the line does not name it: {_line(out)}")
        (workdir / done.name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / done.name).write_bytes(done.before)
        out = found._run()
        if out.code:
            found.lost.append(f"with the file back it ends with {out.code}: {_line(out)}")
            return
    try:
        wrong = [one for one in found._problems() if f" {DAMAGED}" not in one]
    except ValueError as error:  # a file of JSON that is damaged still
        wrong = [f"differs: {done.name}: {error}"]
    if found.problem.needs:  # a file of the training, which this command does not make
        wrong = [one for one in wrong if not one.startswith(f"differs: {done.name}:")]
    if wrong and not (CLEAR.search(out.output) and tells(out.output, done.name)):
        found.silent += [f"after {done}: {one}" for one in wrong]


def _line(out: Outcome) -> str:
    return out.output.strip().rpartition("\n")[2][:400]


KINDS = {"damage": Kind(lambda seed: [], MODES, case)}
