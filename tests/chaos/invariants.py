"""What must hold of a workdir, whatever struck the runs that made it.

`check` compares a finished workdir with the one of a run that nothing disturbed: what depends on
the clock is left out, all else is equal to the bit. `readable` reads it as `open_run` does, at any
moment.
"""

import contextlib
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np

from .problems import Problem

# Of the clock, of what else the machine does, or of how often a run was started again.
OF_THE_CLOCK = re.compile(
    r"(examples_per_second|\w+_seconds|mfu|wall_time_s|goodput|step_time\w*|seconds|clock|"
    r"compilation_cache|\w*_s)$"
)
TEMPORARY = re.compile(
    r"(\.new|\.unfinished|\.tmp|\.part)$|^unfinished_|orbax-checkpoint-tmp|^\.|_shards$"
)
CHECKPOINTS = "checkpoints"
LOGGER = "events."  # TensorBoard's, one more at each start, named by the time


def check(problem: Problem, workdir: Path, reference: Path) -> list[str]:
    """What is lost, wrong or too much in a finished workdir; empty where nothing is.

    Every file of the undisturbed run is there and the same, and none beside them.
    """
    found = [f"temporary: {path}" for path in temporary(workdir)]
    theirs, ours = files(reference), files(workdir)
    found += [f"missing: {name}" for name in sorted(theirs.keys() - ours.keys())]
    found += [f"too much: {name}" for name in sorted(ours.keys() - theirs.keys())]
    for name in sorted(theirs.keys() & ours.keys()):
        if what := differs(theirs[name], ours[name], reference, workdir):
            found.append(f"differs: {name}: {what}")
    return found + trained(workdir, reference)


def temporary(workdir: Path) -> list[str]:
    """Files and folders that only a run at work may have."""
    inside = [path for path in workdir.rglob("*") if TEMPORARY.search(path.name)]
    return sorted(str(path.relative_to(workdir)) for path in inside)


def torn(workdir: Path) -> list[str]:
    """Files under their final names of which only a part is there, at any moment.

    A shard of `prepare` is whole when its journal says so, and a line of metrics at its end.
    """
    found = []
    for name, path in files(workdir).items():
        if TEMPORARY.search(path.name) or "_shards/" in name:
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".npz":
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        found.append(f"torn: {name}")
        except (ValueError, zipfile.BadZipFile) as error:
            found.append(f"torn: {name}: {error}")
    return found


def files(workdir: Path) -> dict[str, Path]:
    """The files of a workdir by their names in it; checkpoints are looked at as such."""
    inside = {path.relative_to(workdir): path for path in workdir.rglob("*") if path.is_file()}
    apart = lambda name: name.parts[0] == CHECKPOINTS or name.name.startswith(LOGGER)
    return {name.as_posix(): path for name, path in inside.items() if not apart(name)}


def differs(one: Path, other: Path, *folders: Path) -> str | None:
    """In words what differs between a file and its reference; None where nothing does."""
    if one.suffix == ".npz":
        return _arrays(one, other)
    if one.suffix in (".json", ".jsonl"):
        return _told(one, other, folders)
    same = one.read_bytes() == other.read_bytes()
    return None if same else f"{digest(one)} is {digest(other)}"


def digest(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _arrays(one: Path, other: Path) -> str | None:
    with np.load(one) as wanted, np.load(other) as got:
        if wanted.files != got.files:
            return f"arrays {wanted.files} are {got.files}"
        for name in wanted.files:
            a, b = wanted[name], got[name]
            if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
                return f"array {name} {a.shape} is another, {b.shape}"
    return None


def _told(one: Path, other: Path, folders: tuple[Path, ...]) -> str | None:
    """JSON, a value or one a line, without what depends on the clock and the folder's name."""
    wanted, got = (
        [json.loads(line.replace(str(folder), "WORKDIR")) for line in _lines(path)]
        for path, folder in zip((one, other), folders, strict=True)
    )
    if len(wanted) != len(got):
        return f"{len(wanted)} lines are {len(got)}"
    for a, b in zip(wanted, got, strict=True):
        if what := _leaves(a, b, ""):
            return what
    return None


def _lines(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _leaves(a, b, place: str) -> str | None:
    """The first place where two JSON values differ, in words."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in a.keys() | b.keys():
            if OF_THE_CLOCK.match(name):
                continue
            if name not in a or name not in b:
                return f"{place}.{name} is in one alone"
            if what := _leaves(a[name], b[name], f"{place}.{name}"):
                return what
        return None
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        parts = enumerate(zip(a, b, strict=True))
        return next((w for i, (x, y) in parts if (w := _leaves(x, y, f"{place}[{i}]"))), None)
    return None if repr(a) == repr(b) else f"{place} {a!r} is {b!r}"


def trained(workdir: Path, reference: Path) -> list[str]:
    """What differs in the last checkpoint: parameters, optimiser, average, and what is counted."""
    from genfield import load_parameters

    theirs, ours = steps(reference), steps(workdir)
    if not theirs:
        return []
    if not ours or ours[-1] != theirs[-1]:
        return [f"checkpoints {theirs} are {ours}"]
    found, last = [], str(ours[-1])
    wanted, got = (meta(folder / CHECKPOINTS / last) for folder in (reference, workdir))
    if what := _leaves(wanted, got, "meta"):
        found.append(f"differs: {what}")
    for item in ("params", "ema", "optimizer"):
        if not (reference / CHECKPOINTS / last / item).exists():
            continue
        a, b = (_flat(load_parameters(f, item=item)) for f in (reference, workdir))
        if a.keys() != b.keys() or any(a[k].tobytes() != b[k].tobytes() for k in a):
            found.append(f"differs: {item} of step {last}")
    return found


def _flat(tree, place: str = "") -> dict[str, np.ndarray]:
    """The leaves of nested dicts and lists by their places."""
    if not isinstance(tree, dict | list | tuple):
        return {place: np.asarray(tree)}
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for name, part in parts for k, v in _flat(part, f"{place}/{name}").items()}


def steps(workdir: Path) -> list[int]:
    """The steps with a checkpoint, ascending."""
    folder = workdir / CHECKPOINTS
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def meta(checkpoint: Path) -> dict:
    """What a checkpoint holds beside its arrays: the step, sums since the last line, digests."""
    return json.loads((checkpoint / "meta" / "metadata").read_text())


def readable(workdir: Path) -> int | None:
    """The step that `open_run` reads; None where it says in one line that there is nothing yet.

    Raises:
      Whatever else `open_run` raises: then the folder is not readable.
    """
    from genfield import open_run
    from genfield.errors import UserError

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return open_run(workdir).step
    except UserError as error:
        if "\n" in str(error) or not re.search(r"holds no (finished )?checkpoint", str(error)):
            raise
        return None
