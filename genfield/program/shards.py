"""What --mode=sample and --mode=pairs draw: shard by shard, so that a kill costs little.

Each process writes what its own devices drew, into one workdir that all share: no sample is sent to
another. Process 0 says what is missing, and joins the files at the end.
"""

import jax
import numpy as np

from genfield.errors import UserError
from genfield.machine import lock, logbook, preemption, processes, sharding
from genfield.machine.logbook import say
from genfield.program import card, config_io, generate, sampler
from genfield.program.decoder import told, watch
from genfield.program.experiment import Experiment
from genfield.program.open_run import load_state
from genfield.program.sample_files import Shards

GOES_ON = "stopped; the same command goes on with the shards that are missing"


def draw(
    exp: Experiment, step: int | None, best: bool, formats: tuple[str, ...], paired: bool = False
) -> tuple[np.ndarray | None, list, bool]:
    """Draws `sample.num` samples of a checkpoint, or pairs, those that are not there yet.

    Returns:
      All labels, or None without classes; the files, on process 0; whether this call made them.
    Raises:
      UserError: samples of this name were drawn with other settings; labels that are not known.
    """
    chosen = generate.classes_of(exp.config.sample.labels, exp, "config.sample.labels")
    state, step = load_state(exp, step, best)
    params = generate.parameters(exp, state)
    settings = settings_of(exp, step, params, chosen, paired)
    if paired:
        settings |= of_pairs(exp)
    num = settings["num"]
    seed = None if paired else settings["seed"]  # pairs take the classes in turn
    labels = generate.labels_of(exp, np.arange(num), num, chosen, seed)
    folder = exp.workdir / ("pairs" if paired else "samples")
    name = exp.config.sample.name or f"step_{step}"
    asked = dict(settings=settings, formats=formats, class_names=exp.data.class_names)
    instead = "choose another --config.sample.name"
    with lock.held(folder / f".{name}.lock", f"draws {folder / name}", instead):
        with processes.together():
            files = Shards(folder, name, **asked)
        return labels, *_drawn(exp, params, settings["seed"], files, labels, paired)


def _drawn(
    exp: Experiment, params, seed: int, files: Shards, labels, paired: bool
) -> tuple[list, bool]:
    """The files, on process 0; whether this call made them."""
    num, index = files.num, _begin(files)
    if index is None:
        say(f"already drawn: {', '.join(map(str, files.files()))}")
        return files.files() if jax.process_index() == 0 else [], False
    if len(index) < num:
        what = "pairs" if paired else "samples"
        say(f"{num - len(index):,} of {num:,} {what} are there already")
    say("compiling the sampler …")
    taken = watch(exp.decoder)
    preemption.nothing_to_save(GOES_ON)
    try:
        _draw_missing(exp, params, seed, index, files, labels, paired)
    except preemption.Preempted:
        say(GOES_ON)
        raise
    if decoding := taken():
        say(told(decoding))
    return _finish(files), True


def _begin(files: Shards) -> np.ndarray | None:
    """The indices that are missing on the disk of process 0, on all; None: all is finished.

    Raises:
      UserError: a folder cannot be made, or is not one that all processes share.
    """
    done, index = False, np.empty(0, int)
    with processes.together():
        if jax.process_index() == 0:
            done = files.finished()
            if not done:
                files.begin()
                index = files.missing()
    if sharding.from_first(np.array([done]))[0]:
        return None
    processes.check_shared(files.shards)
    return sharding.from_first(index)


def _finish(files: Shards) -> list:
    """Joins what all processes wrote; the files, on process 0, for which the others wait."""
    made = []
    with processes.together():
        if jax.process_index() == 0:
            several = jax.process_count() > 1
            if several and len(processes.waited(lambda: files.missing(False))):
                raise UserError(f"{files.shards} lacks samples that were written: draw them again")
            made = files.finish()
    return made


def settings_of(
    exp: Experiment, step: int, params, chosen: np.ndarray, paired: bool = False
) -> dict:
    """All that decides the samples of a state, or its pairs, as JSON types."""
    section = config_io.to_dict(exp.config.sample)
    kept = ("num", "guidance_scale", "rounding", "shard_size")
    new = {name: section[name] for name in ("guidance_interval", "guidance_channels")}
    new["labels"] = chosen.tolist()
    if not len(chosen) and exp.data.num_classes:
        if exp.config.evaluate.labels == "random" and not paired:
            new["labels"] = "random"
        elif section["num"] < exp.data.num_classes:
            new["labels"] = "an even choice"
    if exp.decoder is not None and not paired:
        new["autoencoder"] = exp.decoder.facts
    if exp.weights is not None:  # the digest below does not tell an array from its double
        new["weights"] = exp.weights.info.sha256
    return (
        {name: section[name] for name in kept}
        | {k: v for k, v in new.items() if v}
        | {
            "step": step,
            "guidance_on": sampler.guided_product(exp.config, exp.methods),
            "seed": exp.config.seed + exp.config.sample.seed,
            "parameters": generate.which(exp),
            "parameters_digest": card.parameters_digest(params),
            "sampler": config_io.to_dict(exp.config.sampler),
        }
    )


def of_pairs(exp: Experiment) -> dict:
    """What a run that learns from pairs must know of them."""
    return {
        "num_classes": exp.data.num_classes,
        "class_names": list(exp.data.class_names),
        "pixels": bool(exp.data.pixels),
        "source": exp.data.source,
        **({} if exp.data.latents is None else {"latents": exp.data.latents._asdict()}),
        "sampler": card.resolved_sampler(config_io.to_dict(exp.config.sampler), exp.methods),
    }


def _draw_missing(
    exp: Experiment, params, seed: int, index: np.ndarray, files: Shards, labels, paired: bool
) -> None:
    """Draws the samples of these indices; each process writes what its own devices drew.

    Batches are those of all samples, whichever are missing: drawn again, a sample has the same
    place in the same batch, and so the same bits. paired: with the noise of each, and as floats.
    """
    run = generate.make_generator(exp, gather=False, levels=not paired, starts=paired)
    size = generate.batch_size(exp, files.num, kept=True)
    unit = "images" if exp.pictures else "samples"
    progress = preemption.told(logbook.Progress("sample", len(index), unit=unit))
    mine = index[np.isin(index % size, sharding.local_rows(exp.mesh, size))]
    waiting, done = [], 0  # what is drawn of shards that are still to come
    for part, count in generate.batches(np.arange(files.num), size):
        wanted = np.isin(part, index) & (np.arange(size) < count)
        if not wanted.any():
            continue
        asked = None if labels is None else labels[part]
        within = generate.inside(progress, done, int(wanted.sum()))
        out, finite = run(params, seed, part, asked, within)
        generate.check_finite(finite, part[:count], seed)
        awaited = mine if size < files.size else mine[np.isin(mine, part)]
        processes.check_memory()
        with processes.together():
            drawn = _own(out, part, asked, wanted, paired)
            waiting = write_whole(files, [*waiting, drawn], awaited)
        done += int(wanted.sum())
        progress(done)


def _own(out, part: np.ndarray, asked, wanted: np.ndarray, paired: bool) -> dict[str, np.ndarray]:
    """What this process's devices drew of the samples that are wanted, by name, and "index"."""
    rows, x = sharding.own_rows(out.x)
    keep = wanted[rows]
    rows = rows[keep]
    names = ("x1", "labels") if paired else ("arr_0", "arr_1")
    arrays = {"index": part[rows], names[0]: x[keep], "nfe": np.asarray(out.nfe)[rows]}
    if paired:
        arrays["x0"] = sharding.own_rows(out.info["x0"])[1][keep]
    if asked is not None:
        arrays[names[1]] = asked[rows].astype(int)
    return arrays


def write_whole(files: Shards, waiting: list[dict], awaited: np.ndarray) -> list[dict]:
    """Writes the shards of which all that this process awaits is there; the rest waits for more.

    Args:
      waiting: "index", ascending, and the arrays of these samples, part after part.
      awaited: samples that this process draws, ascending.
    """
    held = {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}
    while len(held["index"]):
        number = int(held["index"][0]) // files.size
        first, last = files.bounds(number)
        share = int(np.diff(np.searchsorted(awaited, (first, last)))[0])
        if np.searchsorted(held["index"], last) < share:
            break
        whole = ("index",) if share == last - first else ()
        cut = {name: values[:share] for name, values in held.items() if name not in whole}
        files.write(number, cut)
        held = {name: values[share:] for name, values in held.items()}
    return [held]
