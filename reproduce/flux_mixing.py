"""Does the mixing proxy of Flux Matching make fields that mix faster? In the plane (B.4, eq. 35).

    python reproduce/flux_mixing.py --workdir=runs/flux_mixing --seeds=3 [--only denoising …]
    python reproduce/flux_mixing.py --workdir=runs/flux_mixing --seeds=3 --images=cifar10.tar.xz

The three Gaussians of B.1, which are three points smoothed by σ = 0.79; an MLP of 3×96, 1,000 steps
of 256 points in groups of 128, equal for all rows. Of each field:

  √J     √(J / E|s|²), J the projected Fisher divergence (eq. 4), by a Poisson problem on a grid
  M_mix  the mixing speed of eq. 33-35 on a grid of 75×75, over the score's
  proxy  the ratio that the mixing proxy lowers (eq. 43-44), over what the score has
  early  W2 of 1,000 Langevin samples that start around one mode, to fresh ones, at time 10 σ²
  W2     of samples that start from the law, at time 20 σ²

Beside them fields that need no training: the score, the score times 1.5 (faster, of another law),
and the score with the rotation of B.1. rows.json has what was measured, which is not trained again.

--images is the control at 16×16: the small Flux Matching of CIFAR-10, 600 steps, then 150 with the
proxy or without it, by steps of the predictor-corrector sampler; images.md.
"""

import argparse
import functools
import json
import subprocess
import sys
from pathlib import Path

import controllable
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import ROOT, folder, markdown, shown, train
from controllable import MEANS, STD, faces
from flux_two_moons import network
from scipy import sparse
from scipy.sparse.linalg import splu

from genfield import fields, losses, paths, rng, sampling, scores
from genfield.losses.flux.mixing import mixing_proxy
from genfield.machine import logbook
from genfield.metrics import point_cloud

STEPS, BATCH, GROUP, RATE, AVERAGE = 1_000, 256, 128, 3e-3, 0.99
POINTS, EARLY, LATE = 1_000, 10.0, 20.0  # times in units of σ²
LANGEVIN = 0.05  # a step, in the same
JUDGED = 32  # groups of the proxy
FINE = 75  # cells a side for eq. 35, where the paper has 25
CELLS = 200  # a side, of the grid that J is solved on

TRAINED = {  # name: None is stable-target denoising, else the weight λ of the proxy (eq. 45)
    "Flux Matching": 0.0,
    "proxy, λ = 0.01": 0.01,
    "proxy, λ = 0.1": 0.1,
    "proxy, λ = 1": 1.0,
    "denoising": None,
}
COLUMNS = {"J": "√J", "M_mix": "M_mix", "proxy": "proxy", "early": "early", "W2": "W2"}

# Fields without training


def score(x, t=None, cond=None):
    return controllable.score(x)


@functools.cache
def given() -> dict:
    """{name: field}; the rotation is 2.5 times that of B.1, whose root mean square is 1."""
    scale = np.sqrt(controllable.gram(num=200).diagonal())
    mix = jnp.asarray(controllable.mixed(np.array([2.5, 0.0, 0.0]), "preserving", scale))
    turned = lambda x, t=None, cond=None: score(x) + controllable.perturbation(x, mix)
    faster = lambda x, t=None, cond=None: 1.5 * score(x)
    return {"the score": score, "the score × 1.5": faster, "the score, turned": turned}


# Training


def sample_of(key, num: int) -> paths.PathSample:
    """Draws of the law, with the point and the noise that each is of."""
    k0, k1 = jax.random.split(key)
    points = jnp.asarray(MEANS, jnp.float32)[jax.random.randint(k0, (num,), 0, 3)]
    noise = jax.random.normal(k1, points.shape)
    return paths.interpolate(paths.variance_exploding, noise, points, jnp.full(num, STD))


def risk(weight: float | None, field, key):
    """The mean loss of a batch."""
    k0, k1 = jax.random.split(key)
    sample = sample_of(k0, BATCH)
    if weight is None:
        target = scores.kde_field(sample.x1, GROUP)(sample.x, sample.t)
        return fields.squared_norm(field(sample.x) - target).mean()
    options = dict(group_size=GROUP, learned_normalizer=False, learned_horizon=False, rate=2.0)
    loss, _ = losses.flux_matching(field, sample, key=k1, roles={}, mixing_weight=weight, **options)
    return loss.mean()


def trainer(weight: float | None):
    """seeds [S] -> averaged parameters, by Adam and a cosine to zero."""
    init, field = network("vector")
    tx = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

    def run(seed):
        params = init(rng.stream(seed, "init"))

        def one(carry, step):
            params, state, average = carry
            key = jax.random.fold_in(rng.stream(seed, "train"), step)
            gradient = jax.grad(lambda p: risk(weight, field(p), key))(params)
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state, optax.incremental_update(params, average, 1 - AVERAGE)), None

        carry = (params, tx.init(params), params)
        return jax.lax.scan(one, carry, jnp.arange(STEPS))[0][2]

    return jax.jit(lambda seeds: jax.lax.map(run, seeds))


# Figures


def mixing_speeds(several, num: int = FINE) -> list[float]:
    """M_mix (eq. 33-35) of K fields, several(x [B, 2]) -> [B, K, 2], on a grid of num² cells."""
    half = 5.5 * 25 / 24  # the cells' centres are the paper's grid where num is 25
    grid = controllable.centres(half, num)
    p = np.exp(controllable.evaluate(controllable.log_density, grid)).ravel()
    w, ones = p / p.sum(), np.ones((num**2, 1))
    angle, length = np.arctan2(grid[..., 1], grid[..., 0]), np.linalg.norm(grid, axis=-1)
    phi = np.stack([grid[..., 0], grid[..., 1], length, np.cos(angle), np.sin(angle)], -1)
    phi = phi.reshape(num**2, -1)
    phi = phi - w @ phi
    out = []
    for negative in generators(several, half, num):
        # Where f does not keep the law there is a solution up to a constant on the right.
        bordered = sparse.bmat([[negative, ones], [w[None], None]], format="csc")
        psi = splu(bordered).solve(np.vstack([phi, np.zeros((1, phi.shape[1]))]))[:-1]
        out.append(float(1 / (2 * (w @ (phi * psi)) / (w @ phi**2)).mean()))
    return out


def generators(several, half: float, num: int) -> list[sparse.coo_matrix]:
    """-Δ - f·∇ of each field by finite volumes on [-half, half]², nothing leaving.

    The rates between cells are positive and, of gradients, balanced (Scharfetter and Gummel).
    """
    spacing, index = 2 * half / num, np.arange(num**2).reshape(num, num)
    entries = []
    for axis in (0, 1):
        points, below, above = faces(half, num, axis)
        drift = spacing * controllable.evaluate(several, points)[..., axis]
        drift = drift.reshape(-1, drift.shape[-1])
        for here, there, along in ((below, above, drift), (above, below, -drift)):
            rate = bernoulli(-along) / spacing**2
            i, j = index[here].ravel(), index[there].ravel()
            entries += [(-rate, i, j), (rate, i, i)]
    values, rows, columns = (np.concatenate(e) for e in zip(*entries, strict=True))
    return [sparse.coo_matrix((v, (rows, columns)), (num**2,) * 2) for v in values.T]


def bernoulli(z: np.ndarray) -> np.ndarray:
    """z / (e^z - 1), 1 at 0."""
    small = np.abs(z) < 1e-6
    safe = np.where(small, 1.0, z)
    return np.where(small, 1 - z / 2, safe / np.expm1(safe))


def distances(several) -> list[float]:
    """√(J / E|s|²) of several(x [B, 2]) -> [B, K, 2]."""

    def beside(x):
        s = score(x)[:, None]
        return jnp.concatenate([several(x) - s, s], axis=1)

    [form] = controllable.projected(beside, half=6.5, num=CELLS)
    return [float(j) for j in np.sqrt(form.diagonal()[:-1] / form[-1, -1])]


def walk(field, key, x, time: float):
    """x after Langevin dynamics for a time in units of σ²."""
    dynamics = sampling.langevin(LANGEVIN * STD**2)
    num_steps = round(time / LANGEVIN)
    return sampling.sample(key, fields.negate(field), x, dynamics, num_steps=num_steps).x


@functools.cache
def walker(name: str):
    """(parameters, seed) -> samples at EARLY and at LATE, fresh ones, and the mixing proxy."""

    def drawn(params, seed):
        field, at = field_of(name)(params), lambda purpose: rng.stream(seed, purpose)
        mode = jnp.asarray(MEANS[:1], jnp.float32) + STD * sample_of(at("one mode"), POINTS).x0
        judged = sample_of(at("proxy"), JUDGED * GROUP)
        proxy = mixing_proxy(at("judge"), field, judged.x, sigma=judged.t, group_size=GROUP)
        late = walk(field, at("late"), sample_of(at("start"), POINTS).x, LATE)
        fresh = sample_of(at("fresh"), POINTS).x
        return walk(field, at("early"), mode, EARLY), late, fresh, proxy.mean()

    return jax.jit(drawn)


def field_of(name: str):
    """Parameters -> the field of a row; given ones have none."""
    return (lambda params: given()[name]) if name in given() else network("vector")[1]


def row(name: str, seeds: list[int]) -> dict[str, dict]:
    """{seed: figures} of a field, trained on each seed or given."""
    if name in given():
        params, walks = [{} for _ in seeds], walker(name)
    else:
        trained = trainer(TRAINED[name])(jnp.asarray(seeds))
        params = [jax.tree.map(lambda a, k=k: a[k], trained) for k in range(len(seeds))]
        walks = walker("trained")
    one_each = [field_of(name)(p) for p in params]
    several = lambda x: jnp.stack([f(x) for f in one_each], axis=1)
    found = {}
    figures = zip(seeds, params, distances(several), mixing_speeds(several), strict=True)
    for seed, held, j, speed in figures:
        early, late, fresh, proxy = map(np.asarray, walks(held, seed))
        w2 = lambda x, to=fresh: (
            float("inf") if not np.isfinite(x).all() else point_cloud.wasserstein2(x, to)
        )
        figures = {"J": j, "M_mix": speed, "proxy": float(proxy), "early": w2(early)}
        found[str(seed)] = figures | {"W2": w2(late)}
    return found


def table(found: dict[str, dict]) -> str:
    """All rows that were measured, M_mix and the proxy over what the score has on the same seed."""
    base, rows = found["the score"], []
    for name, runs in found.items():
        over = {seed: base[seed] for seed in runs if seed in base}
        values = {c: [run[c] for run in runs.values()] for c in COLUMNS}
        for c in ("M_mix", "proxy"):
            values[c] = [runs[seed][c] / over[seed][c] for seed in over]
        rows.append([name, *(shown(values[c]) for c in COLUMNS), str(len(runs))])
    return markdown(["field", *COLUMNS.values(), "seeds"], rows)


def plane(workdir: Path, seeds: int, only: list[str] | None) -> str:
    """Measures what is missing, and the table."""
    path = workdir / "rows.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    names = [*given(), *TRAINED]
    if unknown := [name for name in only or () if name not in names]:
        raise SystemExit(f"no row {unknown[0]!r}; known: {'; '.join(names)}")
    for name in ["the score", *(name for name in names[1:] if name in (only or names))]:
        runs = found.setdefault(name, {})
        missing = [seed for seed in range(seeds) if str(seed) not in runs]
        if missing:
            runs |= row(name, missing)
            path.write_text(json.dumps(found, indent=2))
            print(table({"the score": found["the score"], name: runs}).splitlines()[-1], flush=True)
    (workdir / "table.md").write_text(text := table(found))
    return text


# The control on images

IMAGES = [
    *("--config.data.size=16", "--config.evaluate.num_samples=512"),
    "--config.evaluate.metrics=('frechet',)",
]
SAMPLER_STEPS = (5, 10, 20, 50)
CONTROL = {"with the proxy": "small,fast", "without": "small"}


def frechet(target: Path, num_steps: int) -> float:
    """Fréchet distance of 512 samples of a run by so many steps, measured once."""
    path = target / f"frechet_{num_steps}.json"
    if not path.exists():
        command = [sys.executable, "-m", "genfield.main", "--mode=evaluate", f"--workdir={target}"]
        command += [f"--config.sampler.num_steps={num_steps}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        last = logbook.read_metrics(target)[-1]
        [value] = [last[name] for name in last if name.startswith(("fid", "fd_"))]
        path.write_text(json.dumps(value))
    return json.loads(path.read_text())


def images(workdir: Path, data: str, seeds: int) -> str:
    """600 steps of Flux Matching, and 150 more with the proxy or without it."""
    flags = [f"--config.data.path={Path(data).resolve()}", *IMAGES]
    found = {title: {n: [] for n in SAMPLER_STEPS} for title in CONTROL}
    for seed in range(seeds):
        base = folder(workdir, "600 steps", seed)
        train(base, "600 steps", seed, "flux_matching_cifar10.py:small", flags)
        further = ["--config.train.steps=150", f"--config.initial_parameters={base}"]
        for title, variant in CONTROL.items():
            target = folder(workdir, title, seed)
            config = f"flux_matching_cifar10.py:{variant}"
            train(target, title, seed, config, [*flags, *further])
            for n in SAMPLER_STEPS:
                found[title][n].append(frechet(target, n))
    rows = [[title, *(shown(of[n]) for n in SAMPLER_STEPS)] for title, of in found.items()]
    text = markdown(["150 steps more", *(f"{n} steps" for n in SAMPLER_STEPS)], rows)
    (workdir / "images.md").write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/flux_mixing"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="the rows of these names, and the score")
    parser.add_argument("--images", help="an archive or folder of CIFAR-10: the control at 16x16")
    args = parser.parse_args()
    workdir = args.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    if args.images:
        print(images(workdir, args.images, args.seeds))
    else:
        print(plane(workdir, args.seeds, args.only))


if __name__ == "__main__":
    main()
