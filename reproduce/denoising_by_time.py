"""One step of denoising, by the time of the noise: Distance Marching's Fig. 12 and 36 on digits.

    python reproduce/denoising_by_time.py --workdir=runs/denoising_by_time --seeds=3

arXiv:2602.02928, section 5.6. One network (the MLP of distance_tables.py, without classes or time),
and only the loss differs: the one-step loss (OSL), flow matching (FM), and its (1-t)^-2 reweighting
(cut off at 0.05). Of training images with noise, x_t with t uniform in each of 20 bins of
[0, 0.95], one step leads to x + f(x) for OSL, and to x + (1-t) f(x) for the others; of 2,000 such
ends the figure is the Fréchet distance of the pixels to the training images. The paper leaves out
the directional eikonal loss, which names no end; here the model with both losses says how far to
go: "OSL and DEL" is Distance Marching's own step, x - u v. Models that rows.json has are not
trained again. Writes rows.json, table.md and denoising_by_time.png.
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

from genfield import fields, losses, rng
from genfield.figures import style
from genfield.metrics import frechet

BINS, LAST, NUM, CUTOFF = 20, 0.95, 2_000, 0.05
EARLY = 5  # bins of Fig. 12: t below about 0.25
SHOWN = (0, 1, 2, 4, 6, 9, 14, 19)  # bins of the table
COLOURS = {
    "OSL": style.VERMILION,
    "FM": style.SKY,
    "reweighted FM": style.PURPLE,
    "OSL and DEL": style.BLUE,
}


@functools.cache
def model(name: str):
    """seed -> parameters, and (parameters, x, t) -> the denoised x, of a loss."""
    if name == "OSL and DEL":
        _, field = tables.march("no classes")
        move = lambda p, x, t: x - fields.displacement(field(p)(x))
        return tables.marcher("no classes"), move
    init, apply = tables.network(tables.DIRECTION, False)
    start = lambda seed: init(rng.stream(seed, "v"))
    f = lambda p: lambda x, t=None, cond=None: apply(p, x)
    if name == "OSL":
        one = lambda p: lambda x, t=None, cond=None: fields.Prediction(-f(p)(x), jnp.ones(len(x)))
        options = tables.LOSS | {"one_step_weight": 1.0, "eikonal_weight": 0.0}
        risk = lambda p, sample, cond: losses.distance_marching(one(p), sample, **options)[0]
        return tables.trainer(start, risk, tables.FREE), lambda p, x, t: x + f(p)(x)
    weight = losses.inverse_square(CUTOFF) if name == "reweighted FM" else None
    options = dict(time_input=False, weight=weight)
    risk = lambda p, sample, cond: losses.flow_matching(f(p), sample, **options)[0]
    return tables.trainer(start, risk, tables.FREE), lambda p, x, t: x + (1 - t) * f(p)(x)


@functools.cache
def denoiser(name: str):
    """(parameters, x, t) -> the denoised x."""
    return jax.jit(model(name)[1])


def noisy(seed: int, place: int) -> tuple[np.ndarray, np.ndarray]:
    """x_t of a bin and its times: [NUM, 64], [NUM, 1]."""
    images, _ = tables.digits()
    random = np.random.default_rng((seed, place))
    t = (place + random.uniform(size=(NUM, 1))) * LAST / BINS
    x1 = images[random.integers(len(images), size=NUM)]
    x = (1 - t) * random.standard_normal(x1.shape) + t * x1
    return x.astype(np.float32), t.astype(np.float32)


def measure(name: str, seed: int) -> list[float]:
    """The Fréchet distance of each bin."""
    images, _ = tables.digits()
    params, of_data = model(name)[0](seed), frechet.moments(images)
    found = []
    for place in range(BINS):
        x = np.asarray(denoiser(name)(params, *noisy(seed, place)))
        found.append(float(frechet.frechet_distance(frechet.moments(x), of_data)))
    return found


def table(found: dict[str, list[list[float]]]) -> str:
    """Medians over seeds, by bin."""
    rows = [
        [name, *(shown([run[place] for run in runs]) for place in SHOWN)]
        for name, runs in found.items()
    ]
    width = LAST / BINS
    head = [f"{place * width:.2f} to {(place + 1) * width:.2f}" for place in SHOWN]
    return markdown(["t in", *head], rows)


@style.styled
def picture(path: Path, found: dict[str, list[list[float]]]) -> Path:
    """Fig. 12 and 36: medians over seeds, and their range."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    middle = (np.arange(BINS) + 0.5) * LAST / BINS
    for name, runs in found.items():
        values = np.array(runs)
        for ax, upto in ((left, EARLY), (right, BINS)):
            part = values[:, :upto]
            ax.plot(middle[:upto], np.median(part, 0), "o-", color=COLOURS[name], label=name)
            low, high = part.min(0), part.max(0)
            ax.fill_between(middle[:upto], low, high, color=COLOURS[name], alpha=0.2)
    left.set(title="Fig. 12", xlabel="t", ylabel="Fréchet distance of pixels")
    right.set(title="Fig. 36", xlabel="t", yscale="log")
    right.legend()
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
        for name in COLOURS:
            runs = found.setdefault(name, [])
            if len(runs) == seed:
                runs.append(measure(name, seed))
                path.write_text(json.dumps(found))
                print(f"{name}, seed {seed}", flush=True)
    (args.workdir / "table.md").write_text(table(found))
    print(table(found))
    print(picture(args.workdir / "denoising_by_time.png", found))


if __name__ == "__main__":
    main()
