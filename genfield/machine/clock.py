"""Where the wall time of a training goes: each second belongs to one part, and none is left out."""

import contextlib
import time
from collections.abc import Iterator

import jax

# The steps: handing one to the device, waiting for a device that computes, what the loop does
# beside, and reading data while the device is busy. All else is time in which no step runs.
STEPS = ("dispatch", "device", "loop", "data")
STARVED = "waiting_for_data"  # with nothing left for the device to do
CAUSES = ("start", "compiling", STARVED, "evaluation", "checkpoint", "pictures", "profile")


class Clock:
    """A watch that is always in one part of a run; `to` ends that one and begins another.

    Attributes:
      spent: seconds by part, without those of the part that runs. annotates: whether the parts
        show in a profiler's trace.
    """

    def __init__(self, part: str = "start", begun: float | None = None):
        """begun: of `time.perf_counter`, where `part` began before now."""
        self.spent: dict[str, float] = {}
        self.part = part
        self.since = time.perf_counter() if begun is None else begun
        self.annotates, self._annotation = False, None

    def to(self, part: str, was: str | None = None) -> None:
        """From now on time is of `part`; `was` names anew the one that ends."""
        now = time.perf_counter()
        ended = was or self.part
        self.spent[ended] = self.spent.get(ended, 0.0) + now - self.since
        self.part, self.since = part, now
        if self.annotates or self._annotation is not None:
            self._annotate()

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Time is of `part` while this runs, and after it of the part that it is of now."""
        before = self.part
        self.to(part)
        try:
            yield
        finally:
            self.to(before)

    def _annotate(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
        self._annotation = jax.profiler.TraceAnnotation(self.part) if self.annotates else None
        if self._annotation is not None:
            self._annotation.__enter__()

    def earlier(self, spent: dict[str, float]) -> None:
        """Adds what earlier starts of the same run spent."""
        for part, seconds in spent.items():
            self.spent[part] = self.spent.get(part, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Seconds by part, up to now."""
        self.to(self.part)
        return dict(self.spent)


def told(spent: dict[str, float]) -> dict:
    """What summary.json says: the share of the time in steps, and seconds by cause.

    Time that an earlier version did not part is in the seconds, and in no share.
    """
    steps = sum(spent.get(part, 0.0) for part in STEPS)
    known = steps + sum(spent.get(cause, 0.0) for cause in CAUSES)
    seconds = {"steps": steps} | {part: s for part, s in spent.items() if part not in STEPS}
    return {
        "goodput": round(steps / known, 4) if known else 0.0,
        "seconds": {part: round(value, 3) for part, value in seconds.items()},
    }


def line(told: dict) -> str:
    """The same in words, the causes that took most first."""
    lost = {part: s for part, s in told["seconds"].items() if part != "steps"}
    total = sum(told["seconds"].values())
    largest = sorted(lost.items(), key=lambda item: -item[1])
    shown = [f"{part.replace('_', ' ')} {s / total:.0%}" for part, s in largest if s / total > 0.01]
    return f"{told['goodput']:.0%} of it in steps" + (f"; {', '.join(shown)}" if shown else "")
