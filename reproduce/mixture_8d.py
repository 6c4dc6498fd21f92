"""Distance Marching's 8-D study (arXiv:2602.02928, C.2, Fig. 22-26) with exact minimisers.

    python reproduce/mixture_8d.py [--out=runs/mixture_8d]

What flow matching, its (1-t)^-2 reweighting, the directional eikonal loss (DEL) and the one-step
loss (OSL) learn between two mixtures of Gaussians: where their vectors point, how descents along
them fare for steps η over a factor of 8, and the log-density on the way. The paper does not give
its mixture; this one is drawn from a seed, and the figures are over several.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import gamma, logsumexp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from genfield.figures import style

DIM, SOURCES, TARGETS = 8, 2, 4
EPSILON = C0 = 1.0
CUTOFF = 0.05  # of (1-t)^-2, whose posterior mean is infinite for Gaussian targets without it
STEPS = 10
STEP_SIZES = (0.1, 0.2, 0.4, 0.8, 1.0)


class Problem(NamedTuple):
    """Source and target components: means [K, d] and standard deviations."""

    sources: np.ndarray
    targets: np.ndarray
    source_std: float
    target_std: float


def make_problem(seed: int) -> Problem:
    """Two source components far from four target ones, as in the projections of Fig. 22."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    sources = np.stack([-9 * axes[0] + 4 * axes[1], 9 * axes[0] - 4 * axes[1]])
    places = np.array([[-5, 6], [5, -6], [-3, -6], [3, 6]]) + rng.normal(0, 0.5, (TARGETS, 2))
    spread = rng.normal(0, 1.0, (TARGETS, DIM)) @ (np.eye(DIM) - axes[:2].T @ axes[:2])
    return Problem(sources, places @ axes[:2] + spread, 1.0, 1.0)


class Posterior(NamedTuple):
    """p(i, j, t | x) on nodes, and x1's law on each: N(mean, std² I)."""

    weight: np.ndarray  # [M], sums to 1
    t: np.ndarray  # [M]
    mean: np.ndarray  # [M, d], of x1
    std: np.ndarray  # [M]


def posterior(p: Problem, x: np.ndarray, num_nodes: int = 200) -> Posterior:
    """At x [d], t ~ U(0, 1): Gauss-Legendre in t; given (i, j, t) all is Gaussian."""
    nodes, measure = np.polynomial.legendre.leggauss(num_nodes)
    t, measure = 0.5 * (nodes + 1), 0.5 * measure
    i, j, k = (a.ravel() for a in np.indices((len(p.sources), len(p.targets), num_nodes)))
    a, b, t_, rest = p.sources[i], p.targets[j], t[k][:, None], 1 - t[k][:, None]
    variance = (rest * p.source_std) ** 2 + (t_ * p.target_std) ** 2
    gap = x[None] - rest * a - t_ * b
    log_weight = np.log(measure[k]) - 0.5 * (gap**2).sum(1) / variance[:, 0]
    log_weight -= 0.5 * DIM * np.log(variance[:, 0])
    gain = t_ * p.target_std**2 / variance
    std = p.source_std * p.target_std * rest / np.sqrt(variance)
    weight = np.exp(log_weight - logsumexp(log_weight))
    return Posterior(weight, t_[:, 0], b + gain * gap, std[:, 0])


def expected(shift, std, offset: float, power: float, dim: int, num_nodes: int = 96) -> np.ndarray:
    """E[(r² + offset)^-power], r² = std² χ'²_dim(|shift|²/std²), by its Laplace transform; [M].

    (q + c)^-p = ∫ s^(p-1) e^(-s (q + c)) ds / Γ(p), and e^(-s q) has a closed mean.
    """
    nodes, measure = np.polynomial.legendre.leggauss(num_nodes)
    z = 20 * nodes - 4  # s = e^z; the ends weigh nothing
    s, variance = np.exp(z)[None], std[:, None] ** 2
    spread = 1 + 2 * s * variance
    exponent = -s * offset - s * (shift**2).sum(1)[:, None] / spread - 0.5 * dim * np.log(spread)
    return np.exp(exponent + power * z[None]) @ (20 * measure) / gamma(power)


def minimiser(p: Problem, x: np.ndarray, loss: str) -> np.ndarray:
    """What a loss learns at x [d], as a vector from x towards the data.

    FM and its reweighting: E[x1 - x0] (eq. 22, 35); DEL: -E[(x - x1)/√(r² + c0)] (eq. 26); OSL:
    the way to E[w x1]/E[w], w = 1/(r² + ε) (eq. 33-34).
    """
    q = posterior(p, x)
    shift, rest = x[None] - q.mean, 1 - q.t
    if loss in ("FM", "reweighted FM"):
        capped = q.weight if loss == "FM" else q.weight * np.maximum(rest, CUTOFF) ** -2.0
        # x0 = (x - t x1) / (1 - t), so x1 - x0 = (x1 - x) / (1 - t).
        return -(capped / rest) @ shift / capped.sum()
    # E[(x - x1) h(r²)] = (x - mean) E[h], with two more degrees of freedom on the right.
    if loss == "DEL":
        return -(q.weight * expected(shift, q.std, C0, 0.5, DIM + 2)) @ shift
    near, nearer = (expected(shift, q.std, EPSILON, 1.0, DIM + n) for n in (0, 2))
    return -(q.weight * nearer) @ shift / (q.weight @ near)


def log_density(p: Problem, x: np.ndarray) -> float:
    """Of the target."""
    squared = ((x[None] - p.targets) ** 2).sum(1) / p.target_std**2
    constant = 0.5 * DIM * np.log(2 * np.pi * p.target_std**2) + np.log(len(p.targets))
    return float(logsumexp(-0.5 * squared) - constant)


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """Degrees."""
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def descend(p: Problem, x: np.ndarray, loss: str, step_size: float) -> np.ndarray:
    """STEPS steps of `step_size` times the loss's vector; [STEPS + 1, d]."""
    path = [x]
    for _ in range(STEPS):
        path.append(path[-1] + step_size * minimiser(p, path[-1], loss))
    return np.stack(path)


LOSSES = ("FM", "reweighted FM", "DEL", "OSL")


def study(seed: int) -> dict:
    """Angles to the nearest cluster, final log-densities and turning angles of one mixture."""
    p = make_problem(seed)
    angles = {loss: [] for loss in LOSSES}
    for start in p.sources:
        nearest = p.targets[np.argmin(((p.targets - start) ** 2).sum(1))]
        for loss in LOSSES:
            angles[loss].append(angle(minimiser(p, start, loss), nearest - start))
    final, turning = {}, {}
    for loss in LOSSES:
        for step_size in STEP_SIZES:
            paths = [descend(p, start, loss, step_size) for start in p.sources]
            final.setdefault(loss, {})[step_size] = [log_density(p, path[-1]) for path in paths]
            moves = [np.diff(path, axis=0) for path in paths]
            turns = [np.mean([angle(*pair) for pair in itertools.pairwise(m)]) for m in moves]
            turning.setdefault(loss, {})[step_size] = turns
    return {"seed": seed, "angles": angles, "final_log_density": final, "turning": turning}


def discriminant(p: Problem, samples: dict[str, np.ndarray]) -> np.ndarray:
    """Fisher's linear discriminant: the two directions [d, 2] that part the components best."""
    groups = [*samples["source"], *samples["target"]]
    means = np.stack([g.mean(0) for g in groups])
    within = sum(np.cov(g, rowvar=False) for g in groups)
    values, vectors = np.linalg.eig(np.linalg.solve(within, np.cov(means, rowvar=False)))
    return vectors[:, np.argsort(-values.real)[:2]].real


@style.styled
def picture(p: Problem, path: Path) -> None:
    """Minimisers at the source means, descents, and the log-density along these."""
    rng = np.random.default_rng(0)
    cloud = lambda means, std: [m + std * rng.standard_normal((300, DIM)) for m in means]
    samples = {"source": cloud(p.sources, p.source_std), "target": cloud(p.targets, p.target_std)}
    project = discriminant(p, samples)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.5, 3.7), layout="constrained")
    for axes in (left, middle):
        for name, colour in (("source", "#b9bec6"), ("target", "#f0cfa8")):
            for group in samples[name]:
                axes.scatter(*(group @ project).T, s=2, color=colour)
        axes.plot(*(p.targets.mean(0) @ project), "*", color=style.TARGET, markersize=14)
    step_sizes = {"FM": 0.1, "reweighted FM": 0.1, "DEL": 1.0, "OSL": 0.4}
    colours = {
        "FM": style.SKY,
        "reweighted FM": style.PURPLE,
        "DEL": style.BLUE,
        "OSL": style.VERMILION,
    }
    for first, start in enumerate(p.sources):
        for loss, colour in colours.items():
            vector = minimiser(p, start, loss)
            arrow = 4 * vector / np.linalg.norm(vector) @ project
            left.quiver(*(start @ project), *arrow, color=colour, angles="xy", scale_units="xy",
                        scale=1, width=0.006)  # fmt: skip
            walk = descend(p, start, loss, step_sizes[loss])
            middle.plot(*(walk @ project).T, "o-", color=colour, markersize=3)
            label = f"{loss}, η = {step_sizes[loss]}" if first == 0 else None
            right.plot([log_density(p, x) for x in walk], color=colour, label=label)
    left.set_title("minimisers at the source means")
    middle.set_title("ten steps")
    right.set(title="log-density of the target", xlabel="step", ylim=(-90, 0))
    right.legend()
    style.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/mixture_8d"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    results = [study(seed) for seed in range(args.seeds)]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "mixture_8d.json").write_text(json.dumps(results, indent=2))
    picture(make_problem(0), args.out / "mixture_8d.png")
    print("| loss | angle to the nearest cluster | " + " | ".join(
        f"log p, η = {s}" for s in STEP_SIZES) + " |")  # fmt: skip
    print("|---|---|" + "---|" * len(STEP_SIZES))
    spread = lambda values: f"{np.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
    for loss in LOSSES:
        cells = [spread([a for r in results for a in r["angles"][loss]])]
        for s in STEP_SIZES:
            cells.append(spread([v for r in results for v in r["final_log_density"][loss][s]]))
        print(f"| {loss} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
