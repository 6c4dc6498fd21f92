"""What a run says at its end, and of a run that is at its end already."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from programs import SMALL, arguments, run

from genfield.main import main
from genfield.metrics import kernel
from genfield.metrics.images import Statistics
from genfield.program import closing, defaults, evaluate, methods

SHORT = SMALL | {"train.steps": 2, "checkpoint.every": 1, "evaluate.num_samples": 8}
SHORT |= {"evaluate.metrics": "('heldout_loss','point_cloud')", "evaluate.transport_points": 8}


def lines(results: dict, names: tuple, network=None, **fields) -> dict[str, list[str]]:
    """The table's rows by their first word, notes under "notes"."""
    section = defaults.base().evaluate
    section.update(fields)
    metrics = evaluate.metrics_of(names, methods.package())
    judge = network and SimpleNamespace(network=network)
    text = closing.table(results, {}, section, metrics, judge)
    rows = [row for row in text.splitlines() if not row.startswith(("(", "-", "metric"))]
    notes = [row for row in text.splitlines() if row.startswith("(")]
    return {row.split()[0]: row.split() for row in rows} | {"notes": notes}


INCEPTION = SimpleNamespace(name="inception_v3", trained=True)
EFFICIENT = SimpleNamespace(name="efficientnet_lite0", trained=True)


def test_a_run_that_measures_nothing_says_what_would():
    """Nothing is held out, and no other metric is asked for: no table without rows."""
    text = closing.table({}, {}, defaults.base().evaluate, [])
    assert "config.evaluate.metrics" in text and "\n" not in text


def test_the_table_says_which_way_is_better():
    names = ("heldout_loss", "point_cloud", "frechet", "kid", "inception_score", "precision_recall")
    results = dict.fromkeys(("loss", "w2", "fid", "kid", "inception_score", "recall", "nfe"), 1.0)
    rows = lines(results, names, INCEPTION)
    better = {name: rows[name][3] for name in results}
    assert better == {
        "loss": "lower",
        "w2": "lower",
        "fid": "lower",
        "kid": "lower",
        "inception_score": "higher",
        "recall": "higher",
        "nfe": "-",
    }
    figure = "fd_efficientnet_lite0"  # by another network it has another name, and the same side
    assert lines({figure: 2.0}, ("frechet",), EFFICIENT)[figure][3] == "lower"


def test_every_figure_of_image_metrics_has_a_side_at_most():
    for metric in methods.package()[methods.registry.Metric].values():
        assert not set(metric.smaller) & set(metric.larger)


@pytest.mark.parametrize(
    ("fields", "figure", "note"),
    [
        ({}, "loss", "(the paper also has fid 2: not measured)"),
        ({"paper_note": "of X"}, "fid", "(the paper's figures are of X)"),
        ({"num_samples": 1000}, "fid", "(of 1,000 samples; the paper's of 50,000"),
    ],
)
def test_what_keeps_a_figure_from_the_paper_s_is_said(fields, figure, note):
    told = lines({figure: 9.0}, ("frechet",), INCEPTION, paper={"fid": 2.0}, **fields)["notes"]
    assert any(line.startswith(note) for line in told)


def test_nothing_is_noted_where_nothing_stands_between():
    assert lines({"fid": 2.0}, ("frechet",), INCEPTION)["notes"] == []
    full = dict(paper={"fid": 2.0}, num_samples=50_000)
    assert lines({"fid": 2.0}, ("frechet",), INCEPTION, **full)["notes"] == []


def test_a_spread_of_one_part_is_left_out():
    features = np.random.default_rng(0).standard_normal((2, 40, 3)).astype(np.float32)
    sets = [Statistics(40, {}, {"pool": part}) for part in features]
    assert set(kernel.METHOD.compute(*sets)) == {"kid"}


def test_a_finished_run_is_not_measured_again(tmp_path, capsys):
    assert run(tmp_path, small=SHORT) == 0
    card, summary = ((tmp_path / name).read_text() for name in ("card.json", "summary.json"))
    rows = (tmp_path / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert run(tmp_path, small=SHORT) == 0
    told = capsys.readouterr().out
    assert "finished before: 2 steps" in told and "evaluating" not in told
    assert (tmp_path / "summary.json").read_text() == summary
    assert (tmp_path / "metrics.jsonl").read_text() == rows
    # What was asked for differently, or lost, is done.
    assert run(tmp_path, small=SHORT | {"evaluate.num_samples": 16}) == 0
    assert "finished before" not in capsys.readouterr().out
    (tmp_path / "card.json").unlink()
    assert main(arguments(tmp_path, small=SHORT | {"evaluate.num_samples": 16})) == 0
    assert "evaluating" in capsys.readouterr().out
    assert json.loads((tmp_path / "card.json").read_text())["metrics"].keys() == (
        json.loads(card)["metrics"].keys()
    )


def test_the_head_says_what_the_data_are(tmp_path, capsys):
    assert run(tmp_path / "moons", small=SHORT) == 0
    assert "data two_moons: drawn afresh at each step\n" in capsys.readouterr().out


def test_a_picture_shows_no_more_samples_than_are_asked_for():
    config = defaults.base()
    for num, shown in ((20, 20), (64, 64), (5000, 64)):
        config.sample.num = num
        assert evaluate.pictured(config) == shown
