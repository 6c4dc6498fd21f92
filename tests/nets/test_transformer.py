"""The transformer: the formula, what the causal mask forbids, derivatives, executions, mistakes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genfield import nets
from genfield.errors import UserError

SHAPE, BATCH = (5, 3), 2
TINY = {"name": "transformer", "width": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 2}


def variant(num_classes=0, **changes):
    """apply with the fields of TINY but for the changes."""
    return nets.create(TINY | changes, None, shape=SHAPE, num_classes=num_classes)[0]


@functools.cache
def fresh(num_classes=0):
    make = lambda key: nets.create(TINY, key, shape=SHAPE, num_classes=num_classes)[1]
    return jax.jit(make)(jax.random.key(0))


@functools.cache
def inputs(num_classes=0):
    """Parameters with noise, as fresh outputs are zero; x and t."""
    rng = np.random.default_rng(0)
    noisy = lambda a: a + jnp.asarray(0.2 * rng.standard_normal(a.shape), a.dtype)
    x = jax.random.normal(jax.random.key(1), (BATCH, *SHAPE))
    return jax.tree.map(noisy, fresh(num_classes)), x, jnp.array([-1.5, 1.0])


def close(a, b, tolerance=1e-5):
    """Largest difference within tolerance of the largest value, for every leaf of two trees."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.abs(v).max() > 0
        np.testing.assert_allclose(u, v, rtol=0, atol=tolerance * np.abs(v).max())


def test_parameter_count_of_the_papers_network():
    """Appendix B.5: 12 blocks of width 512, 8 heads; 38.2 million parameters."""
    _, params = nets.create({"name": "transformer"}, None, shape=(50, 4))
    block = (4 * 512**2 + 4 * 512) + (8 * 512**2 + 5 * 512) + 2 * 2 * 512
    ends = (4 * 512 + 512) + (256 * 512 + 512) + (512**2 + 512) + 2 * 512 + (512 * 4 + 4)
    assert nets.count_parameters(params) == 12 * block + ends == 38_228_484
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("causal", [True, False])
def test_is_the_formula(causal):
    """The whole network in numpy, token by token, with labels."""
    params, x, t = inputs(3)
    p, cond = jax.tree.map(lambda a: np.asarray(a, np.float64), params), jnp.array([2, 0])
    linear = lambda q, h: h @ q["kernel"] + q["bias"].reshape((1,) * (h.ndim - 1) + (-1,))
    silu = lambda h: h / (1 + np.exp(-h))

    def norm(q, h):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        return h * q["scale"][None] + q["bias"][None]

    def gelu(h):
        return 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))

    def attention(q, k, v, i):
        """Of token i, one head."""
        seen = i + 1 if causal else len(k)
        weights = np.exp(k[:seen] @ q[i] / math.sqrt(len(q[i])))
        return weights @ v[:seen] / weights.sum()

    angles = np.arange(5)[:, None] * 10_000 ** (-np.arange(4) / 4)[None]
    positions = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    output = []
    for tokens, time, label in zip(np.asarray(x, np.float64), np.asarray(t), cond, strict=True):
        angles = 100 * time * 10_000 ** (-np.arange(128) / 128)
        level = np.concatenate([np.cos(angles), np.sin(angles)])
        level = (
            linear(p["time2"], silu(linear(p["time1"], level))) + p["labels"]["embedding"][label]
        )
        h = linear(p["tokens"], tokens) + positions + level[None]
        for i in range(2):
            b = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
            qkv = linear(b["qkv"], norm(b["norm1"], h)).reshape(5, 3, 2, 4)
            heads = [
                np.stack([attention(*qkv[:, :, head].swapaxes(0, 1), n) for n in range(5)])
                for head in range(2)
            ]
            h = h + linear(b["out"], np.concatenate(heads, axis=1))
            h = h + linear(b["mlp2"], gelu(linear(b["mlp1"], norm(b["norm2"], h))))
        output.append(linear(p["last"], norm(p["norm"], h)))
    close(jax.jit(variant(3, causal=causal))(params, x, t, cond), np.stack(output), 2e-5)


def test_causal_jacobian_is_block_lower_triangular():
    """Exactly, with each allowed block nonzero; full without the mask."""
    params, x, t = inputs()
    tokens = np.arange(SHAPE[0])
    future = tokens[None, :] > tokens[:, None]
    for causal in (True, False):
        apply = variant(causal=causal)
        f = lambda z, apply=apply: apply(params, z[None], t[:1])[0]
        jacobian = jax.jit(jax.jacrev(f))(x[0])  # [N, C, N, C]
        blocks = np.abs(jacobian).max(axis=(1, 3))
        assert np.all(blocks[~future] > 0)
        assert np.all(blocks[future] == 0) if causal else np.all(blocks[future] > 0)


def test_tokens_are_told_apart_and_examples_never_interact():
    params, x, t = inputs()
    apply = jax.jit(variant())
    same = apply(params, jnp.ones_like(x), t)
    assert np.abs(same[:, 1:] - same[:, :-1]).max(axis=-1).min() > 1e-3
    before, after = apply(params, x, t), apply(params, x.at[1].add(1.0), t.at[1].set(0.0))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-3


def test_noise_levels_are_told_apart():
    """ln(sigma) / 4 for each tenth of a decade in [0.002, 80] has its own features."""
    params, x, _ = inputs()
    levels = jnp.log(jnp.geomspace(0.002, 80.0, 47)) / 4
    apply = jax.jit(variant())
    output = apply(params, jnp.repeat(x[:1], 47, axis=0), levels).reshape(47, -1)
    distance = np.linalg.norm(output[:, None] - output[None], axis=-1) + 1e9 * np.eye(47)
    assert distance.min() > 1e-3 * np.linalg.norm(output, axis=1).max()
    close(apply(params, x), apply(params, x, jnp.zeros(BATCH)), 1e-6)


def test_second_derivatives():
    """c.dJ.e by jvp of vjp, the operator of Flux Matching's loss, against grad of jvp.

    The rematerialised form is compared with the plain one.
    """
    params, x, t = inputs()
    f = lambda z: variant(causal=True)(params, z, t)
    g = lambda z: variant(causal=True, remat=True)(params, z, t)
    e = jax.random.normal(jax.random.key(2), x.shape)
    c = jnp.cos(jnp.arange(x.size)).reshape(x.shape)
    along = lambda z: jnp.vdot(c, jax.jvp(f, (z,), (e,))[1])
    joint = jax.jit(lambda z: jax.jvp(lambda u: jax.vjp(g, u)[1](c)[0], (z,), (e,))[1])(x)
    assert np.isfinite(joint).all()
    close(joint, jax.jit(jax.grad(along))(x), 1e-4)


def test_executions_agree():
    """Scanned, or unrolled and rematerialised: one checkpoint, one result, one dropout."""
    params, x, t = inputs()

    def run(**changes):
        apply = variant(causal=True, dropout=0.3, **changes)

        def loss(p):
            output = apply(p, x, t, key=jax.random.key(3), train=True)
            return (output**2).sum(), output

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    close(run(scan=False, remat=True), run())


def test_dropout():
    params, x, t = inputs()
    apply = jax.jit(variant(dropout=0.5), static_argnames="train")
    first, other = (apply(params, x, t, key=jax.random.key(i), train=True) for i in (0, 1))
    assert np.abs(first - other).max() > 0.01
    ignored = jax.make_jaxpr(variant(dropout=0.5))(params, x, t)
    assert str(ignored) == str(jax.make_jaxpr(variant())(params, x, t))
    with pytest.raises(UserError, match=r"with dropout needs key=<a PRNG key>"):
        apply(params, x, t, train=True)


def test_bfloat16_is_near_float32():
    params, x, t = inputs()
    output, low = (jax.jit(variant(dtype=d))(params, x, t) for d in ("float32", "bfloat16"))
    assert low.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(low - output) / np.linalg.norm(output) < 0.05


def test_initial_values():
    """Zero output, blocks that start as the identity, tokens as large as their positions."""
    params = fresh()
    zero = (params["last"], params["blocks"]["out"], params["blocks"]["mlp2"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zero))
    qkv = params["blocks"]["qkv"]["kernel"]
    bound = math.sqrt(6 / (8 + 24))
    assert 0.9 * bound < np.abs(qkv).max() <= bound and not np.array_equal(qkv[0], qkv[1])
    bound = 1 / math.sqrt(3)
    assert 0.8 * bound < np.abs(params["tokens"]["kernel"]).max() <= bound


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"num_heads": 3}, SHAPE, r"width 8 must be divisible by num_heads \(3\) and by 2"),
        ({"width": 9, "num_heads": 3}, SHAPE, "width 9 must be divisible"),
        ({"depth": 0}, SHAPE, "depth, num_heads and mlp_ratio must be at least 1"),
        ({"dropout": 1.0}, SHAPE, r"dropout must be in \[0, 1\), got 1.0"),
        ({"attention": "cudnn"}, SHAPE, "unknown attention 'cudnn'.*auto, chunked, xla"),
        ({"dtype": "float16"}, SHAPE, "unknown dtype 'float16'"),
        ({"casual": True}, SHAPE, "unknown field 'casual'.*did you mean 'causal'"),
        ({"causal": 1}, SHAPE, "net.causal=1 must be True or False"),
        ({}, (2,), r"shape \(tokens, channels\), not \(2,\): use 'mlp'"),
        ({}, (8, 8, 3), r"shape \(tokens, channels\), not \(8, 8, 3\)"),
    ],
)
def test_mistakes_in_a_config_are_named(changes, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        nets.create(TINY | changes, None, shape=shape)
    assert "\n" not in str(caught.value)
