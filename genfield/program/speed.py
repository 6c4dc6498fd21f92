"""The share of the chips' peak that a training reaches: model FLOPs utilisation (MFU).

As PaLM defines it (arXiv:2204.02311, appendix B): what the step must compute, over what the chips
could compute in the time that it took. What rematerialisation computes again is left out.
"""

import jax

from genfield import registry
from genfield.machine import chips, flops
from genfield.machine.clock import STARVED, STEPS, Clock
from genfield.nets import layers
from genfield.program import experiment
from genfield.program.experiment import Experiment
from genfield.program.train_step import TrainState
from genfield.registry import Methods

NOTABLE = 0.05  # of the time, from which on the progress tells that the device waits for data


class Pace:
    """Seconds of a step by what the host did meanwhile, between lines of metrics.jsonl and in all.

    Attributes:
      peak: seconds of a step at the chips' peak; None: not known. done: steps that ended.
      note: of the last line, what the progress shows: the MFU, and a device that waits for data.
    """

    def __init__(self, clock: Clock, peak: float | None):
        self.clock, self.peak, self.done, self.note = clock, peak, 0, ""
        self.first = self.last = self._now()

    def _now(self) -> tuple[int, dict[str, float]]:
        spent = self.clock.read()
        return self.done, {part: spent.get(part, 0.0) for part in (*STEPS, STARVED)}

    def line(self) -> dict[str, float]:
        """The means since the last line, as they stand in metrics.jsonl."""
        spent, self.last = self._since(self.last), self._now()
        out, waits = self._told(spent), spent[STARVED] / sum(spent.values())
        self.note = f"  MFU {out['mfu']:.1%}" if "mfu" in out else ""
        self.note += f"  waits for data {waits:.0%}" if waits > NOTABLE else ""
        return out

    def whole(self) -> dict[str, float]:
        """The means since the first step of this start."""
        return self._told(self._since(self.first))

    def _since(self, moment: tuple[int, dict[str, float]]) -> dict[str, float]:
        """Seconds of a step by part."""
        (before, spent), (done, now) = moment, self._now()
        return {part: (now[part] - spent[part]) / max(done - before, 1) for part in now}

    def _told(self, spent: dict[str, float]) -> dict[str, float]:
        out = {
            "step_seconds": sum(spent.values()),
            "data_seconds": spent["data"] + spent[STARVED],
            "dispatch_seconds": spent["dispatch"],
            "device_seconds": spent["device"],
        }
        if self.peak is not None:
            out["mfu"] = self.peak / out["step_seconds"]
        return {name: float(f"{value:.4g}") for name, value in out.items()}


def peak_seconds(exp: Experiment, step, state: TrainState, batch: dict) -> float | None:
    """Seconds that a train step would take with every device at its peak; None: no peak is known.

    Products of matrices and convolutions count, as the jaxpr has them, each at the peak of its
    dtype.

    Args:
      step: jitted. It is traced here, and then not again where it is called with the same shapes.
    """
    peak = peak_of(exp)
    if peak is None:
        return None
    plain = without_remat(exp.config, exp.methods)
    traced = step.trace(state, batch) if plain is None else _trace(exp, plain, batch)
    counted = flops.count(traced.jaxpr)
    counted.pop(flops.UNKNOWN, None)
    return chips.at_peak(counted, peak) / exp.mesh.size


def peak_of(exp: Experiment) -> dict[str, float] | None:
    """FLOP/s of a device by dtype: `train.peak_flops` for all of them, else the chip's."""
    if exp.config.train.peak_flops:
        return {"float32": exp.config.train.peak_flops}
    name = chips.of_device(exp.mesh.devices.flat[0].device_kind)
    return None if name is None else chips.CHIPS[name].flops


def without_remat(config, methods: Methods):
    """The same config, of which a step computes nothing twice; None where it is that already.

    A network of one's own, whose `remat` is no `layers.Remat`, stays as it is.
    """
    record = methods[registry.Network][config.net.name]
    field = registry.parameters(record.target).get("remat")
    if field is None or field.annotation != layers.Remat:
        return None
    if layers.remat_of(config.net.get("remat", field.default)) == "none":
        return None
    config = config.copy_and_resolve_references()
    config.net.remat = False if isinstance(config.net.remat, bool) else "none"
    return config


def _trace(exp: Experiment, config, batch: dict) -> jax.stages.Traced:
    """The train step of another config on the same data and devices: one trace more."""
    config.initial_parameters = None  # where training starts changes no shape
    devices = list(exp.mesh.devices.flat)
    other = experiment.prepare(
        config, exp.workdir, exp.methods, decodes=False, dataset=exp.data, devices=devices
    )
    shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    return experiment.jit_train_step(other).trace(other.abstract, jax.tree.map(shape, batch))
