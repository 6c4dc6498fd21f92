"""The modes of the program but `export`: train, evaluate, sample, pairs."""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from genfield import data, registry, rng
from genfield.data import sets
from genfield.errors import UserError
from genfield.figures import run as figures
from genfield.machine import clock as clocks
from genfield.machine import (
    lock,
    logbook,
    loggers,
    preemption,
    processes,
    sharding,
    sums,
    xla,
)
from genfield.machine.clock import Clock
from genfield.machine.logbook import say
from genfield.metrics import images
from genfield.program import (
    card,
    closing,
    config_io,
    decoder,
    fault,
    generate,
    options,
    pictures,
    sampler,
    shards,
    weights,
)
from genfield.program import evaluate as evaluation
from genfield.program.evaluate import Evaluation, Evaluator
from genfield.program.experiment import Experiment, open_metrics, write_config
from genfield.program.loop import Loop
from genfield.program.methods import package
from genfield.program.open_run import load_state
from genfield.program.train_step import TrainState
from genfield.registry import Methods, Metric, choose

BEGINS = 10.0  # seconds in which another process writes down what it begins with


def check(exp: Experiment, mode: str = "train") -> None:
    """Raises UserError for what a mode needs and the config does not have."""
    if mode in ("train", "evaluate"):
        evaluation.check_metrics(exp)
    if mode == "evaluate" and exp.weights is not None:
        weights.check_reference(exp)
    config, data = exp.config, exp.data
    if config.sample.guidance_scale != 1 and not data.num_classes:
        raise UserError("config.sample.guidance_scale needs labels: set config.data.labels=True")
    options.check(config, data, exp.methods, mode, exp.workdir)
    if mode != "pairs" and data.latents is not None and exp.decoder is None:
        say(decoder.SAVED)
    if config.sample.guidance_channels > data.shape[-1]:
        raise UserError(
            f"config.sample.guidance_channels {config.sample.guidance_channels} is more than the "
            f"{data.shape[-1]} channels of {config.data.name!r}"
        )
    batch = {"x1": jax.ShapeDtypeStruct((config.batch_size, *data.shape), jnp.float32)}
    if data.num_classes:
        batch["label"] = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    if config.data.get("real") is not None:
        batch["real"] = batch["x1"]
    key = rng.stream(config.seed, "check")
    try:
        drawn = jax.eval_shape(exp.objective.draw, key, batch)
    except ValueError as error:
        raise UserError(f"config.coupling, rematching or time: {error}") from error
    if mode == "train":
        check_best(exp, _terms(exp, drawn, key))


def _terms(exp: Experiment, drawn, key) -> Callable[[], dict]:
    """The terms of the loss when called; now, where feature networks may be missing or not fit."""
    terms = lambda: jax.eval_shape(exp.objective.loss, exp.abstract.params, drawn, key)[1]
    tables = exp.objective.method.tables.items()
    if not any(n.loads and (n.default or name in exp.config.loss) for name, n in tables):
        return terms
    try:
        found = terms()
    except (ValueError, TypeError) as error:
        raise UserError(f"config.loss: {str(error).splitlines()[0]}") from error
    return lambda: found


def check_best(exp: Experiment, terms: Callable[[], dict]) -> None:
    """Raises UserError unless the evaluations of a run give what its best is best in."""
    config = exp.config
    metric = config.checkpoint.best_metric
    metrics = evaluation.metrics_of(config.evaluate.metrics, exp.methods)
    figures_of_samples = evaluation.best_names(metrics)
    if metric in figures_of_samples and not config.train.eval_samples:
        raise UserError(
            f"config.checkpoint.best_metric {metric!r} is of samples: set "
            "config.train.eval_samples, how many are drawn at each evaluation"
        )
    if metric not in ("loss", *figures_of_samples):
        known = {"loss": None, **terms(), **dict.fromkeys(figures_of_samples)}
        choose("config.checkpoint.best_metric", metric, known)


def train(exp: Experiment, *, clock: Clock | None = None, **_) -> None:
    """Trains (or goes on), evaluates, draws the pictures, prints the table.

    clock: began with the program, where it did.
    """
    if closing.finished(exp):
        return
    evaluator = Evaluator(exp)
    tell_heldout(exp)
    make_folder(exp.workdir)
    with lock.held(exp.workdir / lock.FILE, *purpose("train", exp.workdir)):
        _train(exp, evaluator, clock)


def _train(exp: Experiment, evaluator: Evaluator, clock: Clock | None) -> None:
    """Trains in a folder that no other process writes in."""
    processes.check_shared(exp.workdir)
    if logbook.first_process():
        fault.tidy(exp.workdir)
    loop = Loop(exp, evaluator, clock)
    write_config(exp)
    loop.run()
    rate = loop.progress.rate(loop.step)
    known = loop.last_eval[1]
    out, made, drawn = finish(
        exp, evaluator, loop.state, loop.step, loop.metrics, known, loop.clock
    )
    spent = clocks.told(loop.clock.read())
    decoding = {} if out.decoding is None else {"decoding": out.decoding}
    summary = decoding | {
        "metrics": out.results,
        "steps": loop.step,
        "wall_time_s": round(loop.wall_time(), 2),
        **spent,
        "examples_per_second": round(rate, 1),
        **({} if loop.pace is None else loop.pace.whole()),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "versions": logbook.versions(),
        "xla_flags": xla.told(),
        "compilation_cache": jax.config.jax_compilation_cache_dir,
        "seed": exp.config.seed,
    }
    logbook.write_json(exp.workdir / "summary.json", summary)
    loop.close()
    sums.write(exp.workdir)
    closing.report(exp, evaluator, out, made, drawn)
    say(f"{loop.step} steps in {logbook.duration(loop.wall_time())}, {clocks.line(spent)}")


def purpose(mode: str, workdir: Path) -> tuple[str, str]:
    """What a mode that writes into all of a workdir does there, and what another can do then."""
    if mode == "train":
        return f"trains in {workdir}", "choose another --workdir"
    instead = "choose another --workdir"
    if (workdir / "checkpoints").exists():
        instead += f", where --weights={workdir} evaluates the newest checkpoint meanwhile"
    return f"evaluates in {workdir}", instead


def begin_on_weights(exp: Experiment) -> None:
    """Leaves config.json in a workdir whose samples come from weights of elsewhere."""
    if exp.weights is None:
        return
    make_folder(exp.workdir)
    begins = f"begins to write in {exp.workdir}", "choose another --workdir"
    with lock.held(exp.workdir / lock.FILE, *begins, patience=BEGINS):
        write_config(exp)


def tell_heldout(exp: Experiment) -> None:
    """Says what goes without where nothing is held out."""
    if exp.data.heldout is None and exp.weights is None:
        say(
            "nothing is held out (config.data.heldout_fraction=0): no held-out loss, and none to "
            "choose the best checkpoint by"
        )


def make_folder(folder) -> None:
    """Makes the workdir; raises UserError where that cannot be."""
    with processes.together():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make --workdir {folder}: {error.strerror}; choose another folder"
            ) from error


def evaluate(exp: Experiment, *, step: int | None, best: bool) -> None:
    """The metrics, pictures and table of a checkpoint; rewrites nothing of the training."""
    with lock.held(exp.workdir / lock.FILE, *purpose("evaluate", exp.workdir)):
        evaluator = Evaluator(exp)
        tell_heldout(exp)
        state, step = load_state(exp, step, best)
        newest = max((row["step"] for row in logbook.read_metrics(exp.workdir)), default=step)
        metrics = open_metrics(exp, newest)
        out, made, drawn = finish(exp, evaluator, state, step, metrics)
        metrics.close()
        sums.write(exp.workdir, "metrics.jsonl", *closing.OF_EVALUATION)
        closing.report(exp, evaluator, out, made, drawn)


def finish(
    exp: Experiment,
    evaluator: Evaluator,
    state: TrainState,
    step: int,
    metrics: logbook.Metrics,
    known=None,
    clock: Clock | None = None,
) -> tuple[Evaluation, dict, list]:
    """Metrics, card and pictures of a state; `known` as the evaluator takes it."""
    started, section = time.monotonic(), exp.config.evaluate
    clock = clock or Clock()
    clock.to("evaluation")
    preemption.nothing_to_save("stopped; the same command evaluates again")
    say("evaluating …")
    params = generate.parameters(exp, state)
    progress = logbook.Progress("samples", section.num_samples * section.repeats, unit="samples")
    out = evaluator(params, preemption.told(progress), known)
    preemption.poll()
    made = card.make(
        out,
        evaluator.judge,
        evaluator.reference,
        config_io.to_dict(exp.config),
        sampling=card.of_sampling(exp, out),
        **card.of_origin(exp, step, params),
    )
    processes.check_memory()
    with processes.together():
        metrics.write(step, "sample", out.results)
        card.write(exp.workdir, made)
    clock.to("pictures")
    drawn = pictures.draw(exp, params, step, out.images) if section.figures else []
    for path in drawn:
        metrics.picture(step, loggers.picture_name(path), path)
    say(f"evaluated in {logbook.duration(time.monotonic() - started)}")
    return out, made, drawn


def sample(exp: Experiment, *, step: int | None, best: bool) -> None:
    """Draws `sample.num` samples of a checkpoint into samples/, going on where a kill left off."""
    formats = tuple(exp.config.sample.formats)
    if "png" in formats and not exp.pictures:
        raise UserError(
            f"config.sample.formats='png' needs pixels: set it to ('npz',), or {decoder.HOW}"
            if exp.data.latents is not None
            else "config.sample.formats='png' needs image data: set it to ('npz',)"
        )
    labels, files, made = shards.draw(exp, step, best, formats)
    shape = exp.data.shape if exp.decoder is None else exp.decoder.shape
    for file in files if made else ():
        say(f"samples: {file}  {exp.config.sample.num:,} of shape {shape}")
    if files and len(shape) == 3 and "npz" in formats:
        rows = generate.shown(labels, exp.config.sample.num, evaluation.GRID)
        [npz] = [file for file in files if file.suffix == ".npz"]
        path = npz.with_name(f"{npz.stem}_grid.png")
        if made or not path.exists():  # a kill may have come before it was drawn
            with np.load(npz) as file:
                first = file["arr_0"][rows]
            say(f"picture: {figures.image_grid(path, first)}")


def pairs(exp: Experiment, *, step: int | None, best: bool) -> None:
    """Draws `sample.num` pairs of noise and sample into pairs/, going on where a kill left off.

    Raises:
      UserError: a sampler that draws noise of its own.
    """
    sampler.check_deterministic(exp.config.sampler, exp.methods)
    _, folders, made = shards.draw(exp, step, best, ("npy",), paired=True)
    for folder in folders if made else ():
        say(f"pairs: {folder}  {exp.config.sample.num:,} of shape {exp.data.shape}")


def evaluate_images(config, workdir, samples: str, methods: Methods | None = None) -> None:
    """The metrics of images on disk against a reference, with a card; no checkpoint is read."""
    methods = methods or package()
    judged = evaluation.metrics_of(config.evaluate.metrics, methods, "features")
    if not judged:
        known = [m.name for m in methods[Metric].values() if m.reads == "features"]
        raise UserError(
            "--samples needs image metrics: set config.evaluate.metrics, as "
            "--config.evaluate.metrics=\"('frechet','kid')\". Known: " + ", ".join(known)
        )
    mesh = sharding.make_mesh(config.mesh)
    with processes.together():
        of = sets.open_images(samples, say, sets.reading_of(config.data))
    for metric in judged:
        if of.size < metric.least:
            raise UserError(
                f"metric {metric.name!r} takes {metric.least} images or more: {samples} has "
                f"{of.size}"
            )
    judge = images.create_judge(config.evaluate, mesh, judged)
    with processes.together():
        opened = open_data_reference(config, judge, methods)
    make_folder(workdir)
    preemption.begin()
    preemption.nothing_to_save("stopped; the same command starts again")
    statistics = evaluation.load_reference(opened, judge)
    progress = preemption.told(logbook.Progress("samples", of.size, unit="images"))
    blocks = images.blocks(of, mesh, judge.batch_size)
    measured = images.statistics(judge, blocks, on_block=progress)
    results = images.compare(judge, measured, statistics)
    out = Evaluation(results, [results], [], {}, None)
    facts = {"source": of.name, "identity": of.identity, "count": of.size, "dtype": "uint8"}
    made = card.make(out, judge, opened, config_io.to_dict(config), samples=facts)
    processes.check_memory()
    with lock.held(workdir / lock.FILE, *purpose("evaluate", workdir)), processes.together():
        card.write(workdir, made)
    say("\n" + closing.table(results, {}, config.evaluate, judged, judge))
    say(f"{card.headline(made)}\ncard: {workdir / card.FILE}")


def open_data_reference(config, judge, methods: Methods):
    """The config's reference; its data are read where it names none."""
    parts = [images.outputs_of(judge.metrics, part, reference=True) for part in images.PARTS]
    if config.evaluate.reference is not None or not any(parts):
        return evaluation.open_reference(config.evaluate, judge, config)
    sources = methods[registry.DataSource]
    source = sources.get(config.data.name)
    if source is not None and source.drawn:
        raise UserError(
            "--samples needs something to compare with: set config.evaluate.reference to a folder "
            "or an .npz file, or pass a --config with image data"
        )
    dataset = data.create(config.data, batch_size=1, seed=config.seed, log=say, table=sources)
    return evaluation.open_reference(config.evaluate, judge, config, dataset)
