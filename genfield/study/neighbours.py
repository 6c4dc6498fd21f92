"""The training examples nearest to samples (Equilibrium Matching, arXiv:2510.02300, Fig. 5)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from genfield import distances
from genfield.data import pixels, to_unit
from genfield.distances import Neighbours
from genfield.errors import UserError
from genfield.figures.study import histograms, image_rows
from genfield.machine import logbook, preemption
from genfield.machine.logbook import say
from genfield.metrics import detection, images
from genfield.program import card, generate
from genfield.program import evaluate as evaluation
from genfield.program.experiment import Experiment
from genfield.registry import PositiveInt
from genfield.study.subject import (
    Findings,
    Study,
    Subject,
    counter,
    from_zero,
    heldout,
    quantiles,
    statistics,
    table,
    training,
    viewed,
)


class Found(NamedTuple):
    """In one space: the neighbours of samples, and of held-out examples."""

    samples: Neighbours
    heldout: Neighbours


def neighbours(
    subject: Subject,
    *,
    num: PositiveInt = 256,
    k: PositiveInt = 3,
    features: str = "auto",
    max_train: PositiveInt = 50_000,
    shown: PositiveInt = 8,
) -> Findings:
    """The training examples nearest to samples, beside those nearest to held-out data (EqM Fig. 5).

    num: samples, and held-out examples at most. k: neighbours. features: a feature network, none,
    or auto (config.evaluate.features; left out where its weights cannot be had, and of latents,
    all of which would have to be decoded: name it).
    max_train: training examples that are searched. shown: samples in the picture.
    """
    exp = subject.exp
    if exp.data.train is None:
        raise UserError(f"data {exp.config.data.name!r} are drawn anew each step: nothing to find")
    x1, _ = heldout(exp, num)
    draw = generate.make_drawer(exp)
    made = draw(subject.params, num, subject.seed, from_zero(counter("samples", num))).x
    if exp.data.pixels:  # as they are written to files
        made = pixels.to_unit(pixels.to_uint8(made, exp.config.sample.rounding))
    size = min(max_train, exp.data.examples["train"].size)
    spaces = {"pixels" if exp.data.pixels else "data": (made, x1, training(exp, max_train))}
    network = None
    if exp.pictures and features != "none" and (exp.data.pixels or features != "auto"):
        network, extract = _extractor(exp, features)
        if network is not None:
            blocks = (extract(x) for x in training(exp, max_train))
            spaces[network["network"]] = extract(made), extract(x1), blocks
    found = {}
    for name, (ours, theirs, points) in spaces.items():
        tick = preemption.told(logbook.Progress(name, size, unit="examples"))
        both = distances.nearest(np.concatenate([ours, theirs]), points, k, on_block=tick)
        cuts = slice(0, len(ours)), slice(len(ours), None)
        found[name] = Found(*(Neighbours(*(a[cut] for a in both)) for cut in cuts))
    rows = [{"space": name} | _compared(each) for name, each in found.items()]
    figures = {name: _listed(each, min(shown, num)) for name, each in found.items()}
    figures |= {
        "rows": rows,
        "columns": "medians of the distance to the nearest training example; closer_than_1%: share "
        "of samples nearer than 99% of held-out examples; auroc: P(a held-out example is further "
        "from the training set than a sample), 0.5 where they are alike",
        "samples": num,
        "heldout": len(x1),
        "training_examples": size,
        "k": k,
        "network": network,
    }
    return Findings(figures, table(rows), _pictures(subject, made[:shown], found))


def _extractor(exp: Experiment, name: str) -> tuple[dict | None, Callable | None]:
    """What the network is, and images in [-1, 1] -> pool features; None where it has no weights.

    Raises:
      UserError: a network that was asked for by name cannot be had.
    """
    config = exp.config.copy_and_resolve_references()
    if name != "auto":
        config.evaluate.features = name
    try:
        asked = evaluation.metrics_of(("precision_recall",), exp.methods)
        judge = images.create_judge(config.evaluate, exp.mesh, asked)
    except UserError as error:
        if name != "auto" or config.evaluate.features != "auto":
            raise
        say(f"no neighbours in features: {error}")
        return None, None
    return card.of_features(judge), lambda x: statistics(exp, judge, x).features["pool"]


def _compared(found: Found) -> dict[str, float]:
    """Distances of samples to the training set beside those of held-out examples."""
    near, usual = found.samples.distance[:, 0], found.heldout.distance[:, 0]
    close = float(np.quantile(usual, 0.01))
    return {
        "samples": float(np.median(near)),
        "heldout": float(np.median(usual)),
        "ratio": float(np.median(near) / np.median(usual)),
        "closest_sample": float(near.min()),
        "closest_heldout": float(usual.min()),
        "closer_than_1%": float((near < close).mean()),
        "auroc": detection.auroc(near, usual),
    }


def _listed(found: Found, count: int) -> dict:
    """Quantiles of the distances, and the neighbours of samples 0 … count - 1."""
    index, distance = found.samples.index, found.samples.distance
    return {
        "samples": quantiles(distance[:, 0]),
        "heldout": quantiles(found.heldout.distance[:, 0]),
        "nearest": [
            {"sample": i, "index": index[i].tolist(), "distance": distance[i].tolist()}
            for i in range(count)
        ],
    }


def _pictures(subject: Subject, made: np.ndarray, found: dict[str, Found]) -> list:
    """Histograms of the distances; for images, the samples `made` beside their neighbours."""
    panel = "distance to the nearest in {}".format
    distances = {
        "held-out": {panel(name): each.heldout.distance[:, 0] for name, each in found.items()},
        "samples": {panel(name): each.samples.distance[:, 0] for name, each in found.items()},
    }
    pictures = [histograms(subject.picture("_distances"), distances)]
    if not subject.exp.pictures:
        return pictures
    examples = subject.exp.data.examples["train"]
    for name, each in found.items():
        columns = {"samples": made}
        for rank in range(each.samples.index.shape[1]):
            rows = each.samples.index[: len(made), rank]
            columns[f"nearest {rank + 1}"] = to_unit(examples.gather(rows)["x1"])
        path = subject.picture("" if name in ("pixels", "data") else "_features")
        title = f"nearest training images in {'latents' if name == 'data' else name}"
        shown = viewed(subject.exp, columns, len(made))
        pictures.append(image_rows(path, shown, len(made), title=title))
    return pictures


STUDY = Study(neighbours, straight=False)
