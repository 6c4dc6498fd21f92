"""What each training step is fed; match sets larger than a batch (DANSM, section 3.3).

A match set is the samples and the noises of `match_size` successive examples: S = match_size /
batch_size steps, counted from step 0. Its noises are those that the steps would have drawn, matched
among all of them, so each is used once and their law is the source's. Everything is a function of
(seed, step): a run resumed inside a match set makes the same set again.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from genfield import rng
from genfield.data import to_unit
from genfield.machine import sharding
from genfield.program import train_step
from genfield.program.experiment import Experiment, draw_batch


def batches(exp: Experiment, start: int) -> Iterator[dict]:
    """Endless global batches from step `start` on, without their "step".

    Empty where the step draws its own data; with "x0" where noises were matched ahead.
    """
    if exp.config.match_size > exp.config.batch_size:
        yield from _matched(exp, start)
    source = _source(exp, start)
    while True:
        yield next(source)


def _source(exp: Experiment, start: int) -> Iterator[dict]:
    """Batches as the data give them."""
    if exp.data.train is None:
        while True:
            yield {}
    for batch in exp.data.train(start):
        yield sharding.put_batch(batch, exp.mesh)


def _matched(exp: Experiment, start: int) -> Iterator[dict]:
    """Batches with matched noise.

    While the steps of a set run, the batches of the next one are read, one a step, and its
    matching is dispatched before the set's last step, so that the host does not wait for it.
    """
    size = exp.config.match_size // exp.config.batch_size
    match, first = make_matcher(exp), start - start % size
    source = _source(exp, first)
    now = match(np.int32(first), [next(source) for _ in range(size)])
    ahead = []
    while True:
        for i in range(start - first, size):
            missing = size - len(ahead) if i == size - 1 else 1
            ahead += [next(source) for _ in range(missing)]
            if i == size - 1:
                following = match(np.int32(first + size), ahead)
            yield _step_of(now, i)
        now, ahead, first = following, [], first + size
        start = first


def make_matcher(exp: Experiment):
    """match(first step, the set's batches) -> {"x1", "x0", "label"}, each [S, B, …], jitted.

    Every device does the whole matching: what it finds does not depend on the mesh.
    """
    config, objective, mesh = exp.config, exp.objective, exp.mesh
    size, n = config.match_size // config.batch_size, config.batch_size
    key, draw = rng.stream(config.seed, "train"), draw_batch(exp)

    def match(first, parts):
        keys = jax.vmap(lambda step: jax.random.fold_in(key, step))(first + jnp.arange(size))
        if draw is None:
            held = jax.tree.map(lambda *a: jnp.stack(a), *parts)
        else:
            held = jax.vmap(lambda k: train_step.batch_at(k, {}, draw))(keys)
        x0 = jax.vmap(lambda k: objective.source(rng.draw_key(k), n))(keys)
        whole = lambda a: jax.lax.with_sharding_constraint(
            a.reshape(size * n, *a.shape[2:]), sharding.replicated(mesh)
        )
        x1, label = to_unit(whole(held["x1"])), held.get("label")
        label = None if label is None else whole(label)
        x0 = objective.couple(whole(x0), x1, rng.coupling_key(rng.draw_key(keys[0])), label)
        return held | {"x0": x0.reshape(size, n, *x0.shape[1:])}

    place = NamedSharding(mesh, PartitionSpec(None, *sharding.BATCH))
    return jax.jit(match, out_shardings=place)


@jax.jit
def _row(stacked: dict, i) -> dict:
    return jax.tree.map(lambda a: a[i], stacked)


def _step_of(stacked: dict, i: int) -> dict:
    """The batch of one step of a match set."""
    return _row(stacked, np.int32(i))
