"""The core in another training loop: own network, own data, no Flax and no program.

    python examples/own_loop.py

Losses, couplings, paths and samplers are pure functions of arrays and fields; a field is any
function (x, t, cond) -> [B, *D]. Here they stand in twenty lines of plain JAX and optax.
"""

import jax
import jax.numpy as jnp
import optax

from genfield import couplings, losses, paths, sampling


def init(key, width: int = 128) -> dict:
    """A network of two hidden layers."""
    sizes, keys = (2, width, width, 2), jax.random.split(key, 3)
    weight = lambda k, a, b: jax.random.normal(k, (a, b)) / jnp.sqrt(a)
    kernels = [weight(k, a, b) for k, a, b in zip(keys, sizes, sizes[1:], strict=False)]
    return {"kernels": kernels, "shifts": [jnp.zeros(size) for size in sizes[1:]]}


def make_field(params):
    """The gradient field of the parameters; equilibrium matching gives it no time."""

    def field(x, t=None, cond=None):
        *hidden, last = zip(params["kernels"], params["shifts"], strict=True)
        for kernel, shift in hidden:
            x = jax.nn.silu(x @ kernel + shift[None])
        return x @ last[0] + last[1][None]

    return field


def data(key, n: int):
    """Four points with a little noise."""
    corners = jnp.array([[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0]])
    k1, k2 = jax.random.split(key)
    chosen = corners[jax.random.randint(k1, (n,), 0, 4)]
    return chosen + 0.1 * jax.random.normal(k2, (n, 2))


def train_loss(params, key, n: int = 256):
    """Equilibrium matching on minibatch optimal transport."""
    k0, k1, kt = jax.random.split(key, 3)
    x0, x1 = jax.random.normal(k0, (n, 2)), data(k1, n)
    sample = paths.interpolate(paths.linear, couplings.greedy(x0, x1), x1, paths.uniform()(kt, n))
    return losses.equilibrium_matching(make_field(params), sample)[0].mean()


def main(steps: int = 2_000, num: int = 500):
    """Trains, samples; gives the mean distance of samples to the nearest corner, and of noise."""
    tx = optax.adam(3e-3)
    params = init(jax.random.key(0))

    @jax.jit
    def step(carry, key):
        params, state = carry
        loss, gradient = jax.value_and_grad(train_loss)(params, key)
        updates, state = tx.update(gradient, state)
        return (optax.apply_updates(params, updates), state), loss

    keys = jax.random.split(jax.random.key(1), steps)
    (params, _), values = jax.lax.scan(step, (params, tx.init(params)), keys)
    start = jax.random.normal(jax.random.key(2), (num, 2))
    sampler = sampling.nesterov(0.01, 0.35)
    out = sampling.sample(jax.random.key(3), make_field(params), start, sampler, num_steps=250)
    to_corner = lambda x: float(jnp.linalg.norm(jnp.abs(x) - 2.0, axis=1).mean())
    print(f"loss {values[0]:.3f} -> {values[-1]:.3f}; to the nearest corner: noise "
          f"{to_corner(start):.2f}, samples {to_corner(out.x):.2f}")  # fmt: skip
    return to_corner(start), to_corner(out.x)


if __name__ == "__main__":
    main()
