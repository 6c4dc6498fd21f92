"""The noises that a flow prefers for given data, and the paths to them (DANSM, section 3.2)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from genfield import paths, registry, rng, sampling
from genfield.analyze import matching
from genfield.data import to_unit
from genfield.errors import UserError
from genfield.fields import Field, squared_norm
from genfield.figures import analyze as figures
from genfield.figures.study import histograms
from genfield.losses import flow_matching
from genfield.machine.logbook import say
from genfield.metrics import path_geometry
from genfield.program.experiment import Experiment
from genfield.registry import PositiveInt, choose
from genfield.study.subject import (
    Findings,
    Study,
    Subject,
    counter,
    drawn,
    heldout,
    on_batches,
    source,
    table,
)

CHECKED = 64  # examples that are brought back to the data
IN_PLANE, LINES = 300, 150  # pairs in the plane, and how many of them are joined


def noises(
    subject: Subject,
    *,
    num: PositiveInt = 2000,
    match_size: PositiveInt = 1000,
    num_steps: PositiveInt = 50,
    num_times: PositiveInt = 8,
    split: str = "train",
) -> Findings:
    """Preferable noises of data, beside random and matched ones (DANSM section 3.2, Fig. 2 and 4).

    num: examples, of the split train or test; each goes to noise by num_steps steps of Heun from
    t = 1 to 0, under its own label. match_size: of greedy matching, at most; what is left is a
    smaller set. num_times: times a path, evenly spaced, that its training loss is averaged over.
    """
    exp = subject.exp
    _check(exp)
    x1, label = _examples(exp, subject.seed, num, split)
    if len(x1) < 2:
        raise UserError("noises needs two examples or more: the distance is between paths")
    back = on_batches(exp, _to_noise(num_steps))
    there = back(subject.params, x1, label, tick=counter("to noise", len(x1)))
    if not all(np.isfinite(values).all() for values in there.values()):
        raise UserError("the reverse flow is not finite: the network diverges, or take more steps")
    random = source(subject, len(x1))
    pairs = {
        "preferable": there["x0"],
        "random": random,
        "matched": matching.greedy_in_sets(random, x1, match_size),
    }
    judged = {name: _of_paths(subject, x0, x1, label, num_times) for name, x0 in pairs.items()}
    rows = [{"paths": name} | row for name, (row, _) in judged.items()]
    crossings, pictures = _plane(subject, pairs, x1)
    figures_found = {
        "rows": rows,
        "examples": len(x1),
        "split": split,
        "match_size": min(match_size, len(x1)),
        "t_star": "0 at the data, 1 at the noise (DANSM eq. 4); t = 1 - t_star",
        "loss": f"|v(x_t) - (x1 - x0)|², summed over features, mean of {num_times} times a path",
        "straightness": {
            name: float(np.mean(there[name])) for name in ("deviation", "relative", "length")
        },
        "nfe": 2 * num_steps,
        "round_trip": _round_trip(subject, there["x0"], x1, label, num_steps),
        "lines_that_cross": crossings,
    }
    values = {name: values for name, (_, values) in judged.items()}
    return Findings(
        figures_found, table(rows), [histograms(subject.picture(""), values), *pictures]
    )


def _check(exp: Experiment) -> None:
    """Raises UserError unless the field is a velocity with a clock, on straight paths."""
    config = exp.config
    if exp.objective.method.function is not flow_matching or not exp.objective.clock:
        clockless = "" if exp.objective.clock else " without a clock"
        what = f"{config.loss.name}{clockless}"
        raise UserError(f"noises needs flow_matching with loss.time_input, not {what}")
    if exp.methods[registry.Path][config.path].path is not paths.linear or config.path_noise:
        raise UserError("noises needs straight paths: config.path='linear' and path_noise=0")


def _examples(exp: Experiment, seed: int, num: int, split: str):
    """Up to `num` examples of a split, training ones at random, and their labels or None."""
    choose("--split", split, dict.fromkeys(("train", "test")))
    if split == "test":
        return heldout(exp, num)
    if exp.data.draw is not None:
        return drawn(exp.data.draw, rng.stream(seed, "noises"), num), None
    examples = exp.data.examples["train"]
    if examples.size < num:
        say(f"{examples.size:,} training examples, fewer than the {num:,} asked for")
    # In random order: files come class by class, and a match set is of examples in a row.
    batch = examples.gather(np.random.default_rng(seed).permutation(examples.size)[:num])
    return to_unit(batch["x1"]), batch["label"] if exp.data.num_classes else None


def _to_noise(num_steps: int) -> Callable:
    """call(field, index, x1, cond): from data to noise, and how straight the way is."""

    def call(field, index, x1, cond):
        def reverse(x, s, cond):  # along s = 1 - t
            return -field(x, 1 - s, cond)

        out = _integrate(reverse, x1, cond, num_steps, trace=1)
        straight = path_geometry.straightness(out.trace)
        length = jnp.sqrt(squared_norm(out.x - x1))
        return {"x0": out.x, "length": length} | straight._asdict()

    return call


def _integrate(field: Field, x, cond, num_steps: int, trace: int | None = None):
    key = jax.random.key(0)  # Heun draws nothing
    return sampling.sample(
        key, field, x, sampling.heun(), num_steps=num_steps, cond=cond, trace=trace
    )


def _round_trip(subject: Subject, x0, x1, label, num_steps: int) -> dict[str, float]:
    """How far from x1 the flow ends that starts from its noise: the solver's error, there and back.

    Of the first CHECKED examples, beside how far x1 is from x0.
    """
    few = [None if a is None else a[:CHECKED] for a in (x0, x1, label)]
    forth = on_batches(
        subject.exp,
        lambda field, index, x0, x1, cond: {
            "error": squared_norm(_integrate(field, x0, cond, num_steps).x - x1) ** 0.5,
            "length": squared_norm(x1 - x0) ** 0.5,
        },
    )
    out = forth(subject.params, *few)
    return {name: float(values.mean()) for name, values in out.items()}


def _of_paths(subject: Subject, x0, x1, label, num_times: int) -> tuple[dict, dict]:
    """What is found of paths: a row of means, and the values of each path by name."""
    found = path_geometry.distances(x0, x1)
    flat = np.reshape(x0, (len(x0), -1)).astype(np.float64)
    values = {
        "path length": path_geometry.lengths(x0, x1),
        "average distance": found.mean,
        "minimal distance": found.nearest,
        "training loss": _training_loss(subject, x0, x1, label, num_times),
        "norm of the noise": np.linalg.norm(flat, axis=1),
    }
    known = path_geometry.summary(found)
    rank = lambda name: float(spearmanr(values["training loss"], values[name]).statistic)
    row = {"length": float(values["path length"].mean())}
    row |= {name: known[name] for name in ("d_avg", "d_min", "t_star_avg", "t_star_min")}
    row |= {"loss": float(values["training loss"].mean())}
    row |= {"loss_to_d_avg": rank("average distance"), "loss_to_d_min": rank("minimal distance")}
    row |= {"noise_mean": float(flat.mean()), "noise_std": float(flat.std())}
    row |= {"noise_norm": float(values["norm of the noise"].mean())}
    return row, values


def _training_loss(subject: Subject, x0, x1, label, num_times: int) -> np.ndarray:
    """‖v(x_t, t) - (x1 - x0)‖² of each path, mean of times (k + 1/2) / num_times: [n]."""
    times = (np.arange(num_times, dtype=np.float32) + 0.5) / num_times

    def call(field, index, x0, x1, cond):
        def at(t):
            sample = paths.interpolate(paths.linear, x0, x1, jnp.full(x0.shape[:1], t))
            return squared_norm(field(sample.x, sample.t, cond) - sample.v)

        return jax.lax.map(at, times).mean(axis=0)

    over = on_batches(subject.exp, call)
    return over(subject.params, x0, x1, label, tick=counter("training loss", len(x0), "paths"))


def _plane(subject: Subject, pairs: dict[str, np.ndarray], x1: np.ndarray) -> tuple[dict, list]:
    """Samples and noises in the plane (Fig. 2): the share of lines that cross, and the picture."""
    # At random: the first examples of a match set choose first.
    few = np.random.default_rng(subject.seed).permutation(len(x1))[:IN_PLANE]
    clouds = {name: points[few] for name, points in ({"samples": x1} | pairs).items()}
    try:
        plane = matching.embed(clouds, subject.seed)
    except ImportError:
        say("no picture of the paths: t-SNE needs scikit-learn, pip install 'genfield[digits]'")
        return {}, []
    panels = {name: (plane[name], plane["samples"]) for name in ("random", "matched", "preferable")}
    shares = {name: matching.crossing_share(*panel) for name, panel in panels.items()}
    picture = figures.crossings(subject.picture("_crossings"), panels, LINES)
    return shares, [picture]


STUDY = Study(noises, straight=True)
