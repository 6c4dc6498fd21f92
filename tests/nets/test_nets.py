"""Networks: published parameter counts, formulas written out, and what every network promises."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genfield import nets
from genfield.errors import UserError
from genfield.fields import Prediction
from genfield.nets import initial, sit, unet

UNET = {
    "name": "unet",
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "num_heads": 2,
    "dropout": 0.3,
}
SIT = {"name": "sit", "depth": 2, "width": 16, "num_heads": 2, "patch_size": 2}
IMAGE = (4, 8, 3)  # not square: rows and columns must not be confused

CASES = {  # name: config, shape of an example, classes, whether the time matters
    "mlp": ({"name": "mlp", "width": 16}, (2,), 0, False),
    "mlp_scalar": ({"name": "mlp", "width": 16, "output": "scalar"}, (2,), 0, False),
    "mlp_time_labels": ({"name": "mlp", "width": 16, "time_input": True}, (4, 2), 3, True),
    "unet": (UNET | {"distance_head": "cifar"}, IMAGE, 3, True),
    "sit": (SIT | {"distance_head": "imagenet"}, IMAGE, 3, True),
}
BATCH = 3


FAST_COMPILE = {"xla_backend_optimization_level": 0}


def jit(function, **kwargs):
    return jax.jit(function, compiler_options=FAST_COMPILE, **kwargs)


@functools.cache
def build(name):
    """apply, params, x, t, cond of a case: parameters with noise, as fresh outputs are zero."""
    config, shape, num_classes, _ = CASES[name]
    apply, params = init(config, shape, num_classes)
    x = jax.random.normal(jax.random.key(1), (BATCH, *shape))
    cond = jnp.arange(BATCH) % num_classes if num_classes else None
    return jit(apply, static_argnames="train"), params, x, jnp.array([0.1, 0.5, 0.9]), cond


def variant(name, **changes):
    """apply of a case with other fields."""
    config, shape, num_classes, _ = CASES[name]
    return nets.create(config | changes, None, shape=shape, num_classes=num_classes)[0]


def init(config, shape, num_classes=0):
    apply, _ = nets.create(config, None, shape=shape, num_classes=num_classes)
    rng = np.random.default_rng(0)
    noisy = lambda a: a + jnp.asarray(0.1 * rng.standard_normal(a.shape), a.dtype)
    return apply, jax.tree.map(noisy, fresh(config, shape, num_classes))


def fresh(config, shape, num_classes=0, seed=0):
    make = lambda key: nets.create(config, key, shape=shape, num_classes=num_classes)[1]
    return jit(make)(jax.random.key(seed))


def close(a, b, tolerance=1e-5):
    """Largest difference within tolerance of the largest value, for every leaf of two trees."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = np.abs(v).max()
        assert scale > 0
        np.testing.assert_allclose(u, v, rtol=0, atol=tolerance * scale)


def differ(a, b):
    return all(
        np.abs(u - v).max() > 1e-4 * np.abs(v).max()
        for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def direction(output):
    return output.direction if isinstance(output, Prediction) else output


@pytest.mark.parametrize(
    ("config", "shape", "num_classes", "count"),
    [
        ({"name": "unet", "distance_head": "cifar"}, (32, 32, 3), 0, 55_676_419),
        ({"name": "sit", "size": "S", "distance_head": "imagenet"}, (32, 32, 4), 1000, 32_865_056),
        ({"name": "sit", "size": "B"}, (32, 32, 4), 1000, 130_315_808),
        ({"name": "sit", "size": "B", "patch_size": 4}, (32, 32, 4), 1000, 130_426_496),
        ({"name": "sit", "size": "L"}, (32, 32, 4), 1000, 457_840_672),
        ({"name": "sit", "size": "XL"}, (32, 32, 4), 1000, 674_834_720),
        ({"name": "mlp"}, (2,), 0, 2 * 64 + 64 + 2 * (64 * 64 + 64) + 64 * 2 + 2),
    ],
)
def test_published_parameter_counts(config, shape, num_classes, count):
    """Distance Marching, Appendix B; SiT's released checkpoints."""
    _, params = nets.create(config, None, shape=shape, num_classes=num_classes)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    head = {None: 0, "cifar": 10_177, "imagenet": 62_801}[config.get("distance_head")]
    assert nets.count_parameters(params.get("distance", {})) == head
    assert nets.count_parameters(params) == count + head


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_plain_and_abstract_ones_agree(name):
    config, shape, num_classes, _ = CASES[name]
    _, abstract = nets.create(config, None, shape=shape, num_classes=num_classes)
    _, params, *_ = build(name)

    def check(tree):
        if isinstance(tree, dict):
            assert all(type(key) is str for key in tree)
            return all(check(value) for value in tree.values())
        return isinstance(tree, jax.Array) and tree.dtype == jnp.float32

    assert check(params)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), abstract
    )


@pytest.mark.parametrize("name", CASES)
def test_outputs(name):
    """Shape, float32, finite, and the same without jit."""
    config, shape, _, _ = CASES[name]
    apply, params, x, t, cond = build(name)
    output = apply(params, x, t, cond)
    if "distance_head" in config:
        assert isinstance(output, Prediction)
        assert output.distance.shape == (BATCH,)
        bare = variant(name, distance_head=None)
        without = {k: v for k, v in params.items() if k != "distance"}
        assert jax.eval_shape(bare, without, x, t, cond).shape == (BATCH, *shape)
    expected = (BATCH,) if config.get("output") == "scalar" else (BATCH, *shape)
    assert direction(output).shape == expected
    for leaf in jax.tree.leaves(output):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
    if name != "unet":  # seconds of compiling op by op; test_unet_is_the_formula does without
        close(variant(name)(params, x, t, cond), output)


@pytest.mark.parametrize("name", CASES)
def test_defaults_are_time_zero_and_the_null_class(name):
    _, _, num_classes, matters = CASES[name]
    apply, params, x, t, cond = build(name)
    null = jnp.full(BATCH, num_classes) if num_classes else None
    zero = apply(params, x, jnp.zeros(BATCH), null)
    close(apply(params, x), zero, 1e-6)
    assert differ(direction(zero), direction(apply(params, x, t, null))) == matters
    if num_classes:
        assert differ(direction(zero), direction(apply(params, x, jnp.zeros(BATCH), cond)))


@pytest.mark.parametrize("name", CASES)
def test_examples_never_interact(name):
    apply, params, x, t, cond = build(name)
    other = apply(params, x.at[1].add(1.0), t.at[1].set(0.0), cond)
    for before, after in zip(
        jax.tree.leaves(apply(params, x, t, cond)), jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_array_equal(before[::2], after[::2])
        assert np.abs(before[1] - after[1]).max() > 1e-4


@pytest.mark.parametrize("name", ["mlp_scalar", "unet", "sit"])
def test_second_derivatives(name):
    """c.dJ.e by jvp of vjp, the operator of Flux Matching's loss, against grad of jvp.

    The U-Net's rematerialised form is compared with the plain one, under the same dropout.
    """
    if name == "unet":
        config = UNET | {"channel_multipliers": (1,), "attention_levels": ()}
        apply, params = init(config, IMAGE)
        other, _ = nets.create(config | {"remat": True}, None, shape=IMAGE)
        _, _, x, t, cond = build(name)
        options = {"cond": None, "key": jax.random.key(3), "train": True}
    else:
        _, params, x, t, cond = build(name)
        apply = other = variant(name)
        options = {"cond": cond}
    f, g = (lambda z, a=a: a(params, z, t, **options) for a in (apply, other))
    e = jax.random.normal(jax.random.key(2), x.shape)
    c = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), jax.eval_shape(f, x))

    def along(z):
        tangent = jax.jvp(f, (z,), (e,))[1]
        return sum(map(jnp.vdot, jax.tree.leaves(c), jax.tree.leaves(tangent)))

    joint = jit(lambda z: jax.jvp(lambda u: jax.vjp(g, u)[1](c)[0], (z,), (e,))[1])
    close(joint(x), jit(jax.grad(along))(x), 1e-4)


def test_sit_executions_agree():
    """Scanned, unrolled and rematerialised: one checkpoint, one result, one gradient."""
    _, params, x, t, cond = build("sit")

    def run(**changes):
        apply = variant("sit", **changes)

        def loss(p):
            output = apply(p, x, t, cond)
            return (output.direction**2).sum() + output.distance.sum(), output

        return jit(jax.value_and_grad(loss, has_aux=True))(params)

    (_, output), gradient = run()
    for changes in ({"scan": False}, {"remat": True}):
        (_, same), same_gradient = run(**changes)
        close(same, output, 2e-6)
        close(same_gradient, gradient, 1e-5)


@pytest.mark.parametrize("name", ["mlp_time_labels", "unet", "sit"])
def test_bfloat16(name):
    """Near float32 but not equal to it, with float32 outputs, parameters, times and distances."""
    apply, params, x, t, cond = build(name)
    half = jit(variant(name, dtype="bfloat16"))
    output, low = apply(params, x, t, cond), half(params, x, t, cond)
    for leaf in jax.tree.leaves(low):
        assert leaf.dtype == jnp.float32
    error = np.linalg.norm(direction(low) - direction(output)) / np.linalg.norm(direction(output))
    assert 1e-4 < error < 0.05
    if name != "mlp_time_labels":
        close(low.distance, output.distance, 1e-6)
    near = jnp.array([0.8966, 0.8985, 0.9003])  # one time in bfloat16
    assert len(set(near.astype(jnp.bfloat16).tolist())) == 1
    same = half(params, jnp.tile(x[:1], (BATCH,) + (1,) * (x.ndim - 1)), near, jnp.zeros_like(cond))
    assert np.abs(direction(same)[0] - direction(same)[2]).max() > 0


def test_dropout():
    apply, params, x, t, cond = build("unet")
    keys = list(jax.random.split(jax.random.key(3)))
    train = lambda key: apply(params, x, t, cond, key=key, train=True).direction
    np.testing.assert_array_equal(train(keys[0]), train(keys[0]))
    assert differ(train(keys[0]), train(keys[1]))
    evaluation = apply(params, x, t, cond).direction
    assert differ(evaluation, train(keys[0]))
    with pytest.raises(UserError, match=r"with dropout needs key=<a PRNG key>"):
        apply(params, x, t, cond, train=True)
    plain = variant("unet")
    ignored = jax.make_jaxpr(lambda p: plain(p, x, t, cond, key=keys[0]))(params)
    assert "random" not in str(ignored)
    without = variant("unet", dropout=0.0)
    same = jax.make_jaxpr(lambda p: without(p, x, t, cond, train=True))(params)
    assert str(same) == str(ignored)


def test_mlp_is_the_formula_with_torch_initialisation():
    config = {"name": "mlp", "width": 400, "depth": 2, "activation": "silu", "time_input": True}
    apply, params = nets.create(config, jax.random.key(0), shape=(2,))
    x, t = jax.random.normal(jax.random.key(1), (5, 2)), jnp.linspace(0, 1, 5)
    h = np.concatenate([x, t[:, None]], axis=1)
    for layer in (params["first"], params["hidden"]["1"]):
        h = h @ layer["kernel"] + layer["bias"][None]
        h = h / (1 + np.exp(-h))
        bound = 1 / math.sqrt(len(layer["kernel"]))
        for leaf in layer.values():  # uniform: its maximum is near the bound, its std bound/sqrt(3)
            assert 0.95 * bound < np.abs(leaf).max() <= bound
            np.testing.assert_allclose(np.std(leaf), bound / math.sqrt(3), rtol=0.1)
    y = h @ params["last"]["kernel"] + params["last"]["bias"][None]
    np.testing.assert_allclose(apply(params, x, t), y, atol=2e-6)


@pytest.mark.parametrize("name", ["unet", "sit"])
def test_fresh_networks_return_zero(name):
    """Zero-initialised last layers."""
    config, shape, num_classes, _ = CASES[name]
    apply, _, x, t, cond = build(name)
    params = fresh(config, shape, num_classes)
    output = apply(params, x, t, cond)
    np.testing.assert_array_equal(output.direction, np.zeros((BATCH, *shape)))
    assert np.abs(output.distance).min() > 0


def test_initial_values():
    """DiT's and ADM's distributions, and no two parameters with the same draws."""
    config = SIT | {"width": 64, "distance_head": "imagenet"}
    params = fresh(config, IMAGE, num_classes=300)
    qkv, mlp1 = params["blocks"]["qkv"]["kernel"], params["blocks"]["mlp1"]["kernel"]
    for kernel, fans in ((qkv, 64 + 192), (mlp1, 64 + 256), (params["patches"]["kernel"], 12 + 64)):
        bound = math.sqrt(6 / fans)
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(np.std(kernel), bound / math.sqrt(3), rtol=0.05)
    for normal in (params["labels"]["embedding"], params["time1"]["kernel"]):
        standard = np.sort(np.ravel(normal)) / 0.02
        quantiles = [standard[int(q * len(standard))] for q in (0.023, 0.159, 0.5, 0.841, 0.977)]
        np.testing.assert_allclose(quantiles, [-2, -1, 0, 1, 2], atol=0.06)
    for zero in ("modulation", "last"):
        assert not np.any(params[zero]["kernel"])
    other = fresh(UNET, IMAGE)
    for tree in (params, other):  # up to a scale, no two parameters start with the same numbers
        firsts = [np.ravel(leaf)[:3] for leaf in jax.tree.leaves(tree) if leaf.size > 2]
        ratios = [f[1:] / f[0] for f in firsts if f[0] not in (0, 1)]
        assert len({tuple(r.round(3)) for r in ratios}) == len(ratios) > 9
    assert differ(fresh({"name": "mlp"}, (2,), seed=0), fresh({"name": "mlp"}, (2,), seed=1))


def group_norm(x, groups, scale, bias):
    b, h, w, c = x.shape
    cells = x.reshape(b, h, w, groups, c // groups)
    mean = cells.mean(axis=(1, 2, 4), keepdims=True)
    variance = cells.var(axis=(1, 2, 4), keepdims=True)
    y = ((cells - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    return y * scale[None, None, None] + bias[None, None, None]


def convolve(x, layer):
    """Same-padded convolution, written as a sum over the kernel's cells."""
    kernel = np.asarray(layer["kernel"], np.float64)
    r = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))
    h, w = x.shape[1:3]
    cells = np.ndindex(kernel.shape[:2])
    total = sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in cells)
    return total + np.asarray(layer["bias"])[None, None, None]


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(q, k, v):
    """[N, heads, c] each, head by head."""
    heads = [
        softmax(q[:, i] @ k[:, i].T / math.sqrt(q.shape[-1])) @ v[:, i] for i in range(q.shape[1])
    ]
    return np.concatenate(heads, axis=1)


def test_unet_is_the_formula():
    """The whole tiny U-Net in numpy: order of blocks, skips, attention, scale and shift."""
    apply, params, x, t, cond = build("unet")
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    frequencies = 1e6 ** (-np.arange(4) / 4)
    angles = np.asarray(t)[:, None] * frequencies[None]
    e = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    e = silu(e @ p["time1"]["kernel"] + p["time1"]["bias"][None])
    e = e @ p["time2"]["kernel"] + p["time2"]["bias"][None] + p["labels"]["embedding"][cond]

    def stage(q, h):
        norm = lambda h, n: group_norm(h, h.shape[-1] // 2, n["scale"], n["bias"])
        block = q["block"]
        y = convolve(silu(norm(h, block["norm1"])), block["conv1"])
        m = silu(e) @ block["modulation"]["kernel"] + block["modulation"]["bias"][None]
        scale, shift = np.split(m[:, None, None], 2, axis=-1)
        y = convolve(silu(norm(y, block["norm2"]) * (1 + scale) + shift), block["conv2"])
        h = y + (convolve(h, block["skip"]) if "skip" in block else h)
        if "attention" not in q:
            return h
        b, height, width, c = h.shape
        qkv = convolve(norm(h, q["attention"]["norm"]), q["attention"]["qkv"])
        qkv = qkv.reshape(b, height * width, 3, 2, c // 2)
        y = np.stack([attention(*row.swapaxes(0, 1)) for row in qkv])
        return h + convolve(y.reshape(h.shape), q["attention"]["out"])

    skips = [convolve(np.asarray(x), p["first"])]
    skips.append(stage(p["down"]["0_0"], skips[-1]))
    h = skips[-1]
    pooled = (h[:, ::2, ::2] + h[:, 1::2, ::2] + h[:, ::2, 1::2] + h[:, 1::2, 1::2]) / 4
    skips.append(pooled)
    skips.append(stage(p["down"]["1_0"], pooled))
    h = stage(p["middle2"], stage(p["middle1"], skips[-1]))
    for key in ("1_0", "1_1"):
        h = stage(p["up"][key], np.concatenate([h, skips.pop()], axis=-1))
    h = h.repeat(2, axis=1).repeat(2, axis=2)
    for key in ("0_0", "0_1"):
        h = stage(p["up"][key], np.concatenate([h, skips.pop()], axis=-1))
    h = group_norm(h, h.shape[-1] // 2, p["norm"]["scale"], p["norm"]["bias"])
    close(apply(params, x, t, cond).direction, convolve(silu(h), p["last"]) / 120, 1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (384, 32), (64, 32), (48, 24), (8, 4)])
def test_group_norm_groups_divide(channels, groups):
    from flax import nnx

    norm = unet.group_norm(channels, rngs=nnx.Rngs(0), dtype=jnp.float32)
    assert norm.num_groups == groups


def test_position_table():
    table = sit.position_table(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = []
            for position in (column, row):
                angles = [position / 10_000 ** (k / 2) for k in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(table[row * 3 + column], expected, atol=1e-6)


def test_sit_is_the_formula():
    """The whole tiny SiT in numpy: patches, condition, adaLN-Zero blocks, dropped half."""
    apply, params, x, t, cond = build("sit")
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    linear = lambda q, h: h @ q["kernel"] + np.expand_dims(q["bias"], tuple(range(h.ndim - 1)))

    def norm(h):
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)

    def gelu(h):
        return 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))

    output = []
    for image, time, label in zip(np.asarray(x, np.float64), np.asarray(t), cond, strict=True):
        angles = time * 10_000 ** (-np.arange(128) / 128)
        c = linear(p["time1"], np.concatenate([np.cos(angles), np.sin(angles)]))
        c = silu(linear(p["time2"], silu(c)) + p["labels"]["embedding"][label])
        grid = [(i, j) for i in range(0, 4, 2) for j in range(0, 8, 2)]
        patches = np.stack([image[i : i + 2, j : j + 2].reshape(-1) for i, j in grid])
        h = linear(p["patches"], patches) + sit.position_table(2, 4, 16)
        for i in range(2):
            q = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
            m = [row[None] for row in np.split(linear(q["modulation"], c), 6)]
            qkv = linear(q["qkv"], norm(h) * (1 + m[1]) + m[0]).reshape(8, 3, 2, 8)
            h = h + m[2] * linear(q["out"], attention(qkv[:, 0], qkv[:, 1], qkv[:, 2]))
            y = gelu(linear(q["mlp1"], norm(h) * (1 + m[4]) + m[3]))
            h = h + m[5] * linear(q["mlp2"], y)
        shift, scale = (row[None] for row in np.split(linear(p["modulation"], c), 2))
        tokens = linear(p["last"], norm(h) * (1 + scale) + shift).reshape(8, 2, 2, 6)
        y = np.zeros(IMAGE)
        for (i, j), token in zip(grid, tokens, strict=True):
            y[i : i + 2, j : j + 2] = token[..., :3]
        output.append(y)
    close(apply(params, x, t, cond).direction, np.stack(output) / 120, 1e-5)


def test_sit_without_double_output_is_its_first_half():
    apply, params, x, t, cond = build("sit")
    single = variant("sit", double_output=False)
    halved = jax.tree.map(
        lambda a: a.reshape(*a.shape[:-1], 4, 6)[..., :3].reshape(*a.shape[:-1], 12), params["last"]
    )
    close(jit(single)(params | {"last": halved}, x, t, cond), apply(params, x, t, cond))


@pytest.mark.parametrize(("name", "input_scale"), [("unet", 1.0), ("sit", 0.01)])
def test_distance_head_is_the_formula(name, input_scale):
    apply, params, x, t, cond = build(name)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["distance"]["head"])
    linear = lambda q, h: h @ q["kernel"] + q["bias"][None]
    h = np.maximum(convolve(np.asarray(x) * input_scale, p["conv1"]), 0)
    h = np.maximum(convolve(h, p["conv2"]), 0).mean(axis=(1, 2))
    if name == "sit":
        m = linear(p["modulation"], silu(p["labels"]["embedding"][np.asarray(cond)]))
        shift, scale, gate = np.split(m, 3, axis=1)
        y = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        h = h + gate * linear(p["residual"], silu(y * (1 + scale) + shift))
    close(apply(params, x, t, cond).distance, linear(p["last"], h)[:, 0], 1e-5)


def test_distance_scales_are_fields():
    apply, params, x, t, cond = build("sit")
    scaled = jit(variant("sit", direction_scale=2.0, distance_input_scale=0.5))
    output, plain = scaled(params, x, t, cond), apply(params, x, t, cond)
    close(output.direction, plain.direction * 240)
    close(output.distance, apply(params, 50 * x, t, cond).distance)


@pytest.mark.parametrize("name", ["unet", "sit"])
def test_direction_sees_the_distance_as_its_time(name):
    """v(x) = v(x, s u(x)) of the network with a time, u of the unscaled image; and who trains u."""
    plain, params, x, _, cond = build(name)
    seeing = jit(variant(name, distance_time_scale=0.5))
    output = seeing(params, x, jnp.zeros(BATCH), cond)
    unscaled = jit(variant(name, distance_input_scale=1.0))
    expected = unscaled(params, x, 0.5 * output.distance, cond)
    close(output.direction, expected.direction)
    close(output.distance, expected.distance)
    other = plain(params, x, jnp.zeros(BATCH), cond).direction
    assert np.abs(output.direction - other).max() > 1e-5

    def of_head(apply):
        loss = lambda p: apply(p, x, jnp.zeros(BATCH), cond).direction.sum()
        return jax.tree.leaves(jit(jax.grad(loss))(params)["distance"]["head"])

    assert not any(np.any(np.asarray(a)) for a in of_head(variant(name, distance_time_scale=0.5)))
    trained = variant(name, distance_time_scale=0.5, distance_time_gradient=True)
    assert all(np.any(np.asarray(a)) for a in of_head(trained)[:4])


def test_sharded_initialisation_equals_unsharded():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    config, *_ = CASES["sit"]
    make = lambda key: nets.create(config, key, shape=IMAGE, num_classes=3)[1]
    _, abstract = nets.create(config, None, shape=IMAGE, num_classes=3)

    def place(leaf):
        axes = ["fsdp" if size % 4 == 0 and i else None for i, size in enumerate(leaf.shape)]
        first = axes.index("fsdp") if "fsdp" in axes else len(axes)
        return NamedSharding(mesh, PartitionSpec(*axes[: first + 1]))

    shardings = jax.tree.map(place, abstract)
    sharded = jax.jit(make, out_shardings=shardings)(jax.random.key(0))
    kernel = sharded["blocks"]["qkv"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 4, 48)
    assert not np.array_equal(kernel[0], kernel[1])  # each block has its own draw
    jax.tree.map(np.testing.assert_array_equal, sharded, jax.jit(make)(jax.random.key(0)))


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        ({"name": "unnet"}, IMAGE, "unknown net 'unnet'.*did you mean 'unet'"),
        ({"name": "mlp", "widht": 3}, (2,), "unknown field 'widht'.*did you mean 'width'"),
        ({"name": "mlp", "shape": (2,)}, (2,), "unknown field 'shape'"),
        ({"name": "mlp", "activation": "sele"}, (2,), "did you mean 'selu'"),
        ({"name": "mlp", "output": "energy"}, (2,), "unknown output 'energy'.*scalar, vector"),
        ({"name": "mlp", "depth": 0}, (2,), "depth and width"),
        ({"name": "mlp", "dtype": "float16"}, (2,), "unknown dtype.*bfloat16"),
        ({"name": "unet"}, (2,), "use 'mlp'"),
        ({"name": "unet"}, (30, 32, 3), "30x32 images are not divisible by 4"),
        (UNET | {"attention_levels": (3,)}, IMAGE, "unknown attention level 3.*Known: 1, 2"),
        (UNET | {"num_heads": 3}, IMAGE, "16 channels do not split into heads"),
        (UNET | {"dropout": 1.0}, IMAGE, "dropout must be in"),
        (
            UNET | {"channel_multipliers": (1, 0)},
            IMAGE,
            r"multipliers must be positive, got \(1, 0",
        ),
        (UNET | {"num_res_blocks": -1}, IMAGE, "num_res_blocks must not be negative"),
        (UNET | {"max_period": 0.0}, IMAGE, "max_period must be positive"),
        (UNET | {"direction_scale": 0.1}, IMAGE, "direction_scale has no effect"),
        (UNET | {"distance_time_scale": 1.0}, IMAGE, "distance_time_scale has no effect"),
        (
            UNET | {"distance_head": "cifar", "distance_time_gradient": True},
            IMAGE,
            "distance_time_gradient has no effect where the direction does not see",
        ),
        (UNET | {"distance_head": "cifer"}, IMAGE, "did you mean 'cifar'"),
        (SIT, (2,), "use 'mlp'"),
        (SIT | {"patch_size": 8}, IMAGE, "4x8 images are not divisible by 8"),
        (SIT | {"num_heads": 3}, IMAGE, "width 16 must be divisible by num_heads"),
        (SIT | {"size": "M"}, IMAGE, "unknown size 'M'.*Known: B, L, S, XL"),
        (SIT | {"attention": "cudnn"}, IMAGE, "unknown attention.*auto, chunked, xla"),
    ],
)
def test_mistakes_in_a_config_are_named(config, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        nets.create(config, None, shape=shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "t", "cond", "message"),
    [
        ((3, 4), None, None, r"x of shape \[B, \*\(2,\)\], not \(3, 4\)"),
        ((2,), None, None, "x of shape"),
        ((3, 2), jnp.zeros(1), None, "t of shape"),
        ((3, 2), None, jnp.zeros(3), "integer labels"),
        ((3, 2), None, jnp.zeros((3, 1), int), "integer labels"),
        ((3, 2), None, np.array([0, 4, 5]), "label 5 is no class: the net takes 0 to 3, and 4"),
        ((3, 2), None, jnp.array([-1, 0, 4]), "label -1 is no class"),
    ],
)
def test_wrong_inputs_fail_at_once(x, t, cond, message):
    apply, params = nets.create({"name": "mlp"}, jax.random.key(0), shape=(2,), num_classes=4)
    with pytest.raises(UserError, match=message):
        apply(params, jnp.zeros(x), t, cond)


def test_labels_without_classes_fail():
    apply, params, x, t, _ = build("mlp")
    with pytest.raises(UserError, match="num_classes=0"):
        apply(params, x, t, jnp.zeros(BATCH, int))


def test_config_dicts_are_accepted():
    from ml_collections import ConfigDict

    config = UNET | {"channel_multipliers": [1, 2], "attention_levels": [2]}
    _, params = nets.create(ConfigDict(config), None, shape=IMAGE)
    assert params == nets.create(UNET, None, shape=IMAGE)[1]


def test_large_and_small_parameters_are_drawn_apart():
    shapes = [(8,), (initial.SMALL,), (initial.SMALL, 2)]
    leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    drawn = initial.draw(jax.random.key(0), leaves, [initial.uniform(1.0)] * 3)
    few = [np.asarray(a).reshape(-1)[:8] for a in drawn]
    for i in range(3):
        for j in range(i):
            assert not np.isin(few[i], np.asarray(drawn[j])).all()
