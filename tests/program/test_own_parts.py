"""Networks, losses, samplers, metrics and data of one's own, from a file beside the package."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from programs import ROOT, SMALL, arguments

import genfield
from genfield import data, nets, registry
from genfield.data.own import own
from genfield.data.pipeline import Feed
from genfield.errors import UserError
from genfield.main import main

EXAMPLES = ROOT / "examples"
FEW = {k: v for k, v in SMALL.items() if k.split(".")[0] not in ("net",)}
FEW |= {"train.steps": 4, "checkpoint.every": 2, "sampler.num_steps": 3}
FACTS = dict(second_order=lambda bound: None, last_layer=None, stack=(), augmented=False)


def run(workdir: Path, config: str, *extra: str, **overrides) -> int:
    return main(arguments(workdir, config, *extra, small=FEW, **overrides))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of the example with a network of its own."""
    workdir = tmp_path_factory.mktemp("own") / "run"
    assert run(workdir, EXAMPLES / "own_network.py") == 0
    return workdir


@pytest.mark.parametrize(
    "example",
    ["own_network.py:pair", "own_loss.py", "own_sampler.py", "own_data.py", "own_data.py:pairs"],
)
def test_an_example_trains_samples_and_opens(example, tmp_path):
    assert run(tmp_path / "run", EXAMPLES / example) == 0
    name = example.partition(":")[0]
    assert (tmp_path / "run" / "own" / name).read_text() == (EXAMPLES / name).read_text()
    assert main(["genfield", f"--workdir={tmp_path / 'run'}", "--mode=sample"]) == 0
    opened = genfield.open_run(tmp_path / "run")
    assert opened.sample(5).x.shape == (5, 2) and opened.step == 4


def test_metrics_of_ones_own_are_measured(tmp_path):
    assert run(tmp_path / "run", EXAMPLES / "own_sampler.py") == 0
    assert "mean_error" in json.loads((tmp_path / "run" / "card.json").read_text())["metrics"]


def test_the_loop_of_the_example_brings_samples_to_the_data(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import own_loop

    noise, samples = own_loop.main(steps=1_500, num=300)
    assert samples < 0.3 * noise


def test_the_equinox_module_of_the_docs(tmp_path):
    text = (ROOT / "docs" / "own_parts.md").read_text()
    code = re.search(r"```python\n(import equinox.*?)```", text, re.S)[1]
    config = "\nfrom genfield import configuration\n\ndef get_config():\n    c = "
    config += "configuration.base()\n    c.net = dict(name='equinox_mlp', width=8)\n    return c\n"
    (tmp_path / "mine.py").write_text(code + config)
    assert run(tmp_path / "run", tmp_path / "mine.py") == 0
    assert genfield.open_run(tmp_path / "run").field(jnp.ones((3, 2)), jnp.ones(3)).shape == (3, 2)


def test_a_run_opens_elsewhere_and_without_the_file(trained, tmp_path, monkeypatch):
    moved = shutil.copytree(trained, tmp_path / "moved")
    facts = json.loads((moved / "own" / "files.json").read_text())
    facts["own_network.py"]["origin"] = str(tmp_path / "gone.py")
    (moved / "own" / "files.json").write_text(json.dumps(facts))
    monkeypatch.chdir(tmp_path)
    there, here = genfield.open_run(moved), genfield.open_run(trained)
    np.testing.assert_array_equal(there.sample(4).x, here.sample(4).x)
    assert "own_network" not in sys.modules
    assert main(["genfield", f"--workdir={moved}", "--config.train.steps=6"]) == 0


OTHER_REMAT = """
from own_network import FACTS, Residual, configuration, registry


class Other(Residual):
    def __init__(self, *, remat=4, shape, num_classes, rngs):
        super().__init__(width=8, depth=remat, shape=shape, num_classes=num_classes, rngs=rngs)


METHODS = (registry.Network(name="other", make=Other, **FACTS),)


def get_config():
    config = configuration.base()
    config.data, config.net = dict(name="two_moons"), dict(name="other", remat=3)
    return config
"""


def test_a_field_called_remat_may_mean_what_it_likes(tmp_path):
    """The FLOPs of a step are then counted as they are."""
    shutil.copy(EXAMPLES / "own_network.py", tmp_path)
    (tmp_path / "other.py").write_text(OTHER_REMAT)
    assert run(tmp_path / "run", tmp_path / "other.py", train__peak_flops=1e11) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["mfu"] > 0


def test_a_file_that_changed_is_told_and_the_copy_is_used(trained, tmp_path, capsys):
    moved = shutil.copytree(trained, tmp_path / "moved")
    origin = tmp_path / "own_network.py"
    origin.write_text((EXAMPLES / "own_network.py").read_text() + "\n# changed\n")
    facts = json.loads((moved / "own" / "files.json").read_text())
    facts["own_network.py"]["origin"] = str(origin)
    (moved / "own" / "files.json").write_text(json.dumps(facts))
    genfield.open_run(moved)
    assert "has changed since this run: its own copy" in capsys.readouterr().out
    assert run(moved, origin, train__steps=6) == 0
    out = capsys.readouterr().out
    assert "differs from this run's own copy" in out and "changed since this run began" in out
    assert (moved / "own.before_1" / "own_network.py").exists()


def test_a_damaged_copy_is_one_line(trained, tmp_path, capsys):
    moved = shutil.copytree(trained, tmp_path / "moved")
    (moved / "own" / "own_network.py").write_text("import os\n")
    assert main(["genfield", f"--workdir={moved}", "--mode=sample"]) == 2
    assert "is not what the run was made with" in capsys.readouterr().err


def test_a_method_from_a_file_beside_the_config(tmp_path):
    (tmp_path / "parts.py").write_text((EXAMPLES / "own_loss.py").read_text())
    (tmp_path / "mine.py").write_text("import parts\n\nget_config = parts.get_config\n")
    assert run(tmp_path / "run", tmp_path / "mine.py", net__width=8) == 0
    kept = sorted(p.name for p in (tmp_path / "run" / "own").glob("*.py"))
    assert kept == ["mine.py", "parts.py"]
    shutil.rmtree(tmp_path / "run" / "samples", ignore_errors=True)
    (tmp_path / "parts.py").unlink()
    assert genfield.open_run(tmp_path / "run").sample(2).x.shape == (2, 2)


def test_a_name_that_the_package_has_is_refused(tmp_path, capsys):
    text = (EXAMPLES / "own_loss.py").read_text().replace("absolute_flow", "flow_matching")
    (tmp_path / "mine.py").write_text(text)
    assert run(tmp_path / "run", tmp_path / "mine.py") == 2
    assert "two of the name 'flow_matching'" in capsys.readouterr().err


def test_a_record_that_lacks_a_fact_is_one_line(tmp_path, capsys):
    text = (EXAMPLES / "own_loss.py").read_text().replace("    scalar=None,\n", "")
    (tmp_path / "mine.py").write_text(text)
    assert run(tmp_path / "run", tmp_path / "mine.py") == 2
    err = capsys.readouterr().err
    assert "'scalar'" in err and len(err.splitlines()) == 1


# Networks


def create(make, shape=(3,), **section):
    table = {"mine": registry.Network(name="mine", make=make, **FACTS)}
    config = {"name": "mine", **section}
    build = lambda key: nets.create(config, key, shape=shape, table=table)
    return build(None), build(jax.random.key(0))


class Plain(nnx.Module):
    def __init__(self, *, width: int = 4, shape, num_classes, rngs):
        self.inner = nnx.Linear(shape[0], width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.outer = nnx.Linear(width, shape[0], rngs=rngs)

    def __call__(self, x, t, cond):
        return self.outer(self.drop(self.inner(x)))


def test_an_ordinary_module_starts_by_its_own_rngs_and_drops_by_the_calls_key():
    (_, abstract), (apply, params) = create(Plain, width=64)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda a: a.shape, abstract)
    by_hand = Plain(width=64, shape=(3,), num_classes=0, rngs=nnx.Rngs(jax.random.key(0)))
    by_hand.eval()
    x = jax.random.normal(jax.random.key(1), (5, 3))
    np.testing.assert_allclose(apply(params, x), by_hand(x, None, None), rtol=1e-6)
    call = lambda seed: apply(params, x, key=jax.random.key(seed), train=True)
    assert (call(2) == call(2)).all() and (call(2) != call(3)).any()
    derivative = jax.jvp(lambda x: apply(params, x), (x,), (jnp.ones_like(x),))[1]
    assert np.isfinite(derivative).all()
    with pytest.raises(UserError, match="with dropout needs key"):
        apply(params, x, train=True)


class Normed(nnx.Module):
    def __init__(self, *, shape, num_classes, rngs):
        self.norm = nnx.BatchNorm(shape[0], rngs=rngs)

    def __call__(self, x, t, cond):
        return self.norm(x)


class Lacking(nnx.Module):
    def __init__(self, *, width=4, rngs):
        self.layer = nnx.Linear(3, 3, rngs=rngs)


@pytest.mark.parametrize(
    "make, words",
    [
        (Normed, "BatchStat"),
        (Lacking, "it lacks 'shape'"),
        (dict, "is no flax.nnx.Module"),
        (lambda: 3, "must give a pair of functions"),
    ],
)
def test_a_network_that_cannot_be_is_one_line(make, words):
    with pytest.raises(UserError, match=words):
        create(make)


def test_a_network_of_a_wrong_shape_is_one_line(tmp_path, capsys):
    text = (
        (EXAMPLES / "own_network.py")
        .read_text()
        .replace("return self.last(h)", "return self.last(h)[:, :1]")
    )
    (tmp_path / "mine.py").write_text(text)
    assert run(tmp_path / "run", tmp_path / "mine.py") == 2
    assert "for 2 examples of shape (2,): a field gives [B, *shape]" in capsys.readouterr().err


# Data


class Table:
    shape = (3,)

    def __init__(self, size=50, **arrays):
        self.size, self.arrays = size, arrays

    def __len__(self):
        return self.size

    def gather(self, rows):
        x1 = np.arange(3 * self.size, dtype=np.float64).reshape(-1, 3)[rows]
        return {"x1": x1} | {name: values[rows] for name, values in self.arrays.items()}


FEED = Feed(8, 0, 0, 1, print)


def test_an_object_of_ones_own_is_fed_in_full():
    labels = np.arange(50) % 4
    dataset = own("mine", Table(label=labels), FEED)
    assert dataset.shape == (3,) and dataset.num_classes == 4 and not dataset.pixels
    assert dataset.sizes == {"train": 45, "test": 5} and dataset.starts is None
    batches = dataset.train(0)
    seen = [next(batches) for _ in range(6)]
    batches.close()
    rows = np.concatenate([b["x1"][:, 0] for b in seen])[:45]
    assert len(set(rows)) == 45 and rows.dtype == np.float32
    np.testing.assert_array_equal(
        np.concatenate([b["label"] for b in seen])[:45], labels[(rows / 3).astype(int)]
    )


def test_other_content_under_a_name_is_other_data():
    values = np.zeros((50, 3), np.float32)
    one = own("mine", Table(x0=values), FEED).fingerprint
    assert own("mine", Table(x0=values), FEED).fingerprint == one
    assert own("mine", Table(x0=values + 1), FEED).fingerprint != one


@pytest.mark.parametrize(
    "thing, words",
    [
        (object(), "has no 'shape'"),
        (Table(size=1), "has 1 examples"),
        (Table(extra=np.zeros(50)), "not x1 and perhaps x0 and label"),
        (Table(x0=np.zeros((50, 2))), r"x0 of one row is float64 \[1, 2\]"),
        (Table(x0=np.full((50, 3), np.nan)), "x0 of row"),
    ],
)
def test_data_that_cannot_be_are_one_line(thing, words):
    with pytest.raises(UserError, match=words):
        next(own("mine", thing, FEED).train(0))


def test_arrays_on_disk(tmp_path):
    points = np.random.default_rng(0).standard_normal((100, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", points)
    np.savez(tmp_path / "x.npz", x1=points, x0=points + 1, labels=np.arange(100) % 3)
    read = lambda **fields: data.create({"name": "arrays", **fields}, batch_size=8, seed=0)
    plain = read(path=str(tmp_path / "x.npy"), scale=2.0)
    held = plain.examples["train"].gather(np.arange(90))["x1"]
    assert {tuple(row) for row in held} <= {tuple(row) for row in 2 * points}
    paired = read(path=str(tmp_path / "x.npz"), labels=True)
    batch = paired.starts.gather(np.arange(5))
    np.testing.assert_array_equal(batch["x0"], batch["x1"] + 1)
    assert paired.num_classes == 3
    for name, words in (("gone.npy", "is no file"), (None, "data.path is not set")):
        with pytest.raises(UserError, match=words):
            read(path=name and str(tmp_path / name))
    with pytest.raises(UserError, match="no labels"):
        read(path=str(tmp_path / "x.npy"), labels=True)


def test_pairs_of_ones_own_are_sampled_from_their_source(tmp_path):
    assert run(tmp_path / "run", EXAMPLES / "own_data.py:pairs", sampler__num_steps=1) == 0
    opened = genfield.open_run(tmp_path / "run")
    starts = opened.experiment.data.starts
    x0 = starts.gather(np.arange(7) % starts.size)["x0"]
    v = opened.field(jnp.asarray(x0), jnp.zeros(7))
    np.testing.assert_allclose(opened.sample(7).x, x0 + np.asarray(v), rtol=1e-5, atol=1e-5)
