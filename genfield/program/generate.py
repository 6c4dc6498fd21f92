"""Samples of a state, on any mesh: each is a function of (seed, sample index) alone."""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from genfield import rng
from genfield.data import to_uint8, to_unit
from genfield.errors import UserError
from genfield.machine import sharding
from genfield.program.experiment import Experiment
from genfield.program.train_step import TrainState
from genfield.sampling import Samples


def parameters(exp: Experiment, state: TrainState) -> dict:
    """The averaged parameters where the run keeps them and the config wants them."""
    return state.ema if averaged(exp) else state.params


def averaged(exp: Experiment) -> bool:
    """Whether `parameters` are the average."""
    return bool(exp.config.sample.use_ema and exp.ema_rate)


def make_generator(
    exp: Experiment,
    *,
    trace: int | None = None,
    gather: bool = True,
    levels: bool = False,
    starts: bool = False,
) -> Callable:
    """generate(params, seed, index [n], labels=None) -> (Samples, finite [n]), global arrays.

    The noise, start and label (index modulo the number of classes, unless given) of a sample depend
    on the seed (or a key in its place) and its index, to the bit; the sample itself to rounding,
    and to the bit where its batch and devices are the same.

    Args:
      trace: as `sampling.sample` takes it.
      gather: every device gets all of x; otherwise it stays split over the mesh.
      levels: images as uint8, rounded as `sample.rounding` says, where the data are images.
      starts: samples for pairs: info["x0"] is where each started, before a sampler scales it; from
        noises of their own, which no evaluation of what learns from these pairs starts from.
    """
    data, config, mesh = exp.data, exp.config, exp.mesh

    def start(key):
        if data.draw_source is not None:
            return data.draw_source(key, 1)[0]
        return jax.random.normal(key, data.shape, jnp.float32)

    def sampler(params, keys, x, cond):
        return exp.sampler(keys, exp.objective.field(params), x, cond, trace)

    if config.sample.slots and trace is None:  # each device refills its own slots
        split = sharding.BATCH
        specs = dict(in_specs=(jax.sharding.PartitionSpec(), split, split, split), out_specs=split)
        sampler = jax.shard_map(sampler, mesh=mesh, check_vma=False, **specs)

    def run(params, seed_start, seed_sampler, index, labels, x):
        cond = index % data.num_classes if data.num_classes else None
        cond = cond if labels is None else labels
        x = rng.per_index(seed_start, index, start) if x is None else to_unit(x)
        x = jax.lax.with_sharding_constraint(x, sharding.batch_sharding(mesh))
        keys = rng.per_index(seed_sampler, index, lambda key: key)
        out = sampler(params, keys, x, cond)
        finite = jnp.all(jnp.isfinite(out.x), axis=tuple(range(1, out.x.ndim)))
        if starts:
            out = out._replace(info=out.info | {"x0": x})
        if levels and data.pixels:
            out = out._replace(x=to_uint8(out.x, config.sample.rounding))
        return out, finite

    whole = sharding.replicated(mesh)
    place = whole if gather else sharding.batch_sharding(mesh)
    samples = Samples(place, whole, None if trace is None else whole, whole)
    run = jax.jit(run, out_shardings=(samples, whole))

    def generate(params, seed, index: np.ndarray, labels=None) -> tuple[Samples, jax.Array]:
        start = f"pairs of {data.fingerprint}" if starts else "start"
        if isinstance(seed, jax.Array):
            keys = rng.split(rng.typed(seed))
        else:
            keys = rng.stream(seed, start), rng.stream(seed, "sampler")
        x = None
        if data.starts is not None:  # of pairs with a source of their own
            pairs = data.starts.gather(index % data.starts.size)
            x, own = pairs["x0"], pairs.get("label") if data.num_classes else None
            labels = own if labels is None else labels
        return run(params, *keys, index.astype(np.int32), labels, x)

    return generate


def check_finite(finite, index: np.ndarray, seed: int) -> None:
    """Raises UserError where a sample that counts is NaN or infinite; `index` is of these."""
    bad = index[~np.asarray(finite)[: len(index)]]
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(index)} samples are NaN or infinite, the first is number {bad[0]} "
            f"of sampling seed {seed}: lower config.sampler.step_size, or take another checkpoint"
        )


def batches(index: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """`index` in parts of `size` and how many of a part count: the last is filled up."""
    for first in range(0, len(index), size):
        part = index[first : first + size]
        yield np.pad(part, (0, size - len(part)), mode="edge"), len(part)


def batch_size(exp: Experiment, num: int, *, fixed: bool = False) -> int:
    """How many samples to draw at a time, over all devices, for `num` of them.

    `fixed`: the number a device depends on the config alone, so that every mesh runs the same
    program; otherwise no device draws more than it must.
    """
    n = exp.mesh.size
    most = num if fixed else math.ceil(num / n)
    return n * min(exp.config.sample.batch_size, most)


def make_drawer(exp: Experiment, trace: int | None = None) -> Callable:
    """draw(params, num, seed, on_batch=None, labels=None) -> Samples 0 … num - 1 on the host.

    `on_batch(done)` is called after each batch and may raise to stop. Raises UserError where a
    sample is not finite.
    """
    generate = make_generator(exp, trace=trace)

    def draw(params, num: int, seed, on_batch: Callable | None = None, labels=None) -> Samples:
        parts, done = [], 0
        for index, count in batches(np.arange(num), batch_size(exp, num)):
            asked = None if labels is None else labels[index]
            out, finite = jax.device_get(generate(params, seed, index, asked))
            check_finite(finite, index[:count], seed)
            parts.append(_take(out, count))
            done += count
            if on_batch is not None:
                on_batch(done)
        return _join(parts)

    return draw


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
