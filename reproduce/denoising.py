"""How well one step denoises, and how samples come about, on digits: DM Fig. 12, 36, 16 and 34.

    python reproduce/denoising.py --workdir=runs/denoising --seeds=3

Distance Marching, arXiv:2602.02928, section 5.6 and C.4. One network, the MLP of distance_tables.py
without classes, and only the loss differs: the one-step loss (OSL), flow matching without a time
(FM), its (1-t)^-2 reweighting (cut off at 0.05), and flow matching with the time.

Fig. 12, 36: of training images with noise, x_t with t uniform in each of 20 bins of [0, 0.95], one
step leads to x + f(x) for OSL, and to x + (1-t) f(x) for FM; of 2,000 such ends the figure is the
Fréchet distance of the pixels to the training images. The paper leaves out the directional eikonal
loss, which names no end; here the model with both losses says how far to go: "OSL and DEL" is
Distance Marching's own step, x - u v.

Fig. 16, 34: 1,000 samples in 50 steps, looked at after each tenth of them: Distance Marching by
sphere tracing and by gradient descent, with the steps that distance_tables.py finds best, and flow
matching with the time by Euler's method, in the place of the paper's dopri5.

Models that rows.json has are not trained again. Writes rows.json, table.md, denoising.png, and from
seed 0 strips.png.
"""

import argparse
import functools
import json
from pathlib import Path

import distance_tables as tables
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from common import markdown, shown

from genfield import fields, guidance, losses, rng, sampling
from genfield.figures import style
from genfield.metrics import frechet

BINS, LAST, NUM, CUTOFF = 20, 0.95, 2_000, 0.05
EARLY = 5  # bins of Fig. 12: t below about 0.25
SHOWN = (0, 1, 2, 4, 6, 9, 14, 19)  # bins of the table
TIMED = "FM with the time"
DENOISERS = {
    "OSL": style.VERMILION,
    "FM": style.SKY,
    "reweighted FM": style.PURPLE,
    "OSL and DEL": style.BLUE,
}
NUM_STEPS, LOOKS, SAMPLES, STRIP = 50, 10, 1_000, 12
WAYS = {  # title: model, sampler, factor of the field, colour
    "sphere tracing": ("OSL and DEL", sampling.sphere_tracing, 0.1, style.VERMILION),
    "gradient descent": ("OSL and DEL", sampling.gradient_descent, 0.2, style.BLUE),
    "flow matching": (TIMED, None, 1.0, style.SKY),
}


def field_of(name: str):
    """seed -> parameters, and parameters -> the field, of a flow or of the one-step loss alone."""
    init, apply = tables.network(tables.DIRECTION | {"time_input": name == TIMED}, False)
    field = lambda params: lambda x, t=None, cond=None: apply(params, x, t)
    return lambda seed: init(rng.stream(seed, "v")), field


@functools.cache
def model(name: str):
    """seed -> parameters, and parameters -> the field, of a loss."""
    if name == "OSL and DEL":
        return tables.marcher("no classes"), tables.march("no classes")[1]
    start, field = field_of(name)
    if name == "OSL":
        options = tables.LOSS | {"one_step_weight": 1.0, "eikonal_weight": 0.0}
        one = lambda p: (
            lambda x, t=None, cond=None: fields.Prediction(-field(p)(x), jnp.ones(len(x)))
        )
        risk = lambda p, sample, cond: losses.distance_marching(one(p), sample, **options)[0]
    else:
        weight = losses.inverse_square(CUTOFF) if name == "reweighted FM" else None
        options = dict(time_input=name == TIMED, weight=weight)
        risk = lambda p, sample, cond: losses.flow_matching(field(p), sample, **options)[0]
    return tables.trainer(start, risk, tables.FREE), field


@functools.cache
def denoiser(name: str):
    """(parameters, x, t) -> the denoised x."""
    field = model(name)[1]
    if name == "OSL and DEL":
        return jax.jit(lambda p, x, t: x - fields.displacement(field(p)(x)))
    if name == "OSL":
        return jax.jit(lambda p, x, t: x + field(p)(x))
    return jax.jit(lambda p, x, t: x + (1 - t) * field(p)(x))


def noisy(seed: int, place: int) -> tuple[np.ndarray, np.ndarray]:
    """x_t of a bin and its times: [NUM, 64], [NUM, 1]."""
    images, _ = tables.digits()
    random = np.random.default_rng((seed, place))
    t = (place + random.uniform(size=(NUM, 1))) * LAST / BINS
    x1 = images[random.integers(len(images), size=NUM)]
    x = (1 - t) * random.standard_normal(x1.shape) + t * x1
    return x.astype(np.float32), t.astype(np.float32)


def of_pixels(x) -> float:
    """The Fréchet distance to the training images; infinite where x is not finite."""
    x, (images, _) = np.asarray(x), tables.digits()
    if not np.isfinite(x).all():
        return float("inf")
    return float(frechet.frechet_distance(frechet.moments(x), frechet.moments(images)))


@functools.cache
def walker(way: str):
    """(parameters, seed) -> samples after each tenth of the steps, [1 + LOOKS, SAMPLES, 64]."""
    name, sampler, factor, _ = WAYS[way]
    sampler = sampling.euler() if sampler is None else sampler(1.0)

    def walk(params, seed):
        x = jax.random.normal(rng.stream(seed, "noise"), (SAMPLES, tables.SIZE))
        field = guidance.scaled(model(name)[1](params), factor)
        options = dict(num_steps=NUM_STEPS, trace=NUM_STEPS // LOOKS)
        return sampling.sample(rng.stream(seed, "sampler"), field, x, sampler, **options).trace

    return jax.jit(walk)


def measure(name: str, seed: int, workdir: Path) -> dict[str, list[float]]:
    """Of one model: "bins", if it denoises, and each of its ways; keeps seed 0's strips."""
    params, found = model(name)[0](seed), {}
    if name in DENOISERS:
        ends = (denoiser(name)(params, *noisy(seed, place)) for place in range(BINS))
        found["bins"] = [of_pixels(x) for x in ends]
    for way in (way for way, row in WAYS.items() if row[0] == name):
        trace = np.asarray(walker(way)(params, seed))
        found[way] = [of_pixels(x) for x in trace]
        if seed == 0:
            np.save(workdir / f"{way.replace(' ', '_')}.npy", trace[:, :STRIP])
    return found


def table(found: dict[str, list[dict]]) -> str:
    """Medians over seeds (smallest to largest), by bin and by tenth."""
    cells = lambda runs, key, places: [shown([run[key][p] for run in runs]) for p in places]
    rows = [[name, *cells(found[name], "bins", SHOWN)] for name in DENOISERS]
    width = LAST / BINS
    head = [f"{place * width:.2f} to {(place + 1) * width:.2f}" for place in SHOWN]
    steps = range(0, LOOKS + 1, 2)
    ways = [[way, *cells(found[name], way, steps)] for way, (name, *_) in WAYS.items()]
    percent = [f"{100 * k // LOOKS}%" for k in steps]
    return markdown(["t in", *head], rows) + "\n" + markdown(["after", *percent], ways)


def draw(ax, x, runs, colour: str, label: str) -> None:
    """A curve: the median over seeds, and their range."""
    values = np.array(runs)
    ax.plot(x, np.median(values, 0), ".-", color=colour, label=label)
    ax.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2)


@style.styled
def picture(path: Path, found: dict[str, list[dict]]) -> Path:
    """Fig. 12, 36 and 16."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
    middle = (np.arange(BINS) + 0.5) * LAST / BINS
    for name, colour in DENOISERS.items():
        for ax, upto in zip(axes, (EARLY, BINS), strict=False):
            draw(ax, middle[:upto], [run["bins"][:upto] for run in found[name]], colour, name)
    for way, (name, *_, colour) in WAYS.items():
        draw(axes[2], np.linspace(0, 100, LOOKS + 1), [r[way] for r in found[name]], colour, way)
    axes[0].set(title="Fig. 12: one step", xlabel="t", ylabel="Fréchet distance of pixels")
    axes[1].set(title="Fig. 36: one step", xlabel="t", yscale="log")
    axes[2].set(title="Fig. 16: on the way", xlabel="steps made, %", yscale="log")
    for ax in axes[1:]:
        ax.legend(fontsize=8)
    return style.save(figure, path)


@style.styled
def strips(path: Path, workdir: Path) -> Path:
    """Fig. 34: from the same noises, a column for each tenth of the steps."""
    figure, axes = plt.subplots(1, len(WAYS), figsize=(12, 4.6), layout="constrained")
    for ax, way in zip(axes, WAYS, strict=True):
        trace = np.load(workdir / f"{way.replace(' ', '_')}.npy")  # [1 + LOOKS, STRIP, 64]
        rows = trace.reshape(1 + LOOKS, STRIP, 8, 8).transpose(1, 2, 0, 3)
        ax.imshow(rows.reshape(STRIP * 8, -1), cmap="gray", vmin=-1, vmax=1)
        ax.set(title=way, xticks=[], yticks=[])
    return style.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    path = args.workdir / "rows.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(args.seeds):
        for name in (*DENOISERS, TIMED):
            runs = found.setdefault(name, [])
            if len(runs) == seed:
                runs.append(measure(name, seed, args.workdir))
                path.write_text(json.dumps(found))
                print(f"{name}, seed {seed}", flush=True)
    (args.workdir / "table.md").write_text(table(found))
    print(table(found))
    print(picture(args.workdir / "denoising.png", found))
    print(strips(args.workdir / "strips.png", args.workdir))


if __name__ == "__main__":
    main()
