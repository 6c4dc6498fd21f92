"""A batch of samples in pieces of about a second, so that progress shows and a signal is obeyed.

One compiled program makes any number of steps, which the host chooses by the time that the last
ones took; no sample depends on it. Several processes go by the choice of the first.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from genfield.machine import sharding
from genfield.program.experiment import Experiment
from genfield.sampling.core import Pieces, Samples, joined

SECONDS = 1.0  # that a piece is to take
GROWTH = 8  # at most, from one piece to the next


class Chunks:
    """run(params, seeds, index, x, cond, on_part) -> (Samples, finite): a batch, piece by piece.

    Args:
      stages: of the sampler. trace: as `sampling.sample` takes it.
      start: (seed_start, seed_sampler, index, x) -> where the samples start, and their keys.
      end: (Samples, where they started) -> (Samples, finite). places: shardings of its results.
    """

    def __init__(self, exp: Experiment, stages: list[Pieces], trace, start, end, places: Any):
        self.exp, self.refills = exp, bool(exp.config.sample.slots) and trace is None
        self.stages = [Stage(number, self, pieces) for number, pieces in enumerate(stages)]
        lengths = [pieces.steps for pieces in stages]
        self.total = None if None in lengths else sum(lengths)

        def opened(params, seeds, index, x, cond):
            x, keys = start(*seeds, index, x)
            return x, keys, self.stages[0].begin(params, x, cond)

        def closed(params, carry, cond, outs, x):
            outs = [*outs, self.stages[-1].finish(params, carry, cond)]
            return end(outs[0] if self.total is None else joined(outs, lengths, trace), x)

        self.open, self.close = jax.jit(opened), jax.jit(closed, out_shardings=places)

    def __call__(self, params, seeds, index, x, cond, on_part=None) -> tuple[Samples, jax.Array]:
        tell, before, outs = on_part or (lambda share, note: None), 0, []
        x, keys, carry = self.open(params, seeds, index, x, cond)
        for stage, following in zip(self.stages, [*self.stages[1:], None], strict=True):

            def on_steps(share: float, before=before, stage=stage) -> None:
                if self.total is None:
                    tell(share, f"{share:.0%} of the batch")
                else:
                    step = before + round(share * stage.pieces.steps)
                    tell(step / self.total, f"step {step}/{self.total}")

            carry = stage.run(params, keys, carry, cond, on_steps)
            before += stage.pieces.steps or 0
            if following is not None:
                out, carry = stage.hand(following)(params, carry, cond)
                outs.append(out)
        return self.close(params, carry, cond, outs, x)


class Stage:
    """A stage of the sampler: its pieces, compiled, and how many steps take about a second."""

    def __init__(self, number: int, chunks: Chunks, pieces: Pieces):
        self.chunks, self.pieces, self.size, self.timed = chunks, pieces, 1, False
        self.compiled = self.handing = None

    def begin(self, params, x, cond):
        call = lambda params, x, cond: self.pieces.begin(self._field(params, cond), x, cond)
        return self._apart(call, "pss")(params, x, cond)

    def finish(self, params, carry, cond) -> Samples:
        call = lambda params, carry, cond: self.pieces.finish(self._field(params, cond), carry)
        return self._apart(call, "pss")(params, carry, cond)

    def advance(self, params, keys, carry, cond, first, last):
        def call(params, keys, carry, cond, first, last):
            field = self._field(params, cond)
            carry = self.pieces.advance(keys, field, carry, cond, first, last)
            return carry, self.pieces.share(carry, last).ravel()

        return self._apart(call, "pssspp")(params, keys, carry, cond, first, last)

    def hand(self, following: "Stage") -> Callable:
        """(params, carry, cond) -> what this stage gave, and the carry of the next, compiled."""
        if self.handing is None:

            def hand(params, carry, cond):
                out = self.finish(params, carry, cond)
                return out, following.begin(params, out.x, cond)

            self.handing = jax.jit(hand)
        return self.handing

    def run(self, params, keys, carry, cond, on_steps: Callable[[float], None]):
        """The carry after all steps; `on_steps(share)` after each piece but the last."""
        if self.compiled is None:  # the carry stays where it is, so that one program will do
            place = jax.tree.map(lambda a: a.sharding, carry)
            whole = sharding.replicated(self.chunks.exp.mesh)
            self.compiled = jax.jit(self.advance, out_shardings=(place, whole))
        first, steps = 0, self.pieces.steps
        while True:
            last = first + self.size if steps is None else min(first + self.size, steps)
            begun = time.monotonic()
            bounds = np.int32(first), np.int32(last)
            carry, share = self.compiled(params, keys, carry, cond, *bounds)
            share = np.asarray(share)
            if np.all(share >= 1):
                return carry
            self._adapt(time.monotonic() - begun, last - first)
            on_steps(float(share.mean()))
            first = last

    def _adapt(self, seconds: float, steps: int) -> None:
        """Chooses the number of steps by what some took; the first ones took compiling too."""
        if self.timed:
            wanted = int(steps * min(SECONDS / max(seconds, 1e-9), GROWTH))
            self.size = int(sharding.from_first(np.array([max(wanted, 1)]))[0])
        self.timed = True

    def _field(self, params, cond):
        exp = self.chunks.exp
        return exp.sampler.follow(exp.objective.field(params), cond)

    def _apart(self, call: Callable, arguments: str) -> Callable:
        """`call`; with slots, on each device by itself: p of the arguments are whole, s split."""
        if not self.chunks.refills:
            return call
        known = {"p": jax.sharding.PartitionSpec(), "s": sharding.BATCH}
        places = dict(in_specs=tuple(known[a] for a in arguments), out_specs=sharding.BATCH)
        return jax.shard_map(call, mesh=self.chunks.exp.mesh, check_vma=False, **places)
