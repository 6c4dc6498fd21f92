"""The figures of a state: its held-out loss, and what its samples are worth."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from clu import metrics as clu_metrics

from genfield import generate, logbook, preemption, rng, sampling, sharding
from genfield.data import sets
from genfield.data.pipeline import short_hash
from genfield.errors import UserError, choose
from genfield.experiment import Experiment, draw_batch
from genfield.fields import score_field
from genfield.metrics import images, likelihood, point_cloud, reference
from genfield.objectives import KIND, has_clock


def make_heldout_loss(experiment: Experiment) -> Callable:
    """heldout(params) -> {"loss": …, terms}, over `train.eval_batches` fixed batches and draws."""
    config, data, mesh = experiment.config, experiment.data, experiment.mesh
    key = rng.stream(config.seed, "heldout")
    draw = draw_batch(experiment)

    def losses(params, batch, index):
        batch_key = jax.random.fold_in(key, index)
        if draw is not None:
            batch = draw(jax.random.fold_in(batch_key, 2))
        loss, terms = experiment.objective(batch_key, params, batch, False)
        return {"loss": loss, **terms}

    compute = jax.jit(losses, out_shardings=sharding.replicated(mesh))

    def heldout(params) -> dict[str, float]:
        totals = {}
        for index in range(config.train.eval_batches):
            batch = {}
            if draw is None:
                batch = put_global(data.heldout(index, config.batch_size), mesh)
            for name, values in compute(params, batch, np.int32(index)).items():
                part = clu_metrics.Average.from_model_output(values)
                totals[name] = totals[name].merge(part) if name in totals else part
        return {name: float(total.compute()) for name, total in totals.items()}

    return heldout


def put_global(batch: dict, mesh) -> dict:
    """A numpy batch that every process holds whole -> global arrays, split over the mesh."""
    place = sharding.batch_sharding(mesh)
    put = lambda a: jax.make_array_from_callback(a.shape, place, lambda index: a[index])
    return jax.tree.map(put, batch)


class Evaluation(NamedTuple):
    """The figures of a state.

    Attributes:
      results: what is reported, by name: over the sampling seeds, the median for points (as the
        papers have it) and the mean for images.
      by_seed: what each sampling seed gave. seeds: these seeds.
      spread: standard deviations over the seeds; empty with one.
      images: the first GRID samples, uint8, of image data; None without.
    """

    results: dict[str, float]
    by_seed: list[dict[str, float]]
    seeds: list[int]
    spread: dict[str, float]
    images: np.ndarray | None


METRICS = ("heldout_loss", "point_cloud", "bits_per_dim", *images.METRICS)
LEVELS = ("sigma_min", "sigma_max")  # of a sampler's section
LIKELIHOOD_KINDS = {"score": "score", "denoiser": "score", "velocity": "velocity"}
GRID = 64  # images in a picture


def check_metrics(exp: Experiment) -> None:
    """Raises UserError for unknown metrics, or metrics that these data cannot have."""
    for name in exp.config.evaluate.metrics:
        choose("metric", name, dict.fromkeys(METRICS))
        of = exp.config.data.name
        if name == "point_cloud" and len(exp.data.shape) > 2:
            raise UserError(f"metric 'point_cloud' needs a point problem or sequences, not {of!r}")
        if name == "bits_per_dim" and not (exp.data.pixels and "test" in exp.data.examples):
            raise UserError(f"metric 'bits_per_dim' needs test images, which {of!r} has not")
        if name == "bits_per_dim" and not _has_likelihood(exp.config):
            raise UserError("metric 'bits_per_dim' needs a velocity or a field of noise levels")
        if name in images.METRICS and not exp.data.pixels:
            raise UserError(
                f"metric {name!r} needs images, and data {of!r} are none: leave it out of "
                "config.evaluate.metrics"
            )
    check_counts(exp.config)


def _has_likelihood(config) -> bool:
    return KIND[config.loss.name] in LIKELIHOOD_KINDS and has_clock(config.loss)


def check_counts(config) -> None:
    """Raises UserError where a metric takes more samples than will be drawn for it."""
    counts = {"config.evaluate.num_samples": config.evaluate.num_samples}
    if config.train.eval_samples:
        counts["config.train.eval_samples"] = config.train.eval_samples
    for name in config.evaluate.metrics:
        least = images.METRICS[name].least if name in images.METRICS else 1
        for field, count in counts.items():
            if count < least:
                raise UserError(f"metric {name!r} takes {least} samples or more: raise {field}")


def best_names(metrics) -> list[str]:
    """What of these metrics `checkpoint.best_metric` can name: the smaller the better."""
    points = ["chamfer", "hausdorff", "w2"] if "point_cloud" in metrics else []
    return [*(name for name in metrics if name in images.SMALLER), *points]


def target_points(exp: Experiment, seed: int, num: int) -> np.ndarray:
    """Fresh points of the data, or up to `num` training examples where there are no fresh ones."""
    if exp.data.draw is None:
        train = exp.data.examples["train"]
        return train.gather(np.arange(min(num, train.size)))["x1"]
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
        self.points = "point_cloud" in section.metrics
        self.judge, self.reference = None, None
        if judged := [name for name in section.metrics if name in images.METRICS]:
            self.judge = images.create_judge(section, exp.mesh, judged)
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
        if metric not in best_names(config.evaluate.metrics):
            return metric
        facts = [config.train.eval_samples, config.sampler.to_json(sort_keys=True)]
        facts += [config.sample.to_json(sort_keys=True)]
        if self.judge is not None:
            facts += [self.judge.network.hash, self.judge.resize, self.reference.manifest["source"]]
            facts += [self.reference.manifest.get(k) for k in ("identity", "file_hash", "count")]
        return f"{metric}@{short_hash(*facts)}"

    def aliases(self) -> dict[str, str]:
        """Metrics by whose figure, the smaller the better, a run can keep its best checkpoint."""
        if self.judge is None:
            return {}
        network = self.judge.network
        known = {name: images.named(figure, network) for name, figure in images.SMALLER.items()}
        return {name: figure for name, figure in known.items() if name in self.judge.metrics}

    def reference_statistics(self) -> images.Statistics:
        """Those that samples are compared with; computed, or read from the cache, once."""
        if self._statistics is None:
            self._statistics = load_reference(self.reference, self.judge)
        return self._statistics

    def bits_per_dim(self, params) -> dict[str, float]:
        """Of the first `evaluate.likelihood_images` test images, dequantised uniformly.

        One Hutchinson probe an image; "bits_per_dim_error" is the standard error over images.
        """
        config, examples = self.exp.config, self.exp.data.examples["test"]
        num = min(config.evaluate.likelihood_images, examples.size)
        progress = logbook.Progress("likelihood", num, unit="images")
        key, bits = rng.stream(config.seed + config.sample.seed, "likelihood"), []
        for index, keep in generate.batches(np.arange(num), generate.batch_size(self.exp, num)):
            batch = put_global(examples.gather(index), self.exp.mesh)
            found = self._log_prob(params, key, batch["x1"], index.astype(np.int32))
            bits.append(sharding.to_host(found)[:keep])
            progress.update(index[keep - 1] + 1)
            preemption.poll()
        bits = np.concatenate(bits)
        error = float(np.std(bits, ddof=1) / math.sqrt(len(bits))) if len(bits) > 1 else math.nan
        return {"bits_per_dim": float(np.mean(bits)), "bits_per_dim_error": error}

    @functools.cached_property
    def _log_prob(self) -> Callable:
        """(params, key, pixels uint8, index) -> bits a dimension [B], jitted."""
        config, kind = self.exp.config, KIND[self.exp.config.loss.name]
        options = {name: config.sampler[name] for name in LEVELS if name in config.sampler}
        options = {**options, "sigma_data": config.sigma_data} if kind != "velocity" else {}

        def bits(params, key, pixels, index):
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
            x = likelihood.dequantize(sampling.core.fold_in(keys, 0), pixels)
            field = self.exp.objective.field(params)
            field = score_field(field) if kind == "denoiser" else field
            found = likelihood.log_prob(
                sampling.core.fold_in(keys, 1), field, x, kind=LIKELIHOOD_KINDS[kind], **options
            )
            return likelihood.bits_per_dim(found.value, x[0].size)

        return jax.jit(bits, out_shardings=sharding.replicated(self.exp.mesh))

    def samples(self, params, num: int, repeats: int, on_batch=None) -> Evaluation:
        """The metrics of `num` samples for each of `repeats` sampling seeds."""
        config, rows = self.exp.config, []
        seeds = [config.seed + config.sample.seed + repeat for repeat in range(repeats)]
        count = lambda before: lambda done: on_batch and on_batch(before + done)
        first = None
        for number, seed in enumerate(seeds):
            row = {}
            if self.points:
                row |= self._points(params, num, seed, count(number * num))
            if self.judge is not None:
                row |= self._images(params, num, seed, count(number * num))
                first = self.first if number == 0 else first
            rows.append(row)
        middle = np.median if self.points else np.mean
        over = lambda how: {k: float(how([row[k] for row in rows])) for k in rows[0]}
        spread = over(lambda values: np.std(values, ddof=1)) if repeats > 1 else {}
        return Evaluation(over(middle), rows, seeds, spread, first)

    def _points(self, params, num: int, seed: int, on_batch) -> dict[str, float]:
        """Against `target_points`."""
        flat = lambda a: np.asarray(a).reshape(len(a), -1)
        out = self.draw(params, num, seed, on_batch)
        points = target_points(self.exp, seed, num)
        transported = self.exp.config.evaluate.transport_points
        row = point_cloud.compare(flat(out.x), flat(points), transported)
        return row | _means([(out.nfe, out.info)], [num])

    def _images(self, params, num: int, seed: int, on_batch) -> dict[str, float]:
        """Against the reference; no more than a batch of samples is ever held."""
        told, counts = [], []
        reference = self.reference_statistics()
        self.first = None

        def drawn():
            size = generate.batch_size(self.exp, num)
            for index, keep in generate.batches(np.arange(num), size):
                out, finite = self.blocks(params, seed, index)
                generate.check_finite(finite, index[:keep], seed)
                if self.first is None:
                    self.first = sharding.to_host(out.x)[: min(GRID, keep)]
                told.append(jax.tree.map(lambda a, n=keep: a[:n], (out.nfe, out.info)))
                counts.append(keep)
                yield out.x, np.where(np.arange(size) < keep, index, -1)

        statistics = images.statistics(self.judge, drawn(), on_block=on_batch)
        return images.compare(self.judge, statistics, reference) | _means(told, counts)

    def __call__(self, params, on_batch=None, known: dict | None = None) -> Evaluation:
        """Every metric of `evaluate.metrics`, as the config's section says.

        `on_batch(done)` is called after each batch of samples and may raise to stop; `known` holds
        the held-out figures of these parameters, where they were just computed.
        """
        section, held = self.exp.config.evaluate, {}
        if "heldout_loss" in section.metrics:
            held = known or self.heldout(params)
        if "bits_per_dim" in section.metrics:
            held = held | self.bits_per_dim(params)
        if not self.points and self.judge is None:
            return Evaluation(held, [], [], {}, None)
        out = self.samples(params, section.num_samples, section.repeats, on_batch)
        return out._replace(results=held | out.results)


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
    kinds = [images.outputs_of(judge.metrics, kind, reference=True) for kind in images.KINDS]
    if not any(kinds):
        return reference.Reference(None, {}, {"source": "none", "count": None, "identity": "none"})
    if section.reference is not None:
        return reference.open_reference(section.reference, judge)
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


def table(out: Evaluation, paper: dict[str, float]) -> str:
    """The closing table: metric, value, spread over the sampling seeds, the paper's value."""
    number = lambda values, name: f"{values[name]:.4g}" if name in values else "-"
    rows = [("metric", "value", "sd", "paper")]
    rows += [
        (name, number(out.results, name), number(out.spread, name), number(paper, name))
        for name in out.results
    ]
    return columns(rows)


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells as aligned text, the first row a head."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    rows = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    line = lambda row: "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    return "\n".join(map(line, rows))
