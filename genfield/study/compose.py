"""Samples of a sum of fields (Equilibrium Matching, arXiv:2510.02300, section 5.4 and Fig. 11)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from genfield import distances, guidance, registry
from genfield.data import to_unit
from genfield.errors import UserError
from genfield.fields import Field
from genfield.figures.study import clouds, image_rows
from genfield.program import sampler
from genfield.program.experiment import Experiment
from genfield.program.open_run import open_run
from genfield.registry import PositiveInt, choose
from genfield.study.subject import (
    SHOWN,
    Findings,
    Study,
    Subject,
    counter,
    sampler_from,
    scorer,
    source,
    table,
    training,
    viewed,
    with_sampler,
)

LABELS = ("A", "B", "A + B")


def compose(
    subject: Subject,
    *,
    with_: str | None = None,
    classes: tuple[int, ...] = (),
    weights: tuple[float, ...] = (1.0, 1.0),
    on: str = "auto",
    num: PositiveInt = 64,
    max_train: PositiveInt = 10_000,
) -> Findings:
    """Samples of A, of B and of their sum (EqM section 5.4): two classes, or two checkpoints.

    with: the workdir of another run, whose newest checkpoint is B. classes: one label a model.
    weights: of A and B. on: direction or displacement (see guidance.compose); auto takes
    displacement under sphere tracing alone. max_train: training images that name a class.
    """
    exp = subject.exp
    runs = [(exp, subject.params, subject.step)]
    if with_ is not None:
        runs.append(_open_other(exp, with_))
    else:
        runs.append(runs[0])
        if len(classes) != 2:
            raise UserError("compose needs two classes of this run, as --classes=3,5, or --with=…")
    if len(weights) != 2:
        raise UserError(f"--weights needs two numbers, got {len(weights)}")
    on = _summed(on, exp)
    parts, params = _parts(runs, classes), [p for _, p, _ in runs]
    samples, rows = _sample(subject, parts, params, weights, on, num)
    if exp.data.pixels and classes and with_ is None:
        voted = _nearest_classes(exp, samples, max_train)
        for row in rows:
            for which, number in zip(LABELS, classes, strict=False):
                row[f"nearest is {which}"] = float(np.mean(voted[row["samples"]] == number))
    figures = {
        "rows": rows,
        "A": {"step": runs[0][2], "class": classes[0] if classes else None},
        "B": {"workdir": with_, "step": runs[1][2], "class": classes[1] if classes else None},
        "weights": weights,
        "on": on,
        "samples": num,
        "guidance": "of each part" if exp.config.sample.guidance_scale != 1 else "none",
    }
    pictures = []
    if exp.pictures:
        pictures.append(image_rows(subject.picture(""), viewed(exp, samples, 2 * SHOWN), 2 * SHOWN))
    elif exp.data.shape == (2,):
        targets = [next(iter(training(e))) for e, _, _ in runs]
        pictures.append(clouds(subject.picture(""), samples, targets))
    return Findings(figures, table(rows), pictures)


def _open_other(exp: Experiment, workdir: str) -> tuple[Experiment, Any, int]:
    """Another run's experiment, parameters and step; raises UserError where it does not fit."""
    other, params, step = open_run(workdir)
    for what, of in (
        ("the shape of the data", lambda e: e.data.shape),
        ("what the loss teaches", lambda e: e.objective.method.teaches),
        ("the clock", lambda e: e.objective.clock),
        ("whether there is a distance", lambda e: e.objective.output != "vector"),
    ):
        if of(exp) != of(other):
            raise UserError(
                f"--with {other.workdir} cannot be added to this run: {what} differs "
                f"({of(exp)} here, {of(other)} there)"
            )
    return other, params, step


def _summed(on: str, exp: Experiment) -> str:
    """What is summed under a sampler section: "direction" or "displacement".

    Raises:
      UserError: an unknown choice, or one that the sampler cannot follow.
    """
    methods = [stage.method for stage in sampler.stages(exp.config.sampler, exp.methods)]
    if on == "auto":
        [*products] = {method.product for method in methods}
        on = "displacement" if products == ["displacement"] else "direction"
    choose("--on", on, ("auto", *registry.PRODUCTS))
    energies = [m for m in methods if m.product == "direction" and m.needs_output is not None]
    if on == "displacement" and energies:
        raise UserError("--on=displacement has no energy for HMC: leave it out, or change sampler")
    return on


def _parts(runs: list, classes: tuple[int, ...]) -> list[Callable]:
    """For each of the runs: [params of each] -> its field, guided and under its class."""
    if classes and len(classes) != len(runs):
        raise UserError(f"--classes needs {len(runs)} labels, got {len(classes)}")
    section, parts = runs[0][0].config.sample, []
    scale = section.guidance_scale
    on = sampler.guided_product(runs[0][0].config, runs[0][0].methods)
    for i, (exp, _, _) in enumerate(runs):
        count = exp.data.num_classes
        if classes and not count:
            raise UserError(f"--classes: {exp.workdir} was trained without labels")
        if classes and not 0 <= classes[i] < count:
            raise UserError(
                f"--classes: {exp.workdir} has labels 0 to {count - 1}, not {classes[i]}"
            )
        if count and not classes and not exp.config.label_dropout:
            raise UserError(f"--classes is missing: {exp.workdir} knows no null class")
        label = jnp.int32(classes[i] if classes else count)

        def part(params, i=i, exp=exp, count=count, label=label) -> Field:
            field = exp.objective.field(params[i])
            if count and classes and scale != 1:
                field = guidance.classifier_free(field, scale, count, on=on)
            return guidance.conditioned(field, label) if count else field

        parts.append(part)
    return parts


def _sample(
    subject: Subject, parts: list[Callable], params: list, weights, on: str, num: int
) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Samples of A, B and A + B from the same noise, and a row each: NFE, scores under A and B."""
    exp = subject.exp
    alone = [_composed(exp, [part], [1.0], on) for part in parts]
    both = _composed(exp, parts, weights, on)
    x0, tick = source(subject, num), counter("samples", 3 * num)
    samples, rows = {}, []
    for label, one in zip(LABELS, [*alone, both], strict=True):
        out = sampler_from(subject._replace(exp=one))(params, x0, None, tick=tick)
        samples[label] = out["x"]
        rows.append({"samples": label, "nfe": float(out["nfe"].mean())})
    for which, part in zip(LABELS, parts, strict=False):
        score = scorer(exp._replace(objective=exp.objective._replace(field=part)))
        for row in rows:
            found = score(params, samples[row["samples"]], None)
            row |= {f"{name} of {which}": float(np.mean(v)) for name, v in found.items()}
    return samples, rows


def _composed(exp: Experiment, parts: list[Callable], weights, on: str) -> Experiment:
    """The experiment whose field is the sum of parts; its sampler guides no further."""

    def field(params) -> Field:
        return guidance.compose([part(params) for part in parts], weights, on=on)

    config = exp.config.copy_and_resolve_references()
    config.sample.guidance_scale = 1.0
    return with_sampler(exp, config)._replace(objective=exp.objective._replace(field=field))


def _nearest_classes(exp: Experiment, samples: dict, num: int) -> dict[str, np.ndarray]:
    """The label of the nearest training image of each sample."""
    examples = exp.data.examples["train"]
    batch = examples.gather(np.arange(min(num, examples.size)))
    points = to_unit(batch["x1"])
    finite = lambda x: np.nan_to_num(x, posinf=1e6, neginf=-1e6)
    index = {name: distances.nearest(finite(x), points).index[:, 0] for name, x in samples.items()}
    return {name: batch["label"][rows] for name, rows in index.items()}


STUDY = Study(compose, straight=False)
