"""TensorBoard events in the workdir, by tensorboardX."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from genfield import registry


class TensorBoard:
    """Events of figures and pictures."""

    def __init__(self, workdir: Path, *, config: dict, step: int):
        from tensorboardX import SummaryWriter

        self.board = SummaryWriter(str(workdir), purge_step=step + 1 if step else None)
        self.failure: OSError | None = None
        self._guard()

    def _guard(self) -> None:
        """A full disk is told by the next write; tensorboardX' thread would end, and block us."""
        events = getattr(self.board.file_writer, "event_writer", None)
        worker = getattr(events, "_worker", None)
        if worker is not None:
            worker._queue.get = self._patient(worker, worker._queue.get)
        record = getattr(worker, "_record_writer", None)
        for name in ("write_event", "flush") if record is not None else ():
            setattr(record, name, self._caught(getattr(record, name)))

    def _patient(self, worker, get):
        """The clock may jump back: then its thread would wait for so long, or end."""

        def bounded(block, timeout=None):
            soon = time.time() + worker._flush_secs
            worker._next_flush_time = min(worker._next_flush_time, soon)
            return get(block, timeout and min(timeout, worker._flush_secs))

        return bounded

    def _caught(self, call):
        def guarded(*arguments):
            try:
                return call(*arguments)
            except OSError as error:
                self.failure = error

        return guarded

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._check()
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def images(self, step: int, name: str, path: Path) -> None:
        self._check()
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self.board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.board.close()
        self._check()


METHOD = registry.Logger(
    name="tensorboard",
    make=TensorBoard,
    needs="tensorboardX",
    install="genfield[tensorboard]",
    against=lambda: None,
    automatic=True,
)
