"""Inpainting: a part of held-out examples is painted anew, the rest stays (RePaint, 2201.09865)."""

import numpy as np

from genfield import rng
from genfield.errors import UserError
from genfield.figures.editing import conditionals
from genfield.figures.study import image_rows
from genfield.registry import NotNegativeInt, PositiveInt, choose
from genfield.study import editing
from genfield.study.subject import (
    SHOWN,
    Findings,
    Study,
    Subject,
    counter,
    drawn,
    sampler_from,
    source,
    table,
    training,
    viewed,
)

KNOWN = ("auto", "path", "still")
RESAMPLE = 10  # RePaint, appendix: r of its default schedule
SLICES = 4  # known values of a point's picture
NEAREST = 400  # points of the data that stand for the conditional law at a known value


def edit_inpaint(
    subject: Subject,
    *,
    mask: str = "auto",
    num: PositiveInt = 8,
    variations: PositiveInt = 3,
    resample: NotNegativeInt = 0,
    known: str = "auto",
    images: str | None = None,
    labels: tuple[str, ...] = (),
) -> Findings:
    """Paints a part of examples anew; the rest stays as it is, to the bit.

    mask: what is painted anew: left, right, top, bottom, center, or a .png or .npy whose white or
    true part it is; auto: the center of images, the right half of points. num: examples, held out
    where no images are named. variations: of each, from noises of their own. resample: how often
    each step is taken, noised back between (RePaint); 0: 10 where the source is normal and the
    sampler has a clock, else 1. known: of a sampler without a clock: path (partly noised, at the
    pace at which the sampler goes), still (as it is at every step), or auto: still of points.
    labels: by number or name, one for all or one an example.
    """
    exp, made = subject.exp, editing.editor(subject)
    choose("--known", known, KNOWN)
    name = ("right" if len(exp.data.shape) < 3 else "center") if mask == "auto" else mask
    hidden = editing.mask(name, exp.data.shape)
    repeats = _repeats(made, resample)
    given = editing.inputs(subject, num, images, labels)
    repeated = lambda a: None if a is None else np.repeat(a, variations, axis=0)
    x1, cond, count = repeated(given.x1), repeated(given.labels), len(given.x1) * variations
    noise = source(subject, count)
    tick = counter("samples", 2 * count)
    known = ("still" if len(exp.data.shape) == 1 else "path") if known == "auto" else known
    pace = editing.paced(subject) if made.times is None and known == "path" else None
    run = editing.running(subject, made, editing.inpainted(made, hidden, repeats, pace))
    out = run(subject.params, noise, x1, cond, tick=tick)
    free = sampler_from(subject)(subject.params, noise, cond, tick=tick)["x"]
    x = out["x"]
    editing.check_finite(x)
    differ = lambda a: float(np.sqrt(np.mean((a - x1)[:, hidden] ** 2)))
    by_example = x.reshape(-1, variations, *x.shape[1:])
    rows = [
        {"samples": "inpainted", "rmse_hidden": differ(x), "nfe": float(out["nfe"].mean())},
        {"samples": "not told the rest", "rmse_hidden": differ(free)},
    ]
    rows[0]["spread_hidden"] = float(by_example.std(1)[:, hidden].mean())
    rows[0]["changed_known"] = float(np.abs((x - x1)[:, ~hidden]).max())
    figures = {"rows": rows, "hidden": float(hidden.mean()), "mask": name, "resample": repeats}
    figures |= {"examples": len(given.x1), "labels": given.told, "known": _told(made, pace)}
    pictures = []
    if exp.pictures:
        shown = {"input": given.x1, "known": np.where(hidden, 0.0, given.x1)}
        shown |= {f"variation {i + 1}": by_example[:, i] for i in range(variations)}
        pictures.append(image_rows(subject.picture(""), viewed(exp, shown, SHOWN), SHOWN))
    elif exp.data.shape == (2,):
        each, held, data = _conditionals(subject, run, hidden, given.labels)
        figures["conditionals"] = each
        known = int(np.flatnonzero(~hidden)[0])
        pictures.append(conditionals(subject.picture(""), data, held, known))
    arrays = {"arr_0": editing.kept(exp, x), "inputs": editing.kept(exp, x1), "mask": hidden}
    arrays |= {} if cond is None else {"arr_1": cond}
    return Findings(figures, table([*rows, *figures.get("conditionals", [])]), pictures, arrays)


def _repeats(made: editing.Editor, resample: int) -> int:
    """How often each step is taken; UserError where a sampler or a source allows one time only."""
    able = made.normal and made.times is not None and not made.first.method.adaptive
    if resample > 1 and not able:
        raise UserError(
            "--resample noises a step back, which needs a normal source and a sampler with a clock "
            "and steps of its own: leave it out"
        )
    return resample or (RESAMPLE if able else 1)


def _told(made: editing.Editor, pace) -> str:
    """How the known part is held, in words."""
    if made.times is not None:
        return "at each time as the path makes it of data and noise"
    if pace is None:
        return "as it is at every step"
    return "as the path makes it of data and noise, at the pace of the sampler's own samples"


def _conditionals(subject: Subject, run, hidden: np.ndarray, labels) -> tuple:
    """Of known values among the data's: figures; (value, found, true) of the hidden number; data.

    The true conditional law is that of the NEAREST of some 10⁵ points of the data.
    """
    exp, known = subject.exp, int(np.flatnonzero(~hidden)[0])
    data = np.concatenate([np.asarray(part) for part in _points(exp)])
    quantiles = np.quantile(data[:, known], (np.arange(SLICES) + 0.5) / SLICES)
    noise, rows, held = source(subject, SLICES * NEAREST), [], []
    x1 = np.zeros((SLICES * NEAREST, 2), np.float32)
    x1[:, known] = np.repeat(quantiles, NEAREST)
    cond = None if labels is None else np.resize(labels, len(x1))
    x = run(subject.params, noise, x1, cond)["x"].reshape(SLICES, NEAREST, 2)
    for value, found in zip(quantiles, x, strict=True):
        nearest = np.argsort(np.abs(data[:, known] - value))[:NEAREST]
        true, found = np.sort(data[nearest, 1 - known]), np.sort(found[:, 1 - known])
        whole = np.sort(data[:: len(data) // NEAREST, 1 - known][:NEAREST])
        row = {"known": float(value), "w1": float(np.abs(true - found).mean())}
        row["w1_not_told"] = float(np.abs(true - whole).mean())
        row |= {"mean": float(found.mean()), "true_mean": float(true.mean())}
        row |= {"std": float(found.std()), "true_std": float(true.std())}
        rows.append(row)
        held.append((float(value), found, true))
    return rows, held, data


def _points(exp):
    """Points of the data, some 10⁵ where they are drawn."""
    if exp.data.draw is None:
        yield from training(exp, 100_000)
        return
    yield drawn(exp.data.draw, rng.stream(exp.config.seed + 1, "conditional"), 100_000)


STUDY = Study(edit_inpaint, straight=False)
