"""Where a run's figures go beside metrics.jsonl: one file a logger, opened and guarded here."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genfield.errors import UserError
from genfield.machine import logbook
from genfield.registry import Logger, choose

AUTO = "auto"  # in the place of a name: those that say so, where they are installed


def named(names: Iterable[str], table: Mapping[str, Logger]) -> list[Logger]:
    """The records of `train.loggers`.

    Raises:
      UserError: an unknown name.
    """
    found = {}
    for name in names:
        if name != AUTO:
            found[name] = choose("config.train.loggers", name, {**table, AUTO: None})
            continue
        found |= {n: r for n, r in table.items() if r.automatic and installed(r)}
    return list(found.values())


def installed(record: Logger) -> bool:
    """Whether what a logger needs can be imported."""
    return record.needs is None or importlib.util.find_spec(record.needs) is not None


def check(names: Iterable[str], table: Mapping[str, Logger]) -> None:
    """Raises UserError where a logger that was asked for is not installed, or cannot start."""
    for record in named(names, table):
        if not installed(record):
            raise UserError(
                f"config.train.loggers names {record.name!r}, which needs {record.needs}: "
                f"pip install '{record.install}', or leave it out"
            )
        reason = record.against()
        if reason is not None:
            raise UserError(f"config.train.loggers: {record.name!r} {reason}")


class Loggers:
    """Opened loggers. One that fails is named in a warning and left out; a run never ends by it."""

    def __init__(self, records: Iterable[Logger], workdir: Path, config: dict, step: int):
        """Opens them on process 0: at `step`, beyond which nothing that was written stands."""
        self.opened: dict[str, Any] = {}
        for record in records if logbook.first_process() else ():
            make = lambda record=record: record.make(workdir, config=config, step=step)
            self._guarded(record.name, "start", make)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Figures of a step; split: "train", "eval" or "sample"."""
        for name, logger in list(self.opened.items()):
            self._guarded(name, f"write step {step}", logger.write, step, split, values)

    def images(self, step: int, name: str, path: Path) -> None:
        """A picture of a step. Loggers show PNGs; others stay where they are, which is said."""
        if self.opened and path.suffix != ".png":
            logbook.say(f"{', '.join(self.opened)} show no {path.suffix[1:]}: see {path}")
            return
        for each, logger in list(self.opened.items()):
            self._guarded(each, f"write a picture of step {step}", logger.images, step, name, path)

    def close(self) -> None:
        """Flushes and ends them all."""
        for name, logger in list(self.opened.items()):
            self._guarded(name, "close", logger.close)
        self.opened = {}

    def _guarded(self, name: str, what: str, call, *arguments) -> None:
        try:
            made = call(*arguments)
        except Exception as error:
            self.opened.pop(name, None)
            text = (str(error).splitlines() or [""])[0]
            logbook.say(
                f"genfield: warning: logger {name!r} could not {what} and is left out from here "
                f"on: {type(error).__name__}: {text}"
            )
            return
        if what == "start":
            self.opened[name] = made


def picture_name(path: Path) -> str:
    """Under what name a run's picture is logged, the same at every step."""
    return "samples" if path.parent.name == "samples" else path.stem
