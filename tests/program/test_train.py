"""The train step and the loop: resume to the bit, meshes that agree, averages, NaN."""

import json
import shutil
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from meshes import devices
from ml_collections import ConfigDict
from programs import DIGITS, MOONS, TINY_DIGITS, arguments, losses, run, smoke

from genfield import configuration, placement, rng
from genfield.errors import UserError
from genfield.figures import run as figures
from genfield.machine import checkpoint, sharding
from genfield.program import config_io, experiment, optimizer, train_step

METHODS = ["flow_matching", "equilibrium_matching", "distance_marching"]
EQUILIBRIUM = MOONS.with_name("equilibrium_matching_two_moons.py")
MESHES = {"data": (8, 1), "fsdp": (1, 8), "both": (2, 4)}


def tiny_images(method: str, unet: bool = False):
    """The digits config of a method with a tiny transformer, or a tiny U-Net."""
    config = smoke(config_io.load(str(DIGITS.with_name(f"{method}_digits.py"))))
    config.batch_size = 16
    if unet:
        config.net.dropout = 0.0
        config.net.channel_multipliers, config.net.attention_levels = (1, 1), (2,)
        return config
    config.net = ConfigDict({"name": "sit", "depth": 2, "width": 32, "num_heads": 2})
    if method == "distance_marching":
        config.net.distance_head = "imagenet"
    return config


def prepare(config, tmp_path, mesh=(1, 1)):
    """The experiment on the first devices."""
    config.mesh.update(data=mesh[0], fsdp=mesh[1])
    with devices(mesh[0] * mesh[1]):
        return experiment.prepare(config, tmp_path)


def loss_and_gradient(exp):
    """Loss, gradients and drawn noise of step 3 on the first batch, as numpy."""
    state = exp.init()
    key = jax.random.fold_in(rng.stream(exp.config.seed, "train"), 3)
    batch = sharding.put_batch(next(exp.data.train(0)), exp.mesh)

    def compute(params, batch):
        drawn = exp.objective.draw(rng.draw_key(key), batch)
        mean = lambda p: jnp.mean(exp.objective.loss(p, drawn, rng.dropout_key(key), True)[0])
        return *jax.value_and_grad(mean)(params), drawn.sample

    # Zero-initialised layers would hide most of the network: move every parameter a little.
    generator = np.random.default_rng(9)
    nudge = lambda a: (a + 0.05 * generator.standard_normal(a.shape)).astype(np.float32)
    params = jax.tree.map(
        lambda p: jax.device_put(nudge(jax.device_get(p)), p.sharding), state.params
    )
    return jax.device_get(jax.jit(compute)(params, batch))


@pytest.mark.parametrize("method", METHODS)
def test_every_mesh_draws_and_computes_the_same(method, tmp_path, monkeypatch):
    meshes = MESHES if method == "distance_marching" else {"both": MESHES["both"]}
    compare_meshes(lambda: tiny_images(method), meshes, tmp_path, monkeypatch)


@pytest.mark.slow
def test_every_mesh_agrees_on_a_unet(tmp_path, monkeypatch):
    compare_meshes(lambda: tiny_images("distance_marching", True), MESHES, tmp_path, monkeypatch)


def compare_meshes(make_config, meshes, tmp_path, monkeypatch):
    loss, gradient, sample = loss_and_gradient(prepare(make_config(), tmp_path))
    monkeypatch.setattr(placement, "SMALLEST_SHARDED", 16)  # so that tiny parameters are split too
    for mesh in meshes.values():
        exp = prepare(make_config(), tmp_path, mesh)
        if mesh[1] > 1:
            specs = [a.sharding.spec for a in jax.tree.leaves(exp.abstract.params)]
            assert any("fsdp" in spec for spec in specs)
        check_same(loss_and_gradient(exp), loss, gradient, sample)


def check_same(found, loss, gradient, sample):
    loss_b, gradient_b, sample_b = found
    chex.assert_trees_all_equal((sample.x0, sample.t), (sample_b.x0, sample_b.t))
    np.testing.assert_allclose(loss_b, loss, rtol=1e-5)
    scale = float(optax.global_norm(gradient))
    chex.assert_trees_all_close(gradient_b, gradient, rtol=1e-5, atol=1e-5 * scale)


def test_init_is_the_same_on_every_mesh(tmp_path):
    states = [
        prepare(tiny_images("distance_marching"), tmp_path, m).init() for m in [(1, 1), (2, 4)]
    ]
    chex.assert_trees_all_equal(*(jax.device_get(s.params) for s in states))


def moons(**fields) -> ConfigDict:
    config = configuration.base()
    config.data = ConfigDict({"name": "two_moons", "source": "eight_gaussians"})
    config.net.width, config.net.depth = 16, 2
    config.batch_size = 16
    config.train.steps = 20
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def steps(exp, num, state=None):
    """The state and the metrics after `num` train steps."""
    state = exp.init() if state is None else state
    step, history = experiment.jit_train_step(exp), []
    for _ in range(num):
        state, metrics = step(state, {"step": np.int32(state.step)})
        history.append(jax.device_get(metrics))
    return state, history


def test_accumulation_draws_the_same_and_gives_the_same_gradient(tmp_path):
    one, _ = steps(prepare(moons(), tmp_path), 3)
    four, _ = steps(prepare(moons(optimizer__accumulate=4), tmp_path), 3)
    chex.assert_trees_all_close(one.params, four.params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "rates"),
    [
        ({}, (0.5, 0.5, 0.5)),
        ({"ema__ramp_up": 0.5}, (0.25, 0.5, 0.5)),
        ({"ema__warmup": True}, (2 / 11, 3 / 12, 4 / 13)),
    ],
    ids=["constant", "ramp_up", "warmup"],
)
def test_ema_follows_its_definition(tmp_path, change, rates):
    exp = prepare(moons(ema__half_life=16.0, **change), tmp_path)
    assert exp.ema_rate == pytest.approx(0.5)  # one batch of 16 images is one half-life
    state = exp.init()
    expected = jax.device_get(state.params)
    for rate in rates:
        state, _ = steps(exp, 1, state)
        params = jax.device_get(state.params)
        mix = lambda e, p, rate=rate: rate * e + (1 - rate) * p
        expected = jax.tree.map(mix, expected, params)
    chex.assert_trees_all_close(jax.device_get(state.ema), expected, rtol=1e-5, atol=1e-7)


def test_schedules_and_their_limits():
    section = configuration.base().optimizer
    section.warmup_steps, section.schedule = 10, "cosine"
    rate = optimizer.schedule(section, 110)
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(60), rate(110)],
        np.array([1 / 11, 1 / 11 + 0.5 * 10 / 11, 1, 0.5, 0]) * 1e-3,
        atol=1e-9,
    )
    section.warmup_steps = 200
    with pytest.raises(UserError, match="warmup_steps"):
        optimizer.schedule(section, 110)


def test_clipping_bounds_the_update(tmp_path):
    fields = dict(optimizer__name="sgd", optimizer__b1=0.0, optimizer__learning_rate=1.0)
    exp = prepare(moons(**fields, optimizer__clip_norm=0.01), tmp_path)
    start = jax.device_get(exp.init().params)
    state, history = steps(exp, 1)
    change = jax.tree.map(lambda a, b: a - b, jax.device_get(state.params), start)
    assert history[0]["grad_norm"] > 0.01
    np.testing.assert_allclose(float(optax.global_norm(change)), 0.01, rtol=1e-4)


def test_a_batch_of_another_step_changes_nothing(tmp_path):
    exp = prepare(moons(), tmp_path)
    before = jax.device_get(exp.init())
    after, _ = experiment.jit_train_step(exp)(exp.init(), {"step": np.int32(5)})
    chex.assert_trees_all_equal(jax.device_get(after), before)


FEW_LINES = dict(
    batch_size=16,
    train__steps=20,
    train__log_every=3,  # lines that span the moment of the resume
    train__eval_batches=1,
    checkpoint__every=10,
    evaluate__figures=False,
    ema__rate=0.9,
)


def check_resumed(whole, parts):
    """Parameters, average, optimiser and losses of 20 steps and of 10 + 10 are the same."""
    for item in ("params", "ema", "optimizer"):
        a, b = (checkpoint.load(w, step=20, item=item) for w in (whole, parts))
        chex.assert_trees_all_equal(a, b)
    expected, found = losses(whole), losses(parts)
    train_lines = {k: v for k, v in expected.items() if k[1] == "train"}
    assert len(train_lines) == 6
    assert all(found[k] == v for k, v in train_lines.items())
    assert found[20, "eval"] == expected[20, "eval"]


def test_resume_continues_to_the_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, **FEW_LINES) == 0
    assert run(parts, **(FEW_LINES | dict(train__steps=10))) == 0
    assert run(parts, **FEW_LINES) == 0
    check_resumed(whole, parts)


def test_resume_on_images_continues_to_the_bit(tmp_path, capsys):
    """With dropout and weight decay, from the state in which step 10 left a run of 20."""
    fields = FEW_LINES | dict(
        net__channels=8,
        net__channel_multipliers="(1,)",
        net__attention_levels="()",
        net__dropout=0.1,
        optimizer__name="adamw",
        optimizer__weight_decay=0.01,
        sampler__num_steps=2,
        evaluate__metrics="('heldout_loss',)",
        small={},
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, DIGITS, **fields) == 0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "20")
    (parts / "summary.json").unlink()
    lines = (parts / "metrics.jsonl").read_text().splitlines(keepends=True)
    early = [line for line in lines if json.loads(line)["step"] <= 10]
    assert 0 < len(early) < len(lines)
    (parts / "metrics.jsonl").write_text("".join(early))
    capsys.readouterr()
    assert run(parts, DIGITS, **fields) == 0
    assert "resuming at step 10" in capsys.readouterr().out
    check_resumed(whole, parts)


def test_a_checkpoint_waits_for_the_pictures_before_it(tmp_path, monkeypatch):
    """A run that is killed goes on behind their evaluation, and does not draw them again."""
    grid, save, there = figures.image_grid, checkpoint.Checkpoints.save, []

    def slow(path, images):
        time.sleep(0.5)
        return grid(path, images)

    def watched(self, step, *rest):
        there.append((step, (tmp_path / "samples" / "step_2.png").exists()))
        return save(self, step, *rest)

    monkeypatch.setattr(figures, "image_grid", slow)
    monkeypatch.setattr(checkpoint.Checkpoints, "save", watched)
    often = dict(train__eval_every=2, checkpoint__every=3, train__log_every=100)
    few = dict(train__steps=4, train__eval_samples=4)
    assert run(tmp_path, TINY_DIGITS, small={}, **often, **few) == 0
    assert there == [(3, True), (4, True)]


def test_a_run_moves_from_one_device_to_eight(tmp_path):
    """What one device saved, eight restore, and go on as one would have, to 1e-6."""
    results = {}
    for name, second in (("stays", 1), ("moves", 8)):
        assert run(tmp_path / name, on=1, train__steps=10) == 0
        assert run(tmp_path / name, on=second, train__steps=20) == 0
        results[name] = checkpoint.load(tmp_path / name, step=20, item="params")
    chex.assert_trees_all_close(results["moves"], results["stays"], rtol=1e-6, atol=1e-6)


def test_a_non_finite_step_stops_the_run_with_what_replays_it(tmp_path, capsys):
    argv = dict(train__steps=200, optimizer__name="sgd", optimizer__learning_rate=1e30)
    assert run(tmp_path, **argv) == 2
    message = capsys.readouterr().err
    step = int(message.split("step ")[1].split(":")[0])
    assert "is not finite" in message and message.count("\n") == 1
    dump = np.load(tmp_path / f"nonfinite_step_{step}.npz")
    assert not np.all(np.isfinite(dump["loss"])) and np.all(np.isfinite(dump["x1"]))
    # The state is the one before that step, and the same command meets the same step again.
    params = checkpoint.load(tmp_path, step=step, item="params")
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
    assert run(tmp_path, **argv) == 2
    assert f"step {step}:" in capsys.readouterr().err


def test_a_run_can_start_from_the_parameters_of_another(tmp_path):
    """EqM-E's second energy starts from a trained field (EqM section 5.4)."""
    small = dict(config=EQUILIBRIUM, ema__rate=0.5, net__output="vector")
    assert run(tmp_path / "first", **small) == 0
    fields = dict(energy="squared_norm", initial_parameters=tmp_path / "first", **small)
    config = config_io.load(str(EQUILIBRIUM))
    argv = arguments(tmp_path / "second", **fields)[3:]
    exp = experiment.prepare(config_io.override(config, argv), tmp_path / "second")
    state = exp.init()
    given = checkpoint.load(tmp_path / "first", item="ema")
    chex.assert_trees_all_equal(jax.device_get(state.params), given)
    chex.assert_trees_all_equal(jax.device_get(state.ema), given)
    assert run(tmp_path / "second", **fields) == 0
    assert run(tmp_path / "second", **(fields | dict(train__steps=30))) == 0  # and goes on
    trained = checkpoint.load(tmp_path / "second")
    assert max(np.abs(a - b).max() for a, b in zip(
        jax.tree.leaves(trained), jax.tree.leaves(given), strict=True)) > 0  # fmt: skip


def test_parameters_of_another_network_are_one_line(tmp_path, capsys):
    assert run(tmp_path / "first") == 0
    fields = dict(initial_parameters=tmp_path / "first", net__width=8)
    assert run(tmp_path / "second", **fields) == 2
    message = capsys.readouterr().err
    assert "is of another network or other data: field/" in message
    assert "(16,) there and (8,) here" in message
    assert run(tmp_path / "third", initial_parameters=tmp_path / "nowhere") == 2
    assert "nowhere is not there: name a workdir that has" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "third", initial_parameters=tmp_path / "empty") == 2
    assert "has no checkpoint" in capsys.readouterr().err


def test_an_infinite_gradient_of_a_finite_loss_changes_nothing():
    class Objective:
        group_size = 1
        draw = staticmethod(lambda key, data: data["x1"])
        loss = staticmethod(lambda params, drawn, key, train: (jnp.sqrt(params["w"]) + drawn, {}))

    tx = optax.sgd(0.1)
    state = train_step.create_state({"w": jnp.zeros(())}, tx, ema=False)
    step = train_step.make_train_step(Objective, tx, jax.random.key(0))
    after, metrics = step(state, {"x1": jnp.ones(4)})
    assert np.isfinite(metrics["loss"]) and not metrics["finite"]
    assert after.params["w"] == 0 and after.step == 0
