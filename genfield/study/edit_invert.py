"""Inversion: data to noise along the flow, and back (DDIM, arXiv:2010.02502, section 5.4)."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from genfield import sampling
from genfield.errors import UserError
from genfield.fields import backwards, denoiser_field
from genfield.figures.editing import orders
from genfield.figures.study import image_rows, moves
from genfield.registry import PositiveInt
from genfield.study import editing
from genfield.study.subject import (
    SHOWN,
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


def edit_invert(
    subject: Subject,
    *,
    num_steps: tuple[PositiveInt, ...] = (),
    num: PositiveInt = 64,
    images: str | None = None,
    labels: tuple[str, ...] = (),
) -> Findings:
    """The noise of given examples, by the sampler's flow backwards, and what it gives again.

    For deterministic samplers with a clock. num_steps: of the sampler, each there and back; left
    out, a quarter, a half and all of the config's. num: examples, held out where no images are
    named. labels: for the way back: by number or name, one for all or one an example. Others than
    the examples' own make them anew as those; then the error is no error of reconstruction.
    """
    exp, made = subject.exp, editing.editor(subject)
    editing.check_invertible(made)
    given = editing.inputs(subject, num, images, (), noise=False)
    x1 = given.x1
    back = editing.labels_of(exp, labels, len(x1)) if labels else given.labels
    if made.first.method.adaptive and num_steps:
        raise UserError("--num_steps is not for a sampler that chooses its own steps")
    total = made.first.num_steps
    counts = num_steps or tuple(sorted({max(total // 4, 1), max(total // 2, 1), total}))
    counts = (None,) if made.first.method.adaptive else counts
    tick, rows = counter("samples", 2 * len(counts) * len(x1)), []
    for count in counts:
        now = made if count is None else editing.editor(subject, count)
        found = editing.running(subject, now, _upwards(now))
        noise = found(subject.params, x1, given.labels, tick=tick)
        again = _forwards(subject, count)(subject.params, noise["x"], back, tick=tick)
        editing.check_finite(again["x"])
        rmse = editing.distance(again["x"], x1)
        row = {} if count is None else {"num_steps": count}
        row |= {"rmse": float(rmse.mean()), "largest": float(rmse.max())}
        row |= {"noise_mean": float(noise["x"].mean()), "noise_std": float(noise["x"].std())}
        rows.append(row | {"nfe": float((noise["nfe"] + again["nfe"]).mean())})
    expected = source(subject, 4096)
    figures = {"rows": rows, "examples": len(x1), "labels": given.told}
    figures |= {"labels_back": "given" if labels else "the same"}
    figures |= {"source": {"mean": float(expected.mean()), "std": float(expected.std())}}
    pictures = [] if len(rows) < 2 else [orders(subject.picture("_steps"), rows)]
    if exp.pictures:
        shown = {"input": x1, "its noise / 2": noise["x"] / 2, "and back": again["x"]}
        shown = {name: x[:SHOWN] for name, x in viewed(exp, shown, SHOWN).items()}
        shown["difference x 10"] = 10 * np.abs(shown["and back"] - shown["input"]) - 1
        pictures.append(image_rows(subject.picture(""), shown, SHOWN))
    elif exp.data.shape == (2,):
        panels = {"data to noise": (x1, noise["x"]), "and back": (noise["x"], again["x"])}
        target = next(iter(training(exp)))
        pictures.append(moves(subject.picture(""), panels, target, noise["x"]))
    arrays = {"arr_0": editing.kept(exp, again["x"]), "noise": noise["x"]}
    arrays["inputs"] = editing.kept(exp, x1)
    return Findings(figures, table(rows), pictures, arrays)


def _upwards(made: editing.Editor) -> Callable:
    """run(keys, field, x1, cond) -> Samples whose x is noise, as the sampler begins with it."""
    first = made.first
    if first.method.levels is None:
        if first.method.adaptive:
            return lambda keys, field, x, cond: first.sampler(backwards(field), x, cond=cond)
        sampler = first.sampler
        if "times" in first.arguments:  # which are those of a way from the noise
            sampler = first.method.make(**first.arguments | {"times": "even"})
        return lambda keys, field, x, cond: sampling.sample(
            keys, backwards(field), x, sampler, num_steps=first.num_steps, cond=cond
        )
    if first.method.adaptive:
        if "reverse" not in first.arguments:
            raise UserError(
                f"sampler {first.method.name!r} has no argument 'reverse' to go back by"
            )
        return lambda keys, field, x, cond: first.sampler(field, x, cond=cond, reverse=True)
    levels = jnp.asarray(made.times[::-1].copy(), jnp.float32)
    climb, steps = sampling.ascent(levels), len(levels) - 1
    denoiser = denoiser_field if first.method.follows == "score" else lambda field: field

    def run(keys, field, x, cond):
        out = sampling.sample(keys, denoiser(field), x, climb, num_steps=steps, cond=cond)
        return out._replace(x=out.x / levels[-1])

    return run


def _forwards(subject: Subject, num_steps: int | None) -> Callable:
    """The run's sampler with a number of steps."""
    if num_steps is None:
        return sampler_from(subject)
    config = subject.exp.config.copy_and_resolve_references()
    config.sampler.num_steps = num_steps
    return sampler_from(subject._replace(exp=subject.exp._replace(config=config)))


STUDY = Study(edit_invert, straight=False)
