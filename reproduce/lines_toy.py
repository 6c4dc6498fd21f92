"""Lines Matching's two Gaussians in 128 dimensions: Table 1, sampling in few steps, appendix A.

    python reproduce/lines_toy.py --workdir=runs/lines_toy --seeds=3 [--steps=3000] [--only table]

  table     straightness and samples of EDM, CFM (1-RF), BOT-CFM, 2-RF and LMM, and of the exact
            fields; how far 2-RF and LMM drift from the pairs that an exact flow makes
  variance  of samples of few steps with fresh noise and along lines, and what is predicted of it
  collapse  where the minimisers of CFM, NCSN and DDPM point at a low signal-to-noise ratio

Writes results.json, and NAME.md and NAME.png of each. Trained networks stay in the workdir and are
not trained again.
"""

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from common import markdown, shown
from ml_collections import ConfigDict

from genfield import couplings, fields, losses, nets, paths, rng, sampling
from genfield.figures import run as figures
from genfield.figures import style
from genfield.metrics import path_geometry
from genfield.sampling import diffusion

DIM = 128
MODES = np.array([[-1.0, -1.0], [1.0, 1.0]])  # in the plane of the first two coordinates
MODE_STD = 0.1  # in the plane; 1 elsewhere (Table 1)
SIGMA_DATA = 1.0  # of EDM's preconditioning: every coordinate has about unit variance
MOVED = (3.0, -1.0)  # the mean of the data in `collapse`, where both means would be 0

NUM_PAIRS, BATCH, RATE = 40_000, 256, 3e-3
WIDTH, SLOPES = 256, 64
# Of the first layer, over the library's: at 1 the hidden units see 126 coordinates of noise almost
# linearly, and no model finds the two modes in thousands of steps.
FIRST_SCALE = 3.0
ODE_STEPS = 100  # of the trajectories that are judged
TEACHER_STEPS = {"denoiser": 40, "velocity": 50}  # Heun's, for the pairs
NUM_TRAJECTORIES, NUM_SAMPLES = 2_048, 8_192
FAR = 0.5  # from both modes, in the plane: between them


# The problem and its closed forms


def centres(shift=(0.0, 0.0)) -> np.ndarray:
    """The means of the two components, [2, DIM]."""
    return np.pad(MODES + np.asarray(shift), [(0, 0), (0, DIM - 2)]).astype(np.float32)


STD = np.concatenate([np.full(2, MODE_STD), np.ones(DIM - 2)]).astype(np.float32)


def draw(key, num: int, shift=(0.0, 0.0)):
    """[num, DIM] of the mixture."""
    k0, k1 = jax.random.split(key)
    mode = jax.random.randint(k0, (num,), 0, 2)
    return jnp.asarray(centres(shift))[mode] + STD[None] * jax.random.normal(k1, (num, DIM))


def posterior(x, alpha, sigma, shift=(0.0, 0.0)):
    """E[x1 | x] and E[x0 | x] of x = α x1 + σ x0; x [B, DIM], alpha and sigma [B]."""
    alpha, sigma = alpha[:, None, None], sigma[:, None, None]
    means, variance = jnp.asarray(centres(shift))[None], jnp.square(STD)[None, None]
    total = alpha**2 * variance + sigma**2
    gap = x[:, None] - alpha * means
    weight = jax.nn.softmax(-0.5 * jnp.sum(gap**2 / total, -1), axis=-1)[..., None]
    x1 = jnp.sum(weight * (means + alpha * variance / total * gap), 1)
    return x1, jnp.sum(weight * sigma / total * gap, 1)


def exact_velocity(x, t, cond=None):
    """E[x1 - x0 | x_t], the minimiser of conditional flow matching (LMM eq. 2)."""
    x1, x0 = posterior(x, t, 1 - t)
    return x1 - x0


def exact_denoiser(x, t, cond=None):
    """E[x1 | x] at the noise level t, EDM's minimiser."""
    return posterior(x, jnp.ones_like(t), t)[0]


def identity_lines(x, t, cond=None):
    """x / (1 + σ): what LMM learns where the pairing is x1 = x0."""
    return x / (1 + t[:, None])


# Networks


@functools.cache
def mlp() -> tuple[Callable, ConfigDict]:
    """The library's network of this study, and its section."""
    section = {"name": "mlp", "width": WIDTH, "depth": 3, "activation": "silu", "time_input": True}
    return nets.create(ConfigDict(section), None, shape=(DIM,))[0], ConfigDict(section)


def initial(key) -> dict:
    """Parameters of `network`, which is zero at first."""
    keys = jax.random.split(key, 3)
    params = nets.create(mlp()[1], keys[0], shape=(DIM,))[1]
    params["first"] = jax.tree.map(lambda a: FIRST_SCALE * a, params["first"])
    params["last"] = jax.tree.map(jnp.zeros_like, params["last"])
    skip = {
        "rate": 4 * jax.random.normal(keys[1], (SLOPES,)),
        "phase": 2 * jax.random.normal(keys[2], (SLOPES,)),
        "slope": jnp.zeros((SLOPES, DIM)),
    }
    return {"mlp": params, "skip": skip}


def network(params):
    """The MLP, and each coordinate times a slope of its own that depends on the time."""

    def field(x, t=None, cond=None):
        skip = params["skip"]
        basis = jnp.tanh(t[:, None] * skip["rate"][None] + skip["phase"][None])
        return mlp()[0](params["mlp"], x, t) + (basis @ skip["slope"]) * x

    return field


FIELDS = {  # kind: (parameters) -> what a sampler follows
    "velocity": network,
    "denoiser": lambda params: fields.precondition(network(params), SIGMA_DATA),
    "exact velocity": lambda params: exact_velocity,
    "exact denoiser": lambda params: exact_denoiser,
}


# Training


def examples(key, data: dict):
    """x0 and x1 of a batch: pairs, or samples with fresh noise."""
    k0, k1 = jax.random.split(key)
    index = jax.random.randint(k0, (BATCH,), 0, len(data["x1"]))
    x1 = data["x1"][index]
    return data["x0"][index] if "x0" in data else jax.random.normal(k1, x1.shape), x1


def flow(couple: Callable = couplings.independent) -> Callable:
    """Flow matching of pairs by `couple`: (params, key, data) -> [B]."""

    def loss(params, key, data):
        k0, k1 = jax.random.split(key)
        x0, x1 = examples(k0, data)
        sample = paths.interpolate(paths.linear, couple(x0, x1), x1, paths.uniform()(k1, BATCH))
        return losses.flow_matching(network(params), sample)[0]

    return loss


def of_noise_levels(criterion: Callable) -> Callable:
    """A denoiser's loss at ln σ ~ U(ln 0.002, ln 80): (params, key, data) -> [B]."""

    def loss(params, key, data):
        k0, k1 = jax.random.split(key)
        sigma = paths.log_uniform(diffusion.SIGMA_MIN, diffusion.SIGMA_MAX)(k1, BATCH)
        sample = paths.interpolate(paths.variance_exploding, *examples(k0, data), sigma)
        return criterion(FIELDS["denoiser"](params), sample)[0]

    return loss


def vp_alpha(t):
    """√ᾱ of DDPM's schedule in continuous time (arXiv:2011.13456, eq. 33), noise at t = 0."""
    return jnp.exp(-0.05 * (1 - t) - 4.975 * (1 - t) ** 2)


variance_preserving = paths.Path(
    alpha=vp_alpha, sigma=lambda t: jnp.sqrt(-jnp.expm1(2 * jnp.log(vp_alpha(t))))
)


def vp_time(sigma):
    """t at which √((1-ᾱ)/ᾱ) is σ."""
    needed = jnp.log1p(sigma**2)  # = 0.1 u + 9.95 u², u = 1 - t
    return 1 - (jnp.sqrt(0.01 + 39.8 * needed) - 0.1) / 19.9


def predict_noise(params, key, data):
    """DDPM's mean of (ε(x, t) - x0)² (arXiv:2006.11239, eq. 14), [B]."""
    k0, k1 = jax.random.split(key)
    t = paths.uniform()(k1, BATCH)
    sample = paths.interpolate(variance_preserving, *examples(k0, data), t)
    return losses.flow_matching(network(params), sample._replace(v=sample.x0))[0]


class Row(NamedTuple):
    """A trained model."""

    kind: str  # of FIELDS
    loss: Callable  # (params, key, data) -> [B]
    teacher: str | None = None  # whose pairs it is trained on
    shift: tuple = (0.0, 0.0)  # of the data


exact = lambda size: functools.partial(couplings.exact_assignment, group_size=size)
denoise = of_noise_levels(functools.partial(losses.denoising, sigma_data=SIGMA_DATA))
ROWS = {
    "EDM": Row("denoiser", denoise),
    "CFM": Row("velocity", flow()),
    "BOT-CFM 128": Row("velocity", flow(exact(128))),
    "BOT-CFM 256": Row("velocity", flow(exact(256))),
    "2-RF": Row("velocity", flow(), teacher="CFM"),
    "LMM": Row("denoiser", of_noise_levels(losses.lines_matching), teacher="EDM"),
}
POINTING = {
    "CFM": Row("velocity", flow(), shift=MOVED),
    "NCSN": Row("denoiser", denoise, shift=MOVED),
    "DDPM": Row("velocity", predict_noise, shift=MOVED),
}


def optimizer(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(RATE, steps))


@functools.partial(jax.jit, static_argnames=("loss", "steps"), donate_argnames="carry")
def train_chunk(loss, steps: int, carry, indices, key, data):
    """The steps `indices` of a training, and the losses at them."""
    tx = optimizer(steps)

    def step(carry, i):
        params, state = carry
        mean = lambda params: loss(params, jax.random.fold_in(key, i), data).mean()
        value, gradient = jax.value_and_grad(mean)(params)
        updates, state = tx.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, carry, indices)


def train(title: str, row: Row, seed: int, steps: int, data: dict) -> dict:
    """The parameters after `steps` steps, with a line of progress for each tenth."""
    params = initial(rng.stream(seed, f"{title} init"))
    carry = (params, optimizer(steps).init(params))
    start = time.monotonic()
    for indices in np.array_split(np.arange(steps), min(10, steps)):
        carry, values = train_chunk(
            row.loss, steps, carry, jnp.asarray(indices), rng.stream(seed, f"{title} train"), data
        )
        done = f"{title}, seed {seed}: step {indices[-1] + 1} of {steps}"
        print(
            f"{done}, loss {float(values.mean()):.4g}, {time.monotonic() - start:.0f} s", end="\r"
        )
    print(flush=True)
    return carry[0]


class Models:
    """Trained parameters by name, kept in the workdir as they are made."""

    def __init__(self, workdir: Path, seed: int, steps: int):
        self.workdir, self.seed, self.steps = workdir, seed, steps
        self.pairs = functools.cache(self._pairs)

    def params(self, name: str, rows: dict = ROWS) -> dict:
        row = rows[name]
        title = f"{name}{' moved' if any(row.shift) else ''}"
        slug = f"{title.lower().replace(' ', '_')}_seed{self.seed}_steps{self.steps}.npz"
        path = self.workdir / slug
        like = initial(jax.random.key(0))
        if not path.exists():
            data = self.pairs(row.teacher) if row.teacher else self._data(row.shift)
            np.savez(path, *jax.tree.leaves(train(title, row, self.seed, self.steps, data)))
        with np.load(path) as saved:
            leaves = [jnp.asarray(saved[f"arr_{i}"]) for i in range(len(saved))]
        return jax.tree.structure(like).unflatten(leaves)

    def _data(self, shift) -> dict:
        return {"x1": draw(rng.stream(self.seed, "data"), NUM_PAIRS, shift)}

    def _pairs(self, teacher: str) -> dict:
        """NUM_PAIRS noises and the ends of the teacher's ODE."""
        kind, params = ROWS[teacher].kind, self.params(teacher)
        x0 = jax.random.normal(rng.stream(self.seed, f"pairs of {teacher}"), (NUM_PAIRS, DIM))
        parts = []
        for part in np.array_split(np.arange(NUM_PAIRS), 10):
            parts.append(ends(kind, params, x0[part], TEACHER_STEPS[kind]))
            print(f"pairs of {teacher}: {part[-1] + 1} of {NUM_PAIRS}", end="\r")
        print(flush=True)
        return {"x0": x0, "x1": jnp.concatenate(parts)}


# Sampling, and what is measured of it

SOLVERS = {  # of a velocity, of a denoiser
    "heun": (sampling.heun(), sampling.edm_heun()),
    "euler": (sampling.euler(), sampling.edm_euler()),
}


def solve(kind: str, params, x0, num_steps: int, solver: str = "heun", trace=None):
    """Samples of the ODE from x0 [B, DIM]."""
    sampler = SOLVERS[solver]["denoiser" in kind]
    key = jax.random.key(0)  # of no use: these draw nothing
    return sampling.sample(key, FIELDS[kind](params), x0, sampler, num_steps=num_steps, trace=trace)


@functools.partial(jax.jit, static_argnames=("kind", "num_steps", "solver"))
def ends(kind: str, params, x0, num_steps: int, solver: str = "heun"):
    """Where the ODE ends, [B, DIM]."""
    return solve(kind, params, x0, num_steps, solver).x


@functools.partial(jax.jit, static_argnames=("kind", "num_steps"))
def trajectories(kind: str, params, x0, num_steps: int):
    """z [K+1, B, DIM] of the linear path from x0, at the times [K+1]."""
    trace = solve(kind, params, x0, num_steps, trace=1).trace
    if "denoiser" not in kind:
        return trace, jnp.linspace(0, 1, num_steps + 1)
    levels = diffusion.noise_levels(num_steps)
    return path_geometry.on_linear_path(trace.at[0].multiply(levels[0]), levels)


@functools.partial(jax.jit, static_argnames=("kind",))
def one_step(kind: str, params, x0):
    """Samples of a single evaluation."""
    few = sampling.multistep((0,)) if "denoiser" in kind else sampling.euler()
    return sampling.sample(jax.random.key(0), FIELDS[kind](params), x0, few, num_steps=1).x


def mode_gap(x) -> np.ndarray:
    """From the nearest mode, in the plane: [B, 2]."""
    gap = np.asarray(x)[:, None, :2] - MODES[None]
    return gap[np.arange(len(gap)), np.argmin((gap**2).sum(-1), 1)]


def quality(x, suffix: str) -> dict[str, float]:
    """Of samples: rms from the nearest mode, share between modes, variance of the rest."""
    gap = mode_gap(x)
    return {
        f"rms {suffix}": float(np.sqrt(np.mean(gap**2))),
        f"between {suffix}": float(np.mean(np.linalg.norm(gap, axis=1) > FAR)),
        f"variance {suffix}": float(np.var(np.asarray(x)[:, 2:])),
    }


def drift(x, reference, suffix: str) -> dict[str, float]:
    """How far samples are from others of the same noises, a coordinate; not for other modes."""
    gap = np.asarray(x - reference)
    other = np.abs(gap[:, :2]).min(1) > 1
    rms = lambda a: float(np.sqrt(np.mean(a**2)))
    return {
        f"plane {suffix}": rms(gap[~other, :2]),
        f"rest {suffix}": rms(gap[:, 2:]),
        f"other mode {suffix}": float(other.mean()),
    }


def cosine(a, b) -> float:
    """Mean cosine of the angle between rows."""
    norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return float(jnp.mean(jnp.sum(a * b, 1) / norms))


def measure(kind: str, params, x0, exact_ends) -> dict[str, float]:
    """A row of the table; x0 [NUM_SAMPLES, DIM], the first of which are followed."""
    z, t = trajectories(kind, params, x0[:NUM_TRAJECTORIES], ODE_STEPS)
    straight = path_geometry.straightness(z, t)
    start, first, end = z[0], z[1] - z[0], z[-1]
    euler = ends(kind, params, x0[:NUM_TRAJECTORIES], ODE_STEPS, "euler")
    single = one_step(kind, params, x0)
    return {
        "straightness": float(straight.deviation.mean()),
        "relative": float(straight.relative.mean()),
        "to mean": cosine(first, -start),
        "to end": cosine(first, end - start),
        **quality(end, "heun"),
        **quality(euler, "euler"),
        **quality(single, "one"),
        **drift(end, exact_ends, "ode"),
        **drift(single[: len(end)], exact_ends, "one"),
    }


# The table


COLUMNS = {
    "straightness": "straightness",
    "relative": "over the length",
    "rms heun": f"in-mode rms, {ODE_STEPS} Heun steps",
    "rms euler": f"{ODE_STEPS} Euler steps",
    "rms one": "one step",
    "between one": "between modes, one step",
    "variance one": "variance elsewhere, one step",
    "to mean": "first step: cosine to the mean",
    "to end": "to its own end",
}
DRIFTS = {
    "plane ode": "plane, ODE",
    "rest ode": "elsewhere, ODE",
    "other mode ode": "in the other mode, ODE",
    "plane one": "plane, one step",
    "rest one": "elsewhere, one step",
    "other mode one": "in the other mode, one step",
}


def table(models: list[Models], workdir: Path) -> tuple[dict, str]:
    """Straightness, samples and drift of every row; the exact fields beside."""
    found = {name: [] for name in ("exact velocity", "exact denoiser", *ROWS)}
    for model in models:
        x0 = jax.random.normal(rng.stream(model.seed, "sample"), (NUM_SAMPLES, DIM))
        exact_ends = ends("exact velocity", {}, x0[:NUM_TRAJECTORIES], 2 * ODE_STEPS)
        for name, runs in found.items():
            kind = ROWS[name].kind if name in ROWS else name
            params = model.params(name) if name in ROWS else {}
            runs.append({"seed": model.seed, **measure(kind, params, x0, exact_ends)})
            print(f"{name}, seed {model.seed}: straightness {runs[-1]['straightness']:.3g}")
    draw_table(models[0], workdir / "table.png")
    rows = lambda columns, names: [
        [name, *(shown([r[c] for r in found[name]]) for c in columns)] for name in names
    ]
    flows = [name for name in found if not name.startswith("BOT")]  # of the exact flow's pairs
    text = markdown(["", *COLUMNS.values()], rows(COLUMNS, found))
    return found, text + "\n" + markdown(["", *DRIFTS.values()], rows(DRIFTS, flows))


PLANES = (0.02, 0.5, 0.9)  # times at which fields are drawn
DRAWN = ("EDM", "CFM", "BOT-CFM 256", "2-RF", "LMM")
EXTENT = (-3.0, 3.0, -3.0, 3.0)


def plane_velocity(kind: str, params) -> fields.Field:
    """dz/dt in the plane, where the other coordinates are those of a typical point.

    Returns:
      A field called with points [B, 2] and t [B].
    """
    field = FIELDS[kind](params)
    rest = jax.random.normal(jax.random.key(0), (1, DIM - 2))

    def velocity(x, t=None, cond=None):
        spread = jnp.sqrt(t**2 + (1 - t) ** 2)[:, None]
        z = jnp.concatenate([x, spread * rest], axis=1)
        if "denoiser" in kind:
            denoised = field(z / t[:, None], (1 - t) / t)
            return fields.denoiser_to_velocity(denoised, z, t)[:, :2]
        return field(z, t)[:, :2]

    return velocity


@style.styled
def draw_table(model: Models, path: Path, num: int = 120) -> None:
    """Table 1's pictures: trajectories with their first directions, and fields at three times."""
    x0 = jax.random.normal(rng.stream(model.seed, "picture"), (num, DIM))
    figure, axes = plt.subplots(4, len(DRAWN), figsize=(2.5 * len(DRAWN), 10), squeeze=False)
    for column, name in zip(axes.T, DRAWN, strict=True):
        row, params = ROWS[name], model.params(name)
        z = np.asarray(trajectories(row.kind, params, x0, ODE_STEPS)[0][..., :2])
        figures.draw_trajectories(column[0], z, EXTENT, name)
        plt.setp(column[0].lines, linewidth=0.7, alpha=1.0)
        slope = z[4] - z[0]
        slope *= 0.5 / np.linalg.norm(slope, axis=1, keepdims=True)
        column[0].quiver(*z[0, :30].T, *slope[:30].T, color=style.GREEN, angles="xy",
                         scale_units="xy", scale=1, width=0.006, zorder=4)  # fmt: skip
        if row.teacher:
            teacher = ends(ROWS[row.teacher].kind, model.params(row.teacher), x0, ODE_STEPS)
            column[0].scatter(*np.asarray(teacher[:, :2]).T, s=2, color=style.SKY, zorder=4)
        for ax, t in zip(column[1:], PLANES, strict=True):
            mesh = figures._grid(EXTENT, 14)[2]
            arrows = plane_velocity(row.kind, params)(mesh, jnp.full(len(mesh), t))
            ax.quiver(*np.asarray(mesh).T, *np.asarray(arrows).T, width=0.005)
            ax.scatter(*MODES.T, s=20, color=style.TARGET, zorder=3)
            style.bare(ax, (EXTENT[:2], EXTENT[2:]), f"t = {t}")
    figure.tight_layout()
    print(style.save(figure, path))


# Variance in few steps

INDICES = ((0,), (0, 1), (0, 1, 2), (0, 3, 5), (0, 1, 3, 5), (0, 8), (0, 5, 11))
SCHEDULE = 18
HEUN_STEPS = (10, 18, 40, 100)


def predicted_variance(indices, gain: float = 1.0) -> float:
    """Of `multistep` with fresh noise, where the pairs are x1 = g x0, x0 ~ N(0, 1).

    There N(x, σ) = g x / (g + σ). The first evaluation makes (g σ_max / (g + σ_max))²; a step to σ
    makes of v g² (v + σ²) / (g + σ)².
    """
    levels = np.asarray(diffusion.noise_levels(SCHEDULE), np.float64)[list(indices)]
    variance = (gain * levels[0] / (gain + levels[0])) ** 2
    for sigma in levels[1:]:
        variance = gain**2 * (variance + sigma**2) / (gain + sigma) ** 2
    return float(variance)


def heun_inflation(num_steps: int) -> float:
    """Variance of EDM's Heun samples over that of the data N(0, 1), the denoiser exact.

    The sampler is linear: one trajectory tells its factor.
    """
    denoiser = lambda x, t=None, cond=None: x / (1 + t[:, None] ** 2)
    out = sampling.sample(
        jax.random.key(0), denoiser, jnp.ones((1, 1)), sampling.edm_heun(), num_steps=num_steps
    )
    return float(out.x[0, 0] ** 2)


@functools.partial(jax.jit, static_argnames=("kind", "indices", "noise"))
def few_steps(kind: str, params, x0, key, indices, noise):
    field = identity_lines if kind == "identity" else FIELDS[kind](params)
    sampler = sampling.multistep(indices, SCHEDULE, noise=noise)
    return sampling.sample(key, field, x0, sampler, num_steps=len(indices)).x


def few_step_qualities(models: list[Models], indices, gain: float) -> dict:
    """Predictions, and what was measured with each noise on the identity pairing and on LMM."""
    found = {
        "predicted": predicted_variance(indices),
        "of teacher": predicted_variance(indices, gain),
    }
    for noise, kind in itertools.product(("fresh", "line"), ("identity", "denoiser")):
        runs = found[f"{noise} {kind}"] = []
        for model in models:
            x0 = jax.random.normal(rng.stream(model.seed, "few"), (NUM_SAMPLES, DIM))
            params = model.params("LMM") if kind == "denoiser" else {}
            key = rng.stream(model.seed, "few noise")
            runs.append(quality(few_steps(kind, params, x0, key, indices, noise), "few"))
    return found


def variance(models: list[Models], workdir: Path) -> tuple[dict, str]:
    """LMM's variance where the pairing is the identity, and its rms in the modes."""
    heun = {n: heun_inflation(n) for n in HEUN_STEPS}
    gain = heun[TEACHER_STEPS["denoiser"]] ** 0.5
    pairs = [float(jnp.var(model.pairs("EDM")["x1"][:, 2:])) for model in models]
    steps = {str(indices): few_step_qualities(models, indices, gain) for indices in INDICES}
    levels = np.asarray(diffusion.noise_levels(SCHEDULE))
    head = ["levels", "σ", "identity: predicted", "fresh", "line", "teacher's pairs: predicted"]
    head += ["LMM: fresh", "line", "LMM, in-mode rms: fresh", "line"]
    rows = []
    for indices in INDICES:
        entry = steps[str(indices)]
        cells = lambda kind, what, entry=entry: [
            shown([r[what] for r in entry[f"{noise} {kind}"]]) for noise in ("fresh", "line")
        ]
        rows.append([str(indices), ", ".join(f"{s:.3g}" for s in levels[list(indices)])])
        rows[-1] += [f"{entry['predicted']:.3g}", *cells("identity", "variance few")]
        rows[-1] += [f"{entry['of teacher']:.3g}", *cells("denoiser", "variance few")]
        rows[-1] += cells("denoiser", "rms few")
    found = {"heun": heun, "pairs": pairs, "steps": steps}
    draw_variance(found, workdir / "variance.png")
    head_heun = [f"Heun, {n} steps" for n in heun] + ["the teacher's pairs"]
    inflation = [f"{v:.4f}" for v in heun.values()] + [shown(pairs)]
    return found, markdown(head, rows) + "\n" + markdown(head_heun, [inflation])


@style.styled
def draw_variance(found: dict, path: Path) -> None:
    """Bars for each choice of levels."""
    figure, ax = plt.subplots(figsize=(8, 3.2))
    names = list(found["steps"])
    for i, noise in enumerate(("fresh", "line")):
        values = np.array(
            [[r["variance few"] for r in found["steps"][n][f"{noise} denoiser"]] for n in names]
        )
        place = np.arange(len(names)) + 0.4 * (i - 0.5)
        label = {"fresh": "LMM, fresh noise", "line": "LMM, line steps"}[noise]
        ax.bar(place, np.median(values, 1), 0.38, label=label)
    predicted = [found["steps"][n]["of teacher"] for n in names]
    ax.plot(np.arange(len(names)) - 0.2, predicted, "k_", markersize=24, label="predicted")
    ax.axhline(1, color="0.4", linestyle=":")
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.set(ylabel="variance, data 1", ylim=(0, 1.3))
    ax.legend(ncols=3, loc="upper right")
    print(style.save(figure, path))


# Low signal-to-noise

LEVELS = (80.0, 40.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.25)
SOURCE, DATA = np.zeros(2), np.array(MOVED)


def pointed(name: str, params, x, sigma):
    """Where a model points from x = x1 + σ x0 [B, DIM], sigma [B].

    CFM at t = 1/(1+σ), where x is x / (1+σ): x + (1-t) v. NCSN: x + σ² times the score. DDPM at
    ᾱ = 1/(1+σ²), where x is √ᾱ x: x + (1-ᾱ) times the score, so that it is √ᾱ E[x1 | x].
    """
    if name == "CFM":
        t = 1 / (1 + sigma)
        x = x * t[:, None]
        return fields.velocity_to_denoiser(network(params)(x, t), x, t)
    if name == "NCSN":
        return FIELDS["denoiser"](params)(x, sigma)
    alpha = 1 / jnp.sqrt(1 + sigma**2)
    noise = network(params)(alpha[:, None] * x, vp_time(sigma))
    return alpha[:, None] * (x - sigma[:, None] * noise)


@functools.partial(jax.jit, static_argnames=("name",))
def pointing(name: str, params, key, sigma):
    """Noises, and where a model and the closed form point, in the plane: [NUM_SAMPLES, 2] each."""
    k0, k1 = jax.random.split(key)
    x0 = jax.random.normal(k0, (NUM_SAMPLES, DIM))
    level = jnp.full((NUM_SAMPLES,), sigma)
    x = draw(k1, NUM_SAMPLES, MOVED) + sigma * x0
    scale = 1 / jnp.sqrt(1 + sigma**2) if name == "DDPM" else 1.0
    exact = scale * posterior(x, jnp.ones_like(level), level, MOVED)[0]
    return x0[:, :2], pointed(name, params, x, level)[:, :2], exact[:, :2]


SPREAD = float(np.sqrt(np.mean(((MODES - MODES.mean(0)) ** 2).sum(1)) + 2 * MODE_STD**2))


def collapsed(points) -> dict[str, float]:
    """Distances of the mean of `points` from both means, and their spread over the data's."""
    points = np.asarray(points)
    middle = points.mean(0)
    return {
        "to data": float(np.linalg.norm(middle - DATA)),
        "to source": float(np.linalg.norm(middle - SOURCE)),
        "spread": float(np.sqrt(((points - middle) ** 2).sum(1).mean()) / SPREAD),
    }


def collapse(models: list[Models], workdir: Path) -> tuple[dict, str]:
    """Over noise levels, of CFM, NCSN and DDPM on data whose mean is MOVED."""
    found = {name: {} for name in POINTING}
    for name, levels in found.items():
        for sigma in LEVELS:
            levels[sigma] = {"model": [], "exact": []}
            for model in models:
                params = model.params(name, POINTING)
                key = rng.stream(model.seed, "pointing")
                _, points, exact = pointing(name, params, key, sigma)
                levels[sigma]["model"].append(collapsed(points))
                levels[sigma]["exact"].append(collapsed(exact))
    head = ["", "σ", "t of CFM", "mean of the points from the data's", "from the source's"]
    head += ["spread over the data's", "closed form"]
    rows = []
    for name, levels in found.items():
        for sigma, entry in levels.items():
            cell = lambda who, what, entry=entry: shown([r[what] for r in entry[who]])
            rows.append([name, f"{sigma:g}", f"{1 / (1 + sigma):.3g}"])
            rows[-1] += [cell("model", what) for what in ("to data", "to source", "spread")]
            rows[-1].append(cell("exact", "spread"))
    draw_collapse(models[0], found, workdir / "collapse.png")
    return found, markdown(head, rows)


@style.styled
def draw_collapse(model: Models, found: dict, path: Path, num: int = 40) -> None:
    """Arrows from noises to where the models point at the lowest ratio, and the spread."""
    figure, axes = plt.subplots(1, 4, figsize=(16, 4))
    cloud = np.asarray(draw(rng.stream(model.seed, "cloud"), 400, MOVED))[:, :2]
    extent = (-3.0, 5.5, -4.0, 3.0)
    for ax, name in zip(axes, POINTING, strict=False):
        key = rng.stream(model.seed, "pointing")
        params = model.params(name, POINTING)
        start, points, _ = (np.asarray(a)[:num] for a in pointing(name, params, key, LEVELS[0]))
        ax.scatter(*cloud.T, s=2, color=style.TARGET, label="data")
        ax.scatter(*start.T, s=6, color=style.START, label="source")
        ax.quiver(*start.T, *(points - start).T, color=style.GREEN, angles="xy", scale_units="xy",
                  scale=1, width=0.004, alpha=0.7)  # fmt: skip
        ax.plot(*DATA, "*", color=style.VERMILION, markersize=11, label="mean of the data")
        ax.plot(*SOURCE, "P", color=style.BLUE, markersize=8, label="mean of the source")
        style.bare(ax, (extent[:2], extent[2:]), f"{name}, σ = {LEVELS[0]:g}")
    axes[0].legend()
    for name, levels in found.items():
        sigmas = list(levels)
        value = lambda who, levels=levels: [
            np.median([r["spread"] for r in e[who]]) for e in levels.values()
        ]
        [line] = axes[3].plot(sigmas, value("exact"), "-")
        axes[3].plot(sigmas, value("model"), "o", color=line.get_color(), label=name)
    axes[3].set(xscale="log", yscale="log", xlabel="σ = (1-t)/t", title="spread over the data's")
    axes[3].legend()
    axes[3].grid()
    figure.tight_layout()
    print(style.save(figure, path))


STUDIES = {"table": table, "variance": variance, "collapse": collapse}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/lines_toy"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3_000, help="of each training")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    models = [Models(args.workdir, seed, args.steps) for seed in range(args.seeds)]
    path = args.workdir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in args.only:
        found, text = STUDIES[name](models, args.workdir)
        results[name] = {"steps": args.steps, "seeds": args.seeds, "found": found}
        path.write_text(json.dumps(results, indent=2))
        (args.workdir / f"{name}.md").write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
