"""What matching noises to samples buys, and where it misleads (DANSM; LMM appendix B).

    python reproduce/matching.py --workdir=runs/matching --seeds=3 [--only bound bias claim]

  bound  similarity of optimally paired Gaussians against √(2 ln n / d) (LMM eq. 24-25)
  bias   a conditional model trained on pairs matched across classes, within them, and in between
  claim  quality against training time, matching included, for match sizes and the Hungarian
         algorithm beside: points (8 Gaussians to two moons) and digits, few-step Euler sampling

Writes NAME.json and NAME.md for each, NAME.png for bound and claim.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from common import ROOT, markdown, shown
from ml_collections import ConfigDict
from scipy.optimize import linear_sum_assignment

from genfield import configuration, losses, nets, paths, rng, sampling
from genfield.data import pixels
from genfield.figures import style
from genfield.metrics import frechet, point_cloud
from genfield.program import config_io, experiment, generate, match_sets
from genfield.program.parts import create_coupling

# The bound

DIMENSIONS = (8, 16, 32, 64, 128, 256, 512)
SIZES = (64, 256, 1024, 4096)


@style.styled
def bound(seeds: range, workdir: Path) -> str:
    """<x0, x1*> / d of pairs of N(0, I), optimal or nearest, over the bound √(2 ln n / d).

    The bound is derived for the nearest x1 of each x0, with replacement.
    """
    ratios = {way: {} for way in ("optimal", "nearest")}
    for d in DIMENSIONS:
        for n in SIZES:
            found = {way: [] for way in ratios}
            for seed in seeds:
                draw = np.random.default_rng([seed, d, n]).normal
                x0, x1 = draw(size=(n, d)), draw(size=(n, d))
                products = x0 @ x1.T  # lengths are given: the cheapest pairs have the largest sum
                rows, columns = linear_sum_assignment(-products)
                most = d * np.sqrt(2 * np.log(n) / d)
                found["optimal"].append(products[rows, columns].mean() / most)
                found["nearest"].append(products.max(1).mean() / most)
            for way in ratios:
                ratios[way][f"{d} {n}"] = found[way]
        print(d, {n: shown(ratios["optimal"][f"{d} {n}"]) for n in SIZES}, flush=True)
    (workdir / "bound.json").write_text(json.dumps(ratios, indent=2))
    figure, axes = plt.subplots(figsize=(6, 4))
    for n in SIZES:
        curve = lambda way, n=n: [np.median(ratios[way][f"{d} {n}"]) for d in DIMENSIONS]
        [line] = axes.plot(DIMENSIONS, curve("optimal"), "o-", label=n)
        axes.plot(DIMENSIONS, curve("nearest"), "--", color=line.get_color(), linewidth=0.8)
    axes.axhline(1, color="0.4", linestyle=":")
    axes.set(xscale="log", xlabel="dimension", ylabel="similarity / √(2 ln n / d)")
    axes.legend(title="batch n")
    axes.grid()
    print(style.save(figure, workdir / "bound.png"))
    rows = [
        [way, str(d), *(shown(by[f"{d} {n}"]) for n in SIZES)]
        for way, by in ratios.items()
        for d in DIMENSIONS
    ]
    return markdown(["pairs", "d", *(f"n = {n}" for n in SIZES)], rows)


# Conditional models

CENTRES = np.array([[-3.0, 0.0], [3.0, 0.0]])  # of the two classes, standard deviation 0.5
BLIND = {"independent": {"name": "independent"}}  # sections of a config
for _name in ("greedy", "exact_assignment"):
    BLIND[f"{_name}, across classes"] = {"name": _name}
    BLIND[f"{_name}, penalty 10"] = {"name": _name, "class_penalty": 10.0}
    BLIND[f"{_name}, within classes"] = {"name": _name, "within_classes": True}


def conditional(
    coupling: dict, seed: int, steps: int = 4_000, batch: int = 256
) -> dict[str, float]:
    """Trains a conditional flow on the two classes; what its samples of each class are like."""
    section = {"name": "mlp", "width": 64, "depth": 3, "time_input": True}
    make = functools.partial(nets.create, ConfigDict(section), shape=(2,), num_classes=2)
    apply, params = make(rng.stream(seed, "init"))
    tx, config = optax.adam(1e-3), configuration.base()
    config.coupling = ConfigDict(coupling)
    couple = create_coupling(config)
    centres = jnp.asarray(CENTRES, jnp.float32)

    def draw(key, label):
        return centres[label] + 0.5 * jax.random.normal(key, (*label.shape, 2))

    def pairs(key):
        k0, k1, kl, kt, kc = jax.random.split(key, 5)
        label = jax.random.randint(kl, (batch,), 0, 2)
        x1 = draw(k1, label)
        x0 = couple(jax.random.normal(k0, (batch, 2)), x1, kc, label)
        return paths.interpolate(paths.linear, x0, x1, jax.random.uniform(kt, (batch,))), label

    def risk(params, key):
        sample, label = pairs(key)
        field = lambda x, t, cond: apply(params, x, t, cond)
        return losses.flow_matching(field, sample, label)[0].mean()

    @jax.jit
    def train(params, state):
        def one(carry, i):
            params, state = carry
            gradient = jax.grad(risk)(params, jax.random.fold_in(rng.stream(seed, "train"), i))
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (params, state), jnp.arange(steps))[0]

    params, _ = train(params, tx.init(params))
    key, n = rng.stream(seed, "evaluate"), 2_000
    many, labels = jax.lax.map(pairs, jax.random.split(key, 20))  # SciPy takes one at a time
    given = np.asarray(many.x0[labels == 0])  # the noises that class 0 was trained on
    field = lambda x, t, cond: apply(params, x, t, cond)
    distances, wrong = [], []
    for c in (0, 1):
        label = jnp.full(n, c)
        x0 = jax.random.normal(jax.random.fold_in(key, c), (n, 2))
        run = functools.partial(sampling.sample, key, field, num_steps=50, cond=label)
        x = np.asarray(run(x0, sampling.euler()).x)
        truth = np.asarray(draw(jax.random.fold_in(key, 2 + c), label))
        distances.append(point_cloud.wasserstein2(x, truth))
        wrong.append(float((np.sign(x[:, 0]) != np.sign(CENTRES[c, 0])).mean()))
    return {
        "mean of x0 in class 0": float(given[:, 0].mean()),
        "W2": float(np.mean(distances)),
        "in the other class": float(np.mean(wrong)),
    }


def bias(seeds: range, workdir: Path) -> str:
    """Class-blind matching against matching within classes."""
    found = {}
    for name, coupling in BLIND.items():
        found[name] = [conditional(coupling, seed) for seed in seeds]
        print(name, found[name], flush=True)
    (workdir / "bias.json").write_text(json.dumps(found, indent=2))
    columns = list(found["independent"][0])
    rows = [[name, *(shown([f[c] for f in runs]) for c in columns)] for name, runs in found.items()]
    return markdown(["pairs by", *columns], rows)


# The claim

MATCHES = {  # name: (coupling, match size); 0: the batch
    "none": ("independent", 0),
    "greedy, batch": ("greedy", 0),
    "greedy, 1,024": ("greedy", 1_024),
    "greedy, 10,240": ("greedy", 10_240),
    "Hungarian, batch": ("exact_assignment", 0),
    "Hungarian, 1,024": ("exact_assignment", 1_024),
}
TASKS = {  # name: (config, steps of training, Euler steps)
    "points": ("flow_matching_two_moons.py", 3_200, 4),
    "digits": ("flow_matching_digits.py", 3_200, 4),
}
CHECKS = 16  # of quality, evenly over the training


def task_config(task: str, match: str, seed: int) -> ConfigDict:
    """The config of a run."""
    file, steps, few = TASKS[task]
    coupling, size = MATCHES[match]
    config = config_io.load(str(ROOT / "configs" / file))
    config.seed, config.batch_size, config.match_size = seed, 256, size
    config.coupling = ConfigDict({"name": coupling})
    config.train.steps, config.ema.rate = steps, 0.99
    config.sampler = ConfigDict({"name": "euler", "num_steps": few})
    if task == "digits":  # an MLP: 64 pixels need no convolutions, and many runs are trained
        config.net = ConfigDict({"name": "mlp", "width": 512, "depth": 4, "time_input": True})
        config.net.activation = "silu"
        config.data.labels, config.label_dropout = False, 0.0
        config.time = ConfigDict({"name": "uniform"})
    config.sample.batch_size = 2_000
    return config


def make_quality(exp):
    """quality(samples) -> W2 of points; the Fréchet distance of pixels of digits."""
    if exp.data.draw is not None:
        target = np.asarray(exp.data.draw(rng.stream(0, "quality"), 2_000))
        return lambda x: point_cloud.wasserstein2(x, target)
    examples = exp.data.examples["train"]
    train = pixels.to_unit(examples.gather(np.arange(examples.size))["x1"])
    flat = lambda x: np.asarray(x).reshape(len(x), -1)
    moments = frechet.moments(flat(train))
    return lambda x: float(frechet.frechet_distance(frechet.moments(flat(x)), moments))


def curve(config, workdir: Path) -> list[dict]:
    """Trains a run; [{"step", "seconds", "quality"}], seconds of training and matching alone."""
    exp = experiment.prepare(config, workdir)
    step, state = experiment.jit_train_step(exp), exp.init()
    draw, quality = generate.make_drawer(exp), make_quality(exp)
    batches, out, spent = match_sets.batches(exp, 0), [], 0.0
    every = config.train.steps // CHECKS
    for first in range(0, config.train.steps, every):
        begun = time.perf_counter()
        for i in range(first, first + every):
            state, metrics = step(state, {"step": np.int32(i)} | next(batches))
            if i == 0:  # compiled: time starts here
                jax.block_until_ready((state, metrics))
                begun = time.perf_counter()
        jax.block_until_ready((state, metrics))
        spent += time.perf_counter() - begun
        x = draw(generate.parameters(exp, state), 2_000, 1).x
        out.append({"step": first + every, "seconds": spent, "quality": quality(x)})
    return out


def reached(curves: list[list[dict]], goal: float) -> float | None:
    """Seconds until the mean quality over seeds is at most `goal`, linear between checks."""
    seconds = np.median([[c["seconds"] for c in run] for run in curves], 0)
    quality = np.mean([[c["quality"] for c in run] for run in curves], 0)
    best = np.minimum.accumulate(quality)
    if best[-1] > goal:
        return None
    return float(np.interp(-goal, -best, seconds))


@style.styled
def claim(seeds: range, workdir: Path) -> str:
    """Quality against training time, and the time to the unmatched run's final quality."""
    parts, figure, axes = [], *plt.subplots(1, len(TASKS), figsize=(6 * len(TASKS), 4))
    file = workdir / "claim.json"  # a run that was stopped goes on with what is missing
    found = json.loads(file.read_text()) if file.exists() else {}
    for task in TASKS:
        found.setdefault(task, {match: [] for match in MATCHES})
        for number, seed in enumerate(seeds):  # interleaved: a busy machine is unfair to none
            for match in MATCHES:
                if len(found[task][match]) > number:
                    continue
                run = curve(task_config(task, match, seed), workdir / "none")
                found[task][match].append(run)
                print(task, seed, match, run[-1], flush=True)
                file.write_text(json.dumps(found, indent=2))
    for ax, (task, by_match) in zip(axes, found.items(), strict=True):
        goal = float(np.mean([run[-1]["quality"] for run in by_match["none"]]))
        whole = float(np.median([run[-1]["seconds"] for run in by_match["none"]]))
        rows = []
        for match, runs in by_match.items():
            seconds = np.median([[c["seconds"] for c in run] for run in runs], 0)
            quality = np.array([[c["quality"] for c in run] for run in runs])
            [line] = ax.plot(seconds, quality.mean(0), "o-", markersize=3, label=match)
            ax.fill_between(
                seconds, quality.min(0), quality.max(0), color=line.get_color(), alpha=0.15
            )
            at = reached(runs, goal)
            rows.append(
                [
                    match,
                    shown([run[-1]["quality"] for run in runs]),
                    shown([run[-1]["seconds"] for run in runs]),
                    "never" if at is None else f"{at / whole:.2f}",
                ]
            )
        ax.set(
            xlabel="seconds of training, matching included",
            ylabel="W2" if task == "points" else "Fréchet distance of pixels",
            title=task,
            xscale="log",
            yscale="log",
        )
        ax.grid()
        head = [task, "final quality", "seconds", "share of the time to the unmatched's quality"]
        parts.append(markdown(head, rows))
    axes[0].legend()
    print(style.save(figure, workdir / "claim.png"))
    return "\n".join(parts)


STUDIES = {"bound": bound, "bias": bias, "claim": claim}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/matching"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(STUDIES), default=list(STUDIES))
    args = parser.parse_args()
    workdir = args.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        text = STUDIES[name](range(args.seeds), workdir)
        (workdir / f"{name}.md").write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
