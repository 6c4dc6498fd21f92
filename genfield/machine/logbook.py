"""What a run tells: progress on the screen, metrics.jsonl, summary.json."""

import hashlib
import json
import math
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from genfield.errors import tell
from genfield.reading import json_of

SIGHT = 5.0  # seconds in which a file of another machine comes to sight
INTERVAL = {True: 0.2, False: 5.0}  # seconds between updates on a terminal, and elsewhere
PACKAGES = ("genfield", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def first_process() -> bool:
    """Whether this process is the one that prints and writes.

    JAX is imported here, not above, so that a command line's mistakes are told without it.
    """
    import jax

    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints on process 0 only, at once."""
    if first_process():
        tell(text)


def alive() -> None:
    """Sets the time of the file that GENFIELD_HEALTH names, by which a launcher sees progress."""
    if path := os.environ.get("GENFIELD_HEALTH"):
        Path(path).touch()


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers, as installed."""
    out = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def duration(seconds: float) -> str:
    """65 -> "1:05"."""
    minutes, seconds = divmod(math.ceil(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """A bar on a terminal, plain lines elsewhere: step, loss, examples/s, time left."""

    def __init__(
        self, what: str, total: int, start: int = 0, examples: int = 1, unit: str = "examples"
    ):
        self.what, self.total, self.start, self.examples = what, total, start, examples
        self.unit = unit
        self.terminal = sys.stdout is not None and sys.stdout.isatty()
        self.begun = self.shown = time.monotonic()
        alive()
        self.first = None  # (time, step) after the first step, so that rates leave compiling out

    def rate(self, step: float) -> float:
        """Examples a second since the first step; 0 before there is one to tell."""
        if self.first is None or step <= self.first[1]:
            return 0.0
        return (step - self.first[1]) * self.examples / (time.monotonic() - self.first[0])

    def update(self, step: float, note: str = "") -> None:
        """Tells that `step` of `total` are done, if it is time to; a part of one counts too."""
        now = time.monotonic()
        first = self.first is None
        if first:
            self.first = (now, step)
        last = step >= self.total
        if not (first or last) and now - self.shown < INTERVAL[self.terminal]:
            return
        self.shown = now
        alive()
        rate = self.rate(step)
        left = (self.total - step) * self.examples / rate if rate else 0
        tail = (
            f"{rate:,.{0 if rate >= 10 else 2}f} {self.unit}/s  {duration(left)} left"
            if rate
            else "compiled"
        )
        text = f"{self.what} {int(step)}/{self.total}  {note}  {tail}"
        if not first_process():
            return
        if self.terminal:
            filled = round(24 * step / self.total)
            tell(f"\r[{'#' * filled}{'.' * (24 - filled)}] {text}\033[K", end="\n" * last)
        else:
            tell(text)


class Metrics:
    """metrics.jsonl, a JSON object a line, and the loggers beside it (`machine.loggers`)."""

    def __init__(
        self, workdir: Path, step: int = 0, loggers: Any = None, saved: dict | None = None
    ):
        """Appends to the file; lines beyond `step`, of a run that was killed later, go.

        saved: what `sum` was at that step, as its checkpoint has it.
        """
        self.path, self.loggers = workdir / "metrics.jsonl", loggers
        self.active = first_process()
        if self.active:
            rows = [row for row in self._come(step, saved or {"lines": 0}) if row["step"] <= step]
            self._replace(rows)

    def _come(self, step: int, saved: dict) -> list[dict]:
        """The file's lines; what another machine has written of it may come to sight late."""
        count, end = saved["lines"], time.monotonic() + SIGHT
        while step and not (self.path.exists() and _complete(self.path) >= count):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        rows = read_metrics(self.path.parent)
        if step and not self.path.exists():
            say(f"{self.path} is not there: its lines up to step {step} are missing")
        elif count and _sum([row for row in rows if _of_training(row)][:count]) != saved:
            say(f"{self.path} is damaged, or was changed: not as it was when step {step} was saved")
        return rows

    def _replace(self, rows: list[dict]) -> None:
        replace_text(self.path, "".join(map(_line, rows)))
        self.written = {(row["step"], row["split"]) for row in rows}
        rows = [row for row in rows if _of_training(row)]
        self._count, self._text = len(rows), _sha(rows)

    def sum(self) -> dict | None:
        """How many lines a training has written, and their SHA-256; by process 0."""
        return {"lines": self._count, "digest": self._text.hexdigest()} if self.active else None

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line: {"step": …, "split": "train" | "eval" | "sample", …}; one a step and split."""
        if not self.active:
            return
        if (step, split) in self.written:  # evaluated again: the new figures stand
            rows = read_metrics(self.path.parent)
            self._replace([r for r in rows if (r["step"], r["split"]) != (step, split)])
        self.written.add((step, split))
        row = {"step": step, "split": split, **values}
        with self.path.open("a") as file:
            file.write(_line(row))
        if _of_training(row):
            self._count += 1
            self._text.update(_line(row).encode())
        if self.loggers is not None:
            self.loggers.write(step, split, values)

    def picture(self, step: int, name: str, path: Path) -> None:
        """A PNG of a step, for the loggers that show pictures."""
        if self.active and self.loggers is not None:
            self.loggers.images(step, name, path)

    def close(self) -> None:
        """Ends the loggers."""
        if self.loggers is not None:
            self.loggers.close()


def _line(row: dict) -> str:
    return json.dumps(row) + "\n"


def _of_training(row: dict) -> bool:
    """And not of an evaluation of its own, which may be made again at any time."""
    return row["split"] != "sample"


def _sha(rows: list[dict]):
    return hashlib.sha256("".join(map(_line, rows)).encode())


def _sum(rows: list[dict]) -> dict:
    return {"lines": len(rows), "digest": _sha(rows).hexdigest()}


def _complete(path: Path) -> int:
    """How many whole lines a file has."""
    return path.read_bytes().count(b"\n")


def read_metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl; a last line cut short by a kill is left out.

    Others that are damaged are left out too, and a line says how many.
    """
    path, rows, damaged = Path(workdir) / "metrics.jsonl", [], 0
    if not path.exists():
        return rows
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json_of(line)
            if type(row["step"]) is not int or not isinstance(row["split"], str):
                raise ValueError("no line of figures")
            rows.append(row)
        except (ValueError, KeyError, TypeError):
            damaged += number < len(lines)
    if damaged:
        say(f"{path} is damaged: {damaged} of its lines cannot be read and are left out")
    return rows


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    os.replace(temporary, path)


def replace_arrays(path: Path, arrays: dict) -> None:
    """`replace_text` of an .npz."""
    import numpy as np

    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def keep_older(path: Path, why: str) -> None:
    """Renames `config.json` to config.before_N.json, N one more than there is, and says so."""
    older = [p.stem.rpartition("_")[2] for p in path.parent.glob(f"{path.stem}.before_*.json")]
    number = max((int(n) for n in older if n.isdigit()), default=0) + 1
    older = path.with_name(f"{path.stem}.before_{number}.json")
    path.rename(older)
    say(f"{path} {why}: kept as {older.name}")


def write_json(path: Path, value) -> None:
    """A JSON file, by process 0, never a part of it."""
    if first_process():
        replace_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
