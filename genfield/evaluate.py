"""Generating samples from a state, and measuring them: what `evaluate` and `sample` run."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

from genfield import preemption, rng, sharding
from genfield.errors import UserError, choose
from genfield.experiment import Experiment, draw_batch
from genfield.metrics import point_cloud
from genfield.sampling import Samples
from genfield.train import TrainState


def parameters(experiment: Experiment, state: TrainState) -> dict:
    """The averaged parameters where the run keeps them and the config wants them."""
    return state.ema if state.ema and experiment.config.sample.use_ema else state.params


def make_generator(experiment: Experiment, trace: int | None = None) -> Callable:
    """generate(params, num, seed, on_batch=None) -> Samples on the host, in order of sample index.

    Labels, where there are classes, are the sample index modulo their number. The batch is split
    over the mesh; `on_batch(done)` is called after each batch and may raise to stop.
    """
    data, config, mesh = experiment.data, experiment.config, experiment.mesh

    def start(key):  # of one sample, so that it is a function of (seed, sample index) alone
        if data.draw_source is not None:
            return data.draw_source(key, 1)[0]
        return jax.random.normal(key, data.shape, jnp.float32)

    def batch(params, index, seed_start, seed_sampler):
        cond = index % data.num_classes if data.num_classes else None
        x = jax.lax.with_sharding_constraint(
            rng.per_index(seed_start, index, start),
            sharding.batch_sharding(mesh),
        )
        key = jax.random.fold_in(seed_sampler, index[0])
        return experiment.sampler(key, experiment.objective.field(params), x, cond, trace)

    run = jax.jit(batch, out_shardings=sharding.replicated(mesh))

    def generate(params, num: int, seed: int, on_batch: Callable | None = None) -> Samples:
        n = mesh.size
        size = min(config.sample.batch_size // n, math.ceil(num / n)) * n
        keys = rng.stream(seed, "start"), rng.stream(seed, "sampler")
        parts = []
        for first in range(0, num, size):
            index = np.arange(first, first + size, dtype=np.int32)
            out = jax.device_get(run(params, index, *keys))
            keep = min(size, num - first)
            parts.append(_take(out, keep))
            if on_batch is not None:
                on_batch(first + keep)
        return _join(parts)

    return generate


def _take(samples: Samples, n: int) -> Samples:
    cut = lambda a: a[:n]
    trace = None if samples.trace is None else samples.trace[:, :n]
    return Samples(cut(samples.x), cut(samples.nfe), trace, jax.tree.map(cut, samples.info))


def _join(parts: list[Samples]) -> Samples:
    join = lambda *a: np.concatenate(a)
    trace = None if parts[0].trace is None else np.concatenate([p.trace for p in parts], axis=1)
    return Samples(
        join(*(p.x for p in parts)),
        join(*(p.nfe for p in parts)),
        trace,
        jax.tree.map(join, *(p.info for p in parts)),
    )


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


def _point_cloud(experiment, params, generate, on_batch) -> dict[str, float]:
    """Medians over `evaluate.repeats` sampling seeds, each against fresh target points."""
    config = experiment.config
    section = config.evaluate
    target = jax.jit(experiment.data.draw, static_argnums=1)
    rows = []
    for repeat in range(section.repeats):
        seed = config.seed + 1 + repeat
        out = generate(params, section.num_samples, seed, on_batch)
        points = np.asarray(target(rng.stream(seed, "target"), section.num_samples))
        row = point_cloud.compare(out.x, points, section.transport_points)
        row |= {name: float(np.mean(value)) for name, value in out.info.items()}
        rows.append(row | {"nfe": float(np.mean(out.nfe))})
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]}


def _heldout_loss(experiment, params, generate, on_batch) -> dict[str, float]:
    return make_heldout_loss(experiment)(params)


METRICS = {"heldout_loss": _heldout_loss, "point_cloud": _point_cloud}


def check_metrics(experiment: Experiment) -> None:
    """Raises UserError for unknown metrics, or metrics that this data cannot have."""
    config, data = experiment.config, experiment.data
    for name in config.evaluate.metrics:
        choose("metric", name, METRICS)
        if name == "point_cloud" and (data.draw is None or len(data.shape) != 1):
            raise UserError(f"metric 'point_cloud' needs a point problem, not {config.data.name!r}")
    n = experiment.mesh.size
    if config.sample.batch_size < n:
        raise UserError(f"config.sample.batch_size must be at least the {n} devices")


def evaluate(
    experiment: Experiment, state: TrainState, on_batch=None, known: dict | None = None
) -> dict[str, float]:
    """Every metric of `evaluate.metrics`.

    `on_batch(done)` is called after each batch of samples and may raise to stop; `known` holds
    the held-out figures of this very state, where they were just computed.
    """
    params = parameters(experiment, state)
    generate = make_generator(experiment)
    results = {}
    for name in experiment.config.evaluate.metrics:
        if name == "heldout_loss" and known:
            results |= known
        else:
            results |= METRICS[name](experiment, params, generate, on_batch)
    return results


def poller(offset: int = 0) -> Callable[[int], None]:
    """An `on_batch` that stops at SIGTERM, also on several processes."""
    counter = iter(range(offset, 2**31))
    return lambda done: preemption.poll(next(counter))


def table(results: dict[str, float], paper: dict[str, float]) -> str:
    """The closing table: metric, value, the paper's value."""
    rows = [("metric", "value", "paper")]
    for name, value in results.items():
        rows.append((name, f"{value:.4g}", f"{paper[name]:.4g}" if name in paper else "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    line = lambda row: "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    return "\n".join([line(rows[0]), "  ".join("-" * w for w in widths), *map(line, rows[1:])])
