"""What a training says of its speed: parts of a step, MFU, goodput, a trace, two steps ahead."""

import gzip
import json
import threading

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from programs import MOONS, OF_THE_CLOCK, TINY_DIGITS, run

from genfield import configuration
from genfield.machine import clock as clocks
from genfield.machine import flops, logbook
from genfield.machine.trace import Trace
from genfield.plan import shapes
from genfield.program import config_io, experiment, loop, optimizer, speed

PEAK = 1e11
FIELDS = dict(
    train__steps=12,
    train__log_every=4,
    train__eval_every=6,
    train__peak_flops=PEAK,
    checkpoint__every=5,
    profile="(7,9)",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    assert run(workdir, **FIELDS) == 0
    return workdir


def rows(workdir, split: str) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def flops_of(exp) -> float:
    """As the train step's jaxpr has them."""
    step = experiment.jit_train_step(exp)
    return sum(flops.count(step.trace(exp.abstract, shapes.batch(exp)).jaxpr).values())


def test_lines_part_the_time_of_a_step(trained):
    config = config_io.from_file(trained / "config.json")
    needed = flops_of(experiment.prepare(config, trained, devices=jax.devices()[:1]))
    assert len(rows(trained, "train")) == 3
    for row in rows(trained, "train"):
        parts = [row[name] for name in OF_THE_CLOCK[2:5]]
        assert min(parts) > 0 and sum(parts) <= row["step_seconds"] * 1.001
        assert row["mfu"] == pytest.approx(needed / PEAK / row["step_seconds"], rel=2e-3)
    assert not any(name in row for row in rows(trained, "eval") for name in OF_THE_CLOCK)


def test_all_of_the_wall_time_has_a_cause(trained):
    summary = json.loads((trained / "summary.json").read_text())
    seconds = summary["seconds"]
    assert seconds.keys() <= {"steps", *clocks.CAUSES}
    assert {"start", "compiling", "evaluation", "checkpoint", "profile"} <= seconds.keys()
    assert sum(seconds.values()) == pytest.approx(summary["wall_time_s"], abs=0.05)
    share = seconds["steps"] / sum(seconds.values())
    assert summary["goodput"] == pytest.approx(share, abs=2e-3)
    assert summary["step_seconds"] * 12 == pytest.approx(seconds["steps"], rel=0.3)
    assert 0 < summary["mfu"] and "xla_flags" in summary and "compilation_cache" in summary


def test_the_trace_holds_the_steps_that_were_asked_for(trained):
    [file] = (trained / "profile" / "plugins" / "profile").glob("*/*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    steps = [int(e["args"]["step_num"]) for e in events if e.get("name") == "train"]
    assert sorted(steps) == [7, 8, 9]
    names = {event.get("name") for event in events}
    assert {"data", "dispatch", "device", "loop"} <= names
    assert len(list(file.parent.glob("*.xplane.pb"))) == 1


def test_a_start_adds_to_what_the_ones_before_spent(trained, capsys):
    before = json.loads((trained / "summary.json").read_text())
    capsys.readouterr()
    assert run(trained, **(FIELDS | {"train__steps": 16, "train__peak_flops": 0})) == 0
    said = capsys.readouterr().out
    assert "profile: steps (7, 9) are behind" in said and "% of it in steps" in said
    after = json.loads((trained / "summary.json").read_text())
    for cause in ("start", "compiling"):
        assert after["seconds"][cause] > before["seconds"][cause]
    assert "mfu" not in after and "mfu" not in rows(trained, "train")[-1]  # of a CPU: unknown


def test_an_older_run_keeps_the_time_that_it_did_not_part(trained):
    told = clocks.told({"earlier_version": 5.0, "device": 3.0, "start": 1.0})
    assert told["goodput"] == 0.75 and told["seconds"]["earlier_version"] == 5


def test_the_loop_stays_two_steps_ahead_and_waits_for_nothing_else(tmp_path, monkeypatch):
    """Figures of a step are read when two others were handed over; also where a line is due."""
    events, make, get = [], experiment.jit_train_step, jax.device_get

    def jitted(exp):
        step = make(exp)

        class Watched:
            trace = step.trace

            def __call__(self, state, batch):
                events.append(("sent", int(batch["step"])))
                return step(state, batch)

        return Watched()

    def read(tree):
        if isinstance(tree, dict) and "loss" in tree:
            events.append(("read", len([e for e in events if e[0] == "read"])))
        return get(tree)

    monkeypatch.setattr(experiment, "jit_train_step", jitted)
    monkeypatch.setattr(loop.jax, "device_get", read)
    fields = dict(train__steps=9, train__log_every=2, optimizer__schedule="cosine")
    assert run(tmp_path, checkpoint__every=100, **fields) == 0
    sent = [("sent", i) for i in range(9)]
    expected = sent[:2]
    for i in range(7):
        expected += [sent[i + 2], ("read", i)]
    assert events == [*expected, ("read", 7), ("read", 8)]
    config = config_io.from_file(tmp_path / "config.json")
    schedule = optimizer.schedule(config.optimizer, 9)
    for row in rows(tmp_path, "train"):
        assert row["learning_rate"] == float(schedule(row["step"] - 1))


def test_steps_go_on_while_a_picture_is_drawn(tmp_path, monkeypatch):
    """A checkpoint alone waits, or a kill would lose it; loggers get it before the next line."""
    begun, went_on, make, draw = [], threading.Event(), experiment.jit_train_step, loop.figures
    order, write = [], logbook.Metrics.write

    def jitted(exp):
        step = make(exp)

        def watched(state, batch):
            if begun:
                went_on.set()
            return step(state, batch)

        return watched

    def drawn(path, images):
        begun.append(path.name)
        assert path.name != "step_2.png" or went_on.wait(60)
        return image_grid(path, images)

    def written(self, step, split, values):
        order.append((step, split))
        write(self, step, split, values)

    image_grid = draw.image_grid
    monkeypatch.setattr(experiment, "jit_train_step", jitted)
    monkeypatch.setattr(loop.figures, "image_grid", drawn)
    monkeypatch.setattr(logbook.Metrics, "write", written)
    monkeypatch.setattr(
        logbook.Metrics, "picture", lambda self, step, name, path: order.append((step, path.name))
    )
    small = {"train.steps": 4, "train.log_every": 2, "train.eval_every": 2, "checkpoint.every": 4}
    small |= {"train.eval_samples": 4, "sample.num": 4, "evaluate.figures": False}
    small |= {"evaluate.metrics": "('heldout_loss',)"}
    assert run(tmp_path, TINY_DIGITS, small=small) == 0
    assert begun == ["step_2.png", "step_4.png"] and went_on.is_set()
    assert (tmp_path / "samples" / "step_2.png").exists()
    assert order[:4] == [(2, "train"), (2, "eval"), (2, "step_2.png"), (4, "train")]


def test_a_profiler_that_fails_ends_no_training(tmp_path, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise RuntimeError("no permission to count\nmore of it")

    monkeypatch.setattr(jax.profiler, "start_trace", refuse)
    trace = Trace((3, 4), tmp_path)
    assert trace.begins(3) and not trace.begins(2)
    trace.start()
    assert capsys.readouterr().out.endswith("are not traced: no permission to count\n")
    assert not trace.runs and not trace.begins(4)
    assert trace.ends(4)
    trace.stop()
    assert capsys.readouterr().out == "" and not trace.begins(4)


def test_all_processes_wait_for_the_device_where_the_first_traces(tmp_path, monkeypatch):
    """What they do together keeps its place among the steps: else they would wait for ever."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax.profiler, "start_trace", None)  # which only the first one calls
    monkeypatch.setattr(jax.profiler, "stop_trace", None)
    trace, waits = Trace((3, 4), tmp_path), []
    for step in range(1, 7):
        if trace.begins(step):
            waits.append(step)
            trace.start()
        if trace.ends(step):
            waits.append(step)
            trace.stop()
    assert waits == [3, 4]


def tiny(remat: str) -> ConfigDict:
    config = configuration.base()
    config.data = ConfigDict({"name": "digits"})
    config.net = ConfigDict(dict(name="sit", depth=1, width=16, num_heads=2, remat=remat))
    config.batch_size, config.train.peak_flops = 8, PEAK
    return config


def test_what_is_computed_again_is_no_use(tmp_path):
    plain, exp = (experiment.prepare(tiny(remat), tmp_path) for remat in ("none", "full"))
    found = speed.peak_seconds(exp, None, exp.abstract, shapes.batch(exp))
    assert found == pytest.approx(flops_of(plain) / PEAK)
    assert flops_of(exp) > flops_of(plain)


def test_counting_traces_no_second_time(tmp_path):
    config = configuration.base()
    config.data, config.train.peak_flops = ConfigDict({"name": "two_moons"}), PEAK
    exp, traced = experiment.prepare(config, tmp_path), []

    def function(state, batch):
        traced.append(1)
        return state["x"] @ batch["x"]

    step, state, batch = jax.jit(function), {"x": np.ones((3, 4))}, {"x": np.ones((4, 5))}
    assert speed.peak_seconds(exp, step, state, batch) == pytest.approx(2 * 3 * 4 * 5 / PEAK)
    step(state, batch)
    assert len(traced) == 1


def test_without_a_peak_nothing_is_counted(tmp_path):
    config = configuration.base()
    config.data = ConfigDict({"name": "two_moons"})
    exp = experiment.prepare(config, tmp_path)
    assert speed.peak_seconds(exp, None, None, {}) is None


@pytest.mark.parametrize("steps", ["(0,3)", "(5,3)", "(3,)", "(1.5,3)", "(3,21)"])
def test_steps_to_trace_that_cannot_be_are_one_line(steps, tmp_path, capsys):
    assert run(tmp_path, MOONS, profile=steps) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "config.profile" in error
