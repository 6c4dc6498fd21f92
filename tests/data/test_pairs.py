"""Pairs of noise and sample: drawn by the program, each once, whatever stops it, and read back."""

import contextlib
import io
import json
import random
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from programs import ROOT, smoke, start

from genfield import data, sampling
from genfield.errors import UserError
from genfield.main import main
from genfield.program import config_io, evaluate, experiment, generate
from genfield.program.open_run import open_run
from genfield.sampling import schedule

EDM, LINES = (ROOT / "configs" / f"{name}_two_moons.py" for name in ("edm", "lines"))
NUM, SHARD = 150, 40
TEACHER = {
    **{"net.width": 16, "net.depth": 1, "batch_size": 16, "train.steps": 4, "train.log_every": 2},
    **{"sampler.num_steps": 3, "sample.batch_size": 16, "train.eval_batches": 1},
    **{"evaluate.num_samples": 32, "evaluate.transport_points": 32, "evaluate.repeats": 1},
    **{"evaluate.figures": False},
}
DRAWING = {"sample.num": NUM, "sample.shard_size": SHARD}


def command(workdir, *flags, fields) -> list[str]:
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["genfield", f"--workdir={workdir}", *flags, *overrides]


def call(workdir, *flags, fields) -> tuple[int, str]:
    """The program in this process: its exit code and all it says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return main(command(workdir, *flags, fields=fields)), said.getvalue()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of a few steps, and its pairs."""
    workdir = tmp_path_factory.mktemp("teacher")
    code, out = call(workdir, f"--config={EDM}", fields=TEACHER)
    assert code == 0, out
    code, out = call(workdir, "--mode=pairs", fields=DRAWING)
    assert code == 0, out
    return workdir


def folder(workdir):
    return workdir / "pairs" / "step_4"


def arrays(workdir):
    return {name: np.load(folder(workdir) / f"{name}.npy") for name in ("x0", "x1", "nfe")}


def test_each_pair_is_a_noise_and_what_the_sampler_makes_of_it(teacher):
    found = arrays(teacher)
    assert found["x0"].shape == found["x1"].shape == (NUM, 2)
    assert set(found["nfe"].tolist()) == {5}  # three Heun steps
    assert len(np.unique(found["x0"], axis=0)) == NUM
    exp, params, _ = open_run(teacher)
    run = jax.jit(lambda x: exp.sampler(jax.random.key(9), exp.objective.field(params), x, None).x)
    np.testing.assert_allclose(run(found["x0"]), found["x1"], rtol=1e-4, atol=1e-3)
    manifest = json.loads((folder(teacher) / "manifest.json").read_text())
    sampler = manifest["settings"]["sampler"]
    assert manifest["num"] == NUM and manifest["nfe"] == 5
    assert sampler["name"] == "edm_heun" and sampler["sigma_max"] == 80
    assert (
        manifest["settings"]["parameters_digest"]
        and not folder(teacher).with_name("step_4_shards").exists()
    )


def test_no_sample_starts_from_the_noise_of_a_pair(teacher, tmp_path):
    """Else a student would be measured on what it was trained on; pairs of a student neither."""
    x0 = {tuple(row) for row in arrays(teacher)["x0"]}
    config = smoke(config_io.load(str(LINES)))
    config.data.path = str(folder(teacher))
    student = experiment.prepare(config, tmp_path)
    for exp, purpose in (
        (open_run(teacher)[0], {"trace": 1}),
        (student, {"trace": 1}),
        (student, {"starts": True}),
    ):
        run = generate.make_generator(exp._replace(sampler=still), **purpose)
        seed = exp.config.seed + exp.config.sample.seed
        out, _ = run(exp.init().params, seed, np.arange(NUM + 2))  # 8 devices divide 152
        starts = out.trace[0] if "trace" in purpose else out.info["x0"]
        assert not x0 & {tuple(row) for row in np.asarray(starts)}


def test_a_second_round_keeps_the_source(teacher, tmp_path):
    """Pairs of a flow from another source: what learns from them is sampled from that source."""
    copy = tmp_path / "pairs"
    shutil.copytree(folder(teacher), copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest["settings"]["source"] == "normal"
    manifest["settings"]["source"] = "eight_gaussians"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    config = smoke(config_io.load(f"{LINES}:flow"))
    config.data.path = str(copy)
    exp = experiment.prepare(config, tmp_path / "flow")
    start = jax.device_get(exp.data.draw_source(jax.random.key(0), 500))
    np.testing.assert_allclose(np.linalg.norm(start, axis=1).mean(), 5, atol=0.5)
    assert exp.data.source == "eight_gaussians"
    config = smoke(config_io.load(f"{LINES}:2"))
    config.data.path = str(copy)
    with pytest.raises(UserError, match="adds normal noise"):
        experiment.prepare(config, tmp_path / "lines")


def test_points_are_compared_with_what_they_should_be_like(teacher, tmp_path):
    """Not with the teacher's samples."""
    config = smoke(config_io.load(f"{LINES}:2"))
    config.data.path = str(folder(teacher))
    exp = experiment.prepare(config, tmp_path)
    points = evaluate.target_points(exp, 0, 2_000)
    assert points.shape == (2_000, 2) and np.abs(points).max() < 6.5
    moons = np.asarray(data.DISTRIBUTIONS["two_moons"](jax.random.key(1), 2_000))
    np.testing.assert_allclose(points.mean(0), moons.mean(0), atol=0.2)
    assert "real" not in next(exp.data.train(0))


def still(key, field, x, cond=None, trace=None):
    """A sampler that leaves its noise as it is."""
    taken = None if trace is None else x[None]
    return sampling.Samples(x, jax.numpy.zeros(len(x)), taken, {})


def test_lost_shards_are_drawn_again_bit_for_bit(teacher, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(teacher, workdir)
    whole = arrays(workdir)
    # As a kill leaves it: two shards finished, one damaged, no manifest of the end.
    shards = folder(workdir).with_name("step_4_shards")
    shards.mkdir()
    for number in (0, 2):
        rows = slice(number * SHARD, (number + 1) * SHARD)
        np.savez(shards / f"{number:06}.npz", **{k: v[rows] for k, v in whole.items()})
    (shards / "000001.npz").write_bytes(b"half a shard")
    shutil.rmtree(folder(workdir))
    code, out = call(workdir, "--mode=pairs", fields=DRAWING)
    assert code == 0, out
    assert f"{2 * SHARD} of {NUM} pairs are there already" in out
    for name, values in arrays(workdir).items():
        np.testing.assert_array_equal(values, whole[name])


def test_drawing_again_says_that_they_are_there(teacher):
    code, out = call(teacher, "--mode=pairs", fields=DRAWING)
    assert code == 0 and "already drawn" in out
    code, out = call(teacher, "--mode=pairs", fields=DRAWING | {"sample.num": NUM + 1})
    assert code == 2 and "differ in num" in out


def test_pairs_of_an_adaptive_solver(teacher, tmp_path):
    workdir = tmp_path / "adaptive"
    shutil.copytree(teacher, workdir)
    sampler = "{'name': 'probability_flow', 'rtol': 1e-2, 'atol': 1e-2}"
    fields = {"sample.num": 20, "sample.name": "flow", "sampler": sampler}
    code, out = call(workdir, "--mode=pairs", fields=fields)
    assert code == 0, out
    settings = json.loads((workdir / "pairs" / "flow" / "manifest.json").read_text())["settings"]
    found = settings["sampler"]
    assert found["method"] == "heun_adaptive" and found["rtol"] == 1e-2


def test_a_sampler_with_noise_of_its_own_is_refused(teacher):
    code, out = call(
        teacher, "--mode=pairs", fields=DRAWING | {"sampler.churn": 1.0, "sample.name": "noisy"}
    )
    assert code == 2 and "deterministic" in out


def read(teacher, **fields):
    return data.create(
        {"name": "pairs", "path": str(folder(teacher)), **fields}, batch_size=8, seed=0
    )


def test_pairs_are_read_by_row(teacher):
    found, source = arrays(teacher), read(teacher)
    assert source.shape == (2,) and source.sizes == {"train": NUM - 15, "test": 15}
    place = {tuple(x0): i for i, x0 in enumerate(found["x0"])}
    batches = source.train(0)
    seen = []
    for _ in range((NUM - 15) // 8):
        batch = next(batches)
        rows = [place[tuple(x0)] for x0 in batch["x0"]]
        np.testing.assert_array_equal(batch["x1"], found["x1"][rows])
        seen += rows
    assert len(set(seen)) == len(seen)
    later = read(teacher).train(3)
    np.testing.assert_array_equal(next(later)["x0"], found["x0"][seen[24:32]])


def test_training_on_pairs_uses_their_noise(teacher, tmp_path):
    for variant in ("2", "flow"):
        config = smoke(config_io.load(f"{LINES}:{variant}"))
        config.data.path = str(folder(teacher))
        exp = experiment.prepare(config, tmp_path / variant)
        batch = next(exp.data.train(0))
        drawn = exp.objective.draw(jax.random.key(0), batch)
        np.testing.assert_array_equal(drawn.sample.x0, batch["x0"])
        loss, _ = exp.objective(jax.random.key(0), exp.init().params, batch)
        assert np.all(np.isfinite(loss))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("manifest.json", None, "has finished"),
        ("x0.npy", None, "cannot read"),
        ("manifest.json", "{}", "has finished"),
        ("manifest.json", "[]", "has finished"),
        ("manifest.json", '{"num": 1, "settings": {}}', "has finished"),
    ],
)
def test_damaged_pairs_are_one_line(teacher, tmp_path, name, text, words):
    shutil.copytree(folder(teacher), tmp_path / "pairs")
    (tmp_path / "pairs" / name).unlink()
    if text is not None:
        (tmp_path / "pairs" / name).write_text(text)
    with pytest.raises(UserError, match=words):
        data.create({"name": "pairs", "path": str(tmp_path / "pairs")}, batch_size=8, seed=0)


def test_a_schedule_draws_its_levels_alike():
    from genfield.sampling.diffusion import noise_levels

    levels = np.asarray(noise_levels(18))[[0, 3, 5]]
    drawn = np.asarray(schedule((0, 3, 5))(jax.random.key(0), 3000))
    counts = [np.isclose(drawn, level).sum() for level in levels]
    assert sum(counts) == 3000 and min(counts) > 900
    with pytest.raises(ValueError, match="rise from 0"):
        schedule((1, 2))


MANY = {"sample.num": 5_000, "sample.shard_size": 50, "sample.name": "many"}
MANY |= {"sampler.num_steps": 200}  # slow enough to be killed often


def many(devices: int) -> dict:
    """Batches of 16, which do not divide a shard: a sample drawn again could change its place."""
    return MANY | {"sample.batch_size": 16 // devices}


def draw_undisturbed(teacher, workdir, devices: int):
    """The pairs of one process that nobody stopped."""
    shutil.copytree(teacher, workdir)
    process = start(command(workdir, "--mode=pairs", fields=many(devices)), devices)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return {n: np.load(workdir / "pairs" / "many" / f"{n}.npy") for n in ("x0", "x1", "nfe")}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_twenty_kills_lose_and_repeat_no_pair(teacher, tmp_path, devices):
    """kill -9 at random moments while 5,000 pairs are drawn: each once, bit for bit."""
    whole = draw_undisturbed(teacher, tmp_path / "whole", devices)
    killed = tmp_path / "killed"
    shutil.copytree(teacher, killed)
    moments, kills = random.Random(devices), 0
    shards = lambda: len(list((killed / "pairs" / "many_shards").glob("*.npz")))
    for _ in range(200):
        before, quiet = shards(), {"stdout": subprocess.DEVNULL}
        process = start(command(killed, "--mode=pairs", fields=many(devices)), devices, **quiet)
        while process.poll() is None and shards() == before:
            time.sleep(0.005)
        try:
            process.wait(timeout=moments.uniform(0.0, 0.05))  # it is drawing now
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        if process.returncode == 0:
            if kills >= 20:
                break
            shutil.rmtree(killed / "pairs")  # it was done too soon: again
            kills = 0
    assert kills >= 20
    for name, values in whole.items():
        found = np.load(killed / "pairs" / "many" / f"{name}.npy")
        np.testing.assert_array_equal(found, values)
    assert len(np.unique(np.load(killed / "pairs" / "many" / "x0.npy"), axis=0)) == 5_000


@pytest.mark.slow
def test_one_and_eight_devices_draw_the_same_pairs(teacher, tmp_path):
    """The noises to the bit; the samples to rounding, for XLA compiles other programs."""
    one, eight = (draw_undisturbed(teacher, tmp_path / str(n), n) for n in (1, 8))
    np.testing.assert_array_equal(one["x0"], eight["x0"])
    np.testing.assert_allclose(one["x1"], eight["x1"], rtol=1e-4, atol=1e-4)
