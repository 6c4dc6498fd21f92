"""Softmax attention: in blocks, against closed forms to any order; kernels, and who takes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genfield import placement
from genfield.nets import attention


def draw(*shape, count=3, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    return tuple(random.normal(size=shape).astype(dtype) for _ in range(count))


def softmax_attention(query, key, value, causal):
    """In float64, by NumPy."""
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    if causal:
        logits = np.where(np.tri(query.shape[1], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", 3)
    monkeypatch.setattr(attention, "KEYS", 4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 4, 7, 12])
def test_blocks_give_the_softmax_for_any_length(tokens, causal, small_blocks):
    inputs = draw(2, tokens, 2, 5)
    inputs = (30 * inputs[0], *inputs[1:])  # logits that overflow unless the highest is taken off
    found = jax.jit(attention.chunked, static_argnums=3)(*inputs, causal)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, softmax_attention(*inputs, causal), atol=5e-6)


def test_bfloat16_is_summed_in_float32(small_blocks):
    rounded = tuple(jnp.asarray(a, jnp.bfloat16) for a in draw(2, 7, 2, 8))
    found = attention.chunked(*rounded)
    assert found.dtype == jnp.bfloat16
    exact = softmax_attention(*(np.asarray(a, np.float32) for a in rounded), False)
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, atol=2e-2)
    # In bfloat16 a sum of ones stops at 256, and a mean of 1,001 of them would be no 1.
    alike = jnp.zeros((1, 1001, 1, 1), jnp.bfloat16)
    found = attention.chunked(alike, alike, jnp.ones_like(alike))
    np.testing.assert_array_equal(np.asarray(found, np.float32), 1)


def derivatives(attend, primals, tangents) -> list:
    """Value, jvp, vjp, jvp of vjp, vjp of jvp, vjp of vjp, and a third derivative."""
    total = lambda f: lambda *a: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(f(*a)))
    along = lambda f: lambda *a: jax.jvp(f, a, tangents)[1]
    back = lambda f: jax.grad(total(f), (0, 1, 2))
    functions = [attend, along(attend), back(attend), along(back(attend)), back(along(attend))]
    functions += [back(back(attend)), back(along(back(attend)))]
    return [f(*primals) for f in functions]


def in_one_piece(query, key, value, *, causal):
    """The formula, in the dtype of its inputs."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    seen = np.tri(query.shape[1], dtype=bool)[None, None]
    logits = jnp.where(seen, logits, -jnp.inf) if causal else logits
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value)


@pytest.mark.parametrize("causal", [False, True])
def test_derivatives_of_any_order_are_exact(causal, small_blocks):
    with jax.enable_x64(True):
        primals = draw(1, 7, 1, 2, dtype=np.float64)
        tangents = draw(1, 7, 1, 2, dtype=np.float64, seed=1)
        find = jax.jit(derivatives, static_argnums=0)
        blocks = find(functools.partial(attention.chunked, causal=causal), primals, tangents)
        whole = find(functools.partial(in_one_piece, causal=causal), primals, tangents)
        for found, expected in zip(jax.tree.leaves(blocks), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_value_and_derivatives_are_exact_in_float32():
    """Against float64; what XLA makes of the formula in float32 is 9e-7 away, and no reference."""
    both = draw(1, 600, 2, 8), draw(1, 600, 2, 8, seed=1)  # two blocks of keys

    def find(attend, primals, tangents):
        gradient = jax.grad(lambda *a: jnp.sum(jnp.sin(attend(*a))), (0, 1, 2))
        value, slope = jax.jvp(attend, primals, tangents)
        return value, slope, jax.jvp(gradient, primals, tangents)

    find = jax.jit(find, static_argnums=0)
    ours = find(functools.partial(attention.attend, kind="chunked"), *both)
    with jax.enable_x64(True):
        exact = functools.partial(in_one_piece, causal=False)
        whole = find(exact, *jax.tree.map(lambda a: a.astype(np.float64), both))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


@pytest.mark.parametrize("order", ["vjp", "jvp of vjp"])
def test_memory_is_linear_in_the_tokens(order, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", 32)
    monkeypatch.setattr(attention, "KEYS", 64)

    def temporaries(kind, tokens):
        gradient = jax.grad(lambda *a: jnp.sum(jnp.sin(attention.attend(*a, kind))), (0, 1, 2))
        second = lambda *a: jax.jvp(gradient, a, a)[1]
        arguments = [jax.ShapeDtypeStruct((1, tokens, 2, 8), jnp.float32)] * 3
        compiled = jax.jit(gradient if order == "vjp" else second).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("chunked", 1024) < 2.2 * temporaries("chunked", 512)
    assert temporaries("xla", 1024) > 3.5 * temporaries("xla", 512)


@jax.custom_vjp
def marked(query, key, value):
    """A kernel that has a gradient of its own, told by its value, and no other derivative."""
    return in_one_piece(query, key, value, causal=False)


marked.defvjp(lambda *a: (marked(*a), a), lambda kept, y: tuple(jnp.full_like(a, 7) for a in kept))


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(placement, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "cudnn", lambda q, k, v, causal: marked(q, k, v))


def test_a_kernel_has_all_derivatives_unless_one_is_all_that_is_asked_for(a_gpu):
    inputs = tuple(jnp.asarray(a, jnp.bfloat16) for a in draw(1, 4, 1, 8))
    network = lambda params, *a, **_: attention.attend(*params, "auto")
    value = lambda apply, train: lambda *a: jnp.sum(apply(a, None, train=train) ** 2)
    gradient = lambda apply, train: jax.grad(value(apply, train), (0, 1, 2))
    plain = jax.grad(lambda *a: jnp.sum(attention.chunked(*a) ** 2), (0, 1, 2))
    for apply, train in ((network, True), (attention.first_order(network), False)):
        for found, expected in zip(gradient(apply, train)(*inputs), plain(*inputs), strict=True):
            np.testing.assert_array_equal(found, expected)
        jax.jvp(gradient(apply, train), inputs, inputs)  # which the kernel could not
    assert all((a == 7).all() for a in gradient(attention.first_order(network), True)(*inputs))


def test_the_mesh_and_the_queries_choose_the_kernel(monkeypatch):
    chosen = lambda head, dtype: attention._fused(jax.ShapeDtypeStruct((2, 4, 1, head), dtype))
    for platform, kernel in (("cpu", None), ("gpu", attention.cudnn), ("tpu", attention.splash)):
        monkeypatch.setattr(placement, "platform", lambda platform=platform: platform)
        assert chosen(64, jnp.bfloat16) is kernel and chosen(72, jnp.bfloat16) is kernel
        assert chosen(64, jnp.float32) is None
    monkeypatch.setattr(placement, "platform", lambda: "gpu")
    assert chosen(12, jnp.bfloat16) is None and chosen(256, jnp.bfloat16) is None


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "causal"), [(70, False), (130, True)])
def test_the_kernel_of_tpus_gives_the_softmax(tokens, causal):
    """Interpreted: any length, any head channels."""
    inputs, weights = draw(2, tokens, 2, 12), draw(2, tokens, 2, 12, count=1, seed=1)[0]

    def find(attend):
        value = lambda *a: jnp.sum(weights * attend(*a, causal))
        return attend(*inputs, causal), jax.grad(value, (0, 1, 2))(*inputs)

    kinds = functools.partial(attention.splash, interpret=True), attention.chunked
    found, expected = (jax.jit(find, static_argnums=0)(kind) for kind in kinds)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
