"""Numbers that are not finite: the run stops at their step, keeps what is good, and replays it."""

import json
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from programs import run

from genfield import replay
from genfield.errors import UserError
from genfield.machine import checkpoint
from genfield.machine.checkpoint import Checkpoints
from genfield.program import config_io, experiment, fault, loop, open_run, own_files, train_step

from .injections import INJECTIONS, in_tree, injected

CONFIG = Path(__file__).with_name("steep.py")
STEP, ITEMS = 6, ("params", "ema", "optimizer")
QUICK = ("data", "ema", "second_moment")


def train(workdir, *extra, **fields) -> int:
    return run(workdir, CONFIG, *extra, small={}, **fields)


def made_again(workdir, capsys) -> tuple[int, str, str]:
    """The exit code of a replay, and what it says."""
    capsys.readouterr()
    code = replay.main(["replay", f"--workdir={workdir}"])
    return (code, *capsys.readouterr())


def states(workdir, step) -> list:
    return [checkpoint.load(workdir, step=step, item=item) for item in ITEMS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("numbers") / "whole"
    assert train(workdir) == 0
    return workdir


def check_stopped(name, workdir, capsys, whole):
    """Stopped at the step, with its cause; replayed; no checkpoint lost, none bad; resumed."""
    change, cause, leaf = INJECTIONS[name]
    with injected(change, STEP):
        assert train(workdir) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"step {STEP} is not finite, first its {cause}: " in error
    facts = json.loads((fault.folder_of(workdir, STEP) / fault.FILE).read_text())
    assert facts["fault"]["cause"] == cause and leaf in facts["fault"]["place"]["leaf"]
    code, out, _ = made_again(workdir, capsys)
    assert code == 0 and "the same fault, to the bit" in out and cause in out
    kept = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert kept == ([4] if cause in fault.BEFORE.values() else [4, STEP])
    for step in kept:
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(states(workdir, step)))
    assert train(workdir) == 0  # the same command, and nothing injected
    chex.assert_trees_all_equal(states(workdir, 12), states(whole, 12))


@pytest.mark.parametrize("name", QUICK)
def test_a_bad_number_stops_the_run_and_is_replayed(name, tmp_path, capsys, whole):
    check_stopped(name, tmp_path, capsys, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*INJECTIONS} - {*QUICK}))
def test_more_bad_numbers(name, tmp_path, capsys, whole):
    check_stopped(name, tmp_path, capsys, whole)


CONFIGURED = {  # fields, the first causes that may be, steps at most
    "gradient": (dict(loss__bad_step=STEP), ("gradient",), STEP),
    "rate": (
        dict(optimizer__learning_rate=1e6),
        ("loss", "mean loss", "gradient", "gradient norm"),
        11,
    ),
    "beyond": (
        dict(optimizer__name="sgd", optimizer__b1=0.0, optimizer__learning_rate=3e38),
        ("new parameters", "loss"),
        3,
    ),
    "bfloat16": (
        dict(net__dtype="bfloat16", optimizer__learning_rate=1e12),
        ("loss", "mean loss"),
        11,
    ),
}


@pytest.mark.parametrize(
    "name", ["gradient", *(pytest.param(n, marks=pytest.mark.slow) for n in [*CONFIGURED][1:])]
)
def test_a_step_that_diverges_is_replayed(name, tmp_path, capsys):
    """A NaN gradient of a finite loss, a rate of 1e6, one beyond float32, overflow in bfloat16."""
    fields, causes, last = CONFIGURED[name]
    assert train(tmp_path, **fields) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and any(f"first its {cause}: " in error for cause in causes)
    step = int(error.split("step ")[1].split(" ")[0])
    assert step <= last
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(states(tmp_path, step)))
    code, out, _ = made_again(tmp_path, capsys)
    assert code == 0 and "the same fault, to the bit" in out
    assert train(tmp_path, **fields) == 2  # from the checkpoint of that very step
    assert f"step {step} is not finite" in capsys.readouterr().err


def test_a_step_that_is_another_when_made_again_is_told(tmp_path, capsys):
    """As after a fault of the machine: the dump's numbers give a step that is finite."""
    with injected(INJECTIONS["data"][0], STEP):
        assert train(tmp_path) == 2
    folder = fault.folder_of(tmp_path, STEP)
    np.savez(folder / "batch.npz", step=np.int32(STEP), x1=np.ones((16, 2), np.float32))
    code, out, error = made_again(tmp_path, capsys)
    assert code == 2 and "every number of it is finite" in out
    assert error.count("\n") == 1 and "came from outside its numbers" in error
    for x1 in (np.ones((16, 3), np.float32), np.array(["x"] * 16)):  # such as no step takes
        np.savez(folder / "batch.npz", step=np.int32(STEP), x1=x1)
        code, _, error = made_again(tmp_path, capsys)
        assert code == 2 and error.count("\n") == 1 and "is damaged: batch.npz: " in error
    np.savez(folder / "batch.npz", step=np.zeros(2, np.int32), x1=np.ones((16, 2), np.float32))
    code, _, error = made_again(tmp_path, capsys)
    assert code == 2 and error.count("\n") == 1 and "is damaged" in error
    (folder / "batch.npz").write_bytes(b"PK")
    code, _, error = made_again(tmp_path, capsys)
    assert code == 2 and error.count("\n") == 1 and "is damaged" in error
    shutil.rmtree(folder / "checkpoints")
    np.savez(folder / "batch.npz", step=np.int32(STEP), x1=np.ones((16, 2), np.float32))
    code, _, error = made_again(tmp_path, capsys)
    assert code == 2 and error.count("\n") == 1 and f"no checkpoint of step {STEP}" in error


def test_dumps_are_few_and_a_disk_that_is_full_hides_no_fault(tmp_path, capsys, monkeypatch):
    for number in range(fault.KEPT):
        folder = fault.folder_of(tmp_path, 100 + number)
        folder.mkdir(parents=True)
        (folder / fault.FILE).write_text("{}")
    fault.folder_of(tmp_path, 1).mkdir()  # which a kill left unfinished
    with injected(INJECTIONS["parameters"][0], STEP):
        assert train(tmp_path) == 2
    assert "of older dumps step_100 went, as 3 are kept" in capsys.readouterr().err
    assert len(list((tmp_path / fault.FOLDER).iterdir())) == fault.KEPT

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.fault, "dump", full)
    with injected(INJECTIONS["parameters"][0], STEP):
        assert train(tmp_path) == 2
    error = capsys.readouterr().err
    assert "its dump could not be written" in error and "No space left" in error
    assert f"step {STEP}: " in error and error.count("\n") == 1


def test_without_a_dump_replay_is_one_line(whole, capsys):
    code, _, error = made_again(whole, capsys)
    assert code == 2 and error.count("\n") == 1 and "holds no dump" in error


def bad_checkpoint(whole, workdir):
    """A copy of a run whose newest checkpoint, of step 13, is as if an older version saved NaN."""
    shutil.copytree(whole, workdir)
    config = config_io.from_file(workdir / "config.json")
    exp = experiment.prepare(config, workdir, own_files.methods_of(workdir), reads_data=False)
    checkpoints = Checkpoints(workdir, keep=5, judged=False)
    state, meta = open_run.restore(exp, checkpoints)
    state = state._replace(ema=in_tree(state.ema, "last/bias", np.nan))
    checkpoints.save(13, train_step.held(state), meta)
    checkpoints.close()


def test_a_checkpoint_with_nan_is_no_checkpoint(whole, tmp_path, capsys):
    """Neither what a run goes on from nor what it samples, also where it is asked for."""
    workdir = tmp_path / "run"
    bad_checkpoint(whole, workdir)
    capsys.readouterr()
    assert train(workdir, "--mode=sample", "--step=13") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "ema/field/last/bias holds NaN or infinity" in error
    with pytest.warns(UserWarning, match="ema/field/last/bias holds NaN"):
        assert train(workdir, "--mode=sample") == 0
    assert "checkpoint of step 12" in capsys.readouterr().out


def test_parameters_with_nan_start_no_run(whole, tmp_path, capsys):
    workdir = tmp_path / "run"
    bad_checkpoint(whole, workdir)
    assert train(tmp_path / "next", initial_parameters=workdir) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "field/last/bias holds NaN or infinity" in error


def test_the_best_is_never_nan(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=1)
    for step, loss in enumerate((2.0, np.nan, 3.0)):
        checkpoints.save(step, {"params": {"w": jax.numpy.ones(3)}}, {}, {"loss": loss})
        checkpoints.wait()
    assert checkpoints.best_step() == 0 and checkpoints.steps() == [0, 2]
    with pytest.raises(checkpoint.NonFinite, match="params/w holds NaN or infinity"):
        checkpoints.save(3, {"params": {"w": jax.numpy.full(3, np.inf)}}, {})
    assert checkpoints.steps() == [0, 2]
    checkpoints.close()


@pytest.mark.parametrize("text", ["[]", "{", '{"fault": {}, "step": 6, "figures": {}}'])
def test_a_damaged_dump_is_one_line(tmp_path, text):
    (tmp_path / fault.FILE).write_text(text)
    with pytest.raises(UserError, match=r"^the dump .* is damaged"):
        fault.read(tmp_path, None)
