"""Checkpoints by orbax: asynchronous, on any mesh, and checked against their own digests.

Orbax restores a file with a flipped byte without a word, so that each checkpoint carries a digest
of every array, taken on the devices before the save and compared after each restore. To read one
in any program:

    params = genfield.checkpoint.load("runs/two_moons")
"""

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from genfield.errors import UserError, local, of_machine
from genfield.machine import around_orbax, finite, fixed, logbook, processes, sharding
from genfield.machine.digests import digests, named_leaves, named_path, of_record

FOLDER = "checkpoints"
DAMAGED = "damaged_checkpoints"


class NonFinite(UserError):
    """A state that holds NaN or infinity, and is not saved."""


@jax.jit
def _flags(items):
    return jax.tree.map(finite.flags, items)


def nonfinite(items: dict) -> str | None:
    """The first array of a state that holds NaN or infinity, in words; None: it is finite."""
    for path, bits in jax.tree_util.tree_leaves_with_path(jax.device_get(_flags(items))):
        ndim = named_leaves(items)[named_path(path)].ndim if bits else 0
        if bits & finite.judged(path[0].key, ndim):
            return f"{named_path(path)} holds NaN or infinity"
    return None


def _several() -> bool:
    return jax.process_count() > 1


class Checkpoints:
    """The checkpoints of one workdir: `save`, `restore` the newest that is whole, `close`.

    writes: without it nothing is changed in the folder, where a training may be at work.
    judged: only finite states are saved, and restored.
    """

    def __init__(
        self,
        workdir,
        *,
        keep: int = 2,
        keep_best: int = 0,
        best_metric: str = "loss",
        writes: bool = True,
        judged: bool = True,
    ):
        # Orbax loses checkpoints silently under a relative path.
        self.folder, self.best_metric = Path(workdir).resolve() / FOLDER, best_metric
        self._manager, self.judged = None, judged
        around_orbax.forgo_raw_bytes()
        if not writes:
            return
        with processes.together():
            if jax.process_index() == 0:
                self._rename_damaged_metrics()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=around_orbax.policy(keep, keep_best, best_metric),
            # Without it orbax does not write the metrics down, and a resumed run forgets its best.
            best_fn=lambda metrics: around_orbax.figure(metrics, best_metric),
            best_mode="min",
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def _rename_damaged_metrics(self) -> None:
        """For one that is damaged, orbax opens none."""
        for file in self.folder.glob("*/metrics/metrics"):
            if _metrics(file) is None:
                file.rename(file.with_name("metrics.damaged"))

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending; damaged ones are not known as such."""
        return sorted(int(p.name) for p in self.folder.glob("*") if p.name.isdigit() and p.is_dir())

    def best_step(self) -> int | None:
        """The step with the smallest metric among those kept; None if none has one."""
        found = {}  # by the figure's name: a metric of samples has one for all it depends on
        for step in self.steps():
            for name, value in (_metrics(self.folder / f"{step}/metrics/metrics") or {}).items():
                if not math.isfinite(value):
                    continue
                if name == self.best_metric or name.startswith(f"{self.best_metric}@"):
                    found.setdefault(name, []).append((value, step))
        latest = max(found.values(), key=lambda pairs: max(step for _, step in pairs), default=None)
        return min(latest)[1] if latest else None

    def save(self, step: int, state: dict, meta: dict, metrics: dict | None = None) -> None:
        """Starts an asynchronous save of `state`, a dict of trees (params, ema, optimizer, …).

        Args:
          meta: JSON types; what is needed beside the arrays to go on. Where a checkpoint of the
            step is there without metrics, it gets these and the meta, and keeps its arrays.
          metrics: held-out figures of this very step, for `keep_best`.
        Raises:
          UserError: another checkpoint of this step is there. Whatever an earlier save failed with.
          NonFinite: NaN or infinity in the state; then nothing is saved, and no older one goes.
        """
        with around_orbax.told(self.folder):
            self._save(step, state, meta, metrics)

    def _save(self, step: int, state: dict, meta: dict, metrics: dict | None) -> None:
        self._manager.check_for_errors()
        if step in self._manager.all_steps():
            self._complete(step, meta, metrics)
            return
        if self.judged and (problem := nonfinite(state)):
            raise NonFinite(f"step {step}: {problem}: it is not saved")
        meta = {**meta, "step": step, "digests": {k: digests(v) for k, v in state.items()}}
        meta = json.loads(json.dumps(meta))  # written later, while the loop goes on counting
        meta["digest"] = of_record(meta)
        if not sharding.agreed(not (self.folder / str(step)).exists()):
            with processes.together():
                self._check_same(step, meta["digests"])
            self._manager.reload()
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items() if tree}
        if _several():
            self.wait()
            self._manager._wait_for_checkpointers = self._noted(self._manager)
        self._manager.save(
            step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), metrics=metrics
        )

    def _complete(self, step: int, meta: dict, metrics: dict | None) -> None:
        """Puts the figures of a step into its checkpoint, which a signal had saved before them."""
        place = self.folder / str(step)
        file = place / "metrics" / "metrics"
        if metrics is None or file.exists():
            return
        self.wait()
        with processes.together():
            if jax.process_index() == 0:
                held = json.loads((place / "meta" / "metadata").read_text())
                held = {**meta, "step": step, "digests": held["digests"]}
                held["digest"] = of_record(json.loads(json.dumps(held)))
                file.parent.mkdir(exist_ok=True)
                logbook.replace_text(place / "meta" / "metadata", json.dumps(held))
                logbook.replace_text(file, json.dumps(metrics))  # last: without it, all again
        self._manager.reload()

    def _check_same(self, step: int, wanted: dict) -> None:
        """Raises UserError unless a checkpoint that came from elsewhere holds these very arrays.

        On a network disk one may be seen only after a run went on from the one before it.
        """
        place = self.folder / str(step)
        try:
            same = json.loads((place / "meta" / "metadata").read_text())["digests"] == wanted
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise UserError(
                f"{place} was written by another process, or was not seen when this one began: the "
                "same command goes on from it"
            )

    def restore(
        self, abstract: dict, step: int | None = None, older: Mapping[str, Mapping] = {}
    ) -> tuple[dict, dict] | None:
        """The newest whole checkpoint as (state, meta), or None where there is none.

        A damaged one is moved aside, with a warning, and the one before it is tried. Without
        `writes` it stays where it is; and one that the training removes meanwhile is not missed.

        Args:
          abstract: a dict of trees of ShapeDtypeStruct with shardings; only these items are read.
          step: this step and no other.
          older: of items, arrays by their paths that checkpoints of earlier versions lack, and that
            are then put in.
        Raises:
          UserError: checkpoints exist but none is whole, or `step` is not there or not whole.
        """
        known = self.steps()
        if step is not None and step not in known:
            raise UserError(f"{self.folder} has no checkpoint of step {step}; it has {known}")
        damaged = {}
        for candidate in [step] if step is not None else known[::-1]:
            with processes.together():
                problem, found = self._read(candidate, abstract, older)
            problem = processes.common(problem) or _differs(found)
            if self.judged:
                problem = problem or nonfinite(found.read)
            if problem is None:
                self._set_aside(damaged)
                return found.state, found.meta
            if self._manager is None and not sharding.agreed(self.steps() == known):
                return self.restore(abstract, step, older)
            damaged[candidate] = problem
        if damaged:
            problems = "; ".join(f"{FOLDER}/{k}: {problem}" for k, problem in damaged.items())
            raise UserError(
                f"no checkpoint asked for in {self.folder} is whole ({problems}). They are left "
                "as they are; move them away to start from step 0, or pass another --step"
            )
        return None

    def _lacking(self, step: int, older: Mapping[str, Mapping]) -> dict[str, dict]:
        """Those of `older` that the checkpoint lacks."""
        if not any(older.values()):
            return {}
        known = self._alone(step, {})["meta"]["digests"]
        return {
            item: {p: a for p, a in arrays.items() if "/".join(p) not in known.get(item, {})}
            for item, arrays in older.items()
        }

    def _alone(self, step: int, items: dict) -> ocp.args.Composite:
        """Items of a checkpoint and its meta, read by this process, which waits for no other."""
        around_orbax.hush_parts()
        me = jax.process_index()
        options = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        args = ocp.args.Composite(**items, meta=ocp.args.JsonRestore())
        handler = ocp.CompositeCheckpointHandler()
        with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
            return reader.restore(self.folder / str(step), args=args)

    def _read(
        self, step: int, abstract: dict, older: Mapping[str, Mapping]
    ) -> tuple[str | None, "_Found | None"]:
        """What keeps this process from reading its part of a checkpoint, or None; and the part.

        What fails is tried once more: a disk that fails for a moment is no damage.
        Nothing in it is collective: on another process it may end elsewhere.
        Raises:
          UserError: this machine cannot read it now, whole as it may be.
        """
        problem, found = self._read_once(step, abstract, older)
        return (problem, found) if found else self._read_once(step, abstract, older)

    def _read_once(self, step: int, abstract: dict, older: Mapping[str, Mapping]):
        """As `_read`."""
        place = self.folder / str(step)
        try:
            lacking = self._lacking(step, older)
            there = {k: fixed.without(tree, lacking.get(k, ())) for k, tree in abstract.items()}
            items = {name: ocp.args.StandardRestore(tree) for name, tree in there.items() if tree}
            out = self._alone(step, items)
            if out["meta"].get("digest", of_record(out["meta"])) != of_record(out["meta"]):
                return "its meta does not match its digest", None
            read = {name: out[name] if tree else tree for name, tree in there.items()}
            state, expected = dict(read), {k: dict(out["meta"]["digests"][k]) for k in read}
            for name, arrays in lacking.items():
                place = lambda path, name=name: fixed.at(abstract[name], path).sharding
                placed = {path: _placed(array, place(path)) for path, array in arrays.items()}
                state[name] = fixed.put(state[name], placed)
            return None, _Found(read, expected, state, out["meta"])
        except Exception as error:  # anything can come out of a damaged file
            if short := of_machine(error) or around_orbax.unseen(
                place
            ):  # which says nothing of the checkpoint
                raise UserError(f"cannot read checkpoint {place} now: {short}") from error
            return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}", None

    def _set_aside(self, damaged: dict[int, str]) -> None:
        """Moves damaged checkpoints out of the way of the steps that will be saved again."""
        target, moves = self.folder.parent / DAMAGED, self._manager is not None
        for step, problem in damaged.items():
            with processes.together():
                if jax.process_index() == 0:
                    warnings.warn(
                        f"checkpoint {self.folder / str(step)} is damaged ({problem}); "
                        + (f"moved to {target}, " if moves else "")
                        + "falling back to the one before",
                        stacklevel=5,
                    )
                    if moves:
                        target.mkdir(exist_ok=True)
                        shutil.rmtree(target / str(step), ignore_errors=True)
                        shutil.move(self.folder / str(step), target / str(step))
        if damaged and moves:
            self._manager.reload()

    _failed: Exception | None = None  # of several processes, what this one's last save failed with

    def _noted(self, manager: ocp.CheckpointManager) -> Callable[[], None]:
        """How orbax waits for this process' part of a save; `wait` learns what that failed with.

        Orbax would tell it when all processes have written theirs, and they wait for this one.
        """

        def waits() -> None:
            try:
                type(manager)._wait_for_checkpointers(manager)
            except Exception as error:
                self._failed = error
                raise

        return waits

    def wait(self) -> None:
        """Blocks until the last save is on disk; raises what it failed with, here at once."""
        with around_orbax.told(self.folder):
            while _several() and self._failed is None and self._manager.is_saving_in_progress():
                time.sleep(0.02)
            if self._failed is not None:
                raise self._failed
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for the last save and frees the manager."""
        if self._manager is not None:
            self.wait()
            self._manager.close()


def _metrics(file: Path) -> dict | None:
    """The held-out figures that lie beside a checkpoint; {} without them, None if damaged."""
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class _Found(NamedTuple):
    """What was read of a checkpoint: its arrays, by item, what their digests should be, and meta.

    Attributes:
      state: the arrays, with those that checkpoints of earlier versions lack.
    """

    read: dict
    expected: dict
    state: dict
    meta: dict


def _differs(found: _Found) -> str | None:
    """An array that is not what was saved, in words; None: all are. On all processes at once."""
    for name, tree in found.read.items():
        wrong = [k for k, v in digests(tree).items() if found.expected[name].get(k) != v]
        if wrong:
            return f"{name}/{wrong[0]} does not match its digest"
    return None


def _placed(array: np.ndarray, sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def load(workdir, *, step: int | None = None, item: str | None = None) -> dict:
    """Reads a checkpoint as plain nested dicts of numpy arrays, on any machine.

    Args:
      workdir: of a run. step: None is the newest.
      item: "params", "ema" or "optimizer"; None is the EMA where there is one, else the params.
    Returns:
      e.g. {"field": {...}}, ready for the `apply` of `nets.create`.
    Raises:
      UserError: no such checkpoint or item, or it does not match its digests.
    """
    folder = local(workdir, "the workdir").resolve() / FOLDER
    known = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
    if not known or (step is not None and step not in known):
        raise UserError(f"{folder} has no checkpoint{'' if step is None else f' of step {step}'}")
    where = folder / str(known[-1] if step is None else step)
    if item is None:
        item = "ema" if (where / "ema").exists() else "params"
    if not (where / item).exists():
        raise UserError(f"{where} has no item {item!r}")
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            expected = reader.restore(where / "meta")["digests"][item]
        with ocp.PyTreeCheckpointer() as reader:
            metadata = reader.metadata(where / item).item_metadata.tree
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
            tree = reader.restore(where / item, restore_args=arguments)
    except Exception as error:
        first = str(error).splitlines()[0][:120]
        raise UserError(f"{where} is damaged: {type(error).__name__}: {first}") from error
    wrong = [name for name, value in digests(tree).items() if expected.get(name) != value]
    if wrong:
        raise UserError(f"{where} is damaged: {item}/{wrong[0]} does not match its digest")
    return tree
