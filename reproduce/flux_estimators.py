"""What Flux Matching's estimators estimate, what finite batches do, and a field that is no score.

    python reproduce/flux_estimators.py --workdir=runs/flux --seeds=3 [--only bias ...]

  bias        a linear field on Gaussian data whose score is a batch's kernel density: where the
              expected loss has its minimum, and how much it penalises rotation, against the batch
  estimators  loss and gradient over the projected Fisher divergence's, and their variance at the
              price of a pass, on Gaussians and a mixture of known score
  rotation    f = (I + 1.5 J) ∇φ on a mixture: trained by Flux Matching, and by regression to the
              score

Writes NAME.json, NAME.md and NAME.png for each.
"""

import argparse
import functools
import json
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from common import markdown, shown
from ml_collections import ConfigDict

from genfield import fields, nets, rng, sampling, scores
from genfield.figures import style
from genfield.losses.flux import estimator as flux

SINGLE = jnp.float32


def write(workdir: Path, name: str, found: dict, text: str, figure=None) -> str:
    """The JSON, Markdown and picture of a study."""
    (workdir / f"{name}.json").write_text(json.dumps(found, indent=2))
    (workdir / f"{name}.md").write_text(text)
    if figure is not None:
        print(style.save(figure, workdir / f"{name}.png"))
    return text


# The bias of a batch's score

BATCHES = (16, 32, 64, 128, 256, 512)
COVARIANCE = np.diag([1.0, 0.4])  # of the data
BANDWIDTHS = (0.5, 1.0)
EXAMPLES = 1 << 16  # for each batch size and seed


@functools.cache
def affine(batch: int, estimator: str):
    """(key, σ) -> mean gradient in A of a linear field at A = 0 and along each entry of A."""
    num = max(batch, 2_048)
    root = jnp.asarray(np.linalg.cholesky(COVARIANCE), SINGLE)
    probes = jnp.concatenate([jnp.zeros((1, 2, 2)), jnp.eye(4).reshape(4, 2, 2)])
    field = lambda A: lambda x, t=None, cond=None: x @ A.T

    def gradient(A, key, x, centres, sigma):
        score = scores.kde_field(centres, batch)
        mean = lambda A: flux.flux_estimator(
            key, field(A), x, score, sigma=sigma, group_size=batch, estimator=estimator
        )[0].mean()
        return jax.grad(mean)(A)

    def one(key, sigma):
        k0, k1, k2 = jax.random.split(key, 3)
        centres = jax.random.normal(k0, (num, 2)) @ root.T
        x = centres + sigma * jax.random.normal(k1, (num, 2))
        return jax.vmap(gradient, (0, None, None, None, None))(probes, k2, x, centres, sigma)

    @jax.jit
    def total(key, sigma):
        keys = jax.random.split(key, EXAMPLES // num)
        return jax.lax.map(lambda key: one(key, sigma), keys).mean(0)

    return lambda *a: np.asarray(total(*a), np.float64).reshape(5, 4)


def minimiser(batch: int, estimator: str, sigma: float, seed: int) -> dict[str, float]:
    """Where the gradient, affine in A, is zero; and its slopes along the score and a rotation.

    A reflection of an axis leaves the data's law as it is, so that the minimiser is diagonal: its
    other two entries, which the loss hardly fixes, are known to be 0 and the sums are rid of them.
    """
    key = jax.random.fold_in(rng.stream(seed, "bias"), batch)
    found = affine(batch, estimator)(key, sigma)
    slope, kept = (found[1:] - found[0]).T, [0, 3]
    A = np.diag(-np.linalg.solve(slope[np.ix_(kept, kept)], found[0][kept]))
    smoothed = COVARIANCE + sigma**2 * np.eye(2)
    truth = -np.linalg.inv(smoothed)
    length = lambda D: np.sqrt(np.trace(D @ smoothed @ D.T))  # of D x, in the mean
    along = lambda D: D.ravel() @ slope @ D.ravel() / length(D) ** 2
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    return {
        "error": float(np.linalg.norm(A - truth)),
        "relative error": float(length(A - truth) / length(truth)),
        "entries": (np.diag(A) / np.diag(truth)).tolist(),
        "penalty": float(along(turn @ truth) / along(truth)),
        "slope": float(along(truth)),
    }


@style.styled
def bias(seeds: range, workdir: Path) -> str:
    """The minimiser and the penalty of rotation, for batches of 16 to 512."""
    found, columns = {}, ("error", "relative error", "penalty", "slope")
    cases = [(e, s) for s in BANDWIDTHS for e in ("pathwise", "cross_chain")]
    for estimator, sigma in cases:
        for batch in BATCHES:
            runs = [minimiser(batch, estimator, sigma, seed) for seed in seeds]
            found[f"{estimator} {sigma} {batch}"] = runs
            print(estimator, sigma, batch, *(shown([r[k] for r in runs]) for k in columns))
    head = ["estimator", "σ", "batch", "‖A - A*‖", "relative, in L²(p)"]
    head += ["penalty of rotation", "slope along the score"]
    rows = [
        [*name.split(), *(shown([r[c] for r in runs]) for c in columns)]
        for name, runs in found.items()
    ]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for ax, column, label in (
        (axes[0], "relative error", "relative error of A"),
        (axes[1], "penalty", "penalty of rotation"),
    ):
        for estimator, sigma in cases:
            runs = [found[f"{estimator} {sigma} {b}"] for b in BATCHES]
            values = np.array([[r[column] for r in row] for row in runs])
            style = "o-" if sigma == BANDWIDTHS[0] else "s--"
            [line] = ax.plot(
                BATCHES, np.median(values, 1), style, label=f"{estimator}, σ = {sigma}"
            )
            ax.fill_between(
                BATCHES, values.min(1), values.max(1), color=line.get_color(), alpha=0.15
            )
        ax.set(xscale="log", yscale="log", xlabel="batch", ylabel=label)
        ax.set_xticks(BATCHES, [str(b) for b in BATCHES])
        ax.set_xticks([], minor=True)
        ax.grid()
    axes[1].legend()
    figure.tight_layout()
    return write(workdir, "bias", found, markdown(head, rows), figure)


# What each estimator estimates

GROUP = 64
ESTIMATES = 1 << 18  # examples for each estimator and seed
ESTIMATORS = {  # name: (options, network passes: 3 for a regression's step, 4 a chain)
    "pathwise, a time each": ({"estimator": "pathwise", "group_size": 1}, 7.0),
    "pathwise": ({"estimator": "pathwise"}, 7.0),
    "cross_chain": ({}, 7.0),
    "cross_chain, 1/2 of the chains": ({"probed": 0.5}, 5.0),
    "cross_chain, 1/4 of the chains": ({"probed": 0.25}, 4.0),
    "cross_chain_normalized": ({"estimator": "cross_chain_normalized"}, 7.0),
}
MODES = {
    "weights": np.array([0.4, 0.35, 0.25]),
    "means": np.array([[-1.3, -0.7], [1.4, 0.1], [0.0, 1.6]]),
    "covariances": np.array(
        [[[0.40, 0.15], [0.15, 0.25]], [[0.25, -0.10], [-0.10, 0.45]], [[0.50, 0.0], [0.0, 0.2]]]
    ),
}
SMALLEST = float(np.linalg.eigvalsh(MODES["covariances"]).min())  # of the mixture: its σ²


def mixture_log_density(x, t=None, cond=None):
    """log p [B] of MODES."""
    precision = np.linalg.inv(MODES["covariances"])
    constant = np.log(MODES["weights"]) + 0.5 * np.linalg.slogdet(precision)[1] - np.log(2 * np.pi)
    gap = x[:, None] - jnp.asarray(MODES["means"], x.dtype)
    squared = jnp.einsum("bki,kij,bkj->bk", gap, jnp.asarray(precision, x.dtype), gap)
    return jax.nn.logsumexp(jnp.asarray(constant, x.dtype) - 0.5 * squared, axis=-1)


mixture_score = fields.gradient_field(mixture_log_density)


def draw_mixture(key, num: int):
    """[num, 2] of MODES."""
    k0, k1 = jax.random.split(key)
    mode = jax.random.choice(k0, 3, (num,), p=jnp.asarray(MODES["weights"], SINGLE))
    roots = jnp.asarray(np.linalg.cholesky(MODES["covariances"]), SINGLE)
    noise = jnp.einsum("bij,bj->bi", roots[mode], jax.random.normal(k1, (num, 2)))
    return jnp.asarray(MODES["means"], SINGLE)[mode] + noise


def gaussian_problem(spread: float, unit: str):
    """N(m, Σ) of variances 1 and `spread`, and a linear field: (draw, score, field, σ, J, ∇J/2)."""
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    covariance = turn @ np.diag([1.0, spread]) @ turn.T
    precision, mean = np.linalg.inv(covariance), np.array([0.7, -0.4])
    A, b = np.array([[-1.6, 0.9], [-0.3, 0.2]]), np.array([0.5, 0.2])
    U, w = A + precision, A @ mean + b
    G = scipy.linalg.solve_continuous_lyapunov(precision, precision @ U + U.T @ precision)
    divergence = np.trace(G @ covariance @ G) + w @ w
    slope = np.concatenate([(G @ covariance + np.outer(w, mean)).ravel(), w])
    root = jnp.asarray(np.linalg.cholesky(covariance), SINGLE)
    m, P = jnp.asarray(mean, SINGLE), jnp.asarray(precision, SINGLE)
    draw = lambda key, num: m + jax.random.normal(key, (num, 2)) @ root.T
    score = lambda x, t=None, cond=None: (m - x) @ P

    def field(x, t=None, cond=None):
        theta = cond["theta"]
        return jnp.einsum("bij,bj->bi", theta[:, :4].reshape(-1, 2, 2), x) + theta[:, 4:]

    sigma = 1.0 if unit == "smallest" else np.sqrt((1 + spread) / 2)
    theta = np.concatenate([A.ravel(), b])
    return draw, score, field, theta, sigma, divergence, slope


def mixture_problem():
    """f = s + θ1 ∇φ1 + θ2 ∇φ2 + θ3 J s on MODES; J = E|θ1 ∇φ1 + θ2 ∇φ2|²."""
    theta = np.array([1.0, 0.6, 0.5])
    gradients = lambda x: jnp.stack(
        [
            jnp.stack([jnp.cos(x[:, 0]), -jnp.sin(x[:, 1])], -1),
            jnp.stack([x[:, 1], x[:, 0]], -1),
        ],
        1,
    )

    def field(x, t=None, cond=None):
        s = mixture_score(x)
        turned = jnp.stack([-s[:, 1], s[:, 0]], -1)[:, None]
        basis = jnp.concatenate([gradients(x), turned], 1)
        return s + jnp.einsum("bk,bkd->bd", cond["theta"], basis)

    many = np.asarray(gradients(draw_mixture(jax.random.key(0), 1 << 20)), np.float64)
    slope = np.einsum("bid,bjd->ij", many, many) / len(many) @ theta[:2]
    divergence = theta[:2] @ slope
    slope = np.concatenate([slope, [0.0]])
    return draw_mixture, mixture_score, field, theta, np.sqrt(SMALLEST), divergence, slope


PROBLEMS = {
    "isotropic Gaussian": lambda: gaussian_problem(1.0, "smallest"),
    "variances 1 and 4, σ² = 1": lambda: gaussian_problem(4.0, "smallest"),
    "variances 1 and 4, σ² = 2.5": lambda: gaussian_problem(4.0, "mean"),
    "mixture of three": mixture_problem,
}


@functools.cache
def sampler(problem: str, estimator: str, num: int = 1 << 15):
    """key -> the groups' means of the loss and of its gradient, [groups, 1 + parameters]."""
    draw, score, field, theta, sigma, *_ = PROBLEMS[problem]()
    options = {"group_size": GROUP} | ESTIMATORS[estimator][0]

    @jax.jit
    def run(key):
        k0, k1 = jax.random.split(key)
        x = draw(k0, num)

        def total(theta):
            loss, _ = flux.flux_estimator(
                k1, field, x, score, {"theta": theta}, sigma=float(sigma), **options
            )
            return loss.sum(), loss

        tiled = jnp.broadcast_to(jnp.asarray(theta, SINGLE), (num, len(theta)))
        gradient, loss = jax.grad(total, has_aux=True)(tiled)
        both = jnp.concatenate([loss[:, None], gradient], 1)
        return both.reshape(num // GROUP, GROUP, -1).mean(1)

    return lambda keys: np.concatenate([np.asarray(run(key), np.float64) for key in keys])


def estimate(problem: str, estimator: str, seed: int) -> dict[str, float]:
    """Loss and gradient over those of J; the noise of a group of GROUP at the price of a pass."""
    *_, divergence, slope = PROBLEMS[problem]()
    cost = ESTIMATORS[estimator][1]
    run = sampler(problem, estimator)
    each = run(jax.random.split(rng.stream(seed, "estimators"), ESTIMATES >> 15))
    mean, error = each.mean(0), each.std(0) / np.sqrt(len(each))
    noise = lambda a, scale: float(cost * a.var(0).sum() / scale)
    return {
        "loss": float(mean[0] / divergence),
        "loss error": float(error[0] / divergence),
        "gradient": float(mean[1:] @ slope / (slope @ slope)),
        "off": float(np.linalg.norm(mean[1:] - slope) / np.linalg.norm(slope)),
        "loss noise": noise(each[:, :1], divergence**2),
        "gradient noise": noise(each[:, 1:], slope @ slope),
    }


@style.styled
def estimators(seeds: range, workdir: Path) -> str:
    """Every estimator on every problem."""
    found = {}
    for problem in PROBLEMS:
        for name in ESTIMATORS:
            found[f"{problem}: {name}"] = [estimate(problem, name, seed) for seed in seeds]
            print(problem, name, found[f"{problem}: {name}"][0], flush=True)
    median = lambda runs, column: np.median([r[column] for r in runs])
    rows = []
    for problem in PROBLEMS:
        base = found[f"{problem}: pathwise"]
        for name in ESTIMATORS:
            runs = found[f"{problem}: {name}"]
            rows.append([problem, name, *(shown([r[c] for r in runs]) for c in ("loss", "off"))])
            rows[-1] += [
                f"{median(runs, c) / median(base, c):.2f}" for c in ("loss noise", "gradient noise")
            ]
    head = ["problem", "estimator", "loss over J", "gradient, relative error"]
    head += ["loss variance × passes, over pathwise's", "gradient variance × passes"]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    titles = {
        "loss": "loss over J",
        "off": "gradient's relative error",
        "gradient noise": "gradient's variance × passes, relative",
    }
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        for i, name in enumerate(ESTIMATORS):
            values = [median(found[f"{p}: {name}"], column) for p in PROBLEMS]
            ax.bar(np.arange(len(PROBLEMS)) + 0.13 * (i - 2.5), values, 0.13, label=name)
        if column == "loss":
            ax.axhline(1, color="0.4", linestyle=":")
        if column == "gradient noise":
            ax.set_yscale("log")
        names = [textwrap.fill(p, 13) for p in PROBLEMS]
        ax.set_xticks(range(len(PROBLEMS)), names, fontsize=7)
        ax.set_title(title, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=6)
    figure.subplots_adjust(bottom=0.25)
    return write(workdir, "estimators", found, markdown(head, rows), figure)


# A field that is no score

ROTATION = 1.5
STEPS, BATCH = 8_000, 256


def train(how: str, seed: int):
    """The field (I + 1.5 J) ∇φ and ∇φ, trained by "flux" or by regression to the score."""
    section = {"name": "mlp", "width": 64, "depth": 3, "output": "scalar", "activation": "silu"}
    apply, params = nets.create(ConfigDict(section), rng.stream(seed, "init"), shape=(2,))
    potential = lambda params: lambda x, t=None, cond=None: apply(params, x)
    field = lambda params: fields.rotated_gradient(potential(params), ROTATION)
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def risk(params, key):
        k0, k1 = jax.random.split(key)
        x = draw_mixture(k0, BATCH)
        if how == "regression":
            return fields.squared_norm(field(params)(x) - mixture_score(x)).mean()
        # Exact: no noise is left where f is right. Groups of 32, each with a time of its own.
        options = {"sigma": float(np.sqrt(SMALLEST)), "divergence": "exact", "group_size": 32}
        return flux.flux_estimator(k1, field(params), x, mixture_score, **options)[0].mean()

    @jax.jit
    def run(params):
        def one(carry, i):
            params, state = carry
            gradient = jax.grad(risk)(params, jax.random.fold_in(rng.stream(seed, "train"), i))
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (params, tx.init(params)), jnp.arange(STEPS))[0][0]

    params = run(params)
    return field(params), fields.gradient_field(potential(params))


def projected(u, num: int = 200, low: float = -4.5, high: float = 4.5) -> float:
    """E|Π u|² on MODES by finite volumes: ∇·(p ∇ψ) = ∇·(p u), no flux through the border."""
    h = (high - low) / num
    middle = low + h * (np.arange(num) + 0.5)
    index = np.arange(num * num).reshape(num, num)
    inner = low + h * np.arange(1, num)
    rows, columns, p, across = [], [], [], []
    for axis in (0, 1):
        points = np.meshgrid(*((inner, middle) if axis == 0 else (middle, inner)), indexing="ij")
        points = jnp.asarray(np.stack(points, -1).reshape(-1, 2), SINGLE)
        p.append(np.exp(np.asarray(mixture_log_density(points), np.float64)) + 1e-12)
        across.append(np.asarray(u(points), np.float64)[:, axis])
        cut = (index[:-1], index[1:]) if axis == 0 else (index[:, :-1], index[:, 1:])
        rows.append(cut[0].ravel())
        columns.append(cut[1].ravel())
    rows, columns, p, across = map(np.concatenate, (rows, columns, p, across))
    faces = np.arange(len(p))
    difference = scipy.sparse.csr_array(
        (
            np.concatenate([np.ones(len(p)), -np.ones(len(p))]) / h,
            (np.concatenate([faces, faces]), np.concatenate([columns, rows])),
        ),
        shape=(len(p), num * num),
    )
    weighted = difference.T * p
    system = (weighted @ difference)[1:, 1:].tocsc()  # ψ is 0 in the first cell
    psi = scipy.sparse.linalg.spsolve(system, (weighted @ across)[1:])
    slope = difference[:, 1:] @ psi
    return float((p * slope**2).sum() * h**2)


def stationary(field, seed: int, num: int = 1_000, step: float = 0.005, steps: int = 4_000):
    """Points of chains dx = f dt + √2 dW from a wide start, the first third dropped."""
    start = 2 * jax.random.normal(rng.stream(seed, "start"), (num, 2))
    run = jax.jit(
        lambda key, x: (
            sampling.sample(
                key, fields.negate(field), x, sampling.langevin(step), num_steps=steps, trace=50
            ).trace
        )
    )
    trace = np.asarray(run(rng.stream(seed, "langevin"), start))
    return trace[len(trace) // 3 :].reshape(-1, 2)


@style.styled
def rotation(seeds: range, workdir: Path) -> str:
    """The same architecture by both losses."""
    x = draw_mixture(jax.random.key(9), 1 << 16)
    s = np.asarray(mixture_score(x), np.float64)
    mean = MODES["weights"] @ MODES["means"]
    gap = MODES["means"] - mean
    truth = np.einsum("k,kij->ij", MODES["weights"], MODES["covariances"])
    truth += np.einsum("k,ki,kj->ij", MODES["weights"], gap, gap)
    found = {"flux": [], "regression": []}
    columns = {"the mixture": (mixture_score, np.asarray(x[:3000]))}
    whole = projected(mixture_score)
    for how in found:
        for seed in seeds:
            field, gradient = train(how, seed)
            f, g = (np.asarray(jax.jit(a)(x), np.float64) for a in (field, gradient))
            relative = lambda a: float(np.sqrt(((a - s) ** 2).sum() / (s**2).sum()))
            u = jax.jit(lambda z, field=field: field(z) - mixture_score(z))
            samples = stationary(field, seed)
            covariance = np.cov(samples.T)
            found[how].append(
                {
                    "flux error": float(np.sqrt(projected(u) / whole)),
                    "gradient error": relative(g),
                    "field error": relative(f),
                    "covariance error": float(
                        np.linalg.norm(covariance - truth) / np.linalg.norm(truth)
                    ),
                    "covariance": covariance.tolist(),
                }
            )
            print(how, seed, found[how][-1], flush=True)
            if seed == seeds[0]:
                title = {"flux": "Flux Matching", "regression": "regression to the score"}[how]
                columns[title] = (field, samples[:: len(samples) // 3000])
    names = ["flux error", "gradient error", "field error", "covariance error"]
    head = ["trained by", "√(E|Π f - s|² / E|s|²)", "∇φ to s", "f to s", "Langevin covariance"]
    rows = [[how, *(shown([r[n] for r in runs]) for n in names)] for how, runs in found.items()]
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    sides = np.linspace(-3.2, 3.2, 17)
    grid = np.stack(np.meshgrid(sides, sides), -1).reshape(-1, 2)
    for ax, (title, (field, samples)) in zip(axes, columns.items(), strict=True):
        arrows = np.asarray(field(jnp.asarray(grid, SINGLE)))
        ax.scatter(*samples.T, s=1, color=style.TARGET, alpha=0.5)
        ax.quiver(*grid.T, *arrows.T, scale=160, width=0.003)
        ax.set(title=title, xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
    return write(
        workdir, "rotation", found | {"truth": truth.tolist()}, markdown(head, rows), figure
    )


STUDIES = {"bias": bias, "estimators": estimators, "rotation": rotation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/flux"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(STUDIES), default=list(STUDIES))
    args = parser.parse_args()
    workdir = args.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        print(STUDIES[name](range(args.seeds), workdir), flush=True)


if __name__ == "__main__":
    main()
