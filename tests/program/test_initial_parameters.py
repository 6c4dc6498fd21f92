"""Starting from a run with other classes: all but the label rows is taken, and that is said."""

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from programs import TINY_DIGITS

from genfield.machine import checkpoint
from genfield.program import config_io, experiment, open_run, train_step

UNET = dict(name="ddpmpp", channels=8, channel_multipliers=(1,), num_res_blocks=1)
UNET["attention_resolutions"] = ()
SIT = dict(name="sit", depth=1, width=16, num_heads=2)


def tiny(net: dict, labels: bool, classes=None):
    config = config_io.load(str(TINY_DIGITS))
    config.net = ConfigDict(net)
    config.loss = ConfigDict({"name": "flow_matching"})
    config.sampler = ConfigDict({"name": "euler", "num_steps": 2})
    config.data.update(labels=labels, classes=classes)
    config.label_dropout = 0.1 if labels else 0.0
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """run(net, labels) -> the workdir of a run of another seed with a checkpoint, made once."""
    made, folder = {}, tmp_path_factory.mktemp("first")

    def run(net: dict, labels: bool):
        key = (net["name"], labels)
        if key not in made:
            made[key] = folder / f"{key[0]}_{labels}"
            config = tiny(net, labels)
            config.seed = 1
            exp = experiment.prepare(config, made[key])
            checkpoints = open_run.open_checkpoints(exp)
            checkpoints.save(1, train_step.held(exp.init()), {"data": exp.data.state(1)})
            checkpoints.close()
        return made[key]

    return run


@pytest.mark.parametrize("net", [SIT, UNET], ids=["sit", "ddpmpp"])
@pytest.mark.parametrize(
    ("before", "after", "classes"),
    [(True, True, (3, 5)), (True, False, None), (False, True, None)],
    ids=["fewer", "none", "some"],
)
def test_all_but_the_label_rows_is_taken(net, before, after, classes, runs, tmp_path, capsys):
    workdir = runs(net, before)
    config = tiny(net, after, classes)
    fresh = checkpoint.named_leaves(experiment.prepare(config, tmp_path / "a").init().params)
    config.initial_parameters = str(workdir)
    state = experiment.prepare(config, tmp_path / "b").init()
    found = checkpoint.named_leaves(jax.device_get(state.params))
    chex.assert_trees_all_equal(found, checkpoint.named_leaves(jax.device_get(state.ema)))
    given = checkpoint.named_leaves(checkpoint.load(workdir))
    taken = [n for n in found if n in given and found[n].shape == given[n].shape]
    anew = [n for n in found if n not in taken]
    for name in taken:
        np.testing.assert_array_equal(found[name], given[name])
    for name in anew:
        assert "label" in name
        np.testing.assert_array_equal(found[name], fresh[name])
    assert len(taken) > 5 and any(np.any(found[n] != fresh[n]) for n in taken)
    told = capsys.readouterr().out
    assert f"initial_parameters {workdir}: all but field/" in told and "label" in told


def test_the_same_classes_take_all_and_say_nothing(runs, tmp_path, capsys):
    config = tiny(SIT, True)
    config.initial_parameters = str(runs(SIT, True))
    capsys.readouterr()
    state = experiment.prepare(config, tmp_path).init()
    chex.assert_trees_all_equal(
        jax.device_get(state.params), checkpoint.load(config.initial_parameters)
    )
    assert "all but" not in capsys.readouterr().out
