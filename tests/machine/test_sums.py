"""What a run's files were at its end: what differs is told by name."""

import json

import pytest

from genfield.machine import sums

PICTURES = ("figures/loss.png", "samples/step_6.png")


@pytest.fixture
def run(tmp_path):
    for name in (*sums.OF, *PICTURES, "other.json", "samples/step_12_grid.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    sums.write(tmp_path)
    return tmp_path


def test_nothing_is_told_of_files_as_they_were(run, capsys):
    assert sums.changed(run) == [] and sums.tell(run) is None and not capsys.readouterr().out
    assert len(json.loads((run / sums.FILE).read_text())) == len(sums.OF) + 2
    (run / "other.json").write_text("x")
    (run / "figures" / "loss.png").unlink()  # somebody made room
    assert sums.changed(run) == []


@pytest.mark.parametrize("name", [*sums.OF, *PICTURES])
def test_a_file_that_changed_is_named(run, capsys, name):
    (run / name).write_text("x")
    assert sums.changed(run) == [name]
    sums.tell(run)
    told = f"{run / name} is damaged, or was changed" in capsys.readouterr().out
    made_anew = name in ("card.json", "card.md", "summary.json", "figures/loss.png")
    assert told != made_anew


@pytest.mark.parametrize("text", ["{", "[1]", '{"card.json": 3}'])
def test_damage_of_the_sums_themselves(run, text):
    (run / sums.FILE).write_text(text)
    assert sums.changed(run)
    sums.write(run)
    assert sums.changed(run) == []


def test_of_some_files_alone_the_others_keep_their_sums(run):
    (run / "config.json").write_text("x")
    (run / "card.json").write_text("y")
    sums.write(run, "card.json")
    assert sums.changed(run) == ["config.json"]
    sums.forget(run)
    assert sums.changed(run) == []
