"""Parameters that training leaves as they are: NCSN++'s frequencies; older runs that lack them."""

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from programs import TINY_DIGITS

from genfield import nets
from genfield.machine import checkpoint, fixed
from genfield.nets import edm_unet
from genfield.program import config_io, experiment, open_run, train_step

PATH = ("field", "embedding", "frequencies")
NAME = "/".join(PATH)
NET = dict(name="ncsnpp", channels=4, channel_multipliers=(1,), num_res_blocks=0)
NET |= dict(attention_resolutions=(), dropout=0.0)


def tiny(**fields):
    config = config_io.load(str(TINY_DIGITS))
    config.net = ConfigDict(NET)
    config.loss = ConfigDict({"name": "flow_matching"})
    config.sampler = ConfigDict({"name": "euler", "num_steps": 2})
    config.optimizer.update(name="adamw", weight_decay=0.5, learning_rate=0.1, clip_norm=1.0)
    config.ema.rate = 0.7
    config.update(fields)
    return config


def saved(exp, state):
    checkpoints = open_run.open_checkpoints(exp)
    checkpoints.save(int(state.step), train_step.held(state), {"data": exp.data.state(1)})
    checkpoints.close()


def own_frequencies(state):
    """The state with frequencies as another file would have them."""
    turns = np.random.default_rng(0).normal(size=4).astype(np.float32)
    own = np.stack([np.float32(2 * np.pi) * turns, turns])
    return own, state._replace(
        params=fixed.put(state.params, {PATH: own}), ema=fixed.put(state.ema, {PATH: own})
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment, frequencies of its own, and its state after three steps with them."""
    exp = experiment.prepare(tiny(), tmp_path_factory.mktemp("run"))
    own, state = own_frequencies(exp.init())
    before = jax.device_get(state)
    step = experiment.jit_train_step(exp)
    rows = jax.random.normal(jax.random.key(0), (exp.config.batch_size, *exp.data.shape))
    labels = np.zeros(len(rows), np.int32)
    for _ in range(3):
        state, metrics = step(state, {"x1": rows, "label": labels})
    assert metrics["finite"]
    return exp, own, before, state


def test_training_moves_everything_but_them(trained):
    """To the bit, with weight decay and an average; the optimiser keeps nothing of them."""
    _, own, before, state = trained
    for tree, start in ((state.params, before.params), (state.ema, before.ema)):
        old, new = checkpoint.named_leaves(start), checkpoint.named_leaves(jax.device_get(tree))
        np.testing.assert_array_equal(new.pop(NAME), own)
        assert all(np.any(new[name] != old[name]) for name in new)
    assert not [name for name in checkpoint.named_leaves(state.optimizer) if "frequencies" in name]
    moments = [n for n in checkpoint.named_leaves(state.optimizer) if "/mu/" in n]
    assert len(moments) == len(checkpoint.named_leaves(state.params)) - 1


def test_a_checkpoint_keeps_them_and_one_that_lacks_them_has_those_built_in(trained, tmp_path):
    exp, own, _, state = trained
    here, older = (exp._replace(workdir=tmp_path / name) for name in ("here", "older"))
    saved(here, state)
    found, _ = open_run.restore(here, open_run.open_checkpoints(here))
    chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(state))
    bare = {k: fixed.without(getattr(state, k), [PATH]) for k in ("params", "ema")}
    saved(older, state._replace(**bare))
    found, _ = open_run.restore(older, open_run.open_checkpoints(older))
    built_in = edm_unet.fourier_frequencies((2, 4))
    for name in ("params", "ema"):
        want = fixed.put(getattr(state, name), {PATH: built_in})
        chex.assert_trees_all_equal(jax.device_get(getattr(found, name)), jax.device_get(want))
    assert (built_in != own).all()
    raw = checkpoint.load(tmp_path / "older")
    assert "frequencies" not in raw["field"]["embedding"]
    apply, _ = nets.create(exp.config.net, None, shape=exp.data.shape, num_classes=10)
    x = jax.random.normal(jax.random.key(1), (2, *exp.data.shape))
    completed = fixed.put(raw, {PATH: built_in})
    given, whole = (apply(p["field"], x, x[:, 0, 0, 0]) for p in (raw, completed))
    np.testing.assert_array_equal(given, whole)
    initial = tiny(initial_parameters=str(tmp_path / "older"))
    start = jax.device_get(experiment.prepare(initial, tmp_path / "next").init())
    chex.assert_trees_all_equal(start.params, jax.device_get(completed))
