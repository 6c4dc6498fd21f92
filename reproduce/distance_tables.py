"""Distance Marching on digits: Tables 9, 10, 11 (arXiv:2602.02928, C.6), and whether v sees u.

    python reproduce/distance_tables.py --workdir=runs/distance_tables --seeds=3 [--only ROW …]

scikit-learn's digits. That all of it takes minutes on two CPU cores, v is an MLP of 3×256 and u one
of 2×64, both of the flat image and, where there are classes, the label: 2,000 steps of 128, Adam
with a cosine, an average. Each model is sampled by sphere tracing and by gradient descent, in 50
steps of several lengths, and 1,000 samples are judged in pixel space:

  fd           the Fréchet distance to the training images
  right_class  the share whose nearest training image has the class that was asked for
  contrast     the mean deviation of an image's pixels against that of the training images
  reached      the share of the training images that are a sample's nearest

As in the paper each row takes the step that suits it, the least median of fd over seeds; in Table 9
all take the first row's. Models that rows.json has are not trained again. Writes rows.json,
table.md and matchings.png into the workdir.
"""

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from common import markdown, shown
from ml_collections import ConfigDict

from genfield import couplings, data, fields, guidance, losses, nets, paths, rng, sampling
from genfield.distances import nearest
from genfield.figures import style
from genfield.metrics import frechet

STEPS, BATCH, RATE, AVERAGE = 2_000, 128, 1e-3, 0.99
SIZE, CLASSES = 64, 10
DIRECTION = {"name": "mlp", "width": 256, "depth": 3, "activation": "silu"}
DISTANCE = {"name": "mlp", "width": 64, "depth": 2, "activation": "silu", "output": "scalar"}
# As in configs/distance_marching_digits.py.
LOSS = {"epsilon": 0.1, "c0": 0.1, "one_step_weight": 0.1, "eikonal_weight": 1.0}
FREE = {"classes": False}
ZERO = {"epsilon": 0.0, "c0": 0.0}
SEEN = 0.1  # of u, as an input of v; u is at most some 10
ROWS = {  # what of the training differs
    "classes": {},
    "classes, without the eikonal loss": {"loss": {"eikonal_weight": 0.0}},
    "classes, OT coupling": {"couple": True},
    "classes, nearest targets": {"rematch": True},
    "classes, v sees u": {"sees": "held"},
    "classes, v sees u and trains it": {"sees": "through"},
    "no classes": FREE,
    "no classes, without the eikonal loss": FREE | {"loss": {"eikonal_weight": 0.0}},
    "no classes, c0 = ε = 0": FREE | {"loss": ZERO},
    "no classes, one-step loss not normalised": FREE | {"loss": {"normalize": False}},
    "no classes, c0 = ε = 0, t below 0.95": FREE | {"loss": ZERO, "last": 0.95},
    "no classes, c0 = ε = 0, u as wide as v": FREE | {"loss": ZERO, "wide": True},
}
# Tables 10 and 11: the FID of the paper by either sampler, of ImageNet with classes, else CIFAR-10.
LOSSES = {
    "classes": ("33.44", "32.16"),
    "classes, without the eikonal loss": ("37.01", "-"),
    "no classes": ("2.23", "2.54"),
    "no classes, without the eikonal loss": ("2.33", "-"),
    "no classes, c0 = ε = 0": ("2.37", "3.84"),
    "no classes, one-step loss not normalised": ("3.88", "4.63"),
    "no classes, c0 = ε = 0, t below 0.95": ("-", "-"),
    "no classes, c0 = ε = 0, u as wide as v": ("-", "-"),
}
MATCHINGS = {  # Table 9: the paper's IS / FID
    "classes": "41.77 / 71.23",
    "classes, OT coupling": "36.96 / 77.19",
    "classes, nearest targets": "26.31 / 90.79",
}
READINGS = ("classes", "classes, v sees u", "classes, v sees u and trains it")
SAMPLERS = {
    "sphere_tracing": sampling.sphere_tracing,
    "gradient_descent": sampling.gradient_descent,
}
SCANNED = {  # steps; the way is about 10 long
    "sphere_tracing": (0.05, 0.1, 0.15, 0.25),
    "gradient_descent": (0.15, 0.2, 0.3, 0.4),
}
NUM, LENGTH, SHOWN = 1_000, 50, 20


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The training images in [-1, 1], [N, 64], and their classes [N]."""
    part = data.create({"name": "digits", "labels": True}, batch_size=1, seed=0).examples["train"]
    rows = part.gather(np.arange(part.size))
    return data.to_unit(rows["x1"]).reshape(part.size, SIZE), rows["label"]


# Training


def network(section: dict, classes: bool):
    """key -> parameters, and its apply."""
    options = dict(shape=(SIZE,), num_classes=CLASSES if classes else 0)
    apply, _ = nets.create(ConfigDict(section), None, **options)
    return lambda key: nets.create(ConfigDict(section), key, **options)[1], apply


def march(name: str):
    """seed -> parameters, and parameters -> the field of v and u, of a row."""
    classes, sees = ROWS[name].get("classes", True), ROWS[name].get("sees")
    init_v, v = network(DIRECTION | {"time_input": sees is not None}, classes)
    size = {"width": DIRECTION["width"], "depth": DIRECTION["depth"]}
    init_u, u = network(DISTANCE | (size if ROWS[name].get("wide") else {}), classes)
    init = lambda seed: {"v": init_v(rng.stream(seed, "v")), "u": init_u(rng.stream(seed, "u"))}

    def bound(params, x, cond):
        distance = u(params["u"], x, None, cond)
        seen = distance if sees == "through" else jax.lax.stop_gradient(distance)
        return fields.Prediction(v(params["v"], x, SEEN * seen, cond), distance)

    return init, lambda params: lambda x, t=None, cond=None: bound(params, x, cond)


def batch(key, row: dict):
    """A PathSample of BATCH points, and their classes."""
    images, labels = map(jnp.asarray, digits())
    k0, k1, k2 = jax.random.split(key, 3)
    chosen = jax.random.randint(k1, (BATCH,), 0, len(images))
    x0, x1 = jax.random.normal(k0, (BATCH, SIZE)), images[chosen]
    if row.get("couple"):
        x0 = couplings.exact_assignment(x0, x1)
    t = paths.uniform(0.0, row.get("last", 0.999))(k2, BATCH)
    sample = paths.interpolate(paths.linear, x0, x1, t)
    if row.get("rematch"):
        sample = couplings.nearest_target(paths.linear, sample)
    return sample, labels[chosen] if row.get("classes", True) else None


def trainer(init, risk, row: dict):
    """seed -> the averaged parameters; `risk(params, sample, cond)` is the loss, [B]."""
    tx = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

    def one(seed, carry, step):
        params, state, average = carry
        sample, cond = batch(jax.random.fold_in(rng.stream(seed, "train"), step), row)
        gradient = jax.grad(lambda p: risk(p, sample, cond).mean())(params)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state, optax.incremental_update(params, average, 1 - AVERAGE)), None

    def run(seed):
        params = init(seed)
        carry = (params, tx.init(params), params)
        return jax.lax.scan(lambda c, i: one(seed, c, i), carry, jnp.arange(STEPS))[0][2]

    return jax.jit(run)


@functools.cache
def marcher(name: str):
    """The trainer of a row."""
    row = ROWS[name]
    init, field = march(name)
    options = LOSS | row.get("loss", {})
    risk = lambda p, sample, cond: losses.distance_marching(field(p), sample, cond, **options)[0]
    return trainer(init, risk, row)


# Samples, and what they are worth


@functools.cache
def drawer(sampler: str, name: str):
    """(parameters, seed, step) -> NUM samples of a row's models, all classes equally often."""
    _, field = march(name)
    classes = ROWS[name].get("classes", True)

    def draw(params, seed, step):
        x = jax.random.normal(rng.stream(seed, "noise"), (NUM, SIZE))
        cond = jnp.arange(NUM) % CLASSES if classes else None
        moved = guidance.scaled(field(params), step)
        key = rng.stream(seed, "sampler")
        run = SAMPLERS[sampler](1.0)
        return sampling.sample(key, moved, x, run, num_steps=LENGTH, cond=cond).x

    return jax.jit(draw)


def judge(x: np.ndarray, classes: bool) -> dict[str, float]:
    """Figures of samples [NUM, 64]; fd is infinite where they are no numbers, or far from any."""
    images, labels = digits()
    if not np.isfinite(x).all() or np.abs(x).max() > 1e3:
        return {"fd": float("inf")}
    fd = frechet.frechet_distance(frechet.moments(x), frechet.moments(images))
    near = np.asarray(nearest(x, images).index)[:, 0]
    found = {"fd": float(fd), "contrast": float(x.std(1).mean() / images.std(1).mean())}
    found["reached"] = len(np.unique(near)) / len(images)
    if classes:
        found["right_class"] = float((labels[near] == np.arange(len(x)) % CLASSES).mean())
    return found


def measure(name: str, seed: int, workdir: Path) -> dict:
    """{sampler: {step: figures}} of one model."""
    classes = ROWS[name].get("classes", True)
    params, found = marcher(name)(seed), {}
    for sampler, steps in SCANNED.items():
        draw = drawer(sampler, name)
        drawn = {f"{s:g}": np.asarray(draw(params, seed, s)) for s in steps}
        found[sampler] = {step: judge(x, classes) for step, x in drawn.items()}
        if name in MATCHINGS and seed == 0 and sampler == "sphere_tracing":
            first = {step: x[:SHOWN] for step, x in drawn.items()}
            np.savez(workdir / f"{name.replace(', ', '_').replace(' ', '_')}.npz", **first)
    return found


# Tables and the picture


def best(runs: list[dict], sampler: str) -> str:
    """The step of the least median of fd."""
    return min(runs[0][sampler], key=lambda s: np.median([run[sampler][s]["fd"] for run in runs]))


def of_losses(found: dict[str, list[dict]]) -> str:
    """Tables 10 and 11."""
    rows = []
    for name in filter(found.get, LOSSES):
        papers, cells = LOSSES[name], []
        for sampler, paper in zip(SAMPLERS, papers, strict=True):
            step = best(found[name], sampler)
            values = shown([run[sampler][step]["fd"] for run in found[name]])
            cells += [values, step, paper]
        rows.append([name, *cells])
    columns = ("fd", "step", "the paper's FID")
    head = [f"{c}, {s.replace('_', ' ')}" for s in SAMPLERS for c in columns]
    return markdown(["", *head], rows)


def of_readings(found: dict[str, list[dict]]) -> str:
    """Tables 6 and 7's "distance input rescaling": whether v sees u."""
    rows, names = [], ("fd", "right_class")
    for name in filter(found.get, READINGS):
        cells = []
        for sampler in SAMPLERS:
            step = best(found[name], sampler)
            at = [run[sampler][step] for run in found[name]]
            cells += [*(shown([figures.get(n, np.nan) for figures in at]) for n in names), step]
        rows.append([name, *cells])
    head = [f"{c}, {s.replace('_', ' ')}" for s in SAMPLERS for c in (*names, "step")]
    return markdown(["", *head], rows)


def of_matchings(found: dict[str, list[dict]]) -> str:
    """Table 9."""
    if not found.get("classes"):
        return ""
    step, rows = best(found["classes"], "sphere_tracing"), []
    for name in filter(found.get, MATCHINGS):
        at = [run["sphere_tracing"][step] for run in found[name]]
        names = ("fd", "right_class", "contrast", "reached")
        rows.append([name, *(shown([figures.get(n, np.nan) for figures in at]) for n in names)])
        rows[-1].append(MATCHINGS[name])
    return markdown([f"step {step}", *names, "the paper's IS / FID"], rows)


@style.styled
def draw_matchings(workdir: Path, step: str) -> Path:
    """Fig. 33: samples of seed 0, a row for each matching, classes 0 to 9 in turn, twice."""
    figure, axes = plt.subplots(len(MATCHINGS), 1, figsize=(10, 2.7))
    for ax, name in zip(axes, MATCHINGS, strict=True):
        file = workdir / f"{name.replace(', ', '_').replace(' ', '_')}.npz"
        x = np.load(file)[step].reshape(SHOWN, 8, 8)
        ax.imshow(np.concatenate(list(x), axis=1), cmap="gray", vmin=-1, vmax=1)
        ax.set(title=name, xticks=[], yticks=[])
    return style.save(figure, workdir / "matchings.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    path = args.workdir / "rows.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(args.seeds):  # of all rows before the next
        for name in args.only:
            runs = found.setdefault(name, {})
            if str(seed) not in runs:
                runs[str(seed)] = measure(name, seed, args.workdir)
                path.write_text(json.dumps(found, indent=1))
                print(f"{name}, seed {seed}", flush=True)
    seeds = {name: list(runs.values()) for name, runs in found.items()}
    text = "\n".join(made(seeds) for made in (of_losses, of_matchings, of_readings))
    (args.workdir / "table.md").write_text(text)
    print(text)
    if all(map(seeds.get, MATCHINGS)):
        print(draw_matchings(args.workdir, best(seeds["classes"], "sphere_tracing")))


if __name__ == "__main__":
    main()
