"""The training loop: restore, step, log, evaluate, save, stop when told to."""

import contextlib
import math
from collections import deque
from typing import Any, NamedTuple

import jax
import numpy as np

from genfield.data import identity
from genfield.errors import UserError, mendable
from genfield.figures import run as figures
from genfield.machine import headroom, logbook, peers, preemption, processes
from genfield.machine.background import Background
from genfield.machine.checkpoint import NonFinite
from genfield.machine.clock import STARVED, Clock
from genfield.machine.logbook import say
from genfield.machine.trace import Trace
from genfield.program import (
    config_io,
    evaluate,
    experiment,
    fault,
    generate,
    match_sets,
    optimizer,
    speed,
    train_step,
)
from genfield.program import pictures as grids
from genfield.program.experiment import Experiment
from genfield.program.open_run import open_checkpoints, restore

LAG = 2  # steps dispatched before a step's figures are read: the device never waits for them


class Sent(NamedTuple):
    """A step that the device was given: its number from 0, what it gives and what it was fed.

    rate: its learning rate, where a line tells it.
    """

    step: int
    metrics: dict
    batch: dict
    rate: Any


class Loop:
    """One training run in one process; what it changes is here, the rest is in `Experiment`."""

    def __init__(self, exp: Experiment, evaluator: evaluate.Evaluator, clock: Clock | None = None):
        """clock: began with the program, where it did."""
        self.exp, self.config, self.evaluator = exp, exp.config, evaluator
        self.clock, self.pace = clock or Clock(), None
        self.trace, self.aside = Trace(self.config.profile, exp.workdir), Background()
        self.best_key = evaluator.best_key()
        self.checkpoints = open_checkpoints(exp, self.best_key)
        found = restore(exp, self.checkpoints)
        with self.clock.within("compiling"):
            self.state, meta = found if found else (exp.init(), {})
        self.step = meta.get("step", 0)
        if self.step > self.config.train.steps:
            raise UserError(
                f"{exp.workdir} is at step {self.step}, beyond config.train.steps "
                f"{self.config.train.steps}: set at least {self.step}, or choose another --workdir"
            )
        self.window = meta.get("window", {})  # sums of the figures since the last line
        self.counted = meta.get("counted", 0)
        older = {"earlier_version": meta["wall_time_s"]} if "wall_time_s" in meta else {}
        self.clock.earlier(meta.get("clock", older))
        self.metrics = experiment.open_metrics(exp, self.step, meta.get("metrics"))
        self.pending: deque[Sent] = deque()  # whose figures are not read yet
        self.last_eval: tuple[int, dict, dict] = (-1, {}, {})  # step, held-out, samples
        self.evaluated = meta.get("evaluated", self.step)  # the last evaluation may have been cut
        self.progress, self.paces = None, peers.Paces()
        self.rate = optimizer.schedule(self.config.optimizer, self.config.train.steps)
        if self.step:
            say(f"resuming at step {self.step}")
            self._tell_schedule()
        if self.config.profile and self.config.profile[1] <= self.step < self.config.train.steps:
            say(f"profile: steps {self.config.profile} are behind; none is traced")

    def run(self) -> None:
        """Trains to `train.steps`; raises preemption.Preempted after saving."""
        try:
            self._train()
        except BaseException:
            for end in (self.aside.finish, self.trace.stop):
                with contextlib.suppress(Exception):  # what ended the training is told
                    end()
            self.metrics.close()  # what was logged is sent, whatever ended the training
            raise

    def _train(self) -> None:
        config, steps = self.config, self.config.train.steps
        if self.step < steps:
            say("compiling the train step …")
            self.clock.to("loop")
        step = experiment.jit_train_step(self.exp)
        self.progress = logbook.Progress("step", steps, self.step, config.batch_size)
        batches = match_sets.batches(self.exp, self.step)
        every = config.train.eval_every
        due = every and 0 < self.step < steps and self.step % every == 0
        if due and self.evaluated != self.step:
            self._evaluate()
            self._save()  # its figures join the checkpoint that the signal left
        while self.step < steps:
            if preemption.reached():
                self._stop()
            self._advance(step, batches)
            if every and self.step % every == 0 and self.step < steps:
                self._evaluate()
            if self.step % config.checkpoint.every == 0 and self.step < steps:
                self._save()
        self._settle(0)
        if self.last_eval[0] != self.step:
            self._evaluate()
        self._save()
        with self.clock.within("checkpoint"):
            self.checkpoints.wait()

    def _advance(self, step, batches) -> None:
        """Hands a step to the device, and reads the figures of the one that is LAG before it."""
        if self.trace.begins(self.step + 1):
            self._trace(self.trace.start)
        self.clock.to("data")
        batch = {"step": np.int32(self.step)} | self._next(batches)
        busy = self.pending and not self.pending[-1].metrics["loss"].is_ready()
        self.clock.to("dispatch", None if busy else STARVED)
        if self.pace is None:
            self.clock.to("compiling")
            peak = speed.peak_seconds(self.exp, step, self.state, batch)
            self.pace = speed.Pace(self.clock, peak)
        with self.trace.step(self.step + 1):
            self.state, metrics = step(self.state, batch)
        self.clock.to("loop")
        told = (self.step + 1) % self.config.train.log_every == 0
        # Computed behind the step, and read with its figures: nothing waits for it.
        rate = self.rate(self.step) if told else None
        self.pending.append(Sent(self.step, metrics, batch, rate))
        self.step += 1
        self._settle(LAG)
        if self.trace.ends(self.step):
            self._trace(self.trace.stop)

    def _trace(self, change) -> None:
        """Starts or ends the profiler's trace, with no step on the device."""
        self._settle(0)
        with self.clock.within("profile"):
            change()
        self.clock.annotates = self.trace.runs

    def _tell_schedule(self) -> None:
        """Says where another number of steps reshapes the schedule from here on."""
        stored = self.exp.workdir / "config.json"
        if not stored.exists():
            return
        old = config_io.from_file(stored).train.steps
        before = optimizer.schedule(self.config.optimizer, old)
        rates = [float(of(self.step)) for of in (before, self.rate)]
        if rates[0] != rates[1]:
            say(
                f"train.steps is {self.config.train.steps} and was {old}: the schedule is another, "
                f"with a learning rate of {rates[1]:.4g} here, where it was {rates[0]:.4g}"
            )

    def _next(self, batches) -> dict:
        """The next batch; data that cannot be read end the run, not what it has learned."""
        try:
            return next(batches)
        except UserError:
            if jax.process_count() == 1:  # one process alone cannot save what all hold
                self._save()
                self.checkpoints.wait()
            raise

    def _stop(self):
        self._save()
        self.checkpoints.wait()
        say(f"saved step {self.step} of {self.config.train.steps}; the same command goes on")
        raise preemption.Preempted

    def _settle(self, leave: int) -> None:
        """Reads the figures of all but the last `leave` steps."""
        while len(self.pending) > leave:
            sent = self.pending.popleft()
            self.clock.to("device")
            values = {k: float(v) for k, v in jax.device_get(sent.metrics).items()}
            self.clock.to("loop")
            try:
                train_step.check_finite(sent.step, values)
            except FloatingPointError as error:
                self._end(sent.step, sent.batch, values, error)
            del values["finite"]
            for name, value in values.items():
                self.window[name] = self.window.get(name, 0.0) + value
            self.counted += 1
            self.pace.done += 1
            if sent.rate is not None:
                self._log(sent.step + 1, float(sent.rate))
            self.progress.update(sent.step + 1, f"loss {values['loss']:.4g}{self.pace.note}")

    def _log(self, step: int, learning_rate: float) -> None:
        self._take_up()
        means = {name: total / self.counted for name, total in self.window.items()}
        rate, pace = round(self.progress.rate(step), 1), self.pace.line()
        known = {"learning_rate": learning_rate, "examples_per_second": rate, **pace}
        self.metrics.write(step, "train", means | known)
        self.window, self.counted = {}, 0
        if late := self.paces.tell(pace["step_seconds"], pace["device_seconds"]):
            say(late)

    def _take_up(self) -> None:
        """Waits for the picture that is drawn beside the steps, and hands it to the loggers."""
        if self.aside.busy:  # on all processes, though the first alone draws
            with self.clock.within("pictures"), processes.together():
                self.aside.finish()

    def _evaluate(self) -> None:
        self._settle(0)
        self._take_up()
        with self.clock.within("evaluation"):
            self._evaluated()

    def _evaluated(self) -> None:
        params, num = generate.parameters(self.exp, self.state), self.config.train.eval_samples
        held = self.evaluator.heldout(params)
        drawn = self._measure(params, num) if num else {}
        self.last_eval = (self.step, held, drawn)
        if not held | drawn:  # nothing is held out, and no samples are asked for
            return
        self.metrics.write(self.step, "eval", held | drawn)
        shown = "  ".join(f"{k} {v:.4g}" for k, v in (held | drawn).items())
        line = "\n" if self.progress.terminal else ""
        say(f"{line}held-out at step {self.step}: {shown}")

    def _measure(self, params, num: int) -> dict[str, float]:
        """The figures of a few samples, and a picture of them; a signal meanwhile is obeyed."""

        def poll(done, note="") -> None:
            logbook.alive()  # it shows no progress of its own, and may take long
            preemption.poll()

        try:
            out = self.evaluator.samples(params, num, 1, poll)
            pictures = out.images
            if pictures is None and len(self.exp.data.shape) == 3:
                count, draw = evaluate.pictured(self.config), self.evaluator.draw
                pictures = grids.drawn(self.exp, draw, params, count, out.seeds[0], poll)
        except preemption.Preempted:
            self.last_eval = (-1, {}, {})
            self._stop()
        except UserError as error:  # samples that diverged: no reason to end a training
            say(f"not measured at step {self.step}: {error}")
            return {}
        if pictures is not None:
            step, path = self.step, self.exp.workdir / "samples" / f"step_{self.step}.png"
            first = jax.process_index() == 0
            self.aside.start(
                lambda: figures.image_grid(path, pictures) if first else None,
                lambda path: self.metrics.picture(step, "samples", path) if first else None,
            )
        return out.results

    def _save(self) -> None:
        """Saves what was learned, unless it was learned of other data than the run's."""
        self._settle(0)
        with processes.together():
            identity.check_unchanged()
            headroom.check()
        self._take_up()  # who goes on from here does not draw it again
        try:
            with self.clock.within("checkpoint"):
                self._saved()
        except NonFinite as error:
            self._end(self.step, {"step": np.int32(self.step)}, {}, error)

    def _saved(self) -> None:
        meta = {
            "data": self.exp.data.state(self.step),
            "window": self.window,
            "counted": self.counted,
            "clock": self.clock.read(),
            "evaluated": self.last_eval[0],
            "metrics": self.metrics.sum(),
        }
        metrics = None
        if self.last_eval[0] == self.step:
            metrics = self.last_eval[1] | self.last_eval[2]
            best = self.config.checkpoint.best_metric
            best = metrics.get(self.evaluator.aliases().get(best, best))
            best = best if best is not None and math.isfinite(best) else None
            metrics = None if best is None else metrics | {self.best_key: best}
        self.checkpoints.save(self.step, train_step.held(self.state), meta, metrics)

    def wall_time(self) -> float:
        """Seconds spent on this run so far, earlier starts included."""
        return sum(self.clock.read().values())

    def _end(self, step: int, batch: dict, values: dict, error: Exception):
        """Writes what makes a non-finite step again, and raises.

        The state stayed as it was before that step. Where it is finite it is saved as its
        checkpoint, so running the same command again meets the same step.
        """
        processes.check_memory()
        self.pending.clear()
        self.step, kept, gone, found = step, True, "", None
        try:
            self._take_up()
            self._saved()
            self.checkpoints.wait()
        except NonFinite:
            kept = False
        try:
            meta = {"data": self.exp.data.state(step)}
            found, gone = fault.dump(self.exp, self.state, batch, meta, values)
            folder = fault.folder_of(self.exp.workdir, step)
            told = f"genfield replay --workdir={folder} makes it again from its dump{gone}"
        except Exception as problem:  # a full disk, say: what ended the training is told
            why = mendable(problem) or str(problem).partition("\n")[0][:120]
            told = f"its dump could not be written ({why})"
        what = str(error) if found is None else f"step {step} is not finite, first its {found}"
        saved = f"The state before it is in checkpoints/{step}; " if kept else ""
        raise UserError(f"{what}. {saved}{told}; {_mend(found)}") from error

    def close(self) -> None:
        """Ends the run's files."""
        self.metrics.close()
        self.checkpoints.close()


def _mend(found: fault.Fault | None) -> str:
    """What to do about a step that is not finite: its data may be to blame, not how it learns."""
    cause = None if found is None else found.cause
    if cause in fault.BEFORE.values():
        return "no step made it so: the same command goes on from the last checkpoint, all finite"
    if cause == "data":
        return "its data hold NaN or infinity: mend them"
    return "try a smaller learning rate or optimizer.clip_norm, in a new workdir"
