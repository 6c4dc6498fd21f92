"""Samples of a state, on any mesh: each is a function of (seed, sample index) alone."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genfield import rng
from genfield.data import to_uint8, to_unit
from genfield.data.pipeline import MAX_SHOWN
from genfield.errors import UserError
from genfield.machine import processes, sharding
from genfield.program.chunks import Chunks
from genfield.program.decoder import check_decoded
from genfield.program.experiment import Experiment
from genfield.program.sampler import Course
from genfield.program.train_step import TrainState
from genfield.sampling import Samples

SPARE = 32  # one in so many samples may be drawn for nothing, to fill the last batch
BATCHES = 16  # in so many at least are samples drawn that are kept batch by batch
DRAWN = 0.999  # of a batch that waits to be decoded; the progress ends with the last image


def parameters(exp: Experiment, state: TrainState) -> dict:
    """The averaged parameters where the run keeps them and the config wants them."""
    return state.ema if averaged(exp) else state.params


def which(exp: Experiment) -> str:
    """Which parameters these are, for a card: "ema" or "raw", or which of a file of weights."""
    if exp.weights is not None and exp.weights.info.part:
        return exp.weights.info.part
    return "ema" if averaged(exp) else "raw"


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
    """generate(params, seed, index [n], labels=None, on_part=None) -> (Samples, finite [n]).

    Global arrays. The noise, start and label (index modulo the number of classes, unless given) of
    a sample depend on the seed (or a key in its place) and its index, to the bit; the sample itself
    to rounding, and to the bit where its batch and devices are the same. `on_part(share, note)` is
    called about every second within a batch, and may raise to stop.

    Args:
      trace: as `sampling.sample` takes it.
      gather: every device gets all of x; otherwise it stays split over the mesh, as images that
        were decoded always do.
      levels: images as uint8, rounded as `sample.rounding` says, where the data are images or
        latents that are decoded.
      starts: samples for pairs: info["x0"] is where each started, before a sampler scales it; from
        noises of their own, which no evaluation of what learns from these pairs starts from. Then
        info stays split over the mesh.
    """
    data, mesh = exp.data, exp.mesh
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)

    def noise(key):
        if data.draw_source is not None:
            return data.draw_source(key, 1)[0]
        return jax.random.normal(key, data.shape, jnp.float32)

    def start(seed_start, seed_sampler, index, x):
        x = rng.per_index(seed_start, index, noise) if x is None else to_unit(x)
        x = jax.lax.with_sharding_constraint(x, split)
        return x, rng.per_index(seed_sampler, index, lambda key: key)

    def end(out, x):
        finite = jnp.all(jnp.isfinite(out.x), axis=tuple(range(1, out.x.ndim)))
        if starts:
            out = out._replace(info=out.info | {"x0": x})
        if levels and data.pixels:
            out = out._replace(x=to_uint8(out.x, exp.config.sample.rounding))
        return out, finite

    shown = _as_pixels(exp) if levels and exp.decoder is not None else None
    place = whole if gather and shown is None else split
    info = split if starts else whole
    samples = Samples(place, whole, None if trace is None else whole, info)
    stages = exp.sampler.pieces(trace) if isinstance(exp.sampler, Course) else None
    if stages is None:
        run = _in_one(exp, trace, start, end, (samples, whole))
    else:
        run = Chunks(exp, stages, trace, start, end, (samples, whole))

    def generate(params, seed, index: np.ndarray, labels=None, on_part=None):
        start = f"pairs of {data.fingerprint}" if starts else "start"
        if isinstance(seed, jax.Array):
            keys = tuple(rng.split(rng.typed(seed)))
        else:
            keys = rng.stream(seed, start), rng.stream(seed, "sampler")
        x, cond = _given(exp, index)
        if labels is not None:
            cond = np.asarray(labels, np.int32)
        elif cond is None and data.num_classes:
            cond = (index % data.num_classes).astype(np.int32)
        out, finite = run(params, keys, index.astype(np.int32), x, cond, on_part)
        return (out, finite) if shown is None else (shown(out, finite, on_part), finite)

    return generate


def _given(exp: Experiment, index: np.ndarray) -> tuple:
    """Where these samples start, and their labels, of pairs with a source of their own; or None."""
    starts, mesh = exp.data.starts, exp.mesh
    if starts is None:
        return None, None
    rows = index[sharding.local_rows(mesh, len(index))]
    with processes.together():
        pairs = starts.gather(rows % starts.size)
    x, labelled = sharding.put_batch(pairs["x0"], mesh), exp.data.num_classes and "label" in pairs
    return x, sharding.put_batch(pairs["label"].astype(np.int32), mesh) if labelled else None


def _as_pixels(exp: Experiment) -> Callable:
    """shown(samples, finite, on_part) -> the samples with images, uint8, in place of latents."""
    whole = sharding.replicated(exp.mesh)
    lost = jax.jit(lambda latents, images: latents & ~images, out_shardings=whole)

    def shown(out: Samples, finite, on_part: Callable | None) -> Samples:
        nearly = None if on_part is None else lambda note: on_part(DRAWN, note)
        images, fine = exp.decoder(out.x, on_part=nearly)
        check_decoded(np.asarray(lost(finite, fine)))
        return out._replace(x=images)

    return shown


def _in_one(exp: Experiment, trace, start: Callable, end: Callable, places) -> Callable:
    """What `Chunks` computes, by one call, for samplers that have no pieces."""

    def run(params, seeds, index, x, cond):
        x, keys = start(*seeds, index, x)
        return end(exp.sampler(keys, exp.objective.field(params), x, cond, trace), x)

    run = jax.jit(run, out_shardings=places)
    return lambda *arguments: run(*arguments[:-1])


def check_finite(finite, index: np.ndarray, seed: int) -> None:
    """Raises UserError where a sample that counts is NaN or infinite; `index` is of these."""
    bad = index[~np.asarray(finite)[: len(index)]]
    if len(bad):
        processes.check_memory()
        raise UserError(
            f"{len(bad)} of {len(index)} samples are NaN or infinite, the first is number {bad[0]} "
            f"of sampling seed {seed}: lower config.sampler.step_size, or take another checkpoint"
        )


def batches(index: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """`index` in parts of `size` and how many of a part count: the last is filled up."""
    for first in range(0, len(index), size):
        part = index[first : first + size]
        yield np.pad(part, (0, size - len(part)), mode="edge"), len(part)


def batch_size(exp: Experiment, num: int, *, kept: bool = False) -> int:
    """How many samples to draw at a time, over all devices, for `num` of them.

    As many on a device as `sample.batch_size` says, where no more than 1 in SPARE of `num`, or one
    a device, are then drawn for nothing; otherwise fewer, in batches as large as that allows.

    kept: each batch is written when it is drawn. A kill costs the one that it meets, so a batch
      holds at most 1 in BATCHES of `num`, or else `sample.shard_size`, and one a device at least.
    """
    n, section = exp.mesh.size, exp.config.sample
    most = min(section.batch_size, math.ceil(num / n))
    if kept:
        most = max(1, min(most, max(section.shard_size, num // BATCHES) // n))
    spare = lambda size: -num % (n * size)
    size, count = most, math.ceil(num / (n * most))
    while spare(size) > max(num // SPARE, n - 1):
        size = math.ceil(num / (n * count))
        count += 1
    return n * size


def inside(on_batch: Callable | None, done: int, count: int) -> Callable | None:
    """An `on_part` of a batch of `count` samples, told as `on_batch(done, note)`."""
    if on_batch is None:
        return None
    return lambda share, note: on_batch(done + share * count, note)


def labels_of(
    exp: Experiment, index: np.ndarray, num: int, chosen=(), seed: int | None = None
) -> np.ndarray | None:
    """The labels of samples of these indices, of `num` in all; None where there are no classes.

    The chosen ones in turn; else those of the examples where the samples start; else, where
    `evaluate.labels` is "random" and a seed is given, each drawn uniformly by (seed, index) alone;
    else the classes in turn, or, where there are fewer samples than classes, an even choice of
    them.
    """
    data, classes = exp.data, exp.data.num_classes
    if not classes:
        return None
    if len(chosen):
        return np.asarray(chosen, np.int32)[index % len(chosen)]
    if data.starts is not None:
        known, rows = data.starts.labels, index % data.starts.size
        return data.starts.gather(rows).get("label") if known is None else known[rows]
    if seed is not None and exp.config.evaluate.labels == "random":
        drawn = _drawn_labels(rng.stream(seed, "labels"), index.astype(np.int32), classes)
        return np.asarray(drawn, np.int32)
    return (index % classes if num >= classes else index * classes // num).astype(np.int32)


@functools.partial(jax.jit, static_argnums=2)
def _drawn_labels(key, index, classes: int):
    """Labels drawn uniformly, each by its index alone."""
    return rng.per_index(key, index, lambda key: jax.random.randint(key, (), 0, classes))


def classes_of(asked: Any, exp: Experiment, field: str, null: bool = False) -> np.ndarray:
    """Numbers of the classes that are asked for by number or name, one or several.

    null: whether the number after the last, which stands for no class, may be asked for too.
    Raises:
      UserError: a run without classes, or a class that it does not have.
    """
    names, numbers = list(exp.data.class_names), []
    for one in [asked] if isinstance(asked, str) or np.ndim(asked) == 0 else asked:
        number = one.item() if hasattr(one, "item") else one
        number = names.index(number) if number in names else number
        if not names:
            raise UserError(f"{field}: this run knows no classes; leave it out")
        if type(number) is not int or not 0 <= number < len(names) + null:
            known = [n if n == str(i) else f"{i} ({n})" for i, n in enumerate(names)]
            if len(known) > MAX_SHOWN:
                known[MAX_SHOWN:-1] = ["…"]
            raise UserError(f"{field}: {one!r} is no class of this run. Known: {', '.join(known)}")
        numbers.append(number)
    return np.array(numbers, np.int32)


def shown(labels: np.ndarray | None, num: int, places: int) -> np.ndarray:
    """Which of `num` samples stand in a picture: the first, or, where these lack classes that
    others have, an even choice of the classes that there are."""
    first = np.arange(min(num, places))
    if labels is None or set(labels[first]) == set(labels):
        return first
    order = np.argsort(labels, kind="stable")
    turn = np.empty(num, int)  # how many samples of its class come before each
    _, begins, counts = np.unique(labels[order], return_index=True, return_counts=True)
    turn[order] = np.arange(num) - np.repeat(begins, counts)
    order = np.lexsort((labels, turn))
    classes = len(begins)
    if classes > places:
        order = order[np.arange(places) * classes // places]
    return np.sort(order[:places])


def make_drawer(exp: Experiment, trace: int | None = None) -> Callable:
    """draw(params, num, seed, on_batch=None, labels=None) -> Samples 0 … num - 1 on the host.

    labels: [num]; None: those of `labels_of`. `on_batch(done, note)` is called after each batch,
    and within it with parts of samples; it may raise to stop. Raises UserError where a sample is
    not finite.
    """
    generate = make_generator(exp, trace=trace)

    def draw(params, num: int, seed, on_batch: Callable | None = None, labels=None) -> Samples:
        parts, done = [], 0
        for index, count in batches(np.arange(num), batch_size(exp, num)):
            asked = labels_of(exp, index, num) if labels is None else labels[index]
            within = inside(on_batch, done, count)
            out, finite = jax.device_get(generate(params, seed, index, asked, within))
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
