"""Loggers beside metrics.jsonl: their contract, TensorBoard, and W&B without a network."""

import json
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from programs import TINY_DIGITS, run

from genfield import registry
from genfield.errors import UserError
from genfield.machine import logbook, loggers
from genfield.machine.loggers import tensorboard
from genfield.program.methods import package

# A scalar network on images: seconds a run.
SMALL = {"net": "{'name':'mlp','width':8,'depth':1,'output':'scalar'}", "evaluate.figures": True}
OWN = '''
"""A config with a logger of its own, which keeps what it is told in a file, and may fail."""
import json
import os

from genfield import configuration, registry


class Told:
    def __init__(self, workdir, *, config, step):
        self.path = workdir / "told.jsonl"
        self.tell("open", step, config["train"]["steps"])

    def tell(self, *what):
        if os.environ.get("TOLD_FAILS") == what[0]:
            raise ConnectionError("the line is dead")
        with self.path.open("a") as file:
            file.write(json.dumps(what) + "\\n")

    def write(self, step, split, values):
        self.tell("write", step, split, sorted(values))

    def images(self, step, name, path):
        self.tell("images", step, name, path.suffix)

    def close(self):
        self.tell("close")


METHOD = registry.Logger(
    name="told", make=Told, needs=None, install="", against=lambda: None, automatic=False
)
'''


@pytest.fixture
def own(tmp_path):
    """A config file of one's own: the tiny one with a logger."""
    folder = tmp_path / "own"
    folder.mkdir()
    body = TINY_DIGITS.read_text().split("NETWORKS = ")[1]
    (folder / "config.py").write_text(
        OWN + "\n\nfrom ml_collections import ConfigDict\n\nNETWORKS = " + body
    )
    return folder / "config.py"


def trained(workdir, config=TINY_DIGITS, names="('told',)", **more):
    return run(workdir, config, small=SMALL | {"train.loggers": names}, **more)


def told(workdir):
    return [json.loads(line) for line in (workdir / "told.jsonl").read_text().splitlines()]


def test_a_logger_is_told_all_that_metrics_jsonl_holds_and_goes_on_with_a_run(own, tmp_path):
    workdir = tmp_path / "run"
    assert trained(workdir, own, train__steps=2) == 0
    lines = told(workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    written = [["write", row.pop("step"), row.pop("split"), sorted(row)] for row in rows]
    assert [line for line in lines if line[0] == "write"] == written
    assert lines[0] == ["open", 0, 2] and lines[-1] == ["close"]
    pictures = [line for line in lines if line[0] == "images"]
    assert pictures == [["images", 2, "samples", ".png"], ["images", 2, "loss", ".png"]]
    assert (workdir / "own" / "config.py").exists()
    assert trained(workdir, own, train__steps=4) == 0
    more = told(workdir)[len(lines) :]
    assert more[0] == ["open", 2, 4] and {line[1] for line in more if line[0] == "write"} == {3, 4}


@pytest.mark.parametrize("moment", ["open", "write", "images", "close"])
def test_a_logger_that_fails_is_a_warning_and_ends_no_training(
    own, tmp_path, monkeypatch, capsys, moment
):
    monkeypatch.setenv("TOLD_FAILS", moment)
    workdir = tmp_path / "run"
    assert trained(workdir, own, train__steps=2) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "'told'" in warnings[0] and "the line is dead" in warnings[0]
    assert (workdir / "summary.json").exists()
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 4


def test_what_is_not_installed_or_unknown_is_refused_before_training(tmp_path, monkeypatch, capsys):
    assert trained(tmp_path / "a", names="('tensorbord',)") == 2
    assert "did you mean 'tensorboard'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(loggers, "installed", lambda record: record.name != "wandb")
    assert trained(tmp_path / "b", names="('auto','wandb')") == 2
    assert "pip install 'genfield[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_auto_is_tensorboard_where_it_is_and_nothing_where_it_is_not(monkeypatch):
    table = package()[registry.Logger]
    assert [r.name for r in loggers.named(("auto",), table)] == ["tensorboard"]
    assert [r.name for r in loggers.named((), table)] == []
    monkeypatch.setattr(loggers, "installed", lambda record: False)
    loggers.check(("auto",), table)
    assert loggers.named(("auto",), table) == []
    with pytest.raises(UserError, match="needs tensorboardX: pip install"):
        loggers.check(("tensorboard",), table)


def test_tensorboard_has_figures_and_pictures_and_a_full_disk_is_told(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    from tensorboardX.event_file_writer import EventsWriter

    record = package()[registry.Logger]["tensorboard"]
    picture = tmp_path / "step_1.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(picture)
    board = record.make(tmp_path, config={}, step=0)
    board.write(1, "train", {"loss": 0.5})
    board.images(1, "samples", picture)
    board.close()
    [events] = tmp_path.glob("events.*")
    assert b"train/loss" in events.read_bytes() and b"samples" in events.read_bytes()

    def full(self, event):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventsWriter, "write_event", full)
    opened = loggers.Loggers([record], tmp_path, {}, 0)
    for step in range(100):  # more than its queue holds: a writer that ended would block us
        opened.write(step, "train", {"loss": 0.5})
    opened.close()
    assert opened.opened == {}


def test_loggers_are_given_png_alone_and_say_so(tmp_path, capsys):
    seen = []
    board = SimpleNamespace(images=lambda step, name, path: seen.append(path.name))
    record = SimpleNamespace(name="board", make=lambda workdir, config, step: board)
    opened = loggers.Loggers([record], tmp_path, {}, 0)
    for name in ("a.png", "b.svg"):
        opened.images(1, "figure", tmp_path / name)
    assert seen == ["a.png"]
    assert f"board show no svg: see {tmp_path / 'b.svg'}" in "".join(capsys.readouterr())


def records(path):
    """The records of a W&B file: LevelDB's log of protobuf messages."""
    from wandb.proto import wandb_internal_pb2

    raw, at, whole = path.read_bytes(), 7, b""  # behind the file's own head
    while at + 7 <= len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        whole += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def history(workdir):
    """Rows that were logged, of all offline runs of a folder in turn, and the runs."""
    rows, runs = [], []
    for path in sorted(
        workdir.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime
    ):
        for record in records(path):
            if record.HasField("history"):
                items = record.history.item
                named = {".".join(i.nested_key) or i.key: i.value_json for i in items}
                rows.append({k: json.loads(v) for k, v in named.items() if v})
            if record.HasField("run"):
                runs.append(record.run)
    return rows, runs


def test_wandb_without_network_is_one_run_whose_steps_are_written_once(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    workdir = tmp_path / "my_run"
    names = "('wandb',)"
    assert trained(workdir, names=names, train__steps=2) == 0
    known = json.loads((workdir / "wandb.json").read_text())
    rows, runs = history(workdir)
    assert runs[0].display_name == "my_run" and runs[0].project == "genfield"
    assert runs[0].run_id == known["id"]
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["train"]["steps"] == 2 and config["loss"]["name"] == "distance_marching"
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == [1, 2]
    assert any(key.startswith("samples") for row in rows for key in row)
    assert list(workdir.glob("wandb/offline-run-*/files/media/images/samples*.png"))
    # Killed after step 4 but before its checkpoint: step 3 and 4 are computed again, not written.
    known["written"]["train"] = 4
    (workdir / "wandb.json").write_text(json.dumps(known))
    assert trained(workdir, names=names, train__steps=6) == 0
    rows, runs = history(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 5, 6]
    assert {r.run_id for r in runs} == {known["id"]}
    other = dict(names=names, train__steps=7, train__project="other")
    assert trained(workdir, **other) == 0  # an id is one of a project: told, and not moved
    assert "delete" in capsys.readouterr().out and len(history(workdir)[1]) == len(runs)


def test_wandb_without_an_account_is_refused_and_never_asks(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    import wandb

    wandb.teardown()  # what an earlier start of this process knows
    assert trained(tmp_path / "run", names="('wandb',)") == 2
    assert "run `wandb login`, or set WANDB_MODE=offline" in capsys.readouterr().err


def test_a_clock_that_jumps_back_keeps_tensorboard_going(tmp_path):
    board = tensorboard.TensorBoard(tmp_path, config={}, step=0)
    worker = board.board.file_writer.event_writer._worker
    for step in range(30):  # more than its queue holds
        worker._next_flush_time = time.time() + 1e8  # a flush that was planned before the jump
        board.write(step, "train", {"loss": 1.0})
    board.close()
    assert worker._next_flush_time <= time.time() + worker._flush_secs


def test_a_metrics_file_that_comes_to_sight_late_keeps_its_lines(tmp_path, monkeypatch, capsys):
    logbook.Metrics(tmp_path).write(3, "train", {"loss": 1.0})
    there, looks = Path.exists, iter([False, False])
    monkeypatch.setattr(Path, "exists", lambda path: next(looks, None) is None and there(path))
    logbook.Metrics(tmp_path, 4)
    assert next(looks, None) is None and not capsys.readouterr().out
    assert [row["step"] for row in logbook.read_metrics(tmp_path)] == [3]


def test_a_metrics_file_that_is_gone_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logbook, "SIGHT", 0.0)
    logbook.Metrics(tmp_path, 4)
    assert "metrics.jsonl is not there: its lines up to step 4" in capsys.readouterr().out


def rows_of_a_training(folder):
    """Lines up to step 4, and their sum; behind them one of an evaluation of its own."""
    metrics = logbook.Metrics(folder)
    for step in (2, 4):
        metrics.write(step, "train", {"loss": 1.0 / 3 + step})
    metrics.write(4, "eval", {"loss": 2.5})
    saved = metrics.sum()
    metrics.write(4, "sample", {"fd": 1.0})
    return folder / "metrics.jsonl", saved


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b"2.5", b"2.7"),
        lambda raw: raw[: raw.index(b'"eval"')],
        lambda raw: raw[: raw.index(b'"eval"')] + bytes(40),
        lambda raw: b"".join(raw.splitlines(keepends=True)[1:]),
    ],
    ids=["digit", "cut", "zeros", "line"],
)
def test_metrics_that_are_not_as_the_checkpoint_knows_them_are_told(
    change, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(logbook, "SIGHT", 0.0)
    path, saved = rows_of_a_training(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    logbook.Metrics(tmp_path, 4, saved=saved)
    assert f"{path} is damaged, or was changed" in capsys.readouterr().out


def test_metrics_that_are_whole_are_not_told(tmp_path, capsys):
    """Also behind lines that came since, and an evaluation that was made again."""
    _, saved = rows_of_a_training(tmp_path)
    for step, split, value in ((4, "sample", 3.0), (6, "train", 1.0)):
        metrics = logbook.Metrics(tmp_path, 6, saved=saved)
        metrics.write(step, split, {"loss": value})
    metrics = logbook.Metrics(tmp_path, 4, saved=saved)
    assert metrics.sum() == saved and not capsys.readouterr().out
    metrics.write(4, "eval", {"loss": 2.25})
    assert metrics.sum() != saved
    logbook.Metrics(tmp_path, 4, saved=metrics.sum())
    assert not capsys.readouterr().out
