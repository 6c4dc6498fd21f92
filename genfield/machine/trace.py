"""Some steps of a training under JAX's profiler: where device and host spent their time."""

import contextlib
from pathlib import Path

import jax

from genfield.machine.logbook import say

FOLDER = "profile"


class Trace:
    """Traces steps `first` to `last`, counted from 1, on process 0, into workdir/profile.

    A trace holds what devices and host did, with the loop's parts and the numbers of the steps. It
    opens in TensorBoard, XProf and Perfetto (docs/performance.md).
    """

    def __init__(self, steps: tuple[int, int] | tuple[()], workdir: Path):
        self.first, self.last = steps or (0, -1)
        self.folder, self.on = workdir / FOLDER, False

    def begins(self, step: int) -> bool:
        """Whether the trace is to start before this step: the first that is left of its steps."""
        return not self.on and self.first <= step <= self.last and jax.process_index() == 0

    def ends(self, step: int) -> bool:
        """Whether it is to end after this step."""
        return self.on and step >= self.last

    def step(self, number: int):
        """Marks what runs within as the step of this number, where a trace is on."""
        if not self.on:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def start(self) -> None:
        """Begins to trace."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of Python would slow the host several times
        jax.profiler.start_trace(self.folder, profiler_options=options)
        self.on = True

    def stop(self) -> None:
        """Ends the trace and writes it; nothing where none runs."""
        if self.on:
            self.on, self.last = False, -1
            jax.profiler.stop_trace()
            say(f"profile: {self.folder}, for TensorBoard, XProf or ui.perfetto.dev")
