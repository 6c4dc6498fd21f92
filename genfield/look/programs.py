"""A sampler compiled for its numbers of steps, with step sizes as arguments, run in pieces.

Between the pieces the clock is looked at: what takes too long ends with one line.
"""

import time
from collections.abc import Sequence

import jax
import numpy as np

from genfield import registry
from genfield.errors import UserError
from genfield.program.experiment import Experiment
from genfield.program.methods import package
from genfield.program.sampler import POSITIONS, Course, Stage
from genfield.rng import fold_in
from genfield.sampling import Samples, stopping
from genfield.sampling.core import Pieces, joined, pieces, stage_trace

PIECE = 0.3  # seconds that a piece is to take
GROWTH = 8  # at most, from one piece to the next


def sized(stage: Stage) -> bool:
    """Whether a stage is made for any step size at once: not those of one's own, which may ask
    what number it is, and not where the steps follow from their number."""
    ours = package()[registry.Sampler].get(stage.method.name) is stage.method
    return ours and stage.arguments.get("step_size") is not None


class TooLong(UserError):
    """A computation that was ended by the clock."""


class Program:
    """run(params, keys [B], x [B, *D], cond, sizes, seconds) -> Samples with a trace.

    As `sampling.chain` gives them, to rounding; sizes: of each stage its step size, or 0.

    Args:
      made: the sampler and the field it follows. sections: of its stages, in the config's words.
    """

    def __init__(self, exp: Experiment, made: Course, sections: Sequence[dict]):
        self.exp, self.made, self.sections = exp, made, sections
        self.lengths = [stage.num_steps for stage in made.stages]
        self.every = max(1, -(-sum(self.lengths) // POSITIONS))
        static = dict(static_argnums=0)
        self._begin = jax.jit(self._begin_stage, **static)
        self._advance = jax.jit(self._advance_stage, **static)
        self._finish = jax.jit(self._finish_stage, **static)

    def _pieces(self, number: int, sizes) -> Pieces:
        stage = self.made.stages[number]
        if stage.method.adaptive:
            return stage.method.pieces(**stage.arguments, trace=POSITIONS)
        every = stage_trace(self.every, stage.num_steps)
        return pieces(
            self._sampler(stage, self.sections[number], sizes[number]), stage.num_steps, every
        )

    def _sampler(self, stage: Stage, section: dict, size):
        """A stage's sampler with its step size put in; its other arguments stand."""
        if not sized(stage):
            return stage.sampler
        sampler = stage.method.make(**stage.arguments | {"step_size": size})
        if stage.rule is None:
            return sampler
        rules = self.exp.methods[registry.StopRule]
        return stopping(sampler, registry.build("sampler.stop", rules, section["stop"]))

    def _field(self, params, cond):
        return self.made.follow(self.exp.objective.field(params), cond)

    def _begin_stage(self, number, params, x, cond, sizes):
        return self._pieces(number, sizes).begin(self._field(params, cond), x, cond)

    def _advance_stage(self, number, params, keys, carry, cond, sizes, first, last):
        run, field = self._pieces(number, sizes), self._field(params, cond)
        keys = keys if self.made.stages[0].method.adaptive else fold_in(keys, number)
        carry = run.advance(keys, field, carry, cond, first, last)
        return carry, run.share(carry, last)

    def _finish_stage(self, number, params, carry, cond, sizes):
        return self._pieces(number, sizes).finish(self._field(params, cond), carry)

    def __call__(self, params, keys, x, cond, sizes, seconds: float) -> Samples:
        """Raises TooLong after so many seconds."""
        until, outs, sizes = time.monotonic() + seconds, [], np.asarray(sizes, np.float32)
        for number in range(len(self.made.stages)):
            x = outs[-1].x if outs else x
            carry = self._begin(number, params, x, cond, sizes)
            carry = self._run(number, params, keys, carry, cond, sizes, until)
            outs.append(self._finish(number, params, carry, cond, sizes))
        if self.made.stages[0].method.adaptive:
            return jax.device_get(outs[0])
        return jax.device_get(joined(outs, self.lengths, self.every))

    def _run(self, number, params, keys, carry, cond, sizes, until: float):
        """The carry of a stage after all its steps."""
        steps = None if self.made.stages[0].method.adaptive else self.lengths[number]
        first, size, timed = 0, 1, False
        while True:
            last = first + size if steps is None else min(first + size, steps)
            begun, bounds = time.monotonic(), (np.int32(first), np.int32(last))
            carry, share = self._advance(number, params, keys, carry, cond, sizes, *bounds)
            if np.all(np.asarray(share) >= 1):
                return carry
            now = time.monotonic()
            if now > until:
                raise TooLong(
                    "this took too long and was stopped: fewer samples or steps, or larger steps"
                )
            if timed:  # the first one may have been compiled
                wanted = (last - first) * min(PIECE / max(now - begun, 1e-9), GROWTH)
                size = max(1, int(wanted))
            first, timed = last, True
