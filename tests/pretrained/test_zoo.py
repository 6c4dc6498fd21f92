"""The models that come with the package: whole, small, and as good as their cards say."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genfield import pretrained, sampling
from genfield.data import toys
from genfield.errors import UserError
from genfield.metrics import point_cloud
from genfield.nets import count_parameters
from genfield.pretrained import zoo


def test_all_are_there_and_small():
    assert {"digits/distance_marching", "digits/equilibrium_matching"} <= set(zoo.names())
    assert sum(f.stat().st_size for f in zoo.MODELS.rglob("*") if f.is_file()) < 6_000_000


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_is_what_its_card_says(name):
    card, file = zoo.card(name), zoo.place(name)
    raw = file.read_bytes()
    assert (card["name"], card["bytes"]) == (name, len(raw))
    assert card["sha256"] == hashlib.sha256(raw).hexdigest()
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    model = pretrained.load(name, sha256=card["sha256"])
    assert count_parameters(model.params) == card["parameters"]
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(model.params))
    # Nothing of the machine that trained it.
    assert not str(card["config"]["data"].get("path", "")).startswith(("/", "~"))
    assert model.info.num_classes == (10 if name.startswith("digits/") else 0)


def test_fields_of_digits_take_classes_and_none():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    field = pretrained.load("digits/equilibrium_matching").field
    ask = jax.jit(lambda labels: field(x, None, labels))
    null = jax.jit(lambda: field(x, None, None))()
    np.testing.assert_allclose(null, ask(jnp.full(4, 10)), atol=1e-5)
    assert np.abs(np.asarray(ask(jnp.full(4, 3)) - null)).max() > 0.01


def test_flow_matching_gives_the_moons_of_its_card():
    model, card = pretrained.load("two_moons/flow_matching"), zoo.card("two_moons/flow_matching")
    x0 = toys.eight_gaussians(jax.random.key(0), 2_000)
    steps = card["sampling"]["sampler"]["num_steps"]
    sampler = sampling.euler()
    go = lambda x: sampling.sample(jax.random.key(1), model.field, x, sampler, num_steps=steps).x
    target = np.asarray(toys.two_moons(jax.random.key(2), 10_000))
    found = point_cloud.chamfer(np.asarray(jax.jit(go)(x0)), target)
    assert found == pytest.approx(card["metrics"]["chamfer"]["value"], rel=0.2)


def test_names_that_are_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits/nothing", "digits", "../zoo", "two_moons/../two_moons/edm"):
        with pytest.raises(UserError, match="mend the path") as caught:
            pretrained.load(name)
        assert "digits/distance_marching" in str(caught.value) or "." in name
    with pytest.raises(KeyError):
        zoo.card("digits/nothing")


def test_a_path_of_the_users_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two_moons" / "edm").mkdir(parents=True)
    with pytest.raises(UserError, match="must hold one file"):
        pretrained.load("two_moons/edm")


@pytest.mark.parametrize(
    "entry, value",
    [
        (("net",), "mlp"),
        (("net", "name"), {}),
        (("net", "width"), 0),
        (("net", "depth"), 10**9),
        (("shape",), [2**40]),
        (("teaches",), "nonsense"),
    ],
)
def test_headers_that_lie(tmp_path, entry, value):
    raw = zoo.place("two_moons/edm").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["genfield"])
    section = facts["config"]["description"]
    for name in entry[:-1]:
        section = section[name]
    section[entry[-1]] = value
    header["__metadata__"]["genfield"] = json.dumps(facts)
    text = json.dumps(header).encode()
    path = tmp_path / "lies.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(UserError) as caught:
        pretrained.load(path)
    assert "\n" not in str(caught.value)
