"""Match sets larger than a batch: nothing dropped, nothing twice, resumed to the bit."""

import chex
import jax
import numpy as np
import pytest
import scipy.stats
from ml_collections import ConfigDict
from programs import TINY_DIGITS, losses, run
from test_train import prepare

from genfield import configuration, couplings, rng
from genfield.data import to_unit
from genfield.errors import UserError
from genfield.program import config_io, match_sets

BATCH, SET = 8, 32  # four steps a set


def config_of(data: str, **coupling) -> ConfigDict:
    config = config_io.load(str(TINY_DIGITS)) if data == "digits" else configuration.base()
    if data != "digits":
        config.data = ConfigDict({"name": data, "source": "eight_gaussians"})
        config.net.width = config.net.depth = 8
    config.batch_size, config.match_size = BATCH, SET
    config.coupling = ConfigDict({"name": "greedy", **coupling})
    return config


def take(exp, num, start=0):
    source = match_sets.batches(exp, start)
    return [jax.device_get(next(source)) for _ in range(num)]


def noises(exp, step):
    """What the step would have drawn by itself."""
    key = rng.draw_key(jax.random.fold_in(rng.stream(exp.config.seed, "train"), step))
    return np.asarray(exp.objective.source(key, BATCH))


@pytest.mark.parametrize("data", ["digits", "two_moons"])
def test_a_set_holds_the_noises_and_the_samples_of_its_steps(data, tmp_path):
    exp = prepare(config_of(data), tmp_path)
    found = take(exp, 8)
    flat = lambda a: np.asarray(a).reshape(len(a), -1)
    for first in (0, 4):
        own = np.concatenate([noises(exp, first + i) for i in range(4)])
        x0 = np.concatenate([b["x0"] for b in found[first : first + 4]])
        x1 = np.concatenate([np.asarray(to_unit(b["x1"])) for b in found[first : first + 4]])
        # Drawn points are computed in another program: the last bits may differ.
        distance = np.abs(flat(x0)[:, None] - flat(own)[None]).max(-1)
        assert (distance.min(0) < 1e-5).all() and (distance.min(1) < 1e-5).all()
        chosen = distance.argmin(1)
        assert len(set(chosen)) == SET
        np.testing.assert_array_equal(x0, couplings.greedy(x0[np.argsort(chosen)], x1))
    if data == "digits":  # the samples are those of an unmatched run, in its order
        plain = exp.data.train(0)
        for batch in found:
            expected = next(plain)
            np.testing.assert_array_equal(batch["x1"], expected["x1"])
            np.testing.assert_array_equal(batch["label"], expected["label"])


@pytest.mark.parametrize("data", ["digits", "two_moons"])
@pytest.mark.parametrize("start", [3, 4, 6])
def test_a_start_inside_a_set_makes_the_same_set(data, start, tmp_path):
    exp = prepare(config_of(data), tmp_path)
    chex.assert_trees_all_equal(take(exp, 12)[start : start + 4], take(exp, 4, start))


def test_every_mesh_matches_the_same(tmp_path):
    one = take(prepare(config_of("digits"), tmp_path, (1, 1)), 4)
    for mesh in ((8, 1), (2, 4)):
        exp = prepare(config_of("digits"), tmp_path, mesh)
        chex.assert_trees_all_equal(take(exp, 4), one)
        assert len(next(match_sets.batches(exp, 0))["x0"].sharding.device_set) == 8


def test_the_noise_stays_normal(tmp_path):
    """Whole sets are the noises drawn, so all that training sees is N(0, 1) however matched."""
    exp = prepare(config_of("digits"), tmp_path)
    x0 = np.concatenate([b["x0"] for b in take(exp, 40)]).ravel()
    assert scipy.stats.kstest(x0, scipy.stats.norm.cdf).pvalue > 1e-3


def test_labels_stay_with_their_samples_within_classes(tmp_path):
    exp = prepare(config_of("digits", within_classes=True), tmp_path)
    blind = prepare(config_of("digits"), tmp_path)
    found, others = take(exp, 4), take(blind, 4)
    label = np.concatenate([b["label"] for b in found])
    np.testing.assert_array_equal(label, np.concatenate([b["label"] for b in others]))
    own = np.concatenate([noises(exp, i) for i in range(4)]).reshape(SET, -1)
    crossing = []
    for batches in (found, others):
        x0 = np.concatenate([b["x0"] for b in batches]).reshape(SET, -1)
        came_with = (x0[:, None] == own[None]).all(-1).argmax(1)
        crossing.append((label[came_with] != label).sum())
    assert crossing[0] == 0 < crossing[1]


@pytest.mark.parametrize("coupling", ["greedy", "sinkhorn"])
def test_resumed_inside_a_match_set_to_the_bit(coupling, tmp_path):
    section = {"name": coupling} | ({"regularization": 0.5} if coupling == "sinkhorn" else {})
    fields = dict(match_size=64, coupling=f'"{section}"'.strip('"'), sampler__num_steps=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, train__steps=14, **fields) == 0
    assert run(parts, train__steps=6, **fields) == 0  # step 6 lies in the second set of four
    assert run(parts, train__steps=14, **fields) == 0
    train_lines = lambda workdir: {k: v for k, v in losses(workdir).items() if k[1] == "train"}
    assert train_lines(whole) == train_lines(parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"match_size": 12}, "match_size 12 is not a multiple of config.batch_size 8"),
        ({"match_size": 3}, "not a multiple of config.match_size 3"),
        (
            {"coupling": {"name": "independent"}},
            "config.coupling.name to one of exact_assignment, greedy, nearest_source, sinkhorn",
        ),
        ({"coupling": {"name": "greedy", "group_size": 4}}, "unknown field 'group_size'"),
    ],
    ids=str,
)
def test_match_sets_that_cannot_be(change, words, tmp_path):
    config = config_of("digits")
    for name, value in change.items():
        config[name] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=words):
        prepare(config, tmp_path)


def test_classes_need_labels(tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.labels=True"):
        prepare(config_of("two_moons", within_classes=True), tmp_path)


def test_a_training_within_classes(tmp_path):
    """The whole program, whose own look at what is drawn has labels where the data have them."""
    section = "{'name':'greedy','within_classes':True}"
    fields = {"train.steps": 2, "coupling": section}
    assert run(tmp_path, TINY_DIGITS, small=fields) == 0
    assert (2, "train") in losses(tmp_path)


def test_match_sets_smaller_than_a_batch_are_groups(tmp_path):
    config = config_of("digits")
    config.match_size = 4
    exp = prepare(config, tmp_path)
    [batch] = take(exp, 1)
    assert "x0" not in batch
    key = rng.draw_key(jax.random.fold_in(rng.stream(config.seed, "train"), 0))
    drawn = jax.jit(exp.objective.draw)(key, batch).sample
    expected = couplings.greedy(noises(exp, 0), drawn.x1, group_size=4)
    np.testing.assert_array_equal(drawn.x0, expected)
