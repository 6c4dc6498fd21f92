"""What losses learn between 8 Gaussians and two moons, exactly: DM Fig. 5, 6, 8 and 9.

    python reproduce/plane_minimisers.py --out=runs/plane_minimisers [--seeds=3]

Distance Marching, arXiv:2602.02928, section 4.1. At a point x the pair (x0, x1) and the time t are
uncertain. With the moons as a fine set of points s, p(s, t | x) is known on a grid of times, and
with it what flow matching (FM), its (1-t)^-2 reweighting (cut off at 0.05), the directional eikonal
loss (DEL) and the one-step loss (OSL) learn there. Of points x drawn between the two, but for those
within 0.3 of the moons, by seeds:

  nearest  the angle between a minimiser and the way to the nearest point of the moons
  mean     the angle between it and the way to the mean of the moons
  away     the share of the points where the first is above 90°

and of walks from each Gaussian, 40 steps of 0.1 minimisers: how much longer they are than the
straight way to their end, the sum of their turns, and where they end. Writes plane_minimisers.md
and plane_minimisers.png.
"""

import argparse
import functools
import itertools
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from common import markdown, shown

from genfield import rng
from genfield.data import toys
from genfield.figures import style

EPSILON = C0 = 0.01  # of configs/distance_marching_two_moons.py
CUTOFF = 0.05  # of (1-t)^-2
NEAR = 0.3  # of the moons, where the way to the nearest of some points says little
NODES = 64
STEPS, STEP = 40, 0.1
VARIANCE = 0.1**0.5  # of a Gaussian, in each coordinate
COLOURS = {
    "FM": style.SKY,
    "reweighted FM": style.PURPLE,
    "DEL": style.BLUE,
    "OSL": style.VERMILION,
}
GREY = "#b9bec6"
EARLY = (0.0, 0.25)  # times of Fig. 12, where Fig. 6 says that the losses part
BOX = (-7.0, 7.0)


def modes() -> np.ndarray:
    """The means of the Gaussians, [8, 2]."""
    angle = np.pi / 4 * np.arange(8)
    return 5.0 * np.stack([np.cos(angle), np.sin(angle)], -1)


def moons(angles: int = 40, offsets: int = 2) -> np.ndarray:
    """Points spread evenly over the law of `toys.two_moons`, [N, 2]."""
    angle = np.linspace(0.0, np.pi, angles)
    outer = np.stack([np.cos(angle), np.sin(angle)], -1)
    points = np.concatenate([outer, [1.0, 0.5] - outer])
    offset = 0.2 * (np.arange(offsets) + 0.5) / offsets
    return 3.0 * (points[:, None] + offset[None, :, None]).reshape(-1, 2) - 1.0


def log_source(x0: np.ndarray) -> np.ndarray:
    """The log-density of the Gaussians at [..., 2], up to a constant."""
    near = (modes() / VARIANCE) @ x0.reshape(-1, 2).T  # all modes are equally far from the origin
    most = near.max(0)
    sums = np.exp((near - most).astype(np.float32)).sum(0)
    return (most + np.log(sums)).reshape(x0.shape[:-1]) - 0.5 * (x0**2).sum(-1) / VARIANCE


@functools.cache
def times() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes on (0, 1), and their weights."""
    nodes, measure = np.polynomial.legendre.leggauss(NODES)
    return 0.5 * (nodes + 1), 0.5 * measure


def posterior(x: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """p(s, t | x) at x [2] on `targets` and `times()`: [N, NODES], sums to 1."""
    t, measure = times()
    x0 = (x - t[:, None] * targets[:, None]) / (1 - t)[:, None]
    log_weight = log_source(x0) + np.log(measure) - 2 * np.log(1 - t)
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def minimisers(x: np.ndarray, targets: np.ndarray, weight=None) -> dict[str, np.ndarray]:
    """{loss: what it learns at x}, vectors [2] towards the data; weight: `posterior`, or part."""
    weight = posterior(x, targets) if weight is None else weight / weight.sum()
    t, _ = times()
    way = targets - x
    r2 = (way**2).sum(-1)
    flow = weight / (1 - t)  # x1 - x0 = (x1 - x) / (1 - t)
    capped = np.maximum(1 - t, CUTOFF) ** -2.0
    near = weight.sum(1) / (r2 + EPSILON)
    return {
        "FM": flow.sum(1) @ way,
        "reweighted FM": (flow * capped).sum(1) @ way / (weight * capped).sum(),
        "DEL": (weight.sum(1) / np.sqrt(r2 + C0)) @ way,
        "OSL": near @ way / near.sum(),
    }


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """Degrees."""
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def draw(seed: int, num: int, low: float, high: float) -> np.ndarray:
    """Points x_t of random pairs, t uniform on (low, high): [num, 2]."""
    k0, k1, k2 = jax.random.split(rng.stream(seed, "plane"), 3)
    x0, x1 = toys.eight_gaussians(k0, num), toys.two_moons(k1, num)
    t = jax.random.uniform(k2, (num, 1), minval=low, maxval=high)
    return np.asarray((1 - t) * x0 + t * x1, np.float64)


def directions(points: np.ndarray, targets: np.ndarray) -> dict[str, dict[str, float]]:
    """{loss: medians of its angles, and the share that points away}."""
    found = {loss: [] for loss in COLOURS}
    for x in points:
        nearest = targets[np.argmin(((targets - x) ** 2).sum(-1))] - x
        if np.linalg.norm(nearest) < NEAR:
            continue
        for loss, vector in minimisers(x, targets).items():
            found[loss].append((angle(vector, nearest), angle(vector, targets.mean(0) - x)))
    out = {}
    for loss, pairs in found.items():
        nearest, mean = np.array(pairs).T
        share = float((nearest > 90).mean())
        out[loss] = {"nearest": np.median(nearest), "mean": np.median(mean), "away": share}
    return out


def walk(x: np.ndarray, loss: str, targets: np.ndarray) -> np.ndarray:
    """STEPS steps along a loss's minimiser: [STEPS + 1, 2]."""
    path = [x]
    for _ in range(STEPS):
        path.append(path[-1] + STEP * minimisers(path[-1], targets)[loss])
    return np.stack(path)


def of_walk(path: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Its length over the straight way, its turns in degrees, its end's distance to the moons."""
    moves = np.diff(path, axis=0)
    moves = moves[np.linalg.norm(moves, axis=1) > 1e-3]  # where it has arrived it has no direction
    length, straight = np.linalg.norm(moves, axis=1).sum(), np.linalg.norm(path[-1] - path[0])
    turns = sum(angle(a, b) for a, b in itertools.pairwise(moves))
    end = np.sqrt(((targets - path[-1]) ** 2).sum(-1).min())
    return {"detour": float(length / straight), "turns": turns, "end": float(end)}


def table(seeds: int, num: int, targets: np.ndarray) -> str:
    """Angles over all times and over the early ones, by seeds."""
    parts = []
    for low, high in ((0.0, 1.0), EARLY):
        runs = [directions(draw(seed, num, low, high), targets) for seed in range(seeds)]
        names = ("nearest", "mean", "away")
        rows = [[loss, *(shown([run[loss][n] for run in runs]) for n in names)] for loss in COLOURS]
        parts.append(markdown([f"t from {low:g} to {high:g}", *names], rows))
    return "\n".join(parts)


def of_walks(walks: dict[str, list[np.ndarray]], targets: np.ndarray) -> str:
    """Medians over the eight starts."""
    names, rows = ("detour", "turns", "end"), []
    for loss, paths in walks.items():
        found = [of_walk(path, targets) for path in paths]
        rows.append([loss, *(shown([f[name] for f in found]) for name in names)])
    return markdown(["walks along", *names], rows)


# The picture


def arrows(ax, x: np.ndarray, vectors: dict[str, np.ndarray], length: float = 2.5) -> None:
    """Directions at x."""
    for loss, vector in vectors.items():
        arrow = length * vector / np.linalg.norm(vector)
        options = dict(angles="xy", scale_units="xy", scale=1, width=0.012, zorder=4)
        ax.quiver(*x, *arrow, color=COLOURS[loss], label=loss, **options)


def plane(ax, title: str, targets: np.ndarray, cloud: np.ndarray) -> None:
    """Both laws."""
    ax.scatter(*cloud.T, s=1, color=GREY)
    ax.scatter(*targets.T, s=2, color=style.TARGET)
    ax.set(title=title, xlim=BOX, ylim=BOX, aspect="equal", xticks=[], yticks=[])


def matches(ax, x: np.ndarray, targets: np.ndarray, weight: np.ndarray, num: int = 60) -> None:
    """Pairs (x0, x1) of the posterior, which pass through x."""
    chosen = np.random.default_rng(0).choice(weight.size, num, p=weight.ravel() / weight.sum())
    i, k = np.unravel_index(chosen, weight.shape)
    t = times()[0][k][:, None]
    x0 = (x - t * targets[i]) / (1 - t)
    for a, b in zip(x0, targets[i], strict=True):
        ax.plot(*np.stack([a, b]).T, color=GREY, linewidth=0.6, zorder=1)


def of_times(ax, x: np.ndarray, targets: np.ndarray) -> None:
    """The posterior of t in grey, and the azimuth of each minimiser given t."""
    (t, measure), weight = times(), posterior(x, targets)
    density = weight.sum(0) / measure
    ax.fill_between(t, density, color=GREY)
    ax.set(xlabel="t", ylabel="posterior density of t", xlim=(0, 1))
    right = ax.twinx()
    likely = np.flatnonzero(density > 0.02 * density.max())
    given = {k: minimisers(x, targets, np.where(np.arange(NODES) == k, weight, 0)) for k in likely}
    azimuths = {}
    for loss in COLOURS:
        ways = np.array([given[k][loss] for k in likely])
        azimuths[loss] = np.degrees(np.arctan2(ways[:, 1], ways[:, 0]))
    first = np.unwrap(azimuths["FM"], period=360)
    for loss, azimuth in azimuths.items():
        turned = (
            first + (azimuth - first + 180) % 360 - 180
        )  # within half a turn of flow matching's
        right.plot(t[likely], turned, color=COLOURS[loss], linewidth=1)
    right.set(ylabel="azimuth given t, degrees")


@style.styled
def picture(path: Path, targets: np.ndarray, walks: dict[str, list[np.ndarray]]) -> Path:
    """Fig. 5 and 6 above, 8 and 9 below."""
    figure, axes = plt.subplots(2, 4, figsize=(16, 8), layout="constrained")
    cloud = np.asarray(toys.eight_gaussians(rng.stream(0, "cloud"), 800))
    points = draw(0, 200, 0.0, 1.0)
    points = [x for x in points if ((targets - x) ** 2).sum(-1).min() > 1]  # well off the moons
    gap = [angle(m["FM"], m["OSL"]) for m in (minimisers(x, targets) for x in points)]
    places = {
        "Fig. 5: where the minimisers differ most": points[int(np.argmax(gap))],
        "Fig. 6: at a Gaussian": modes()[3],
    }
    for (left, right), (title, x) in zip(axes[0].reshape(2, 2), places.items(), strict=True):
        plane(left, title, targets, cloud)
        matches(left, x, targets, posterior(x, targets))
        arrows(left, x, minimisers(x, targets))
        left.plot(*targets.mean(0), "*", color="black", markersize=10)
        left.legend(loc="lower left", fontsize=7)
        of_times(right, x, targets)
    x = next(iter(places.values()))
    for ax, given in zip(axes[1], (0.25, 0.9), strict=False):
        at = np.argmin(np.abs(times()[0] - given))
        weight = np.where(np.arange(NODES) == at, posterior(x, targets), 0)
        plane(ax, f"Fig. 8: there, given t = {given}", targets, cloud)
        if weight.sum() > 0:
            matches(ax, x, targets, weight)
            arrows(ax, x, minimisers(x, targets, weight))
    plane(axes[1, 2], f"Fig. 9: {STEPS} steps of {STEP}", targets, cloud)
    for loss, paths in walks.items():
        for place, steps in enumerate(paths):
            label = loss if place == 0 else None
            axes[1, 2].plot(*steps.T, ".-", color=COLOURS[loss], markersize=2, label=label)
    axes[1, 2].legend(loc="lower left", fontsize=7)
    for loss, paths in walks.items():
        nearest = lambda at: np.sqrt(((targets - at) ** 2).sum(-1).min())
        far = np.median([[nearest(at) for at in steps] for steps in paths], axis=0)
        axes[1, 3].plot(far, color=COLOURS[loss], label=loss)
    axes[1, 3].set(xlabel="step", ylabel="distance to the moons", yscale="log")
    return style.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/plane_minimisers"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num", type=int, default=100, help="points x of a seed")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    targets = moons()
    walks = {loss: [walk(x, loss, targets) for x in modes()] for loss in COLOURS}
    text = table(args.seeds, args.num, targets) + "\n" + of_walks(walks, targets)
    (args.out / "plane_minimisers.md").write_text(text)
    print(text)
    print(picture(args.out / "plane_minimisers.png", targets, walks))


if __name__ == "__main__":
    main()
