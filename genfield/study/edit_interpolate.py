"""Interpolation: the samples of noises between two noises."""

import numpy as np

from genfield import distances, sampling
from genfield.errors import UserError
from genfield.figures.editing import curves
from genfield.figures.study import image_rows
from genfield.registry import PositiveInt, choose
from genfield.study import editing
from genfield.study.subject import (
    Findings,
    Study,
    Subject,
    counter,
    sampler_from,
    source,
    table,
    training,
    viewed,
)

LINES = ("auto", "spherical", "linear")


def edit_interpolate(
    subject: Subject,
    *,
    num: PositiveInt = 8,
    weights: PositiveInt = 9,
    line: str = "auto",
    labels: tuple[str, ...] = (),
    max_train: PositiveInt = 50_000,
) -> Findings:
    """Samples from noises between two; the ends are those of plain sampling.

    num: pairs of noises. weights: how many noises of each pair, the ends among them. line:
    spherical (of normal noise), linear, or auto: as the source is. labels: by number or name, one
    for all or one a pair; left out, pair i has class i. max_train: training examples among which
    the nearest is looked for.
    """
    exp, made = subject.exp, editing.editor(subject)
    choose("--line", line, LINES)
    if weights < 2:
        raise UserError(f"--weights must be at least 2, the ends, got {weights}")
    if exp.data.starts is not None:
        raise UserError("this run starts at examples, not at noise: there are no noises to mix")
    spherical = made.normal if line == "auto" else line == "spherical"
    ends = source(subject, 2 * num)
    at = np.linspace(0, 1, weights).astype(np.float32)
    mixed = [
        np.asarray(sampling.interpolate(ends[:num], ends[num:], w, spherical=spherical)) for w in at
    ]
    start = np.stack(mixed, axis=1)  # [num, weights, *D]
    cond = _labels(exp, labels, num)
    flat = start.reshape(-1, *start.shape[2:])
    repeated = None if cond is None else np.repeat(cond, weights)
    tick = counter("samples", len(flat))
    pair = np.repeat(np.arange(num, dtype=np.int32), weights)  # whose noise a sampler's own is
    x = sampler_from(subject)(subject.params, flat, repeated, pair, tick=tick)["x"]
    editing.check_finite(x)
    reference = list(training(exp, max_train))
    nearest = distances.nearest(x, reference).distance.reshape(num, weights)
    x = x.reshape(start.shape)
    norm = np.sqrt((start.reshape(num, weights, -1) ** 2).mean(-1))
    length = lambda a: np.sqrt((a.reshape(num, len(a[0]), -1) ** 2).mean(-1))
    moved = np.pad(length(x[:, 1:] - x[:, :-1]), ((0, 0), (1, 0)), constant_values=np.nan)
    rows = [
        {
            "weight": float(w),
            "noise_rms": float(norm[:, i].mean()),
            "to_data": float(nearest[:, i].mean()),
            "moved": float(moved[:, i].mean()) if i else None,
        }
        for i, w in enumerate(at)
    ]
    figures = {"rows": rows, "pairs": num, "line": "spherical" if spherical else "linear"}
    pictures = []
    if exp.pictures:
        shown = {f"pair {i + 1}": x[i] for i in range(min(num, 8))}
        pictures.append(image_rows(subject.picture(""), viewed(exp, shown, weights), weights))
    elif exp.data.shape == (2,):
        pictures.append(curves(subject.picture(""), start, x, reference[0]))
    arrays = {"arr_0": editing.kept(exp, x.reshape(flat.shape)), "noise": flat}
    arrays |= {"weights": np.tile(at, num)} | ({} if repeated is None else {"arr_1": repeated})
    return Findings(figures, table(rows), pictures, arrays)


def _labels(exp, labels: tuple[str, ...], num: int):
    """One a pair."""
    if labels:
        return editing.labels_of(exp, labels, num)
    count = exp.data.num_classes
    return (np.arange(num) % count).astype(np.int32) if count else None


STUDY = Study(edit_interpolate, straight=False)
