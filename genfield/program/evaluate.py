"""The figures of a state: its held-out loss, and what its samples are worth."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from clu import metrics as clu_metrics

from genfield import registry, rng
from genfield.data import sets, to_unit
from genfield.data.pipeline import short_hash
from genfield.errors import UserError
from genfield.fields import score_field
from genfield.machine import logbook, preemption, processes, sharding
from genfield.metrics import images, likelihood, reference
from genfield.program import generate
from genfield.program.decoder import watch
from genfield.program.experiment import Experiment, draw_batch
from genfield.registry import Methods, Metric, choose


def make_heldout_loss(experiment: Experiment) -> Callable:
    """heldout(params) -> {"loss": …, terms}, over `train.eval_batches` fixed batches and draws.

    {} where nothing is held out.
    """
    config, data, mesh = experiment.config, experiment.data, experiment.mesh
    # Added up apart from what made them, whose fusions would round the sums in other ways.
    compute = jit_losses(experiment)
    add = jax.jit(
        lambda values: jax.tree.map(clu_metrics.Average.from_model_output, values),
        out_shardings=sharding.replicated(mesh),
    )
    rows = sharding.local_rows(mesh, config.batch_size)

    def heldout(params) -> dict[str, float]:
        found = {}
        if data.heldout is None:
            return found
        for index in range(config.train.eval_batches):
            batch = {}
            if data.draw is None:
                with processes.together():
                    own = data.heldout(index, config.batch_size, rows)
                batch = sharding.put_batch(own, mesh)
            for name, part in add(compute(params, batch, np.int32(index))).items():
                found[name] = found[name].merge(part) if name in found else part
        return {name: float(total.compute()) for name, total in found.items()}

    return heldout


def jit_losses(experiment: Experiment) -> Callable:
    """(params, batch, index) -> {"loss": …, terms}, each [B] and split over the mesh, jitted.

    Of a held-out batch: its number decides all that is drawn for it.
    """
    key, draw = rng.stream(experiment.config.seed, "heldout"), draw_batch(experiment)

    def losses(params, batch, index):
        batch_key = jax.random.fold_in(key, index)
        if draw is not None:
            batch = draw(jax.random.fold_in(batch_key, 2))
        loss, terms = experiment.objective(batch_key, params, batch, False)
        return {"loss": loss, **terms}

    return jax.jit(losses, out_shardings=sharding.batch_sharding(experiment.mesh))


class Evaluation(NamedTuple):
    """The figures of a state.

    Attributes:
      results: what is reported, by name: over the sampling seeds, the median for points (as the
        papers have it) and the mean for images.
      by_seed: what each sampling seed gave. seeds: these seeds.
      spread: standard deviations over the seeds; empty with one.
      images: samples, uint8, of image data, `pictured` of them and of all classes where there is
        room; else None.
      decoding: what turning latents into them took, as `decoder.watch` has it; None: nothing.
    """

    results: dict[str, float]
    by_seed: list[dict[str, float]]
    seeds: list[int]
    spread: dict[str, float]
    images: np.ndarray | None
    decoding: dict | None = None


LEVELS = ("sigma_min", "sigma_max")  # of a sampler's section
# Fields that have a likelihood, and what they are followed as.
LIKELIHOOD_FIELDS = {"score": "score", "denoiser": "score", "velocity": "velocity"}
GRID = 64  # images in a picture, at most


def pictured(config) -> int:
    """How many samples a picture shows: `sample.num`, up to GRID."""
    return min(GRID, config.sample.num)


def metrics_of(names, methods: Methods, reads: str | None = None) -> list[Metric]:
    """The metrics of these names, in their order; `reads`: of those that read this alone.

    Raises:
      UserError: an unknown name.
    """
    found = [choose("metric", name, methods[Metric]) for name in names]
    return [metric for metric in found if reads in (None, metric.reads)]


def check_metrics(exp: Experiment) -> None:
    """Raises UserError for unknown metrics, or metrics that these data cannot have."""
    data, objective = exp.data, exp.objective
    facts = registry.Facts(
        data=exp.config.data.name,
        shape=data.shape,
        pixels=bool(data.pixels),
        splits=tuple(data.examples),
        likelihood=objective.method.teaches in LIKELIHOOD_FIELDS and objective.clock,
        latents=data.latents is not None,
        pictures=exp.pictures,
    )
    for metric in metrics_of(exp.config.evaluate.metrics, exp.methods):
        if reason := metric.against(facts):
            raise UserError(f"metric {metric.name!r} {reason}")
    check_counts(exp)


def check_counts(exp: Experiment) -> None:
    """Raises UserError where a metric takes more samples than will be drawn for it."""
    config = exp.config
    counts = {"config.evaluate.num_samples": config.evaluate.num_samples}
    if config.train.eval_samples:
        counts["config.train.eval_samples"] = config.train.eval_samples
    for metric in metrics_of(config.evaluate.metrics, exp.methods):
        for field, count in counts.items():
            if count < metric.least:
                least = metric.least
                raise UserError(
                    f"metric {metric.name!r} takes {least} samples or more: raise {field}"
                )


def best_names(metrics: list[Metric]) -> list[str]:
    """What of these metrics `checkpoint.best_metric` can name: the smaller the better.

    A metric in features goes by its own name, since its figure's tells the network.
    """
    of_features = [m.name for m in metrics if m.reads == "features" and m.smaller]
    return of_features + [f for m in metrics if m.reads == "samples" for f in m.smaller]


def target_points(exp: Experiment, seed: int, num: int) -> np.ndarray:
    """Fresh points of the data, or up to `num` training examples where there are no fresh ones."""
    if exp.data.draw is None:
        train = exp.data.examples["train"]
        with processes.together():
            points = train.gather(np.arange(min(num, train.size)))["x1"]
        return to_unit(points)
    draw = jax.jit(exp.data.draw, static_argnums=1)
    return np.asarray(draw(rng.stream(seed, "target"), num))


class Evaluator:
    """The metrics of `evaluate.metrics`, compiled once, for any state of an experiment.

    Making one checks everything they need, weights and references included, and computes nothing.
    Raises:
      UserError: unknown metrics, metrics that these data cannot have, weights or references that
        cannot be had.
    """

    def __init__(self, exp: Experiment):
        check_metrics(exp)
        self.exp, section = exp, exp.config.evaluate
        self.metrics = metrics_of(section.metrics, exp.methods)
        self.of_samples = [metric for metric in self.metrics if metric.reads == "samples"]
        self.judge, self.reference = None, None
        if judged := [metric for metric in self.metrics if metric.reads == "features"]:
            self.judge = images.create_judge(section, exp.mesh, judged)
            with processes.together():
                self.reference = open_reference(section, self.judge, exp.config, exp.data)
        self.heldout = make_heldout_loss(exp)
        self.draw = generate.make_drawer(exp)
        self.blocks = generate.make_generator(exp, gather=False, levels=True)
        self._statistics = None

    def best_key(self) -> str:
        """The name under which a checkpoint keeps its `best_metric`.

        For a figure of samples it names all that it depends on: one of another network, reference
        or number of samples is another figure, and no run's best is chosen between them.
        """
        config = self.exp.config
        metric = config.checkpoint.best_metric
        if metric not in best_names(self.metrics):
            return metric
        facts = [config.train.eval_samples, config.sampler.to_json(sort_keys=True)]
        decides = config.sample.copy_and_resolve_references()
        del decides["labels"]  # of --mode=sample alone
        facts += [decides.to_json(sort_keys=True)]
        if self.judge is not None:
            facts += [self.judge.network.hash, self.judge.resize, self.reference.manifest["source"]]
            facts += [self.reference.manifest.get(k) for k in ("identity", "file_hash", "count")]
        if self.exp.decoder is not None:
            facts.append(sorted(self.exp.decoder.facts.items()))
        if config.evaluate.labels == "random":
            facts.append("random labels")
        return f"{metric}@{short_hash(*facts)}"

    def aliases(self) -> dict[str, str]:
        """Metrics by whose figure, the smaller the better, a run can keep its best checkpoint."""
        if self.judge is None:
            return {}
        named = lambda figure: images.named(figure, self.judge.network)
        return {m.name: named(m.smaller[0]) for m in self.judge.metrics if m.smaller}

    def reference_statistics(self) -> images.Statistics:
        """Those that samples are compared with; computed, or read from the cache, once."""
        if self._statistics is None:
            self._statistics = load_reference(self.reference, self.judge)
        return self._statistics

    def bits_per_dim(self, params) -> dict[str, float]:
        """Of the first `evaluate.likelihood_images` test images, dequantised uniformly.

        One Hutchinson probe an image; "bits_per_dim_error" is the standard error over images, of
        two or more.
        """
        config, examples = self.exp.config, self.exp.data.examples["test"]
        num = min(config.evaluate.likelihood_images, examples.size)
        progress = logbook.Progress("likelihood", num, unit="images")
        key, numbers, bits = rng.stream(config.seed + config.sample.seed, "likelihood"), [], []
        size = generate.batch_size(self.exp, num)
        rows = sharding.local_rows(self.exp.mesh, size)
        for index, keep in generate.batches(np.arange(num), size):
            with processes.together():
                pixels = examples.gather(index[rows])["x1"]
            pixels = sharding.put_batch(pixels, self.exp.mesh)
            found = self._log_prob(params, key, pixels, index.astype(np.int32))
            own, values = sharding.own_rows(found)
            numbers.append(index[own[own < keep]])
            bits.append(values[own < keep])
            progress.update(index[keep - 1] + 1)
            preemption.poll()
        of_all = lambda parts: sharding.from_all(np.concatenate(parts))
        bits = of_all(bits)[np.argsort(of_all(numbers))]
        found = {"bits_per_dim": float(np.mean(bits))}
        if len(bits) > 1:  # one image tells no spread
            found["bits_per_dim_error"] = float(np.std(bits, ddof=1) / math.sqrt(len(bits)))
        return found

    @functools.cached_property
    def _log_prob(self) -> Callable:
        """(params, key, pixels uint8, index) -> bits a dimension [B], split over the mesh."""
        config, teaches = self.exp.config, self.exp.objective.method.teaches
        options = {name: config.sampler[name] for name in LEVELS if name in config.sampler}
        options = {**options, "sigma_data": config.sigma_data} if teaches != "velocity" else {}

        def bits(params, key, pixels, index):
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
            x = likelihood.dequantize(rng.fold_in(keys, 0), pixels)
            field = self.exp.objective.field(params)
            field = score_field(field) if teaches == "denoiser" else field
            found = likelihood.log_prob(
                rng.fold_in(keys, 1), field, x, follows=LIKELIHOOD_FIELDS[teaches], **options
            )
            return likelihood.bits_per_dim(found.value, x[0].size)

        return jax.jit(bits, out_shardings=sharding.batch_sharding(self.exp.mesh))

    def samples(self, params, num: int, repeats: int, on_batch=None) -> Evaluation:
        """The metrics of `num` samples for each of `repeats` sampling seeds."""
        config, rows = self.exp.config, []
        seeds = [config.seed + config.sample.seed + repeat for repeat in range(repeats)]
        if on_batch is None:
            count = lambda before: None
        else:
            count = lambda before: lambda done, note="": on_batch(before + done, note)
        if self.judge is not None:
            self.reference_statistics()
        first, taken = None, watch(self.exp.decoder)
        for number, seed in enumerate(seeds):
            row = {}
            if self.of_samples:
                row |= self._samples(params, num, seed, count(number * num))
            if self.judge is not None:
                row |= self._images(params, num, seed, count(number * num))
                first = self.first if number == 0 else first
            rows.append(row)
        middle = np.median if self.of_samples and not self.exp.pictures else np.mean
        over = lambda how: {k: float(how([row[k] for row in rows])) for k in rows[0]}
        spread = over(lambda values: np.std(values, ddof=1)) if repeats > 1 else {}
        return Evaluation(over(middle), rows, seeds, spread, first, taken())

    def _samples(self, params, num: int, seed: int, on_batch) -> dict[str, float]:
        """Metrics of the samples themselves, against `target_points`."""
        labels = generate.labels_of(self.exp, np.arange(num), num, seed=seed)
        out, row = self.draw(params, num, seed, on_batch, labels), {}
        points = target_points(self.exp, seed, num)
        for metric in self.of_samples:
            row |= metric.compute(out.x, points, self.exp.config.evaluate)
        return row | _means([(out.nfe, out.info)], [num])

    def _images(self, params, num: int, seed: int, on_batch) -> dict[str, float]:
        """Against the reference; no more than a batch of samples is ever held."""
        told, counts, first = [], [], []
        reference = self.reference_statistics()
        labels = generate.labels_of(self.exp, np.arange(num), num, seed=seed)
        rows = generate.shown(labels, num, pictured(self.exp.config))

        def drawn():
            size = generate.batch_size(self.exp, num)
            for index, keep in generate.batches(np.arange(num), size):
                within = generate.inside(on_batch, sum(counts), keep)
                labels = generate.labels_of(self.exp, index, num, seed=seed)
                out, finite = self.blocks(params, seed, index, labels, within)
                generate.check_finite(finite, index[:keep], seed)
                if np.isin(rows, index).any():
                    kept = np.isin(index, rows) & (np.arange(size) < keep)
                    first.append(_chosen(out.x, kept))
                told.append(jax.tree.map(lambda a, n=keep: a[:n], (out.nfe, out.info)))
                counts.append(keep)
                yield out.x, np.where(np.arange(size) < keep, index, -1)

        statistics = images.statistics(self.judge, drawn(), on_block=on_batch)
        self.first = np.concatenate(first)
        return images.compare(self.judge, statistics, reference) | _means(told, counts)

    def __call__(self, params, on_batch=None, known: dict | None = None) -> Evaluation:
        """Every metric of `evaluate.metrics`, as the config's section says.

        `on_batch(done, note)` is called after each batch of samples and within it, and may raise to
        stop; `known` holds the held-out figures of these parameters, where they were just computed.
        """
        section, held = self.exp.config.evaluate, {}
        for metric in self.exp.methods[Metric].values():
            if metric.reads == "run" and metric in self.metrics:
                held = held | metric.compute(self, params, known)
        if not self.of_samples and self.judge is None:
            return Evaluation(held, [], [], {}, None)
        out = self.samples(params, section.num_samples, section.repeats, on_batch)
        return out._replace(results=held | out.results)


def _chosen(x: jax.Array, kept: np.ndarray) -> np.ndarray:
    """These rows of a split array [B, ...], on every process; no device gets them all."""
    rows, values = sharding.own_rows(x)
    rows, values = (sharding.from_all(part[kept[rows]]) for part in (rows, values))
    return values[np.argsort(rows)]


def _means(told: list, counts: list[int]) -> dict[str, float]:
    """What samplers say of themselves, averaged over all samples: "nfe", and HMC's acceptance."""
    weighted = lambda parts: float(
        sum(np.mean(part) * n for part, n in zip(parts, counts, strict=True)) / sum(counts)
    )
    infos = [info for _, info in told]
    means = {name: weighted([info[name] for info in infos]) for name in infos[0]}
    return means | {"nfe": weighted([nfe for nfe, _ in told])}


def open_reference(section, judge, config=None, data=None) -> reference.Reference:
    """`evaluate.reference`, or else a split of the data; nothing where no metric reads one.

    Raises:
      UserError: neither is there, or not readable, or not this judge's.
    """
    parts = [images.outputs_of(judge.metrics, part, reference=True) for part in images.PARTS]
    if not any(parts):
        return reference.Reference(None, {}, {"source": "none", "count": None, "identity": "none"})
    if section.reference is not None:
        reading = sets.reading_of({} if config is None else config.data)
        return reference.open_reference(section.reference, judge, logbook.say, reading)
    split = sets.from_dataset(data, section.reference_split, config.data)
    return reference.of_images(split, judge)


def load_reference(opened: reference.Reference, judge) -> images.Statistics:
    """The statistics of a reference, with progress on the screen."""
    progress = None

    def on_block(done: int) -> None:
        nonlocal progress
        if progress is None:
            progress = logbook.Progress("reference", opened.images.size, unit="images")
        progress.update(done)
        preemption.poll()

    statistics, file = reference.load(opened, judge, on_block)
    source = opened.manifest["source"]
    if opened.images is not None or opened.stored:
        logbook.say(f"reference: {source}" + (f"  statistics in {file}" if file else ""))
    return statistics
