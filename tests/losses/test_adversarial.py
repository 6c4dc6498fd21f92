"""Two players in one backward pass, the adaptive weight, DiffAugment, perceptual distances."""

import functools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT

from genfield import features, losses, paths
from genfield.errors import UserError
from genfield.features.perceptual import levels, perceptual
from genfield.losses.adversarial import discriminator
from genfield.losses.adversarial.augment import diff_augment
from genfield.losses.adversarial.discriminator import projected
from genfield.losses.adversarial.game import GAMES, Adversary, Game
from genfield.machine import checkpoint
from genfield.main import main

B, SHAPE = 6, (4, 4, 3)


def net(params, x, t):
    """Two layers; the last one's weights alone count for the adaptive weight."""
    hidden = jnp.tanh(x.reshape(len(x), -1) @ params["first"]) * (1 + t[:, None])
    return (hidden @ params["last"]).reshape(x.shape)


@functools.cache
def problem():
    size = int(np.prod(SHAPE))
    k = jax.random.split(jax.random.key(0), 7)
    params = {
        "first": jax.random.normal(k[0], (size, 8)),
        "last": jax.random.normal(k[1], (8, size)),
    }
    critic = {"discriminator": {"w": 0.1 * jax.random.normal(k[2], (size, 3))}}
    draw = lambda key: jax.random.normal(key, (B, *SHAPE))
    sigma = jnp.exp(jax.random.normal(k[3], (B,)))
    sample = paths.interpolate(paths.variance_exploding, draw(k[4]), 0.3 * draw(k[5]), sigma)
    return params, critic, sample, 0.3 * draw(k[6])


LINEAR = Adversary(
    init=lambda key: {},
    logits=lambda roles, x, label: jnp.tanh(x.reshape(len(x), -1) @ roles["discriminator"]["w"]),
)


def loss(params, critic, **options):
    _, _, sample, real = problem()
    field_of = lambda last: lambda x, t, cond=None: net(params | {"last": last}, x, t)
    options = {"policy": (), "adversary": LINEAR, **options}
    found, terms = losses.adversarial_lines_matching(
        field_of(params["last"]),
        sample,
        key=jax.random.split(jax.random.key(1), B),
        roles=critic,
        real=real,
        last_layer=(params["last"], field_of),
        **options,
    )
    assert found.shape == (B,) and all(v.shape == (B,) for v in terms.values())
    return found.mean(), terms


def gradients(**options):
    params, critic, *_ = problem()
    run = lambda p, c: loss(p, c, **options)
    return jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))(params, critic)


def assert_close(found, expected):
    """To 1e-5 of the largest entry of each leaf."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def by_hand(game):
    """Each player's loss, written down as it is."""
    params, critic, sample, real = problem()
    end = lambda p: net(p, sample.x, sample.t)
    lines = lambda p: jnp.mean(jnp.sum((end(p) - sample.x1) ** 2, (1, 2, 3)))
    logits = lambda c, x: LINEAR.logits(c, x, None)
    generator = lambda p: game.generator(logits(critic, end(p))).mean()
    judge = lambda c: game.discriminator(logits(c, real), logits(c, end(params))).mean()
    return params, critic, lines, generator, judge


@pytest.mark.parametrize("name", GAMES)
def test_each_player_has_its_own_gradient_and_the_weight_is_the_ratio(name):
    params, critic, lines, generator, judge = by_hand(GAMES[name])
    (field, other), terms = gradients(game=name, lines_weight=0.5)
    of_lines, of_generator = jax.grad(lines)(params), jax.grad(generator)(params)
    ratio = jnp.linalg.norm(of_lines["last"]) / jnp.linalg.norm(of_generator["last"])
    np.testing.assert_allclose(terms["adaptive_weight"], ratio, rtol=1e-5)
    expected = jax.tree.map(lambda a, b: 0.5 * a + ratio * b, of_lines, of_generator)
    assert_close(field, expected)
    judged = jax.grad(judge)(critic)
    assert_close(other, judged)
    value, _ = loss(params, critic, game=name, lines_weight=0.5)
    expected = 0.5 * lines(params) + ratio * generator(params) + judge(critic)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_neither_player_moves_by_the_others_loss(monkeypatch):
    none = lambda *logits: jnp.zeros_like(logits[0])
    (field, critic), _ = gradients(lines_weight=0.0, adversarial_weight=0.0)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(field))
    assert any(jnp.any(leaf) for leaf in jax.tree.leaves(critic))
    game = Game(GAMES["hinge"].generator, none)
    monkeypatch.setitem(GAMES, "generator alone", game)
    (field, critic), _ = gradients(game="generator alone")
    assert any(jnp.any(leaf) for leaf in jax.tree.leaves(field))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(critic))


def test_the_players_meet_at_their_step():
    params, _, lines, *_ = by_hand(GAMES["hinge"])
    at = lambda step: gradients(start=5, step=jnp.full((B,), step))
    (field, other), terms = at(4)
    expected = jax.tree.map(lambda a: 0.5 * a, jax.grad(lines)(params))
    assert_close(field, expected)
    assert not jnp.any(other["discriminator"]["w"]) and not jnp.any(terms["adaptive_weight"])
    for a, b in zip(jax.tree.leaves(at(5)), jax.tree.leaves(gradients()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_unknown_games_and_policies_are_refused():
    with pytest.raises(ValueError, match="unknown game 'chess'; known: hinge, non_saturating"):
        loss(*problem()[:2], game="chess")
    with pytest.raises(ValueError, match="unknown policy 'blur'; known: color"):
        loss(*problem()[:2], policy=("blur",))


def test_diff_augment():
    keys = jax.random.split(jax.random.key(0), 64)
    image = jax.random.uniform(jax.random.key(1), (16, 16, 3), minval=0.1, maxval=0.9)
    images = jnp.broadcast_to(image, (64, 16, 16, 3))
    run = jax.jit(diff_augment, static_argnums=2)
    np.testing.assert_array_equal(run(keys, images, ()), images)
    moved = np.asarray(run(keys, images, ("translation",)))
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    shifts = {(i, j): padded[i : i + 16, j : j + 16] for i in range(5) for j in range(5)}
    found = [k for m in moved for k, s in shifts.items() if np.array_equal(m, s)]
    assert len(found) == 64 and len(set(found)) > 15
    cut = np.asarray(run(keys, images, ("cutout",)))
    gone = (cut == 0).all(-1)
    assert np.array_equal(cut, np.where(gone[..., None], 0, images))
    sizes = gone.sum((1, 2))
    assert sizes.max() == 64 and sizes.min() >= 16  # half of each side, or what is inside
    colored = np.asarray(run(keys, images, ("color",)))
    centred = lambda a: a - a.mean(-1, keepdims=True)
    slope = (centred(colored) * centred(images)).sum((1, 2, 3)) / (centred(images) ** 2).sum(
        (1, 2, 3)
    )
    rest = centred(colored) - slope[:, None, None, None] * centred(images)
    assert np.abs(rest).max() < 1e-5  # saturation scales colour, the rest leaves it alone
    assert slope.min() > 0 and slope.max() < 3 and slope.std() > 0.3
    whole = run(keys, images, ("color", "translation", "cutout"))
    alone = run(keys[7:8], images[7:8], ("color", "translation", "cutout"))
    np.testing.assert_allclose(whole[7:8], alone, atol=1e-6)


def test_perceptual_distance_is_the_mean_square_of_features(monkeypatch):
    a, b = jax.random.uniform(jax.random.key(0), (2, 3, 16, 16, 3), minval=-1)
    names = ("relu1_2", "relu2_2")
    network, asked = features.create("vgg16", seed=0), []  # of seconds, so made once
    give = lambda name, **given: asked.append({"name": name} | given) or network
    monkeypatch.setattr(features, "create", give)
    distance = perceptual("vgg16", names, size=32, pixel_weight=2.0, seed=0)
    seen = [network.apply(network.params, levels(x, 32)) for x in (a, b)]
    expected = sum(np.square(np.asarray(seen[0][n] - seen[1][n])).mean((1, 2, 3)) for n in names)
    expected = expected + 2 * np.square(np.asarray(a - b)).mean((1, 2, 3))
    np.testing.assert_allclose(distance(a, b), expected, rtol=1e-5)
    np.testing.assert_array_equal(distance(a, a), 0)
    units = perceptual("vgg16", names, size=None, unit_vectors=True, seed=0)
    assert float(units(a, b).max()) < 4 * len(names)  # unit vectors differ by 2 at most
    grey = perceptual("vgg16", names, size=None, seed=0)
    once, thrice = grey(a[..., :1], b[..., :1]), grey(*(x[..., :1].repeat(3, -1) for x in (a, b)))
    np.testing.assert_allclose(once, thrice, rtol=1e-6)
    assert asked == 3 * [{"name": "vgg16", "path": None, "sha256": None, "seed": 0}]
    with pytest.raises(UserError, match="unknown layer of vgg16 'relu9'"):
        perceptual("vgg16", ("relu9",), seed=0)
    with pytest.raises(UserError, match="unknown network of a perceptual distance"):
        perceptual("inception_v3", seed=0)


def tiny_shapes():
    return {"a.weight": (8, 3, 3, 3), "b.weight": (16, 8, 3, 3)}


def tiny_apply(params, x):
    """Two convolutions, where VGG-16 would take long to compile."""
    a = jax.nn.relu(features.weights.convolve(x / 255, params["a"]["weight"], 2))
    b = jax.nn.relu(features.weights.convolve(a, params["b"]["weight"], 2))
    return {"a": a, "b": b, "pool": b.mean((1, 2))}


@pytest.fixture(autouse=True, scope="module")
def tiny_network():
    """A feature network that compiles fast, under the name "tiny"."""
    network = types.SimpleNamespace(shapes=tiny_shapes, apply=tiny_apply, SIZE=32, IGNORED="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(features.NETWORKS, "tiny", network)
        patch.setitem(discriminator.SCALES, "tiny", ("a", "b"))
        yield


@functools.cache
def critic(num_classes=0):
    fields = dict(networks=("tiny",), size=32, width=8, random_features=0)
    return projected(**fields, shape=(16, 16, 3), num_classes=num_classes)


def test_projected_discriminator():
    made = critic(3)
    roles = made.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (4, 16, 16, 3), minval=-1)
    run = jax.jit(made.logits)
    logits = run(roles, x, jnp.array([0, 1, 2, 0]))
    assert logits.shape == (4, 2) and np.isfinite(logits).all()
    other = run(roles, x, jnp.array([1, 1, 2, 0]))
    assert (other[0] != logits[0]).all()
    np.testing.assert_allclose(other[1:], logits[1:], atol=1e-6)
    np.testing.assert_allclose(  # examples never interact
        made.logits(roles, x[2:3], jnp.array([2])), logits[2:3], rtol=1e-3, atol=1e-4
    )


def test_a_second_network_brings_heads_of_its_own():
    fields = dict(networks=("tiny", "tiny"), size=16, width=8, random_features=0)
    made = projected(**fields, shape=(16, 16, 1), num_classes=0)
    roles = made.init(jax.random.key(0))
    assert set(roles["discriminator"]) == set("0123")
    x = jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32)
    assert jax.eval_shape(made.logits, roles, x).shape == (2, 4)
    with pytest.raises(UserError, match="names a file for each of its networks"):
        projected(**fields, paths=("one.pth",), shape=(16, 16, 3), num_classes=0)
    with pytest.raises(UserError, match="needs images"):
        projected(**fields, shape=(2,), num_classes=0)


def test_spectral_vectors_find_the_largest_singular_value():
    made = critic()
    roles = made.init(jax.random.key(0))
    slope = jax.jit(jax.grad(made.track))
    for _ in range(60):
        got = slope(roles)
        assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(got["discriminator"]))
        moved = jax.tree.map(jnp.subtract, roles["spectral"], got["spectral"])
        roles = roles | {"spectral": moved}
    for head, vectors in zip(
        *(roles[r].values() for r in ("discriminator", "spectral")), strict=True
    ):
        for name, layer in head.items():
            matrix = np.asarray(layer["kernel"]).reshape(-1, layer["kernel"].shape[-1])
            scale = np.linalg.norm(matrix @ np.asarray(vectors[name]))
            assert 0.97 <= scale / np.linalg.norm(matrix, 2) <= 1 + 1e-5


def write_pairs(folder, real):
    rng = np.random.default_rng(0)
    for name in ("x0", "x1"):
        np.save(folder / f"{name}.npy", rng.normal(size=(60, 8, 8, 3)).astype(np.float32))
    settings = {"num_classes": 0, "class_names": [], "pixels": True}
    (folder / "manifest.json").write_text(json.dumps({"num": 60, "settings": settings}))
    pixels = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(real, train_images=pixels, test_images=pixels)


def adversarial_run(workdir, pairs, real, steps, stage="adversarial", **extra):
    adversary = "{'name': 'projected', 'networks': ('tiny',), 'size': 16, 'width': 8, "
    fields = {
        "batch_size": 8, "seed": 3,
        "net": "{'name': 'mlp', 'width': 8, 'depth': 1, 'time_input': True}",
        "data.path": pairs, "data.real.path": real, "data.real.size": 8,
        "loss.adversary": adversary + "'random_features': 0}", "loss.start": 1,
        "loss.distance": "{'name': 'squared_l2'}",
        "train.steps": steps, "train.log_every": 1, "train.eval_batches": 1, "checkpoint.every": 2,
        "evaluate.metrics": "('heldout_loss',)", "evaluate.figures": False, "sample.num": 8,
        "sample.batch_size": 8, **extra,
    }  # fmt: skip
    config = ROOT / "configs" / "lines_cifar10.py"
    flags = [f"--config.{name}={value}" for name, value in fields.items() if value is not None]
    code = main(["genfield", f"--config={config}:small,{stage}", f"--workdir={workdir}", *flags])
    assert code == 0
    return checkpoint.load(workdir)


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    write_pairs(folder, tmp_path / "real.npz")
    return folder, tmp_path / "real.npz"


def test_both_players_resume_to_the_bit(tmp_path, pairs, capsys):
    whole = adversarial_run(tmp_path / "whole", *pairs, 4)
    first = checkpoint.load(tmp_path / "whole", step=2)
    assert set(first) == {"field", "discriminator", "spectral"}
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")  # and back to where step 2 left it
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
    (tmp_path / "parts" / "summary.json").unlink()
    capsys.readouterr()
    parts = adversarial_run(tmp_path / "parts", *pairs, 4)
    assert "resuming at step 2" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    changed = jax.tree.map(lambda a, b: np.any(a != b), first, whole)
    assert all(any(jax.tree.leaves(changed[role])) for role in changed)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").open()]
    weights = [row["adaptive_weight"] for row in rows if row["split"] == "train"]
    assert weights[0] == 0 and all(w > 0 for w in weights[1:])
    # A further stage takes over the field, and a discriminator where there is one.
    start = {"initial_parameters": tmp_path / "whole"}
    later = adversarial_run(
        tmp_path / "later", *pairs, 1, **start, **{"optimizer.learning_rate": 1e-12}
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), later["field"], whole["field"]
    )
    # Which is done: the run that it began from may go.
    shutil.rmtree(tmp_path / "whole")
    assert main(["genfield", f"--workdir={tmp_path / 'later'}", "--mode=sample"]) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.real.path": None}, "pass --config.data.real.path="),
        (
            {"loss.distance": "{'name': 'perceptual', 'network': 'vgg16', 'size': 20, 'seed': 0}"},
            "sides divisible by 16",
        ),
        ({"loss.adversary": None, "loss.adversary.width": 50}, "must be a multiple of 8"),
        ({"loss.adversary": None, "loss.adversary.size": 0}, "loss.adversary.size"),
        (
            dict.fromkeys(("data", "data.path", "data.real.path", "data.real.size")),
            "needs real examples beside the pairs",
        ),
        ({"data.real.labels": "True"}, "no train_labels in"),
        ({"data.real.size": 16}, "data.real has examples of (16, 16, 3), and the pairs (8, 8, 3)"),
        ({"loss.adversary": "{'name': 'mirror'}"}, "unknown loss.adversary 'mirror'"),
        ({"loss.game": "chess"}, "unknown loss.game 'chess'"),
        ({"loss.policy": "('blur',)"}, "unknown loss.policy 'blur'"),
    ],
)
def test_what_cannot_be_played_is_one_line(tmp_path, pairs, capsys, fields, message):
    if "data" in fields:
        fields = fields | {"data": str({"name": "pairs", "path": str(pairs[0])})}
    with pytest.raises(AssertionError):
        adversarial_run(tmp_path / "run", *pairs, 2, **fields)
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_real_examples_are_judged_under_their_own_labels():
    """Logits that are the labels: hinge gives relu(1 - real) + relu(1 + fake) of them."""
    logits = lambda roles, images, label: label[:, None].astype(jnp.float32)
    adversary = Adversary(init=lambda key: {}, logits=logits)
    x, t, field = jnp.ones((2, 4, 4, 1)), jnp.ones(2), lambda x, t=None, cond=None: x
    sample = paths.interpolate(paths.variance_exploding, x, x, t)
    _, terms = losses.adversarial_lines_matching(
        field,
        sample,
        key=jax.random.split(jax.random.key(0), 2),
        roles={},
        real=x,
        adversary=adversary,
        last_layer=(jnp.ones(()), lambda w: lambda x, t=None, cond=None: w * x),
        label=jnp.zeros(2),
        real_label=jnp.full(2, 0.25),
        policy=(),
    )
    np.testing.assert_allclose(terms["discriminator"], 0.75 + 1.0)
