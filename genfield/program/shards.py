"""What --mode=sample and --mode=pairs draw: shard by shard, so that a kill costs one."""

import jax
import numpy as np

from genfield.machine import logbook, preemption, sharding
from genfield.machine.logbook import say
from genfield.program import card, config_io, generate, sampler
from genfield.program.decoder import told, watch
from genfield.program.experiment import Experiment
from genfield.program.open_run import load_state
from genfield.program.sample_files import Shards

GOES_ON = "stopped; the same command goes on with the shards that are missing"


def draw(
    exp: Experiment, step: int | None, best: bool, formats: tuple[str, ...], paired: bool = False
) -> tuple[np.ndarray | None, list]:
    """Draws `sample.num` samples of a checkpoint, or pairs, those that are not there yet.

    Returns:
      All labels, or None without classes; and the files, on process 0, if this call made them.
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
    files = Shards(folder, name, settings, formats, exp.data.class_names)
    index = np.empty(0, int)
    if jax.process_index() == 0 and not files.finished():  # its disk counts, on all processes
        files.begin()
        index = files.missing()
    index = sharding.from_first(index)
    if jax.process_index() == 0 and files.finished():
        say(f"already drawn: {', '.join(map(str, files.files()))}")
        return labels, []
    if len(index) < num:
        what = "pairs" if paired else "samples"
        say(f"{num - len(index):,} of {num:,} {what} are there already")
    say("compiling the sampler …")
    taken = watch(exp.decoder)
    preemption.nothing_to_save(GOES_ON)
    try:
        _draw_missing(exp, params, settings["seed"], index, files, labels, paired)
    except preemption.Preempted:
        say(GOES_ON)
        raise
    if decoding := taken():
        say(told(decoding))
    return labels, files.finish() if jax.process_index() == 0 else []


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
    """Draws the samples of these indices; a shard is written when its last one is drawn.

    Batches are those of all samples, whichever are missing: drawn again, a sample has the same
    place in the same batch, and so the same bits. paired: with the noise of each, and as floats.
    """
    run = generate.make_generator(exp, levels=not paired, starts=paired)
    size = generate.batch_size(exp, files.num, fixed=True)
    unit = "images" if exp.pictures else "samples"
    progress = preemption.told(logbook.Progress("sample", len(index), unit=unit))
    waiting, done = [], 0  # (index, arrays) of shards that are not whole
    for part, count in generate.batches(np.arange(files.num), size):
        wanted = np.flatnonzero(np.isin(part[:count], index))
        if not len(wanted):
            continue
        asked = None if labels is None else labels[part]
        within = generate.inside(progress, done, len(wanted))
        out, finite = run(params, seed, part, asked, within)
        generate.check_finite(finite, part[:count], seed)
        names = ("x1", "labels") if paired else ("arr_0", "arr_1")
        arrays = {names[0]: out.x, "nfe": out.nfe}
        if paired:
            arrays["x0"] = out.info["x0"]
        if labels is not None:
            arrays[names[1]] = asked.astype(int)
        if jax.process_index() == 0:
            drawn = {k: np.asarray(v)[wanted] for k, v in arrays.items()}
            waiting = write_whole(files, [*waiting, {"index": part[wanted]} | drawn])
        done += len(wanted)
        progress(done)


def write_whole(files: Shards, waiting: list[dict]) -> list[dict]:
    """Writes the shards that are whole; what is left waits for the rest of its shard."""
    held = {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}
    while len(held["index"]):
        number = int(held["index"][0]) // files.size
        first, last = files.bounds(number)
        if len(held["index"]) < last - first:
            break
        cut = {name: values[: last - first] for name, values in held.items()}
        files.write(number, {name: values for name, values in cut.items() if name != "index"})
        held = {name: values[last - first :] for name, values in held.items()}
    return [held]
