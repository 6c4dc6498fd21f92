"""Some steps of a training under JAX's profiler: where device and host spent their time."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax

from genfield.machine.logbook import say

FOLDER = "profile"


class Trace:
    """Traces steps `first` to `last`, counted from 1, on process 0, into workdir/profile.

    A trace holds what devices and host did, with the loop's parts and the numbers of the steps. It
    opens in TensorBoard, XProf and Perfetto (docs/performance.md).

    Attributes:
      on: whether these steps run; the same on all processes, as the loop then waits for the device.
      runs: whether a profiler does.
    """

    def __init__(self, steps: tuple[int, int] | tuple[()], workdir: Path):
        self.first, self.last = steps or (0, -1)
        self.folder, self.on, self.runs = workdir / FOLDER, False, False

    def begins(self, step: int) -> bool:
        """Whether the trace is to start before this step: the first that is left of its steps."""
        return not self.on and self.first <= step <= self.last

    def ends(self, step: int) -> bool:
        """Whether it is to end after this step."""
        return self.on and step >= self.last

    def step(self, number: int):
        """Marks what runs within as the step of this number, where a trace is on."""
        if not self.runs:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def start(self) -> None:
        """Begins to trace; where the profiler cannot, a line says so and training goes on."""
        self.on = True
        if jax.process_index() != 0:
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # tracing every call of Python slows the host
        self.runs = self._tried(
            lambda: jax.profiler.start_trace(self.folder, profiler_options=options)
        )

    def stop(self) -> None:
        """Ends the trace and writes it; nothing where none runs."""
        if not self.on:
            return
        runs, self.on, self.runs, self.last = self.runs, False, False, -1
        if runs and self._tried(jax.profiler.stop_trace):
            say(f"profile: {self.folder}, for TensorBoard, XProf or ui.perfetto.dev")

    def _tried(self, change: Callable[[], None]) -> bool:
        try:
            change()
            return True
        except Exception as error:  # of whatever kind a device's profiler raises
            line = (str(error).splitlines() or [type(error).__name__])[0]
            say(f"genfield: warning: these steps are not traced: {line}")
            return False
