"""The U-Nets of EDM and of Flux Matching: published counts, formulas written out, labels."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_nets import attention, close, convolve, differ, fresh, init, jit, silu

from genfield import nets
from genfield.errors import UserError
from genfield.machine import fixed, sharding
from genfield.nets import edm_unet

CIFAR, SIXTY_FOUR = (32, 32, 3), (64, 64, 3)
DDPMPP = {"name": "ddpmpp", "augmentation_size": 9}
AFHQ = DDPMPP | {"channel_multipliers": (1, 2, 2, 2), "dropout": 0.25}
FLUX = {  # Flux Matching, Table 3
    "name": "unet",
    "channels": 128,
    "channel_multipliers": (1, 2, 2, 2),
    "num_res_blocks": 2,
    "attention_levels": (2,),
    "dropout": 0.1,
    "resampling": "conv",
    "adaptive_scale": False,
    "max_period": 10_000,
}
IMAGE, CLASSES, BATCH = (4, 8, 3), 3, 3
TINY = {"channels": 8, "channel_multipliers": (2, 1), "num_res_blocks": 1, "dropout": 0.3}
SONG = TINY | {"attention_resolutions": (2,)}
CASES = {
    "ddpmpp": SONG | DDPMPP,
    "ncsnpp": SONG | {"name": "ncsnpp"},
    "adm": TINY | {"name": "adm", "attention_levels": (2,), "head_channels": 4},
    "flux": FLUX | TINY,
}
WITHOUT_CLASSES = "flux"
ONE_LEVEL = {"channels": 4, "channel_multipliers": (1,), "num_res_blocks": 1, "dropout": 0.0}
SMALL = {
    "ddpmpp": DDPMPP | ONE_LEVEL | {"attention_resolutions": (4,)},
    "adm": {"name": "adm"} | ONE_LEVEL | {"attention_levels": (1,), "head_channels": 2},
}


@pytest.mark.parametrize(
    ("config", "shape", "num_classes", "count", "attentions"),
    [
        ({"name": "ddpmpp"}, CIFAR, 0, 55_732_739, (4, 2)),
        (DDPMPP, CIFAR, 0, 55_733_891, (4, 2)),
        (DDPMPP, CIFAR, 10, 55_735_299, (4, 2)),
        (AFHQ, SIXTY_FOUR, 0, 61_805_571, (4, 2)),
        ({"name": "adm"}, SIXTY_FOUR, 1000, 295_899_267, (9, 13)),
        ({"name": "ncsnpp"}, CIFAR, 0, 56_395_523, (4, 2)),
        (FLUX, CIFAR, 0, 35_746_307, (2, 4)),  # 35.7M in Table 3
        (FLUX, SIXTY_FOUR, 0, 35_746_307, (2, 4)),
    ],
)
def test_published_parameter_counts(config, shape, num_classes, count, attentions):
    """Counts of EDM's and Flux Matching's networks; attention blocks down and up as in Table 6 of
    Lines Matching Models (NCSN++ is not in it)."""
    _, params = nets.create(config, None, shape=shape, num_classes=num_classes)
    fixed_arrays = nets.known()[config["name"]].fixed
    assert nets.count_parameters(fixed.without(params, fixed_arrays)) == count
    attending = lambda stages: sum("attention" in stage for stage in stages)
    up = attending([*params["up"].values(), params["middle1"], params["middle2"]])
    assert (attending(params["down"].values()), up) == attentions


@functools.cache
def build(name):
    """apply, params with noise, x, t, cond of a case."""
    apply, params = init(CASES[name], IMAGE, 0 if name == WITHOUT_CLASSES else CLASSES)
    x = jax.random.normal(jax.random.key(1), (BATCH, *IMAGE))
    cond = {"label": jnp.array([0, 2, CLASSES])}
    if name == "ddpmpp":
        cond["augmentation"] = jax.random.normal(jax.random.key(2), (BATCH, 9))
    t = jnp.array([-1.5, 0.1, 0.8])
    apply = jit(apply, static_argnames="train")
    return apply, params, x, t, None if name == WITHOUT_CLASSES else cond


def linear(q, h):
    return h @ q["kernel"] + (q["bias"][None] if "bias" in q else 0)


def norm(q, x, smallest, epsilon):
    b, h, w, c = x.shape
    cells = x.reshape(b, h, w, c // smallest, smallest)  # no level here has 32 groups
    mean, variance = (f(cells, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
    y = ((cells - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    return y * q["scale"][None, None, None] + q["bias"][None, None, None]


def pool(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def repeat(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def filter_matrix(size):
    """[size / 2, size]: [1, 3, 3, 1] / 8 at every second pixel, nothing beyond the image."""
    matrix = np.zeros((size // 2, size + 2))
    for i in range(size // 2):
        matrix[i, 2 * i : 2 * i + 4] = np.array([1, 3, 3, 1]) / 8
    return matrix[:, 1:-1]


def smooth(x, up):
    rows, columns = (filter_matrix(n * (2 if up else 1)) for n in x.shape[1:3])
    rows, columns = (2 * rows.T, 2 * columns.T) if up else (rows, columns)
    return np.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def filtered_convolution(q, x):
    """The convolution reaches one pixel beyond the image before its result is filtered."""
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    y = convolve(padded, q)[:, 1:-1, 1:-1]  # positions -1 ... size
    taps = np.array([1, 3, 3, 1]) / 8
    height, width = x.shape[1:3]
    return sum(
        taps[i] * taps[j] * y[:, i : i + height : 2, j : j + width : 2]
        for i in range(4)
        for j in range(4)
    )


def song_stage(q, h, e, resample=None):
    """Song et al.'s block with EDM's embedding; everything added is over sqrt 2."""
    normed = lambda n, h: norm(n, h, 4, 1e-6)
    block, x = q["block"], h
    y = silu(normed(block["norm1"], h))
    x, y = (x, y) if resample is None else (resample(x), resample(y))
    y = convolve(y, block["conv1"]) + linear(block["shift"], e)[:, None, None]
    y = convolve(silu(normed(block["norm2"], y)), block["conv2"])
    h = (y + (convolve(x, block["skip"]) if "skip" in block else x)) / math.sqrt(2)
    if "attention" not in q:
        return h
    return (h + attend(q["attention"], normed(q["attention"]["norm"], h), 1)) / math.sqrt(2)


def adm_stage(q, h, e, resample=None, head_channels=None):
    """Dhariwal & Nichol's block, or Ho et al.'s, whose embedding is only added."""
    normed = lambda n, h: norm(n, h, 2, 1e-5)
    block, x = q["block"], h
    y = silu(normed(block["norm1"], h))
    x, y = (x, y) if resample is None else (resample(x), resample(y))
    y, m = convolve(y, block["conv1"]), linear(block["modulation"], silu(e))[:, None, None]
    if head_channels:
        scale, shift = np.split(m, 2, axis=-1)
        y = normed(block["norm2"], y) * (1 + scale) + shift
    else:
        y = normed(block["norm2"], y + m)
    h = convolve(silu(y), block["conv2"]) + (convolve(x, block["skip"]) if "skip" in block else x)
    if "attention" not in q:
        return h
    heads = h.shape[-1] // head_channels if head_channels else 1
    return h + attend(q["attention"], normed(q["attention"]["norm"], h), heads)


def attend(q, h, heads):
    b, height, width, c = h.shape
    qkv = convolve(h, q["qkv"]).reshape(b, height * width, 3, heads, c // heads)
    y = np.stack([attention(*row.swapaxes(0, 1)) for row in qkv])
    return convolve(y.reshape(h.shape), q["out"])


def walk(p, x, e, stage, shrink, grow, last_norm):
    """Two levels of one block down and two up."""
    skips = [convolve(x, p["first"])]
    skips.append(stage(p["down"]["0_0"], skips[-1], e))
    skips.append(shrink(p["shrink"]["0"], skips[-1]))
    if "pyramid" in p:
        skips[-1] = (skips[-1] + filtered_convolution(p["pyramid"]["0"]["conv"], x)) / math.sqrt(2)
    skips.append(stage(p["down"]["1_0"], skips[-1], e))
    h = stage(p["middle2"], stage(p["middle1"], skips[-1], e), e)
    for level, i in ((1, 0), (1, 1), (0, 0), (0, 1)):
        h = grow(p["grow"]["1"], h) if (level, i) == (0, 0) else h
        h = stage(p["up"][f"{level}_{i}"], np.concatenate([h, skips.pop()], axis=-1), e)
    return convolve(silu(last_norm(p["norm"], h)), p["last"])


def one_hot(labels):
    return np.eye(CLASSES + 1)[np.asarray(labels)][:, :CLASSES]


def waves(t, frequencies, first=np.sin, second=np.cos):
    angles = np.asarray(t)[:, None] * frequencies[None]
    return np.concatenate([first(angles), second(angles)], axis=1)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_song_networks_are_the_formula(name):
    apply, params, x, t, cond = build(name)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    if name == "ddpmpp":
        features = waves(t, 10_000.0 ** (-np.arange(4) / 3))
    else:
        features = waves(t, p["embedding"]["frequencies"][0])
    embedding = p["embedding"]
    e = features + linear(embedding["labels"], math.sqrt(CLASSES) * one_hot(cond["label"]))
    if name == "ddpmpp":
        e = e + linear(embedding["augmentation"], np.asarray(cond["augmentation"], np.float64))
    e = silu(linear(embedding["second"], silu(linear(embedding["first"], e))))
    halve, double = (
        (pool, repeat)
        if name == "ddpmpp"
        else (
            lambda x: smooth(x, False),
            lambda x: smooth(x, True),
        )
    )
    expected = walk(
        p,
        np.asarray(x, np.float64),
        e,
        song_stage,
        lambda q, h: song_stage(q, h, e, halve),
        lambda q, h: song_stage(q, h, e, double),
        lambda q, h: norm(q, h, 4, 1e-6),
    )
    close(apply(params, x, t, cond), expected, 1e-5)


@pytest.mark.parametrize("name", ["adm", "flux"])
def test_unet_options_are_the_formula(name):
    apply, params, x, t, cond = build(name)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    e = linear(p["time1"], waves(t, 10_000.0 ** (-np.arange(4) / 4), np.cos, np.sin))
    e = linear(p["time2"], silu(e))
    if name == "adm":
        e = e + one_hot(cond["label"]) @ p["labels"]["kernel"]
        stage = functools.partial(adm_stage, head_channels=4)
        shrink, grow = (lambda q, h, f=f: stage(q, h, e, f) for f in (pool, repeat))
    else:
        stage = adm_stage
        shrink = lambda q, h: convolve(h, q["conv"])[:, ::2, ::2]
        grow = lambda q, h: convolve(repeat(h), q["conv"])
    last_norm = lambda q, h: norm(q, h, 2, 1e-5)
    expected = walk(p, np.asarray(x, np.float64), e, stage, shrink, grow, last_norm)
    close(apply(params, x, t, cond), expected, 1e-5)


def test_fourier_frequencies_are_of_the_stated_spread_and_never_change():
    radians, turns = edm_unet.fourier_frequencies((2, 1000))
    np.testing.assert_allclose(np.std(turns), 16, rtol=0.05)
    np.testing.assert_allclose(turns[:2] / 16, [1.764052, 0.400157], rtol=1e-6)
    np.testing.assert_allclose(radians, 2 * np.pi * turns, rtol=1e-6)
    features = edm_unet.fourier_features(jnp.zeros(1), jnp.stack([radians, turns]))
    np.testing.assert_array_equal(features[0], np.repeat([0.0, 1.0], 1000))
    start = fresh(CASES["ncsnpp"], IMAGE, CLASSES)["embedding"]["frequencies"]
    np.testing.assert_array_equal(start, edm_unet.fourier_frequencies((2, 8)))


def test_initial_values():
    """EDM: Xavier-uniform, times 1e-5 where a branch or the network ends, zero biases."""
    config = CASES["ddpmpp"] | {"channels": 32}
    params = fresh(config, IMAGE, CLASSES)
    stage = params["down"]["1_0"]
    block, bias = stage["block"], params["embedding"]["labels"]["bias"]
    layers = [
        (block["conv1"], 9 * (64 + 32), 1.0),
        (block["conv2"], 9 * (32 + 32), 1e-5),
        (stage["attention"]["qkv"], 32 + 96, math.sqrt(0.2)),
        (stage["attention"]["out"], 32 + 32, 1e-5),
        (params["last"], 9 * (64 + 3), 1e-5),
        (params["embedding"]["second"], 128 + 128, 1.0),
    ]
    for layer, fans, gain in layers:
        bound = gain * math.sqrt(6 / fans)
        assert 0.97 * bound < np.abs(layer["kernel"]).max() <= bound * (1 + 1e-6)
        assert not np.any(layer["bias"])
    assert bias.shape == (32,) and not np.any(bias)
    assert "bias" not in params["embedding"]["augmentation"]


@pytest.mark.parametrize("name", CASES)
def test_fresh_networks_return_almost_zero(name):
    apply, _, x, t, cond = build(name)
    output = apply(fresh(CASES[name], IMAGE, 0 if name == WITHOUT_CLASSES else CLASSES), x, t, cond)
    assert output.shape == x.shape
    assert output.dtype == jnp.float32
    assert np.isfinite(output).all()
    assert np.abs(output).max() < 1e-3
    assert (np.abs(output).max() > 0) == (name in ("ddpmpp", "ncsnpp"))


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_the_null_class_is_a_network_without_labels(name):
    """But for the bias of DDPM++'s labels, here zero; and classes differ from it."""
    config = SMALL[name]
    apply, params = init(config, IMAGE, CLASSES)
    without, _ = nets.create(config, None, shape=IMAGE)
    bare = dict(params)
    if name == "ddpmpp":
        params["embedding"]["labels"]["bias"] *= 0
        bare["embedding"] = {k: v for k, v in params["embedding"].items() if k != "labels"}
    else:
        assert set(bare.pop("labels")) == {"kernel"}
    _, _, x, t, _ = build(name)
    null = jnp.full(BATCH, CLASSES)
    expected = jit(without)(bare, x, t)
    run = jit(apply)
    np.testing.assert_allclose(run(params, x, t, null), expected, atol=1e-5)
    assert differ(expected, run(params, x, t, null - 1))
    unlabelled = [None, {}, {"label": None}]
    traces = {str(jax.make_jaxpr(apply)(params, x, t, cond)) for cond in unlabelled}
    assert len(traces) == 1


def test_augmentation():
    """No augmentation is the zero vector; it may come without labels."""
    apply, params = init(SMALL["ddpmpp"], IMAGE)
    _, _, x, t, cond = build("ddpmpp")
    apply = jit(apply)
    without = apply(params, x, t)
    zeros = {"augmentation": jnp.zeros((BATCH, 9))}
    np.testing.assert_allclose(apply(params, x, t, zeros), without, atol=1e-6)
    told = {"augmentation": cond["augmentation"].at[0].set(0.0)}
    change = np.abs(apply(params, x, t, told) - without).max(axis=(1, 2, 3))
    assert change[0] < 1e-6
    assert change[1:].min() > 1e-3


def test_derivatives_of_the_derivative():
    """d(c.J).e by jvp of vjp, the operator of Flux Matching's loss, against differences; under
    rematerialisation and dropout."""
    config = SMALL["ddpmpp"] | {"dropout": 0.3, "num_res_blocks": 0, "remat": True}
    apply, params = init(config, IMAGE)
    _, _, x, t, _ = build("ddpmpp")
    e, c = jax.random.normal(jax.random.key(2), (2, *x.shape))
    field = lambda z: apply(params, z, t, key=jax.random.key(3), train=True)
    gradient = lambda z: jax.vjp(field, z)[1](c)[0]
    along = jit(lambda z: jax.jvp(gradient, (z,), (e,)))
    after, before = (along(x + step * e)[0] for step in (0.01, -0.01))
    close(along(x)[1], (after - before) / 0.02, 5e-3)


def test_bfloat16():
    """Near float32 but not equal to it, with float32 outputs."""
    config = SMALL["ddpmpp"]
    apply, params = init(config, IMAGE)
    other, _ = nets.create(config | {"dtype": "bfloat16"}, None, shape=IMAGE)
    _, _, x, t, _ = build("ddpmpp")
    full, half = jit(apply)(params, x, t), jit(other)(params, x, t)
    assert half.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(half - full) / np.linalg.norm(full) < 0.05


def test_dropout_needs_a_key():
    apply, params = init(SMALL["ddpmpp"] | {"dropout": 0.3}, IMAGE)
    _, _, x, t, _ = build("ddpmpp")
    with pytest.raises(UserError, match=r"with dropout needs key=<a PRNG key>"):
        apply(params, x, t, train=True)
    train = jit(lambda key: apply(params, x, t, key=key, train=True))
    one, same, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert differ(one, other)


@pytest.mark.parametrize(
    ("config", "shape", "num_classes"),
    [(DDPMPP, CIFAR, 10), ({"name": "adm"}, SIXTY_FOUR, 1000), (FLUX, CIFAR, 0)],
)
def test_parameters_can_be_split_over_devices(config, shape, num_classes):
    """All but a hundredth, eight ways."""
    mesh = sharding.make_mesh(ConfigDict({"data": 1, "fsdp": 8}), jax.devices())
    _, params = nets.create(config, None, shape=shape, num_classes=num_classes)
    places = sharding.state_shardings(mesh, params)
    local = jax.tree.map(
        lambda leaf, place: math.prod(place.shard_shape(leaf.shape)), params, places
    )
    total = nets.count_parameters(params)
    assert sum(jax.tree.leaves(local)) < total / 8 + total / 100


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        ({"name": "ddpmpp"}, (2,), "'ddpmpp'.*use 'mlp'"),
        ({"name": "ncsnpp"}, (30, 32, 3), "'ncsnpp': 30x32 images are not divisible by 4"),
        ({"name": "ddpmpp"}, (8, 8, 3), "unknown attention resolution 16.*Known: 2, 4, 8"),
        ({"name": "ddpmpp", "channels": 6}, CIFAR, "channels divisible by 4"),
        ({"name": "ddpmpp", "channel_multipliers": ()}, CIFAR, "at least one multiplier"),
        ({"name": "ddpmpp", "dropout": 1.0}, CIFAR, "dropout must be in"),
        ({"name": "ddpmpp", "augmentation_size": -1}, CIFAR, "augmentation_size must not be"),
        ({"name": "ddpmpp", "attention": "cudnn"}, CIFAR, "unknown attention.*auto, chunked, xla"),
        ({"name": "adm", "head_channels": 50}, CIFAR, "384 channels do not split into heads"),
        (FLUX | {"resampling": "convs"}, CIFAR, "unknown resampling.*did you mean 'conv'"),
    ],
)
def test_mistakes_in_a_config_are_named(config, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        nets.create(config, None, shape=shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "cond", "message"),
    [
        (
            9,
            {"augmentation": jnp.zeros((BATCH, 8))},
            r"augmentations of shape \(3, 9\), not \(3, 8\)",
        ),
        (0, {"augmentation": jnp.zeros((BATCH, 9))}, "built without augmentation_size"),
        (9, {"augmentations": None}, "unknown condition 'augmentations'.*augmentation, label"),
        (9, {"label": jnp.zeros(BATCH, int)}, "num_classes=0"),
    ],
)
def test_wrong_conditions_fail_at_once(size, cond, message):
    config = SMALL["ddpmpp"] | {"augmentation_size": size}
    apply, params = nets.create(config, None, shape=IMAGE)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda p: apply(p, jnp.zeros((BATCH, *IMAGE)), None, cond), params)


def test_a_null_row_of_zeros_stays():
    """As in flow_matching's U-Net: it starts at zero, takes no gradient, and adds nothing."""
    config = SMALL["adm"] | {"name": "unet", "head_channels": None, "null_row": "zero"}
    apply, _ = nets.create(config, None, shape=IMAGE, num_classes=CLASSES)
    rows = fresh(config, IMAGE, CLASSES)["labels"]["embedding"]
    assert not np.any(rows[-1]) and 0.5 < np.std(rows[:-1]) < 1.5
    _, params = init(config, IMAGE, CLASSES)
    _, _, x, t, _ = build("ddpmpp")
    loss = lambda rows, label: apply(
        params | {"labels": {"embedding": rows}}, x, t, jnp.full(BATCH, label)
    ).sum()
    gradient = jit(jax.grad(loss))
    null, first = (gradient(params["labels"]["embedding"], label) for label in (CLASSES, 0))
    assert not np.any(null)
    assert np.any(first[0]) and not np.any(first[1:])
    without, _ = nets.create(config, None, shape=IMAGE)
    zero = params | {"labels": {"embedding": jnp.asarray(rows)}}
    bare = {name: part for name, part in params.items() if name != "labels"}
    np.testing.assert_allclose(jit(apply)(zero, x, t), jit(without)(bare, x, t), atol=1e-6)
    with pytest.raises(UserError, match=r"unknown null_row 'zeros': did you mean 'zero'"):
        nets.create(config | {"null_row": "zeros"}, None, shape=IMAGE, num_classes=CLASSES)


def test_what_adm_is_told_and_leaves_out():
    """Augmentation joins the embedding, at first by nothing; a learned variance is dropped."""
    config = SMALL["adm"] | {"augmentation_size": 9, "learned_variance": True}
    start = fresh(config, IMAGE)
    assert not np.any(start["augmentation"]["kernel"]) and set(start["augmentation"]) == {"kernel"}
    assert start["last"]["kernel"].shape[-1] == 2 * IMAGE[-1]
    apply, params = init(config, IMAGE)
    _, _, x, t, cond = build("ddpmpp")
    run = jit(apply)
    told = run(params, x, t, {"augmentation": cond["augmentation"]})
    zeros = run(params, x, t, {"augmentation": jnp.zeros((BATCH, 9))})
    np.testing.assert_allclose(run(params, x, t), zeros, atol=1e-6)
    assert told.shape == x.shape and differ(told, zeros)
    half = params | {"last": jax.tree.map(lambda a: a[..., : IMAGE[-1]], params["last"])}
    plain, _ = nets.create(config | {"learned_variance": False}, None, shape=IMAGE)
    np.testing.assert_allclose(jit(plain)(half, x, t), run(params, x, t), atol=1e-6)
