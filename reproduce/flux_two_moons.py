"""Flux Matching against denoising in the plane: the divergence J beside W2.

    python reproduce/flux_two_moons.py --workdir=runs/flux_two_moons --seeds=3 [--only denoising …]

Two moons smoothed by σ = 0.5, an MLP of 3×96, 1,500 steps of 256 points. Of each way to train:

  √J     √(J / E|s|²), J the projected Fisher divergence to the law of the training's points, by a
         Poisson problem on a grid
  error  √(E|f - s|² / E|s|²), which counts what moves along the law too
  W2     1,000 Langevin samples, from the data, to 1,000 fresh points

Rows that rows.json has are not trained again; table.md is the table of all that it has.
"""

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
import scipy.sparse.linalg
from common import markdown, shown
from ml_collections import ConfigDict

from genfield import fields, losses, nets, paths, rng, sampling, scores
from genfield.data import toys
from genfield.metrics import point_cloud

SIGMA, STEPS, BATCH, RATE = 0.5, 1_500, 256, 3e-3
POINTS = 1_000
LOW, HIGH, CELLS = np.array([-6.5, -5.0]), np.array([7.5, 6.0]), 140
OFFSETS = 8  # midpoints of the law of a point's offset

PLAIN = {"net": "vector", "cosine": False, "ema": 0.0, "norm": 0.0, "until": None}
QUIET = {"cosine": True, "ema": 0.99}
LAWS = {
    "uniform": {"learned_horizon": False},
    "rate 1": {"rate": 1.0},
    "rate 2": {"rate": 2.0},
    "rate 4": {"rate": 4.0},
    "fitted": {},
}
ESTIMATORS = {
    "cross_chain": {"group_size": 32},
    "pathwise": {"estimator": "pathwise"},
}


def grid_of_rows() -> dict[str, dict]:
    """{name: how to train}: denoising, the table, other densities, one time a batch."""
    rows = {
        "denoising": PLAIN,
        "denoising, cosine and average": PLAIN | QUIET,
        "denoising, gradient, cosine and average": PLAIN | QUIET | {"net": "gradient"},
    }
    flux = lambda **more: PLAIN | QUIET | {"loss": more}
    for estimator, options in ESTIMATORS.items():
        for net in ("vector", "gradient"):
            for norm in (0.0, 0.1):
                for law, of_law in LAWS.items():
                    name = f"{estimator}, {law}, {net}" + (f", norm {norm:g}" if norm else "")
                    rows[name] = flux(**options, **of_law) | {"net": net, "norm": norm}
                    rows[name]["until"] = 0.7 if norm else None
    for group in (32, 64):
        whole = flux(group_size=group, **LAWS["rate 2"]) | {"whole": True}
        rows[f"cross_chain, rate 2, vector, groups of {group}, the batch's density"] = whole
    one = {"group_size": BATCH}
    rows["cross_chain, uniform, vector, one time a batch, constant rate"] = PLAIN | {
        "loss": one | LAWS["uniform"]
    }
    rows["cross_chain, rate 2, vector, one time a batch, constant rate"] = PLAIN | {
        "loss": one | LAWS["rate 2"]
    }
    rows["cross_chain, rate 2, vector, one time a batch"] = flux(**one, **LAWS["rate 2"])
    return rows


# The law, and J


@functools.cache
def centres() -> np.ndarray:
    """Points whose smoothed density is that of a training's batches: [N, 2].

    `toys.two_moons` puts a batch's angles on a grid, and one offset, uniform on [0, 0.2), is added
    to both coordinates of a point.
    """
    angle = np.linspace(0.0, np.pi, BATCH // 2)
    outer = np.stack([np.cos(angle), np.sin(angle)], -1)
    points = np.concatenate([outer, [1.0, 0.5] - outer])
    offset = 0.2 * (np.arange(OFFSETS) + 0.5) / OFFSETS
    return 3.0 * (points[:, None] + offset[None, :, None]).reshape(-1, 2) - 1.0


def law(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p [N] and its score [N, 2] at x [N, 2], float64."""
    density, score = [], []
    for part in np.array_split(x, max(1, len(x) // 2_048)):
        gap = centres()[None] - part[:, None]
        weight = np.exp(-np.square(gap).sum(-1) / (2 * SIGMA**2))
        density.append(weight.mean(1) / (2 * np.pi * SIGMA**2))
        share = weight / np.maximum(weight.sum(1, keepdims=True), 1e-300)
        score.append(np.einsum("bn,bnd->bd", share, gap) / SIGMA**2)
    return np.concatenate(density), np.concatenate(score)


class Poisson:
    """∇·(p ∇ψ) = ∇·(p u) by finite volumes, no flux through the border; factored once."""

    def __init__(self, cells: int = CELLS):
        h = (HIGH - LOW) / cells
        middle = [LOW[a] + h[a] * (np.arange(cells) + 0.5) for a in (0, 1)]
        inner = [LOW[a] + h[a] * np.arange(1, cells) for a in (0, 1)]
        index = np.arange(cells**2).reshape(cells, cells)
        faces, rows, columns = [], [], []
        for axis in (0, 1):
            sides = (inner[0], middle[1]) if axis == 0 else (middle[0], inner[1])
            faces.append(np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2))
            cut = (index[:-1], index[1:]) if axis == 0 else (index[:, :-1], index[:, 1:])
            rows.append(cut[0].ravel())
            columns.append(cut[1].ravel())
        self.points, self.axis = np.concatenate(faces), np.repeat([0, 1], [len(f) for f in faces])
        each = np.arange(len(self.points))
        across = 1 / h[self.axis]
        entries = (np.tile(each, 2), np.concatenate([*columns, *rows]))
        self.slopes = scipy.sparse.csr_array(
            (np.concatenate([across, -across]), entries), shape=(len(each), cells**2)
        )
        density, score = law(self.points)
        self.density, self.score = density + 1e-12, self.normal(score)
        self.weighted = self.slopes.T * self.density
        # ψ is 0 in the first cell.
        self.solve = scipy.sparse.linalg.splu((self.weighted @ self.slopes)[1:, 1:].tocsc()).solve

    def normal(self, vectors) -> np.ndarray:
        """The component across each face, float64."""
        return np.asarray(vectors, np.float64)[np.arange(len(self.axis)), self.axis]

    def distances(self, f) -> dict[str, float]:
        """√(J / E|s|²) and √(E|f - s|² / E|s|²) of the field f [faces, 2]."""
        u = self.normal(f) - self.score
        slope = self.slopes[:, 1:] @ self.solve((self.weighted @ u)[1:])
        mean = lambda a: (self.density * a**2).sum()
        scale = mean(self.score)
        return {"J": float(np.sqrt(mean(slope) / scale)), "error": float(np.sqrt(mean(u) / scale))}


# Training


def network(kind: str):
    """key -> parameters, and parameters -> field; a "gradient" is that of a scalar network."""
    section = {"name": "mlp", "width": 96, "depth": 3, "activation": "silu"}
    if kind == "gradient":
        section["output"] = "scalar"
    section = ConfigDict(section)
    apply, _ = nets.create(section, None, shape=(2,))
    plain = lambda params: lambda x, t=None, cond=None: apply(params, x)
    field = plain if kind == "vector" else lambda params: fields.gradient_field(plain(params))
    return lambda key: nets.create(section, key, shape=(2,))[1], field


def risk(row: dict, field, params: dict, key, step):
    """The mean loss of a batch."""
    k0, k1, k2 = jax.random.split(key, 3)
    x1 = toys.two_moons(k0, BATCH)
    noise, sigma = jax.random.normal(k1, x1.shape), jnp.full(BATCH, SIGMA)
    sample = paths.interpolate(paths.variance_exploding, noise, x1, sigma)
    f = field(params["field"])
    if "loss" not in row:
        target = scores.kde_field(x1)(sample.x, sigma)
        return fields.squared_norm(f(sample.x) - target).mean()
    if row.get("whole"):  # the density of the batch, in the place of each group's own
        score = scores.kde_field(x1)
        loss, _ = losses.flux_estimator(k2, f, sample.x, score, sigma=SIGMA, **row["loss"])
    else:
        options = {"learned_normalizer": False} | row["loss"]
        loss, _ = losses.flux_matching(f, sample, key=k2, roles=params["roles"], **options)
    if not row["norm"]:
        return loss.mean()
    left = 1.0 if row["until"] is None else jnp.clip(1 - step / (row["until"] * STEPS), 0, 1)
    return loss.mean() + row["norm"] * left * fields.squared_norm(f(sample.x)).mean()


def trainer(row: dict):
    """seeds [S] -> the parameters, averaged where the row says so."""
    init, field = network(row["net"])
    rate = optax.cosine_decay_schedule(RATE, STEPS) if row["cosine"] else RATE
    kinds = lambda params: {name: name for name in params}
    tx = optax.multi_transform({"field": optax.adam(rate), "roles": optax.adam(1e-2)}, kinds)

    def start(seed):
        roles = {}
        if "loss" in row:
            options = {"learned_normalizer": False} | row["loss"]
            roles = losses.flux_roles(rng.stream(seed, "roles"), **options)
        return {"field": init(rng.stream(seed, "init")), "roles": roles}

    def one(seed, carry, step):
        params, state, average = carry
        key = jax.random.fold_in(rng.stream(seed, "train"), step)
        gradient = jax.grad(lambda p: risk(row, field, p, key, step))(params)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params["field"], average, 1 - row["ema"])
        return (params, state, average), None

    def run(seed):
        params = start(seed)
        carry = (params, tx.init(params), params["field"])
        return jax.lax.scan(lambda c, i: one(seed, c, i), carry, jnp.arange(STEPS))[0][2]

    return jax.jit(jax.vmap(run))


def cloud(key, num: int):
    """Points of the law, made of batches of the training's size: [num, 2]."""
    k0, k1 = jax.random.split(key)
    batches = [toys.two_moons(k, BATCH) for k in jax.random.split(k0, -(-num // BATCH))]
    points = jax.random.permutation(k1, jnp.concatenate(batches))[:num]
    return points + SIGMA * jax.random.normal(jax.random.fold_in(k1, 1), points.shape)


@functools.cache
def measurer(kind: str):
    """(parameters, seed) -> the field on the faces of the grid, and the Langevin samples."""
    _, field = network(kind)

    def measure(params, seed):
        f, start = field(params), cloud(rng.stream(seed, "start"), POINTS)
        run = sampling.sample(
            rng.stream(seed, "langevin"),
            fields.negate(f),
            start,
            sampling.langevin(0.01),
            num_steps=1_000,
        )
        return f(jnp.asarray(problem().points, jnp.float32)), run.x

    return jax.jit(measure)


@functools.cache
def problem() -> Poisson:
    return Poisson()


def measure(row: dict, seeds: list[int]) -> dict[str, dict]:
    """{seed: figures} of one way to train."""
    trained, found = trainer(row)(jnp.asarray(seeds)), {}
    for place, seed in enumerate(seeds):
        params = jax.tree.map(lambda a, place=place: a[place], trained)
        f, x = map(np.asarray, measurer(row["net"])(params, seed))
        fresh = np.asarray(cloud(rng.stream(seed, "fresh"), POINTS))
        w2 = point_cloud.wasserstein2(x, fresh) if np.isfinite(x).all() else float("inf")
        found[str(seed)] = problem().distances(f) | {"W2": w2}
    return found


def table(found: dict[str, dict]) -> str:
    columns = ("J", "error", "W2")
    rows = [
        [name, *(shown([r[c] for r in runs.values()]) for c in columns), str(len(runs))]
        for name, runs in found.items()
    ]
    return markdown(["trained by", "√J", "error", "W2", "seeds"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/flux_two_moons"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="the rows of these names")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    path = args.workdir / "rows.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    rows = grid_of_rows()
    if unknown := [name for name in args.only or () if name not in rows]:
        raise SystemExit(f"no row {unknown[0]!r}; known: {'; '.join(rows)}")
    for name, row in rows.items():
        if name not in (args.only or rows):
            continue
        runs = found.setdefault(name, {})
        missing = [seed for seed in range(args.seeds) if str(seed) not in runs]
        if missing:
            runs |= measure(row, missing)
            path.write_text(json.dumps(found, indent=2))
            print(table({name: runs}).splitlines()[-1], flush=True)
    (args.workdir / "table.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
