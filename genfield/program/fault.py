"""A step that is not finite: where its first bad number stands, and what makes the step again.

A dump is the folder of a run with one checkpoint, the state before the step, so that all that opens
a run opens it; beside it lie `batch.npz`, what the step was fed, `drawn.npz`, what it drew of that
and its losses, and `fault.json`, which is written last.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield import rng
from genfield.data.npz import read_npz
from genfield.errors import UserError
from genfield.machine import digests, finite, logbook, processes, sharding
from genfield.machine.checkpoint import Checkpoints
from genfield.machine.finite import Place
from genfield.program import experiment, open_run, train_step
from genfield.program.experiment import Experiment
from genfield.program.train_step import TrainState, held, microbatches
from genfield.reading import DAMAGE, json_file, reason

FOLDER, FILE = "nonfinite", "fault.json"
KEPT = 3  # dumps of a run; each is as large as a checkpoint and a batch
BEFORE = {"params": "parameters", "ema": "EMA", "optimizer": "optimizer"}  # by a state's items
OF_EXAMPLES = ("data", "draws", "loss")
STAGES = (*OF_EXAMPLES, "mean loss", "gradient", "gradient norm")
STAGES += tuple(f"new {name}" for name in BEFORE.values())


class Fault(NamedTuple):
    """The first cause, in the order of a step, and its first array that is not finite.

    Attributes:
      cause: parameters, EMA or optimizer (as they were before the step); data, draws, loss, mean
        loss, gradient, gradient norm; new parameters, new EMA, new optimizer.
      others: arrays of the same cause that are not finite either.
    """

    cause: str
    place: Place
    others: int

    def __str__(self) -> str:
        rows = ", ".join(map(str, self.place.rows))
        rows = f", examples {rows}" + (", …" if len(self.place.rows) == finite.ROWS else "")
        rows = rows if self.place.rows else ""
        more = f", and {self.others} arrays more" if self.others else ""
        return f"{self.cause}: {self.place}{rows}{more}"


def locate(exp: Experiment, state: TrainState, batch: dict) -> Fault | None:
    """What is not finite first in a step, its state included; None: nothing, made again."""
    before = lambda state, batch: tuple(held(state).values())
    causes = tuple(BEFORE[item] for item in held(state))
    return _first(before, causes, state, batch) or _first(_stages(exp), STAGES, state, batch)


def _stages(exp: Experiment):
    """(state, batch) -> what a step computes, by causes, in their order."""
    objective, tx, key = experiment.parts_of_step(exp)
    options = experiment.options_of_step(exp)
    attempt = train_step.make_attempt(objective, tx, key, **options)

    def losses(params, drawn, key):
        """One an example, in the order of the batch."""
        count, group = options["accumulate"], objective.group_size
        if count == 1:
            return objective.loss(params, drawn, key, True)[0]
        of = lambda part: objective.loss(params, part[1], jax.random.fold_in(key, part[0]), True)[0]
        out = jax.lax.map(of, microbatches(drawn, count, group))
        rows = microbatches(jnp.arange(out.size), count, group)[1]
        return jnp.zeros(out.size).at[rows.reshape(-1)].set(out.reshape(-1))

    def stages(state, batch):
        tried = attempt(state, batch)
        step_key = jax.random.fold_in(key, state.step)
        return (
            tried.data,
            tried.drawn,
            {"loss": losses(state.params, tried.drawn, rng.dropout_key(step_key))},
            {"loss": tried.loss},
            tried.grads,
            {"norm": tried.norm},
            *held(tried.state).values(),
        )

    return stages


def _first(stages, causes: tuple, state: TrainState, batch: dict) -> Fault | None:
    """The fault in what `stages` computes; on the devices an array becomes a few numbers."""
    shapes = dict(zip(causes, jax.eval_shape(stages, state, batch), strict=True))
    size = shapes["loss"]["loss"].shape[0] if "loss" in shapes else 0
    digest = lambda x: digests.digest(x, jnp)

    def numbers(cause: str, leaf) -> dict:
        wrong = finite.judged("optimizer" if cause.endswith("optimizer") else "", leaf.ndim)
        return finite.looked_at(leaf, digest, size if cause in OF_EXAMPLES else 0, wrong)

    def look(state, batch):
        trees = zip(causes, stages(state, batch), strict=True)
        return [[numbers(cause, leaf) for leaf in jax.tree.leaves(tree)] for cause, tree in trees]

    everywhere = sharding.replicated(state.step.sharding.mesh)
    seen = jax.device_get(jax.jit(look, out_shardings=everywhere)(state, batch))
    for (cause, tree), of_leaves in zip(shapes.items(), seen, strict=True):
        found = [
            finite.place(name, leaf.shape, of_leaf)
            for (name, leaf), of_leaf in zip(
                digests.named_leaves(tree).items(), of_leaves, strict=True
            )
        ]
        if bad := [place for place in found if place]:
            return Fault(cause, bad[0], len(bad) - 1)
    return None


def folder_of(workdir: Path, step: int) -> Path:
    """The dump of a step."""
    return workdir / FOLDER / f"step_{step}"


def dump(
    exp: Experiment, state: TrainState, batch: dict, meta: dict, values: dict
) -> tuple[Fault | None, str]:
    """Writes what makes a step again; its fault, and what is said of older dumps that went.

    Args:
      state: before the step. batch: with "step", and no data where the state itself is bad.
      meta: of a checkpoint. values: the figures of the step, as the train step gave them.
    """
    step = int(batch["step"])
    folder = folder_of(exp.workdir, step)
    gone = []
    with processes.together():
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier stop at the same step
            gone = _make_room(folder)
            folder.mkdir(parents=True)
    experiment.write_config(exp._replace(workdir=folder))
    checkpoints = Checkpoints(folder, judged=False)
    checkpoints.save(step, held(state), meta)
    checkpoints.close()
    fed = sharding.to_host({k: v for k, v in batch.items() if k != "step"})
    _write(folder / "batch.npz", fed | {"step": np.int32(step)})
    found = locate(exp, state, batch)
    if found is None or found.cause not in BEFORE.values():
        _write(folder / "drawn.npz", _drawn(exp, state, batch))
    facts = {
        "step": step,
        "figures": {name: repr(value) for name, value in values.items()},
        "fault": None if found is None else _plain(found),
        "versions": logbook.versions(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
    }
    with processes.together():
        logbook.write_json(folder / FILE, facts)
    return found, f"; of older dumps {', '.join(gone)} went, as {KEPT} are kept" if gone else ""


def _plain(fault: Fault) -> dict:
    """As JSON has it."""
    return json.loads(json.dumps(fault._asdict() | {"place": fault.place._asdict()}))


def _make_room(folder: Path) -> list[str]:
    """Removes the oldest dumps, so that with this one there are KEPT; their names."""
    there = [path for path in folder.parent.glob("step_*") if path.is_dir()]
    there = sorted(there, key=lambda path: (path.stat().st_mtime, len(path.name), path.name))
    gone = there[: max(0, len(there) - KEPT + 1)]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in gone]


def _write(path: Path, arrays: dict) -> None:
    """An .npz file, by process 0."""
    with processes.together():
        if jax.process_index() == 0:
            np.savez(path, **arrays)


def _drawn(exp: Experiment, state: TrainState, batch: dict) -> dict[str, np.ndarray]:
    """The data of a step, what it drew, its losses [B] and their terms, and its key."""
    step = int(batch["step"])
    key = jax.random.fold_in(rng.stream(exp.config.seed, "train"), step)

    def draw(params, batch):
        data = train_step.batch_at(key, batch, experiment.draw_batch(exp)) | {"step": step}
        drawn = exp.objective.draw(rng.draw_key(key), data)
        loss, terms = exp.objective.loss(params, drawn, rng.dropout_key(key), True)
        return {**data, **drawn.sample._asdict(), "loss": loss, **terms}

    arrays = sharding.to_host(jax.jit(draw)(state.params, batch))
    return arrays | {"key": np.asarray(jax.random.key_data(key))}


class Dump(NamedTuple):
    """A dump that was read: its state and batch on the devices, and `fault.json`."""

    experiment: Experiment
    state: TrainState
    batch: dict
    facts: dict


def tidy(workdir: Path) -> None:
    """Removes dumps that a kill left unfinished: their steps are met again. By process 0."""
    for folder in (workdir / FOLDER).glob("step_*"):
        if not (folder / FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)


def find(workdir: Path, step: int | None = None) -> Path:
    """The folder of a run's newest dump, or that of a step; `workdir` may be a dump itself.

    Raises:
      UserError: there is none.
    """
    if (workdir / FILE).exists() and step is None:
        return workdir
    there = {path.parent: path.stat().st_mtime for path in (workdir / FOLDER).glob(f"*/{FILE}")}
    if step is not None:
        there = {path: time for path, time in there.items() if path.name == f"step_{step}"}
    if not there:
        which = "no dump" if step is None else f"no dump of step {step}"
        raise UserError(
            f"{workdir} holds {which}: one is written to {FOLDER}/ when a step is not finite"
        )
    return max(there, key=lambda path: there[path])


def read(folder: Path, exp: Experiment) -> Dump:
    """A dump, with the experiment that was made of its config.

    Raises:
      UserError: a file of it is damaged.
    """
    damaged = f"the dump {folder} is damaged"
    try:
        facts = json_file(folder / FILE)
        told = facts["fault"]
        _ = facts["step"], facts["figures"].items(), told and (told["cause"], told["place"]["leaf"])
        fed = read_npz(folder / "batch.npz", damaged)
        step = int(np.int32(fed.pop("step")))  # of one number alone
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{damaged}: {reason(error)}") from error
    checkpoints = Checkpoints(folder, judged=False)
    state, _ = open_run.restore(exp, checkpoints, step)
    checkpoints.close()
    try:
        batch = {"step": np.int32(step)} | sharding.put_whole(fed, exp.mesh)
        jax.eval_shape(experiment.jit_train_step(exp), state, batch)  # whether it fits the step
    except DAMAGE as error:
        raise UserError(f"{damaged}: batch.npz: {reason(error)}") from error
    return Dump(exp, state, batch, facts)


def again(dumped: Dump) -> tuple[Fault | None, dict[str, str]]:
    """The fault and the figures of the step, made again from its dump."""
    exp, state, batch, _ = dumped
    found = locate(exp, state, batch)
    if found is not None and found.cause in BEFORE.values():
        return found, {}
    _, metrics = experiment.jit_train_step(exp)(state, batch)
    return found, {k: repr(float(v)) for k, v in jax.device_get(metrics).items()}


def same(dumped: Dump, found: Fault | None, figures: dict[str, str]) -> bool:
    """Whether the step made again is the one that was stopped at, to the bit."""
    there = dumped.facts["figures"]
    fault = None if found is None else _plain(found)
    return fault == dumped.facts["fault"] and all(there.get(k) == v for k, v in figures.items())
