"""From a workdir to a trained run: its checkpoints, its state, and `open_run`."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from genfield.errors import UserError, local
from genfield.fields import Field
from genfield.machine import checkpoint, sums
from genfield.machine.checkpoint import Checkpoints
from genfield.machine.logbook import say
from genfield.program import checks, config_io, experiment, generate, own_files, weights
from genfield.program.experiment import Experiment
from genfield.program.methods import package
from genfield.program.train_step import TrainState, held
from genfield.registry import Methods
from genfield.sampling import Samples


def config_of(folder: Path) -> tuple[ConfigDict, Methods | None]:
    """The config of a run, and the methods of its own that it may name.

    Raises:
      UserError: it cannot be read, or what it says cannot be used; names the file.
    """
    methods = own_files.methods_of(folder)
    config = config_io.from_file(folder / "config.json")
    check_own(folder, config, methods)
    return config, methods


def check_own(folder: Path, config: ConfigDict, methods: Methods | None) -> None:
    """Raises UserError, which names the file, where a run's config says what nothing can use."""
    try:
        checks.check(config)
        experiment.check_names(config, methods or package())
    except UserError as error:
        raise UserError(f"{folder / 'config.json'} cannot be used: {error}") from error


def open_checkpoints(
    exp: Experiment, best_key: str | None = None, *, writes: bool = True
) -> Checkpoints:
    """The checkpoints of the run's workdir, kept as the config says; see `Evaluator.best_key`."""
    c = exp.config.checkpoint
    kept = dict(keep=c.keep, keep_best=c.keep_best, best_metric=best_key or c.best_metric)
    return Checkpoints(exp.workdir, **kept, writes=writes)


def restore(
    exp: Experiment, checkpoints: Checkpoints, step: int | None = None
) -> tuple[TrainState, dict] | None:
    """The newest whole checkpoint (or that of `step`) as (state, meta); None if there is none.

    Raises:
      UserError: nothing whole, or the run was trained on other data than the config points to.
    """
    abstract = held(exp.abstract)
    older = {item: exp.fixed for item in ("params", "ema") if abstract[item]}
    found = checkpoints.restore(abstract, step, older)
    if found is None:
        return None
    items, meta = found
    here, there = exp.data.fingerprint, meta["data"].get("fingerprint")
    if there not in (here, *exp.data.older):
        raise UserError(
            f"the data differ from what the run was trained on (fingerprint {here}, not {there}): "
            "point config.data.path to the same files"
        )
    if there != here:
        say(
            "data: this run knew them by names and sizes, as earlier versions did; from here on by "
            "their contents, read as a viewer shows them"
        )
    put = jax.jit(lambda: jnp.int32(meta["step"]), out_shardings=exp.abstract.step.sharding)
    return TrainState(step=put(), **items), meta


def load_state(exp: Experiment, step: int | None, best: bool) -> tuple[TrainState, int]:
    """The state of a checkpoint: of `step`, the best, or the newest whole one; or of weights."""
    if exp.weights is not None:
        return weights.state(exp), 0
    sums.tell(exp.workdir)
    checkpoints = open_checkpoints(exp, writes=False)
    if best:
        step = checkpoints.best_step()
        if step is None:
            raise UserError(
                f"no checkpoint in {exp.workdir} has a {exp.config.checkpoint.best_metric!r} to be "
                "best in"
            )
    found = restore(exp, checkpoints, step)
    if found is None:
        raise UserError(f"{exp.workdir} holds no finished checkpoint: train first")
    state, meta = found
    which = "averaged parameters" if generate.averaged(exp) else "parameters without an average"
    say(f"checkpoint of step {meta['step']}, {which}")
    return state, meta["step"]


class _Opened(NamedTuple):
    experiment: Experiment
    params: dict
    step: int


class Run(_Opened):
    """A trained run, opened.

    Attributes:
      experiment: its configuration, data, network, objective and sampler.
      params: by role, the average where the run keeps one. step: of the checkpoint.
    """

    @functools.cached_property
    def _draw(self) -> Callable:
        return generate.make_drawer(self.experiment)  # kept, so that it is compiled once

    @property
    def field(self) -> Field:
        """The trained field, called with x [B, *D], t [B] where it has a clock, labels [B]."""
        return self.experiment.objective.field(self.params)

    def sample(
        self, num: int, *, labels: Any = None, key: jax.Array | None = None, pixels: bool = False
    ) -> Samples:
        """`num` samples by the run's sampler, on the host.

        Args:
          labels: one for all, or several, which are taken in turn, by number or name; None: all
            classes in turn, or an even choice of them where `num` is smaller.
          key: of the noise; None: that of the run's config, as `--mode=sample` draws them.
          pixels: x are images, as `decode` makes them of latents.
        Raises:
          UserError: labels that the run does not know, samples that are not finite; pixels of
            what are no images and cannot be decoded.
        """
        if pixels:
            self._check_pixels()
        exp, config = self.experiment, self.experiment.config
        if labels is not None:
            labels = generate.classes_of(labels, exp, "labels", null=True)
            labels = generate.labels_of(exp, np.arange(num), num, labels)
        seed = config.seed + config.sample.seed if key is None else key
        out = self._draw(self.params, num, seed, labels=labels)
        return out._replace(x=self.decode(out.x)) if pixels else out

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Samples [N, *D] as images [N, H, W, C], in about [-1, 1]; pixels stay as they are.

        Raises:
          UserError: no images, and no autoencoder that makes some of them.
        """
        self._check_pixels()
        decoder = self.experiment.decoder
        return x if decoder is None else decoder.on_host(np.asarray(x))

    def _check_pixels(self) -> None:
        """Raises UserError where samples are no images and cannot be decoded."""
        exp = self.experiment
        if exp.data.latents is not None and exp.decoder is None:
            raise UserError("the samples are latents: open_run(…, autoencoder=FILE) decodes them")
        if not exp.pictures:
            raise UserError(f"data {exp.config.data.name!r} are no images")
        if exp.decoder is not None:
            exp.decoder.weights  # noqa: B018 - told before long work


def open_run(
    workdir: str | Path,
    step: int | None = None,
    *,
    best: bool = False,
    autoencoder: str | Path | None = None,
) -> Run:
    """A trained run, from its workdir alone: its data are opened when something reads them.

        run = genfield.open_run("runs/digits")
        run.sample(16, labels=3).x
        run.field(x)

    Args:
      step: of a checkpoint; None: the newest whole one. best: the best one.
      autoencoder: weights that turn latents into pixels; None: those of the run's config. They are
        read when something is decoded.
    Raises:
      UserError: no run there, no whole checkpoint; of a run that recorded nothing of its data (one
        of an older version), also data that are not where its config says.
    """
    folder = local(workdir, "the workdir").resolve()
    if not (folder / "checkpoints").exists() or not (folder / "config.json").exists():
        raise UserError(f"{folder} holds no checkpoints: name the workdir of a trained run")
    config, methods = config_of(folder)
    if autoencoder is not None:
        config.autoencoder, config.autoencoder_sha256 = str(autoencoder), None
    exp = experiment.prepare(config, folder, methods, reads_data=False, decodes=False)
    state, found = load_state(exp, step, best)
    return Run(exp, generate.parameters(exp, state), found)


def load_parameters(workdir: str | Path, *, step: int | None = None, item: str | None = None):
    """A run's parameters as nested dicts of numpy arrays, by role, on any machine; verified.

    Args:
      step: of a checkpoint; None: the newest.
      item: "params", "ema" or "optimizer"; None: the average where there is one, else the params.
    """
    return checkpoint.load(workdir, step=step, item=item)
