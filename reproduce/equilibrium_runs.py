"""Fields of Equilibrium Matching on scikit-learn's digits: trained, kept, sampled and judged.

What `equilibrium_tables.py` and `equilibrium_curl.py` share. A multilayer perceptron of 64 pixels
and the class, small enough that every row of the paper's tables is trained with several seeds at
once. A row's parameters are kept in the workdir, and its figures in figures.json: what is there is
not computed again.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from genfield import fields, losses, nets, paths, rng, sampling
from genfield.data import pixels
from genfield.data.digits import TRAIN
from genfield.data.pipeline import SPLIT_SEED
from genfield.distances import nearest
from genfield.metrics import frechet

SHAPE, CLASSES = (8, 8, 1), 10
NET = {"name": "mlp", "width": 384, "depth": 3, "activation": "silu"}
STEPS, BATCH, RATE, EMA = 1_500, 64, 1e-3, 0.995
NUM = 1_000  # samples that are judged


class Row(NamedTuple):
    """How a field is trained.

    Attributes:
      decay: of losses.decays.DECAYS; given: its arguments. clock: whether the field sees t.
      energy: of fields.ENERGIES, whose gradient is trained; None: the network is the field.
      first: steps in which the network itself is the field, before its energy is trained.
      scale: a factor of the network's output.
    """

    decay: str
    given: dict
    clock: bool = False
    energy: str | None = None
    first: int = 0
    scale: float = 1.0

    @property
    def size(self) -> float:
        """λ: how long the target is far from the data."""
        return self.given.get("multiplier", 1.0)


# Data and judgement


@functools.cache
def data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": (images in [-1, 1], labels), "test": …}, split as data.name='digits' is."""
    bunch = load_digits()
    levels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(levels))
    parts = {"train": order[:TRAIN], "test": order[TRAIN:]}
    return {name: (pixels.to_unit(levels[i]), bunch.target[i]) for name, i in parts.items()}


def asked(num: int = NUM) -> np.ndarray:
    """The classes of samples, all equally often."""
    return (np.arange(num) % CLASSES).astype(np.int32)


@functools.cache
def _target() -> frechet.Moments:
    return frechet.moments(data()["train"][0].reshape(TRAIN, -1))


def judged(x, classes=None) -> dict[str, float]:
    """ "fd", the Fréchet distance of the 64 pixels to the training images, and "right", the share
    whose nearest training image has the class that was asked for; not finite where x is not."""
    x = np.asarray(x)
    if not np.isfinite(x).all() or np.abs(x).max() > 1e3:
        return {"fd": float("inf"), "right": float("nan")}
    images, labels = data()["train"]
    fd = frechet.frechet_distance(frechet.moments(x.reshape(len(x), -1)), _target())
    near = np.asarray(nearest(x, images).index)[:, 0]
    classes = asked(len(x)) if classes is None else classes
    return {"fd": float(fd), "right": float((labels[near] == classes).mean())}


# Training


@functools.cache
def network(clock: bool):
    """(apply, key -> parameters)."""
    section = NET | {"time_input": clock}
    apply, _ = nets.create(section, None, shape=SHAPE, num_classes=CLASSES)
    return apply, lambda key: nets.create(section, key, shape=SHAPE, num_classes=CLASSES)[1]


def field_of(row: Row, params: dict) -> fields.Field:
    """The field that is trained; of an energy a Prediction, whose distance is the energy."""
    apply, _ = network(row.clock)
    plain = lambda x, t=None, cond=None: row.scale * apply(params, x, t, cond)
    return (
        plain if row.energy is None else fields.potential_field(fields.ENERGIES[row.energy](plain))
    )


def _trainer(row: Row, steps: int) -> Callable:
    """(seeds [S], parameters [S, …]) -> averaged parameters, and the loss of the last tenth [S]."""
    decay = losses.decays.DECAYS[row.decay](**row.given)
    images, labels = map(jnp.asarray, data()["train"])
    tx = optax.adam(RATE)

    def risk(params, key):
        rows, noise, times = jax.random.split(key, 3)
        chosen = jax.random.randint(rows, (BATCH,), 0, TRAIN)
        x1, x0 = images[chosen], jax.random.normal(noise, (BATCH, *SHAPE))
        sample = paths.interpolate(paths.linear, x0, x1, paths.uniform()(times, BATCH))
        options = {"decay": decay, "time_input": row.clock}
        loss, _ = losses.equilibrium_matching(
            field_of(row, params), sample, labels[chosen], **options
        )
        return loss.mean()

    def one(seed, params):
        def step(carry, i):
            params, state, average = carry
            key = jax.random.fold_in(rng.stream(seed, "train"), i)
            value, gradient = jax.value_and_grad(risk)(params, key)
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            rate = jnp.minimum(EMA, (1 + i) / (10 + i))
            return (params, state, optax.incremental_update(params, average, 1 - rate)), value

        carry = (params, tx.init(params), params)
        (_, _, average), values = jax.lax.scan(step, carry, jnp.arange(steps))
        return average, values[-steps // 10 :].mean()

    return jax.jit(jax.vmap(one))


def trained(row: Row, seeds: list[int], steps: int = STEPS) -> tuple[dict, np.ndarray]:
    """Parameters [S, …] of a row, and the losses [S]."""
    seeds = jnp.asarray(seeds)
    init = jax.jit(jax.vmap(lambda seed: network(row.clock)[1](rng.stream(seed, "init"))))
    params = init(seeds)
    if row.first:
        params, _ = _trainer(row._replace(energy=None), row.first)(seeds, params)
    return _trainer(row, steps - row.first)(seeds, params)


def kept(workdir: Path, name: str, row: Row, seeds: list[int]) -> tuple[dict, np.ndarray]:
    """`trained`, or what it gave the last time."""
    path = workdir / "fields" / (name.replace(" ", "_").replace(",", "") + ".npz")
    _, init = network(row.clock)
    leaves, tree = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0)))
    if path.exists():
        with np.load(path) as file:
            if file["seeds"].tolist() == seeds:
                return tree.unflatten([file[f"p{i}"] for i in range(len(leaves))]), file["loss"]
    params, loss = jax.device_get(trained(row, seeds))
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"p{i}": leaf for i, leaf in enumerate(jax.tree.leaves(params))}
    np.savez(path, seeds=seeds, loss=loss, **arrays)
    return params, loss


# Sampling

SAMPLERS = {
    "GD": sampling.gradient_descent,
    "NAG": lambda step: sampling.nesterov(step, 0.35),
    "Euler": lambda step: sampling.euler(step_size=step),
    "Euler, 1/N": lambda step: sampling.euler(),
    "Heun": lambda step: sampling.heun(step_size=step),
}


@functools.cache
def _drawer(clock: bool, energy: str | None, scale: float, sampler: str, num_steps, trace, over):
    row = Row("constant", {}, clock, energy, scale=scale)

    def draw(params, step, x, cond):
        field = field_of(row, params)
        field = fields.negate(field) if sampler not in ("GD", "NAG") else field
        field = _over(field, *over) if over else field
        made = SAMPLERS[sampler](step)
        run = {"num_steps": num_steps, "cond": cond, "trace": trace}
        return sampling.sample(jax.random.key(0), field, x, made, **run)

    return jax.jit(draw)


def noise(seed: int, num: int = NUM) -> jax.Array:
    """Where samples start."""
    return jax.random.normal(rng.stream(seed, "start"), (num, *SHAPE))


def _over(field: fields.Field, decay: str, given: tuple) -> fields.Field:
    """The field over c(t): the velocity of flow matching, of a field that sees t."""
    size = losses.decays.DECAYS[decay](**dict(given))
    return lambda x, t, cond=None: field(x, t, cond) / fields.expand(size(t), x)


def drawn(row: Row, params: dict, sampler: str, step: float, num_steps: int, **more):
    """Samples of one seed's parameters; more: noise (its seed), num, trace, divided."""
    x = noise(more.get("noise", 1), more.get("num", NUM))
    over = (row.decay, tuple(row.given.items())) if more.get("divided") else None
    kind = row.clock, row.energy, row.scale
    run = _drawer(*kind, sampler, num_steps, more.get("trace"), over)
    return run(params, np.float32(step), x, asked(len(x)))


def of_seed(params: dict, place: int) -> dict:
    """The parameters of one of the seeds."""
    return jax.tree.map(lambda a: a[place], params)


# What is kept


class Kept:
    """Figures by name, in a file of the workdir."""

    def __init__(self, path: Path):
        self.path = path
        self.found = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str, compute: Callable):
        if name not in self.found:
            self.found[name] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.found, indent=1))
            print(name, flush=True)
        return self.found[name]
