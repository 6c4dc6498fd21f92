"""Flux Matching's controllable fields (section 4.1 and B.1, Figures 2 and 4).

    python reproduce/controllable.py --workdir=runs/controllable --seeds=3

On three Gaussians, 27 fields with their law and 27 without it: the losses of score and Flux
Matching against how fast a field mixes, circles and turns, and against how it breaks the law; and
the Flux loss against the projected Fisher divergence that it estimates, solved on a grid.

Writes controllable.json, controllable.md, figure2.png and figure4.png.
"""

import argparse
import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from common import markdown, shown
from jax import Array
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.stats import spearmanr

from genfield import rng
from genfield.figures import style
from genfield.losses.flux.estimator import flux_estimator
from genfield.scores import gaussian_mixture_log_density

MEANS = np.array([[0.0, 2.3], [-1.99, -1.15], [1.99, -1.15]])  # eq. 15; the weights are equal
STD = 0.625**0.5  # ν_σ
TURN = np.array([[0.0, -1.0], [1.0, 0.0]])  # J of eq. 19
CONTROLS = ("rotation", "triangle", "skewness")
FAMILIES = {  # what turns ∇ψ_k / p into control k: eq. 19 and 29
    "preserving": np.array([1.0, -1.0, 1.0])[:, None, None] * TURN,
    "violating": np.stack([np.eye(2)] * 3),
}
SWEEP = np.array(list(itertools.product([-2.5, 0.0, 2.5], repeat=3)))  # eq. 40
SCAN = np.linspace(-8, 8, 33)
GRID = np.stack(np.meshgrid(*[np.linspace(-5.5, 5.5, 25)] * 2, indexing="ij"), -1)  # of the metrics
BATCH, BATCHES = 256, 64
WIDE = 8.0  # half the width of the grids of quadrature and of the reference: p is 1e-26 beyond
WAYS = (  # estimator, and σ, whose square is the unit of time: ν_σ, or of 0.75² + 0.25² = ν_σ²
    ("pathwise", STD),
    ("cross_chain", STD),
    ("pathwise", 0.25),
)
DIVERGENCES = ("exact", "hutchinson")

# The fields


def log_density(x: Array) -> Array:
    """log p_σ (eq. 14), [B, 2] -> [B]."""
    return gaussian_mixture_log_density(x, jnp.asarray(MEANS), jnp.full(3, STD), jnp.full(3, 1 / 3))


def score(x: Array, t=None, cond=None) -> Array:
    """∇ log p_σ (eq. 16), [B, 2]."""
    return jax.grad(lambda z: jnp.sum(log_density(z)))(x)


def psi_triangle(x: Array) -> Array:
    """The edges of the triangle of the means (eq. 20-23), [B]."""
    width, kappa, beta, inside, eta = 0.24, 5.0, 10.0, 0.12, 0.9
    sides = np.roll(MEANS, -1, 0) - MEANS  # anticlockwise
    length = np.linalg.norm(sides, axis=1)
    along = sides / length[:, None]
    outward = -along @ TURN.T
    a = x @ along.T - (along * MEANS).sum(1)[None]
    d = x @ outward.T - (outward * MEANS).sum(1)[None]
    ends = jax.nn.sigmoid(kappa * a / width) * jax.nn.sigmoid(kappa * (length[None] - a) / width)
    edges = jnp.exp(-0.5 * (d / width) ** 2) * ends
    level = jax.nn.logsumexp(beta * d, axis=1) / beta
    fading = jnp.exp(-0.5 * (jax.nn.relu(level) / eta) ** 2)
    return fading * (edges.mean(1) + inside * jax.nn.sigmoid(-beta * level))


def psi_skew(x: Array) -> Array:
    """An anisotropic bump (eq. 24-26), [B]."""
    radius, angle, rho, a, b, bias, gamma = 2.3, np.deg2rad(-20), 0.78, 0.60, 1.05, 0.45, 1.75
    d = np.array([np.cos(angle), np.sin(angle)])
    r = x - (rho * radius * d)[None]
    squared = (r @ d / a) ** 2 + (r @ (TURN @ d) / b) ** 2
    return jnp.exp(-0.5 * squared) * (1 + bias * jax.nn.sigmoid(gamma * (x @ d) / radius))


def stream_functions(x: Array) -> Array:
    """ψ of each control, [B, 3]: that of the rotation is p itself."""
    return jnp.stack([jnp.exp(log_density(x)), psi_triangle(x), psi_skew(x)], axis=1)


def gradients(x: Array) -> Array:
    """∇ψ_k / p, [B, 3, 2]."""
    slope = lambda psi: jax.grad(lambda z: jnp.sum(psi(z)))(x)
    inverse = jnp.exp(-log_density(x))[:, None]
    return jnp.stack([score(x), slope(psi_triangle) * inverse, slope(psi_skew) * inverse], axis=1)


def mixed(theta: np.ndarray, family: str, scale: np.ndarray) -> np.ndarray:
    """Matrices [3, 2, 2] that take ∇ψ_k / p to θ_k c_k."""
    return (np.asarray(theta) / scale)[:, None, None] * FAMILIES[family]


def perturbation(x: Array, mix: Array) -> Array:
    """u = Σ θ_k c_k (eq. 18 and 30), [B, 2]."""
    return jnp.einsum("kij,bkj->bi", mix, gradients(x))


def stein(fields, x: Array) -> Array:
    """∇·u + u·s of each of fields(x) [B, K, 2], [B, K] (eq. 38)."""
    slopes = jax.vmap(jax.jacfwd(lambda z: fields(z[None])[0]))(x)
    return jnp.trace(slopes, axis1=2, axis2=3) + jnp.einsum("bkd,bd->bk", fields(x), score(x))


def evaluate(f, points: np.ndarray, size: int = 16_384) -> np.ndarray:
    """f [B, 2] -> [B, ...] on points [..., 2], `size` at a time so that it compiles once."""
    flat = points.reshape(-1, 2)
    padded = np.resize(flat, (-(-len(flat) // size), size, 2))
    out = np.concatenate([np.asarray(jax.jit(f)(part)) for part in padded])[: len(flat)]
    return out.reshape(*points.shape[:-1], *out.shape[1:])


def centres(half: float, num: int) -> np.ndarray:
    """Of num² square cells on [-half, half]², [num, num, 2]."""
    axis = (np.arange(num) + 0.5) * (2 * half / num) - half
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)


def gram(half: float = WIDE, num: int = 800) -> np.ndarray:
    """E_p[∇ψ_k·∇ψ_l / p²] by the midpoint rule, [3, 3]; its diagonal gives the scales (eq. 31)."""
    points = centres(half, num)
    p, g = np.exp(evaluate(log_density, points)), evaluate(gradients, points)
    return np.einsum("xy,xykd,xyld->kl", p, g, g) * (2 * half / num) ** 2


def draw(generator: np.random.Generator, num: int) -> np.ndarray:
    """From p_σ."""
    noise = STD * generator.standard_normal((num, 2))
    return MEANS[generator.integers(0, 3, num)] + noise


# The reference


def faces(half: float, num: int, axis: int) -> tuple[np.ndarray, tuple, tuple]:
    """Midpoints of the faces between cells along an axis, and slices of the cells beside them."""
    cells = centres(half, num)
    below, above = [slice(None)] * 2, [slice(None)] * 2
    below[axis], above[axis] = slice(None, -1), slice(1, None)
    below, above = tuple(below), tuple(above)
    return 0.5 * (cells[below] + cells[above]), below, above


def operator(fields, half: float, num: int) -> tuple[sparse.csc_matrix, np.ndarray, int]:
    """Finite volumes for ∇·(p∇φ) = ∇·(p u), in y = √p φ: S y = b, and the densest cell.

    S [N, N] is the generator -Δ - s·∇ times the squared spacing, made symmetric: logarithms of p
    keep it exact where p underflows. b [N, K] of fields(x) [B, K, 2]. No flux leaves the square.
    """
    cell, spacing = evaluate(log_density, centres(half, num)), 2 * half / num
    index = np.arange(num**2).reshape(num, num)
    diagonal, entries, b = np.zeros((num, num)), [], 0.0
    for axis in (0, 1):
        points, below, above = faces(half, num, axis)
        face = evaluate(log_density, points)
        u = spacing * evaluate(fields, points)[..., axis]
        b = np.zeros((num, num, u.shape[-1])) if axis == 0 else b
        for cells, sign in ((below, -1), (above, 1)):
            diagonal[cells] += np.exp(face - cell[cells])
            b[cells] += sign * np.exp(face - 0.5 * cell[cells])[..., None] * u
        beside = -np.exp(face - 0.5 * (cell[below] + cell[above]))
        entries.append([beside.ravel(), index[below].ravel(), index[above].ravel()])
    values, rows, columns = (np.concatenate(e) for e in zip(*entries, strict=True))
    upper = sparse.coo_matrix((values, (rows, columns)), (num**2,) * 2)
    matrix = (upper + upper.T + sparse.diags(diagonal.ravel())).tocsc()
    return matrix, b.reshape(num**2, -1), int(cell.argmax())


def factor(matrix: sparse.csc_matrix):
    """The LU factors of a symmetric positive definite matrix."""
    options = {"SymmetricMode": True}
    return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)


def projected(
    fields=gradients, half: float = WIDE, num: int = 400, horizons: tuple = (), steps: int = 100
) -> list[np.ndarray]:
    """E_p[Πu_k·Πu_l], [K, K]: the form of the projected Fisher divergence (eq. 4), Πu = ∇φ.

    For each physical time T of `horizons` follows ∫_0^T E[r(x_0) r(x_t)] dt, what is left of it
    (step 1 of section 3.2): E_p|∇φ|² - E_p|∇P_{T/2}φ|², P by Crank-Nicolson.
    """
    matrix, b, densest = operator(fields, half, num)
    kept = np.delete(np.arange(len(b)), densest)  # φ is free to a constant: zero there
    y = np.zeros_like(b)
    y[kept] = factor(matrix[kept][:, kept]).solve(b[kept])
    forms = [b.T @ y]
    for horizon in horizons:
        half_step = matrix * (0.25 * horizon / steps / (2 * half / num) ** 2)
        identity = sparse.eye(len(b), format="csc")
        forward, backward, z = identity - half_step, factor(identity + half_step), y
        for _ in range(steps):
            z = backward.solve(forward @ z)
        forms.append(forms[0] - z.T @ (matrix @ z))
    return forms


# The metrics, on the grid


def mixing_speed(scale: np.ndarray, thetas: np.ndarray) -> np.ndarray:
    """M_mix (eq. 33-35) of fields of the preserving family, [n].

    The generator by finite volumes, flux through faces from the stream function at corners: p is
    its stationary law exactly, as of the fields, and the rest is antisymmetric.
    """
    num, half = GRID.shape[0], 5.5 * 25 / 24  # the grid's points are the cells' centres
    spacing, index = 2 * half / num, np.arange(num**2).reshape(num, num)
    p = np.exp(evaluate(log_density, GRID))
    axis = np.linspace(-half, half, num + 1)
    corners = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    signs = FAMILIES["preserving"][:, 1, 0]
    psi = evaluate(stream_functions, corners) * signs / scale
    psi[[0, -1]] = psi[:, [0, -1]] = 0.0  # nothing leaves
    angle = np.arctan2(GRID[..., 1], GRID[..., 0])
    length = np.linalg.norm(GRID, axis=-1)
    observables = [GRID[..., 0], GRID[..., 1], length, np.cos(angle), np.sin(angle)]
    observables = np.stack(observables, -1).reshape(num**2, -1)
    w = (p / p.sum()).ravel()
    observables -= w @ observables
    through = (np.diff(-psi, axis=1)[1:-1], np.diff(psi, axis=0)[:, 1:-1])  # J∇ψ = (-ψ_y, ψ_x)
    beside = [faces(half, num, axis) for axis in (0, 1)]
    spreads = [np.exp(evaluate(log_density, points)).ravel() for points, _, _ in beside]
    out = []
    for theta in thetas:
        entries = []
        for (_, below, above), spread, flow in zip(beside, spreads, through, strict=True):
            carried = 0.5 * (flow @ theta).ravel()
            for here, there, sign in ((below, above, 1), (above, below, -1)):
                rate = (spread + sign * carried) / p[here].ravel() / spacing**2
                i, j = index[here].ravel(), index[there].ravel()
                entries += [(-rate, i, j), (rate, i, i)]
        values, rows, columns = (np.concatenate(e) for e in zip(*entries, strict=True))
        negative = sparse.coo_matrix((values, (rows, columns)), (num**2,) * 2)
        ones = np.ones((num**2, 1))
        bordered = sparse.bmat([[negative, ones], [w[None], None]], format="csc")
        solved = splu(bordered).solve(np.vstack([observables, np.zeros((1, 5))]))[:-1]
        times = 2 * (w @ (observables * solved)) / (w @ observables**2)
        out.append(1 / times.mean())
    return np.array(out)


class Metrics:
    """Quadratic forms on the 25 × 25 grid: every metric but the mixing speed, for any θ."""

    def __init__(self, scale: np.ndarray):
        points = GRID.reshape(-1, 2)
        w = np.exp(evaluate(log_density, points))
        w /= w.sum()
        fields = {f: self._controls(f, scale) for f in FAMILIES}
        c = evaluate(fields["preserving"], points)
        slopes = evaluate(jax.vmap(jax.jacfwd(lambda z: fields["preserving"](z[None])[0])), points)
        turning = slopes[:, :, 0, 1] - slopes[:, :, 1, 0]
        residual = evaluate(functools.partial(stein, fields["violating"]), points)
        self.length = {
            f: np.einsum("b,bkd,bld->kl", w, u, u)
            for f, u in (("preserving", c), ("violating", evaluate(fields["violating"], points)))
        }
        self.turning = 0.5 * np.einsum("b,bk,bl->kl", w, turning, turning)
        self.residual = np.einsum("b,bk,bl->kl", w, residual, residual)

    @staticmethod
    def _controls(family, scale):
        by = jnp.asarray(mixed(np.ones(3), family, scale))
        return lambda x: jnp.einsum("kij,bkj->bki", by, gradients(x))

    def score_matching(self, theta, family):  # eq. 39
        return 0.5 * of(self.length[family], theta)

    def triangle(self, theta):  # eq. 36; 0 where u is
        gram = self.length["preserving"]
        norms = np.sqrt(of(gram, theta) * gram[1, 1])
        return theta @ gram[1] / np.where(norms > 0, norms, 1.0)

    def skewness(self, theta):  # eq. 37
        return of(self.turning, theta)

    def violation(self, theta):  # eq. 38
        return np.sqrt(of(self.residual, theta))


def of(form: np.ndarray, thetas: np.ndarray) -> np.ndarray:
    """θᵀ form θ, [n]."""
    return np.einsum("...k,...kl,...l->...", thetas, form, thetas)


# The Flux loss

STATIC = ("estimator", "divergence", "sigma", "steps", "group", "num")


@functools.partial(jax.jit, static_argnames=STATIC)
def flux(
    key: Array,
    mix: Array,
    estimator: str = "pathwise",
    divergence: str = "exact",
    sigma: float = STD,
    *,
    steps: int = 4,
    group: int = BATCH,
    num: int = BATCHES,
) -> Array:
    """Eq. 6 of `num` minibatches, times U(0, 4σ²), one for each `group` of chains; [num]."""
    choice, noise, rest = jax.random.split(key, 3)
    x = jnp.asarray(MEANS)[jax.random.randint(choice, (num * BATCH,), 0, 3)]
    x = x + STD * jax.random.normal(noise, x.shape)
    field = lambda x, t=None, cond=None: score(x) + perturbation(x, mix)
    options = {"estimator": estimator, "divergence": divergence, "num_steps": steps}
    loss, _ = flux_estimator(rest, field, x, score, sigma=sigma, group_size=group, **options)
    return loss.reshape(num, BATCH).mean(1)


def measure(seed: int, scale: np.ndarray) -> dict:
    """{way: {divergence: {family: 27 losses}}}, every field on its own draws."""
    found = {}
    for estimator, sigma in WAYS:
        by = found[way(estimator, sigma)] = {}
        for divergence in DIVERGENCES:
            by[divergence] = {}
            for family in FAMILIES:
                keys = [jax.random.fold_in(rng.stream(seed, family), i) for i in range(len(SWEEP))]
                mixes = [mixed(theta, family, scale) for theta in SWEEP]
                options = (estimator, divergence, sigma)
                runs = [flux(*of_field, *options) for of_field in zip(keys, mixes, strict=True)]
                by[divergence][family] = np.mean(runs, 1).tolist()
        print(f"seed {seed}: {way(estimator, sigma)}", flush=True)
    return found


def way(estimator: str, sigma: float) -> str:
    return f"{estimator}, σ² = {sigma**2:.4g}"


def form_of(run) -> np.ndarray:
    """The matrix of θ -> run(θ), quadratic in θ on given draws, from six values."""
    eye, out = np.eye(3), np.zeros((3, 3))
    for k in range(3):
        out[k, k] = run(eye[k])
    for k, l in ((0, 1), (0, 2), (1, 2)):
        out[k, l] = out[l, k] = (run(eye[k] + eye[l]) - out[k, k] - out[l, l]) / 2
    return out


# What may part the loss from J: the unit of time, the noise of the draws, the chain's steps.
SETTINGS = {  # name: what differs from `flux`'s own
    "pathwise, σ² = 0.625": {},
    "pathwise, 0.75²": {"sigma": 0.75},
    "pathwise, 0.25²": {"sigma": 0.25},
    "pathwise, 0.25², 32 steps": {"sigma": 0.25, "steps": 32},
    "pathwise, 0.625, a time each": {"group": 1},
    "cross-chain, 0.625": {"estimator": "cross_chain"},
    "cross-chain, 0.75²": {"estimator": "cross_chain", "sigma": 0.75},
    "cross-chain, 0.25²": {"estimator": "cross_chain", "sigma": 0.25},
}


def settings(scale: np.ndarray, repeats: int) -> dict:
    """{setting: `repeats` forms [3, 3] of the violating family, each of 64 minibatches}."""
    found = {}
    for name, options in SETTINGS.items():
        forms = []
        for repeat in range(repeats):
            key = jax.random.fold_in(rng.stream(0, "settings"), repeat)
            run = lambda theta, key=key, options=options: flux(
                key, mixed(theta, "violating", scale), **options
            )
            forms.append(form_of(lambda theta, run=run: float(run(theta).mean())).tolist())
        found[name] = forms
        print(name, np.mean(forms, 0).diagonal().round(3), flush=True)
    return found


def correlation(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def slope(losses, against) -> float:
    """Of the line through the origin."""
    return float(np.dot(losses, against) / np.dot(against, against))


# Tables and figures


def loss_table(runs: list[dict], distances: np.ndarray, violation: np.ndarray) -> str:
    """What each estimate gives, over seeds."""
    head = ["Flux loss", "divergence", "largest of a preserving field", "preserving, standardised",
            "correlation with J", "rank", "with V", "slope on J"]  # fmt: skip
    rows = []
    for name, divergence in itertools.product(runs[0], DIVERGENCES):
        means = [{f: np.array(run[name][divergence][f]) for f in FAMILIES} for run in runs]
        broken = [m["violating"] for m in means]
        values = (
            [np.abs(m["preserving"]).max() for m in means],
            [m["preserving"].mean() / m["violating"].mean() for m in means],
            [correlation(b, distances) for b in broken],
            [spearmanr(b, distances)[0] for b in broken],
            [correlation(b, violation) for b in broken],
            [slope(b, distances) for b in broken],
        )
        rows.append([name, divergence, *(shown(v) for v in values)])
    return markdown(head, rows)


def settings_table(found: dict, form: np.ndarray, truncated: dict[float, np.ndarray]) -> str:
    """The loss of each control alone, over J's, and the correlations with J."""
    distances, generator = of(form, SWEEP), np.random.default_rng(0)
    exact = lambda form: [f"{v:.3f}" for v in form.diagonal()]
    line = lambda losses: [f"{f(losses, distances):.3f}" for f in (correlation, slope)]
    percentiles = lambda a: "{1:.2f} ({0:.2f} to {2:.2f})".format(*np.percentile(a, [5, 50, 95]))
    rows = [["J", *exact(form), "", "", "", "", ""]]
    for sigma, cut in truncated.items():
        rows.append([f"J to T = 4 · {sigma:.3g}²", *exact(cut), "", "", "", *line(of(cut, SWEEP))])
    for name, forms in found.items():
        forms = np.array(forms)
        mean, deviation = forms.mean(0).diagonal(), forms.std(0, ddof=1).diagonal()
        cells = [f"{m:.2f} ± {d:.2f}" for m, d in zip(mean, deviation, strict=True)]
        for draws in (1, 4):  # a field's form, of as many repeats; 400 times anew
            picks = forms[generator.integers(0, len(forms), (400, len(SWEEP), draws))].mean(2)
            cells.append(percentiles([correlation(of(p, SWEEP), distances) for p in picks]))
        cells.append(percentiles([correlation(of(f, SWEEP), distances) for f in forms]))
        rows.append([name, *cells, *line(of(forms.mean(0), SWEEP))])
    head = ["violating family", *CONTROLS, "own 64", "own 256", "shared 64", "all", "slope"]
    return (
        "Each control alone at θ = 1: mean ± standard deviation of 64 minibatches, then the "
        "correlation with J over the 27 fields, median (5% to 95%), of fields on 64 or 256 "
        "minibatches of their own and on 64 that they share; on all draws, and the slope there.\n\n"
    ) + markdown(head, rows)


def binned(x: np.ndarray, y: np.ndarray, bins: int = 12) -> tuple[list, list, list]:
    """Of equal bins of x that hold any: mean x, mean y, standard error of y."""
    edges = np.linspace(x.min(), x.max(), bins + 1)
    where = np.clip(np.digitize(x, edges) - 1, 0, bins - 1)
    full = np.unique(where)
    error = lambda v: v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0.0
    of_bins = lambda f, v: [float(f(v[where == i])) for i in full]
    return of_bins(np.mean, x), of_bins(np.mean, y), of_bins(error, y)


@style.styled
def figure4(path: Path, values: dict, losses: dict, star: dict) -> None:
    """values {panel: [27]}; losses {panel: {curve: [27]}}, standardised; star {panel: x}."""
    styles = {"score matching": ("#c0392b", "o-"), "Flux Matching": ("#1f4fbf", "s-"),
              "Flux, one probe": ("#7fa6e8", "^--"), "exact J": ("#555555", ":")}  # fmt: skip
    figure, axes = plt.subplots(1, len(values), figsize=(4 * len(values), 3.6), sharey=True)
    for ax, (panel, x) in zip(axes, values.items(), strict=True):
        for name, y in losses[panel].items():
            colour, style = styles[name]
            middle, mean, error = binned(x, y)
            ax.errorbar(
                middle, mean, error, fmt=style, color=colour, label=name, markersize=4, capsize=2
            )
        ax.plot(star[panel], 0, "*", color="black", markersize=14, zorder=5, label="score")
        ax.set(xlabel=panel)
        ax.grid()
    axes[0].set_ylabel("standardised loss")
    axes[-1].legend()
    figure.tight_layout()
    print(style.save(figure, path))


@style.styled
def figure2(path: Path, fields: dict[str, np.ndarray], scale: np.ndarray) -> None:
    """Streamlines of s + u for fields {title: θ} over 1,800 samples."""
    axis = np.linspace(-4.5, 4.5, 121)
    points = np.stack(np.meshgrid(axis, axis), -1)
    samples = draw(np.random.default_rng(0), 1_800)
    figure, axes = plt.subplots(1, len(fields), figsize=(3.6 * len(fields), 3.9))
    for ax, (title, theta) in zip(axes, fields.items(), strict=True):
        mix = mixed(theta, "preserving", scale)
        f = evaluate(lambda x, mix=mix: score(x) + perturbation(x, mix), points)
        ax.plot(*samples.T, ".", color=style.TARGET, markersize=1.6, alpha=0.6)
        ax.streamplot(axis, axis, f[..., 0], f[..., 1], color="black", density=1.3,
                      linewidth=0.7, arrowsize=0.8)  # fmt: skip
        style.bare(ax, ((-4.5, 4.5), (-4.5, 4.5)), title)
    figure.tight_layout()
    print(style.save(figure, path))


def best_fields(metrics: Metrics, scale: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Of the scan along each control its best by the control's metric, and the whole scan.

    Every metric is even in θ on its own axis, or constant for θ > 0: of ties, within 0.5%, the one
    least along the triangle's flow for skewness, then the largest θ.
    """
    best, scan = {}, []
    for k, control in enumerate(CONTROLS):
        thetas = SCAN[:, None] * np.eye(3)[k]
        rows = {
            "mixing speed": mixing_speed(scale, thetas),
            "triangle shape": metrics.triangle(thetas),
            "Jacobian skewness": metrics.skewness(thetas),
        }
        scan.append({"control": control, **{name: v.tolist() for name, v in rows.items()}})
        name = list(rows)[k]
        tied = rows[name] >= 0.995 * rows[name].max()
        cost = rows["triangle shape"] if name == "Jacobian skewness" else -SCAN
        best[name] = thetas[np.where(tied, cost, np.inf).argmin()]
    return best, scan


def normalisation(scale: np.ndarray, metrics: Metrics) -> str:
    """Root mean squares of the controls: quadrature, its grid, the paper's 1,200 samples, 25²."""
    finer, wider = (np.sqrt(gram(*a).diagonal()) / scale for a in ((WIDE, 1_200), (12.0, 1_200)))
    generator = np.random.default_rng(0)
    clouds = np.stack([draw(generator, 1_200) for _ in range(200)])
    length = lambda x: jnp.sum(gradients(x) ** 2, axis=2)
    few = np.sqrt(evaluate(length, clouds).mean(1)) / scale
    grid = np.sqrt(metrics.length["preserving"].diagonal())
    head = ["", *CONTROLS]
    rows = [
        ["by quadrature", *(f"{v:.6g}" for v in scale)],
        ["with 1,200² points", *(f"{v:.7f}" for v in finer)],
        ["on [-12, 12]²", *(f"{v:.7f}" for v in wider)],
        ["by the 25² grid", *(f"{v:.4f}" for v in grid)],
        ["by 1,200 samples, of 200 draws", *(shown(few[:, k]) for k in range(3))],
    ]
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/controllable"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=16, help="of 64 minibatches, a setting")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)

    scale = np.sqrt(gram().diagonal())
    metrics = Metrics(scale)
    units = lambda form: form / np.outer(scale, scale)
    sigmas = (STD, 0.75, 0.25)
    coarse, *truncated = map(units, projected(num=200, horizons=tuple(4 * s**2 for s in sigmas)))
    [form] = map(units, projected(num=800))
    distances, broken = of(form, SWEEP), metrics.violation(SWEEP)
    print("J", form.diagonal(), "on 200²", coarse.diagonal(), flush=True)

    runs = [measure(seed, scale) for seed in range(args.seeds)]
    found = settings(scale, args.repeats)
    best, scan = best_fields(metrics, scale)

    squares = {f: metrics.score_matching(SWEEP, f) for f in FAMILIES}
    drawn = runs[0][way("cross_chain", STD)]
    curves = {}
    for family in FAMILIES:
        curves[family] = {"score matching": squares[family] / squares["violating"].mean()}
        for name, divergence in (("Flux Matching", "exact"), ("Flux, one probe", "hutchinson")):
            means = {f: np.array(drawn[divergence][f]) for f in FAMILIES}
            curves[family][name] = means[family] / means["violating"].mean()
    curves["violating"]["exact J"] = distances / distances.mean()
    values = {
        "mixing speed": mixing_speed(scale, SWEEP),
        "triangle shape": metrics.triangle(SWEEP),
        "Jacobian skewness": metrics.skewness(SWEEP),
        "distribution violation": broken,
    }
    families = [*["preserving"] * 3, "violating"]
    losses = {p: curves[f] for p, f in zip(values, families, strict=True)}
    score_at = int(np.flatnonzero((SWEEP == 0).all(1))[0])
    star = {panel: x[score_at] for panel, x in values.items()}
    figure4(args.workdir / "figure4.png", values, losses, star)
    titles = {"the score": np.zeros(3)}
    for name, theta in best.items():
        k = int(np.flatnonzero(theta)[0])
        titles[f"best {name}\n{CONTROLS[k]}, θ = {theta[k]:g}"] = theta
    figure2(args.workdir / "figure2.png", titles, scale)

    scans = ["mixing speed", "triangle shape", "Jacobian skewness"]
    largest = [[r["control"], *(f"{np.max(r[name]):.3g}" for name in scans)] for r in scan]
    apart = np.abs(squares["preserving"] - metrics.score_matching(SWEEP * [1, -1, 1], "violating"))
    means = [f"{squares[family].mean():.6f}" for family in FAMILIES]
    tables = [
        normalisation(scale, metrics),
        markdown(["score matching loss", *FAMILIES], [["mean over 27 fields", *means]]),
        f"Field by field they differ by {apart.max():.1e} where θ_1 changes sign between the two "
        "(eq. 19 has a minus there, eq. 29 none).\n",
        markdown(["largest over the scan of", *scans], largest),
        loss_table(runs, distances, broken),
        settings_table(found, form, dict(zip(sigmas, truncated, strict=True))),
    ]
    text = "\n".join(tables)
    (args.workdir / "controllable.md").write_text(text)
    report = {
        "scale": scale, "J": form, "J coarse": coarse, "J truncated": truncated, "sweep": SWEEP,
        "distances": distances, "score matching": squares, "values": values, "scan": scan,
        "best": best, "runs": runs, "settings": found,
    }  # fmt: skip
    text_of = json.dumps(report, default=lambda a: a.tolist())
    (args.workdir / "controllable.json").write_text(text_of)
    print(text, flush=True)


if __name__ == "__main__":
    main()
