"""What a run says at its end: the table of its figures, and what keeps them from the paper's."""

from collections.abc import Iterable, Iterator

from genfield.machine import sums
from genfield.machine.logbook import say
from genfield.machine.sharding import agreed
from genfield.machine.tables import columns
from genfield.metrics import images
from genfield.metrics.images import Judge
from genfield.program import card, checks, config_io, decoder
from genfield.program.evaluate import Evaluation, Evaluator
from genfield.program.experiment import Experiment
from genfield.program.open_run import load_state
from genfield.reading import json_file
from genfield.registry import Metric

OF_EVALUATION, PICTURES = (card.FILE, "card.md", "summary.json"), f"{sums.PICTURES}/"
PUBLISHED_SAMPLES = 50_000  # of which published figures of images are


def table(
    results: dict[str, float],
    spread: dict[str, float],
    section,
    metrics: Iterable[Metric],
    judge: Judge | None = None,
) -> str:
    """Metric, value, spread over the sampling seeds, which way is better, the paper's value.

    Below it stands what is known to keep a figure from the paper's.

    Args:
      results, spread: as `Evaluation` has them.
      section: the config's `evaluate`. metrics: that were measured. judge: of image metrics.
    """
    if not results:
        return "no figures: --config.evaluate.metrics=… names what --mode=evaluate measures"
    number = lambda values, name: f"{values[name]:.4g}" if name in values else "-"
    better = _better(metrics, judge)
    rows = [("metric", "value", "sd", "better", "paper")]
    rows += [
        (
            name,
            number(results, name),
            number(spread, name),
            better.get(name, "-"),
            number(section.paper, name),
        )
        for name in results
    ]
    return "\n".join([columns(rows), *_notes(results, section, judge)])


def _better(metrics: Iterable[Metric], judge: Judge | None) -> dict[str, str]:
    found = {}
    for metric in metrics:
        for side, figures in (("lower", metric.smaller), ("higher", metric.larger)):
            for figure in figures:
                network = judge.network if judge and metric.reads == "features" else None
                found[images.named(figure, network) if network else figure] = side
    return found


def _notes(results: dict[str, float], section, judge: Judge | None) -> Iterator[str]:
    """Lines on what keeps these figures from the paper's."""
    paper = dict(section.paper)
    lost = [name for name in paper if name not in results]
    if lost:
        yield f"(the paper also has {', '.join(f'{n} {paper[n]:g}' for n in lost)}: not measured)"
    if not paper:
        return
    if section.paper_note:
        yield f"(the paper's figures are {section.paper_note})"
    few = section.num_samples < PUBLISHED_SAMPLES
    if judge is not None and few and any(name in results for name in paper):
        yield (
            f"(of {section.num_samples:,} samples; the paper's of {PUBLISHED_SAMPLES:,}, which "
            "alone lowers a Fréchet distance)"
        )


def report(exp: Experiment, evaluator: Evaluator, out: Evaluation, made: dict, drawn: list) -> None:
    """The closing table, what made its figures, and where card and pictures are."""
    section = exp.config.evaluate
    say("\n" + table(out.results, out.spread, section, evaluator.metrics, evaluator.judge))
    notes = [f"(W2 on {section.transport_points:,} points)"] if "w2" in out.results else []
    notes += [line for line in (card.headline(made),) if line]
    notes += [] if out.decoding is None else [decoder.told(out.decoding)]
    say("\n".join([*notes, f"card: {exp.workdir / card.FILE}"]))
    say("\n".join(f"picture: {path}" for path in drawn))


def finished(exp: Experiment) -> bool:
    """Whether this very run is at its end, evaluated and all; says so, and what would go on.

    Another number of steps, another way to evaluate, or a missing card, and it is not.
    """
    folder, done = exp.workdir, False
    try:
        summary = json_file(folder / "summary.json")
        stored = config_io.to_dict(config_io.from_file(folder / "config.json"))
        same = stored == config_io.to_dict(checks.absolute(exp.config, exp.methods))
        there = (folder / card.FILE).exists() and (folder / "checkpoints").exists()
        done = same and there and summary["steps"] == exp.config.train.steps
    except (OSError, ValueError, KeyError, TypeError):
        pass
    damaged = [name for name in sums.changed(folder) if name in OF_EVALUATION or PICTURES in name]
    if done and damaged:
        say(f"{folder / damaged[0]} is damaged, or was changed since the run ended: made anew")
        done = False
    if not agreed(done):
        return False
    load_state(exp, None, False)  # raises where its checkpoints are damaged or its data others
    say(
        f"finished before: {exp.config.train.steps} steps, figures in {folder / card.FILE}. To go "
        "on, raise config.train.steps; to measure again, --mode=evaluate; to draw, --mode=sample"
    )
    return True
