"""What a run's files were at its end: what differs is told by name."""

import json

import pytest

from genfield.machine import sums


@pytest.fixture
def run(tmp_path):
    for name in (*sums.OF, "figures/loss.png", "other.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    sums.write(tmp_path)
    return tmp_path


def test_nothing_is_told_of_files_as_they_were(run, capsys):
    assert sums.changed(run) == [] and not sums.tell(run) and not capsys.readouterr().out
    assert len(json.loads((run / sums.FILE).read_text())) == len(sums.OF) + 1
    (run / "other.json").write_text("x")
    (run / "figures" / "loss.png").unlink()  # somebody made room
    assert sums.changed(run) == []


@pytest.mark.parametrize("name", [*sums.OF, "figures/loss.png"])
def test_a_file_that_changed_is_named(run, capsys, name):
    (run / name).write_text("x")
    assert sums.changed(run) == [name]
    assert not sums.tell(run, "none of them") and sums.tell(run, name)
    assert f"{run / name} is damaged, or was changed" in capsys.readouterr().out


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
