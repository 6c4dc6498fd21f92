"""Work beside the training: one piece at a time, whose outcome is taken up in its order."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """A thread that works while steps run; what it does must touch nothing that they change."""

    def __init__(self):
        self._threads = ThreadPoolExecutor(1)
        self._running: tuple[Future, Callable[[Any], None]] | None = None

    def start(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Runs `work` beside what follows; `finish` calls `then` with what it returned."""
        self.finish()
        self._running = self._threads.submit(work), then

    def finish(self) -> None:
        """Waits for the work, if there is any, and calls its `then`; raises what it raised."""
        if self._running is not None:
            (future, then), self._running = self._running, None
            then(future.result())
