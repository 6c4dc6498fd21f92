"""Image-to-image: samples from examples that are partly noise (SDEdit, arXiv:2108.01073)."""

import numpy as np

from genfield import distances
from genfield.errors import UserError
from genfield.figures.study import against, image_rows, moves
from genfield.registry import PositiveInt
from genfield.study import editing
from genfield.study.subject import (
    SHOWN,
    Findings,
    Study,
    Subject,
    counter,
    source,
    table,
    training,
    viewed,
)


def edit_vary(
    subject: Subject,
    *,
    strength: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    num: PositiveInt = 64,
    images: str | None = None,
    labels: tuple[str, ...] = (),
    max_train: PositiveInt = 50_000,
) -> Findings:
    """Examples partly noised and sampled on from there: the clock starts where the noise says.

    strength: 0 gives the example back, 1 is plain sampling. Between, a sampler with a clock takes
    that share of its steps, the last ones; one without takes all of them from (1-s) data + s noise.
    num: examples, held out where no images are named. labels: by number or name, one for all or
    one an example: other ones than the examples' own turn them into those. max_train: training
    examples among which the nearest is looked for.
    """
    exp, made = subject.exp, editing.editor(subject)
    for s in strength:
        if not 0 <= s <= 1:
            raise UserError(f"--strength must lie between 0 and 1, got {s:g}")
    given = editing.inputs(subject, num, images, labels)
    x1, x0 = given.x1, source(subject, len(given.x1))
    reference = list(training(exp, max_train))
    to_data = lambda x: float(distances.nearest(x, reference).distance.mean())
    tick, rows, moved = counter("samples", len(strength) * len(x1)), [], {}
    for s in strength:
        start, out, told = _edited(subject, made, s, x0, given, tick)
        editing.check_finite(out)
        rmse = editing.distance(out, x1).mean()
        rows.append({"strength": s, "rmse": float(rmse), "to_data": to_data(out)} | told)
        moved[s] = start, out
    figures = {"rows": rows, "examples": len(x1), "labels": given.told, "to_data": to_data(x1)}
    pictures = []
    if len(rows) > 1:
        pictures.append(against(subject.picture("_curves"), rows, "strength", ("rmse", "to_data")))
    if exp.pictures:
        shown = {"input": x1} | {f"strength {s:g}": out for s, (_, out) in moved.items()}
        pictures.append(image_rows(subject.picture(""), viewed(exp, shown, SHOWN), SHOWN))
    elif exp.data.shape == (2,):
        panels = {f"strength {s:g}": (x1, out) for s, (_, out) in moved.items()}
        pictures.append(moves(subject.picture(""), panels, reference[0]))
    arrays = {"arr_0": editing.kept(exp, np.concatenate([out for _, out in moved.values()]))}
    arrays |= {"inputs": editing.kept(exp, x1), "strength": np.repeat(strength, len(x1))}
    return Findings(figures, table([*rows, {"to_data": figures["to_data"]}]), pictures, arrays)


def _edited(subject: Subject, made, strength: float, x0, given: editing.Inputs, tick) -> tuple:
    """Where samples started, where they ended, and what is told of it."""
    if strength == 0:
        tick(len(x0))
        return given.x1, given.x1, {"steps": 0, "nfe": 0.0}
    noised, run, told = editing.partly(made, strength)
    start = np.asarray(noised(x0, given.x1), np.float32)
    over = editing.running(subject, made, run)
    out = over(subject.params, start, given.labels, tick=tick)
    return start, out["x"], told | {"nfe": float(out["nfe"].mean())}


STUDY = Study(edit_vary, straight=False)
