"""FLOPs of a jaxpr, against the arithmetic of shapes."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from genfield.machine import flops


def counted(function, *shapes, **dtypes) -> dict:
    arguments = [jax.ShapeDtypeStruct(shape, dtypes.get("dtype", jnp.float32)) for shape in shapes]
    return flops.count(jax.jit(function).trace(*arguments).jaxpr)


def test_products_with_and_without_batches():
    product = 2 * 5 * 7 * 11
    assert counted(lambda a, b: a @ b, (5, 7), (7, 11)) == {"float32": product}
    batched = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)
    assert counted(batched, (3, 5, 7), (3, 7, 11)) == {"float32": 3 * product}
    assert counted(lambda a, b: a @ b, (5, 7), (7, 11), dtype=jnp.bfloat16) == {"bfloat16": product}


def test_convolutions_without_the_zeros_of_dilation():
    def convolve(strides, dilation=(1, 1), groups=1):
        return lambda x, k: jax.lax.conv_general_dilated(
            x, k, strides, ((1, 1), (1, 1)), dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    image, kernel = (2, 8, 8, 6), (3, 3, 6, 10)
    whole = 2 * (2 * 8 * 8 * 10) * (3 * 3 * 6)
    assert counted(convolve((1, 1)), image, kernel)["float32"] == whole
    assert counted(convolve((2, 2)), image, kernel)["float32"] == whole / 4
    upward = counted(convolve((1, 1), (2, 2)), image, kernel)["float32"]
    sides = 2 * (2 * 15 * 15 * 10) * (3 * 3 * 6)  # of 16 - 1 positions, a quarter is no zero
    assert upward == sides / 4
    grouped = counted(convolve((1, 1), groups=2), image, (3, 3, 3, 10))["float32"]
    assert grouped == whole / 2


def test_loops_count_as_often_as_they_run():
    def body(h, w):
        return jnp.tanh(h @ w), None

    scanned = lambda h, w: jax.lax.scan(body, h, w)[0].sum()
    one = 2 * 4 * 8 * 8
    assert counted(scanned, (4, 8), (6, 8, 8)) == {"float32": 6 * one}
    gradient = jax.grad(scanned, argnums=1)  # forward, and two products a layer backward
    assert counted(gradient, (4, 8), (6, 8, 8)) == {"float32": 3 * 6 * one}
    again = lambda h, w: jax.lax.scan(jax.checkpoint(body), h, w)[0].sum()
    found = counted(jax.grad(again, argnums=1), (4, 8), (6, 8, 8))
    assert found == {"float32": 4 * 6 * one}  # and once more, recomputed

    def while_small(h, w):
        return jax.lax.while_loop(lambda h: h.sum() < 9, lambda h: h @ w, h)

    found = counted(while_small, (4, 8), (8, 8))
    assert found == {"float32": one, flops.UNKNOWN: 1}


def test_what_is_called_is_counted():
    one = 2 * 4 * 8 * 8
    inner = jax.jit(lambda h, w: h @ w)
    assert counted(lambda h, w: inner(inner(h, w), w), (4, 8), (8, 8)) == {"float32": 2 * one}

    @jax.custom_vjp
    def own(h, w):
        return h @ w

    own.defvjp(lambda h, w: (h @ w, (h, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    assert counted(own, (4, 8), (8, 8)) == {"float32": one}
    found = counted(jax.grad(lambda h, w: own(h, w).sum(), (0, 1)), (4, 8), (8, 8))
    assert found == {"float32": 3 * one}

    def either(h, w):
        return jax.lax.cond(h.sum() > 0, lambda: h @ w @ w, lambda: h @ w)

    assert counted(either, (4, 8), (8, 8)) == {"float32": 2 * one}


def test_what_each_device_does_counts_for_all():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.shard_map(
        lambda h, w: h @ w,
        mesh=mesh,
        in_specs=(PartitionSpec("a"), PartitionSpec()),
        out_specs=PartitionSpec("a"),
    )
    assert counted(spread, (16, 8), (8, 8)) == {"float32": 2 * 16 * 8 * 8}
