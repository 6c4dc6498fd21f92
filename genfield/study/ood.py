"""Scores that tell what is out of distribution (EqM, arXiv:2510.02300, Table 6; DM Table 5)."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from genfield import data, rng
from genfield.data import to_unit
from genfield.errors import UserError
from genfield.figures.study import histograms, image_rows
from genfield.metrics import detection
from genfield.program.experiment import Experiment
from genfield.registry import Positive, PositiveInt
from genfield.study import measures
from genfield.study.subject import (
    SHOWN,
    Findings,
    Study,
    Subject,
    counter,
    drawn,
    heldout,
    images_elsewhere,
    quantiles,
    scorer,
    source,
    table,
    viewed,
)


def ood(
    subject: Subject,
    *,
    num: PositiveInt = 512,
    other: tuple[str, ...] = (),
    blur: Positive = 1.0,
) -> Findings:
    """AUROC of scores: held-out data against other sets (EqM Table 6, DM Table 5).

    num: examples of each set; held-out images of classes left out of training (data.classes) are
    one. other: images of other kinds, folders, archives or .npz with commas between them; of any
    sizes, resized to the data's. blur: standard deviation of the Gaussian filter, in pixels.
    """
    exp = subject.exp
    if blur <= 0:
        raise UserError(f"--blur must be positive, got {blur:g}")
    places = _named(other)
    others = {name: images_elsewhere(exp, path, num, "--other") for name, path in places.items()}
    x1, labels = heldout(exp, num)
    outside = _outside(subject, x1, blur) | _other_classes(exp, num) | others
    inside, scores, condition = _scores(subject, x1, labels, outside)
    rows = _auroc(scores)
    figures = {
        "auroc": rows,
        "heldout": _summary(inside),
        "sets": {name: _summary(without) for name, (_, without) in scores.items()},
        "examples": len(x1),
        "condition": condition,
        "wrong_label": "held-out images under their own label against the same under another one, "
        "left out of the average"
        if "wrong_label" in scores
        else "none",
        "time": 1.0 if exp.objective.clock else None,
        "settings": {"blur": blur, "other": other},
    }
    told_apart = {"held-out": inside} | {name: each for name, (_, each) in scores.items()}
    pictures = [histograms(subject.picture(""), told_apart)]
    if exp.pictures:
        shown = {"held-out": x1, **outside}
        pictures.append(image_rows(subject.picture("_sets"), viewed(exp, shown, SHOWN), SHOWN))
    return Findings(figures, table(rows), pictures)


# Sets


OWN = ("held-out", "constant", "uniform", "shuffled", "blurred", "noise", "other_classes")
OWN += ("wrong_label", "average")  # names of rows


def _named(paths: tuple[str, ...]) -> dict[str, str]:
    """The paths by their names without folders and endings.

    Raises:
      UserError: two of one name, or the name of a set that the study makes itself.
    """
    found = {}
    for path in paths:
        place = Path(path).expanduser().absolute()
        name = place.name if place.is_dir() else place.name.partition(".")[0]
        if name in OWN or name in found:
            other = found.get(name, "a set of this study")
            raise UserError(f"--other: {path} would be called {name!r}, as is {other}: rename it")
        found[name] = path
    return found


def _outside(subject: Subject, x1: np.ndarray, blur: float) -> dict[str, np.ndarray]:
    """What is not of the data x1, by name."""
    exp, key = subject.exp, rng.stream(subject.seed, "ood")
    out = _points_outside(exp, key, x1) if x1.ndim == 2 else _images_outside(key, x1, blur)
    if x1.ndim != 2 or exp.data.draw_source is not None:
        out["noise"] = source(subject, len(x1))
    return out


def _points_outside(exp: Experiment, key, x1: np.ndarray) -> dict[str, np.ndarray]:
    """The other 2-D problems, and uniform points on a box half as wide again as the data."""
    out = {}
    if x1.shape[1:] == (2,):
        out = {
            name: drawn(draw, jax.random.fold_in(key, i), len(x1))
            for i, (name, draw) in enumerate(sorted(data.DISTRIBUTIONS.items()))
            if name != exp.config.data.name
        }
    low, high = x1.min(0), x1.max(0)
    margin = (high - low) / 4
    box = low - margin, high + margin
    return out | {"uniform": np.asarray(measures.uniform_like(key, jnp.asarray(x1), *box))}


def _images_outside(key, x1: np.ndarray, blur: float) -> dict[str, np.ndarray]:
    """Sets made of nothing, and of the held-out images themselves."""
    low, high = float(x1.min()), float(x1.max())

    @jax.jit
    def made(key, x):
        keys = jax.random.split(key, 3)
        return {
            "constant": measures.constant_like(keys[0], x, low, high),
            "uniform": measures.uniform_like(keys[1], x, low, high),
            "shuffled": measures.shuffled(keys[2], x),
            "blurred": measures.blurred(x, blur),
        }

    out = {name: np.asarray(values) for name, values in made(key, x1).items()}
    return {name: out[name] for name in ("constant", "uniform", "shuffled", "blurred")}


def _other_classes(exp: Experiment, num: int) -> dict[str, np.ndarray]:
    """Up to `num` held-out images of the classes that `data.classes` leaves out of training."""
    examples = exp.data.examples.get("other_classes")
    if examples is None:
        return {}
    rows = np.random.default_rng(0).permutation(examples.size)[:num]
    return {"other_classes": to_unit(examples.gather(rows)["x1"])}


# Scores


def _scores(
    subject: Subject, x1: np.ndarray, labels: np.ndarray | None, outside: dict[str, np.ndarray]
) -> tuple[dict, dict[str, tuple[dict, dict]], str]:
    """Scores {score: [n]} of held-out data; of each set, what it is compared with and its own.

    The last is the condition, in words.

    Raises:
      UserError: scores that are not finite.
    """
    exp = subject.exp
    classes, score = exp.data.num_classes, scorer(exp)
    cond, condition = _unlabelled(exp)
    whole = lambda x: None if cond is None else cond(len(x))
    total = len(x1) * (3 if classes > 1 else 1) + sum(map(len, outside.values()))
    tick = counter("scores", total, "examples")
    inside = score(subject.params, x1, whole(x1), tick=tick)
    out = {n: (inside, score(subject.params, x, whole(x), tick=tick)) for n, x in outside.items()}
    if classes > 1:
        shift = 1 + np.arange(len(x1)) % (classes - 1)
        wrong = ((labels + shift) % classes).astype(labels.dtype)
        own = score(subject.params, x1, labels, tick=tick)
        out["wrong_label"] = own, score(subject.params, x1, wrong, tick=tick)
    for name, pair in out.items():
        if not all(np.isfinite(values).all() for each in pair for values in each.values()):
            raise UserError(f"scores of {name!r} are not finite: the network diverges there")
    return inside, out, condition


def _unlabelled(exp: Experiment) -> tuple[Callable | None, str]:
    """What stands for a label where there is none to give: n -> [n], and in words."""
    classes = exp.data.num_classes
    if not classes:
        return None, "none"
    if exp.config.label_dropout > 0:
        return lambda n: np.full(n, classes, np.int32), "the null class"
    draw = lambda n: np.random.default_rng(0).integers(0, classes, n).astype(np.int32)
    return draw, "labels drawn at random, held-out data included: no null class was trained"


def _auroc(scores: dict[str, tuple[dict, dict]]) -> list[dict]:
    """A row a set: P(a score outside is the larger), ties one half; last, their average."""
    rows = [
        {"set": name} | {s: detection.auroc(within[s], without[s]) for s in within}
        for name, (within, without) in scores.items()
    ]
    averaged = [row for row in rows if row["set"] != "wrong_label"]
    mean = lambda s: float(np.mean([row[s] for row in averaged]))
    return [*rows, {"set": "average"} | {s: mean(s) for s in rows[0] if s != "set"}]


def _summary(scores: dict[str, np.ndarray]) -> dict[str, dict]:
    return {
        s: {"mean": float(v.mean()), "std": float(v.std())} | quantiles(v)
        for s, v in scores.items()
    }


STUDY = Study(ood, straight=True)
