"""Two-dimensional problems drawn on the device from a key: for tests, figures and first runs.

Eight Gaussians and two moons follow torchcfm and torchdyn to the constant, so that transport
costs compare; checkerboard, rings, pinwheel and spirals are those of FFJORD up to scale.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from genfield import registry
from genfield.data.pipeline import Dataset, Feed, iterator_state, short_hash
from genfield.registry import choose

# Held-out draws hang on this key and the batch's index: no run, whatever its seed, trains on them.
HELDOUT_SEED = 0x68656C64


def eight_gaussians(key: jax.Array, n: int) -> jax.Array:
    """Eight modes at radius 5, covariance sqrt(0.1) I (torchcfm's `sample_8gaussians`): [n, 2]."""
    mode_key, noise_key = jax.random.split(key)
    angle = jnp.pi / 4 * jax.random.randint(mode_key, (n,), 0, 8)
    return 5.0 * _on_circle(angle) + 0.1**0.25 * jax.random.normal(noise_key, (n, 2))


def two_moons(key: jax.Array, n: int) -> jax.Array:
    """Interleaved half circles in random order (torchcfm's `sample_moons`): [n, 2].

    Angles lie on a grid over [0, pi], n // 2 on the first moon. A point's offset, uniform on
    [0, 0.2), is one number added to both coordinates; last comes 3 x - 1.
    """
    noise_key, order_key = jax.random.split(key)
    outer = _on_circle(jnp.linspace(0.0, jnp.pi, n // 2))
    inner = _on_circle(jnp.linspace(0.0, jnp.pi, n - n // 2))
    inner = jnp.stack([1.0 - inner[:, 0], 0.5 - inner[:, 1]], axis=-1)
    points = jnp.concatenate([outer, inner]) + 0.2 * jax.random.uniform(noise_key, (n, 1))
    return jax.random.permutation(order_key, 3.0 * points - 1.0)


def checkerboard(key: jax.Array, n: int) -> jax.Array:
    """Uniform on every second square of a 4 x 4 board that covers [-4, 4]^2: [n, 2]."""
    column_key, row_key, place_key = jax.random.split(key, 3)
    column = jax.random.randint(column_key, (n,), 0, 4)
    row = 2 * jax.random.randint(row_key, (n,), 0, 2) + column % 2
    return 2.0 * (jnp.stack([column, row], axis=-1) + jax.random.uniform(place_key, (n, 2))) - 4.0


def spirals(key: jax.Array, n: int) -> jax.Array:
    """Two arms of 1.5 turns out to radius pi, with Gaussian noise of 0.1: [n, 2]."""
    arm_key, angle_key, noise_key = jax.random.split(key, 3)
    angle = 3.0 * jnp.pi * jnp.sqrt(jax.random.uniform(angle_key, (n,)))
    radius = jax.random.rademacher(arm_key, (n,), jnp.float32) * angle / 3.0
    return radius[:, None] * _on_circle(angle) + 0.1 * jax.random.normal(noise_key, (n, 2))


def rings(key: jax.Array, n: int) -> jax.Array:
    """Circles of radius 0.75, 1.5, 2.25 and 3, equally likely, with noise of 0.08: [n, 2]."""
    ring_key, angle_key, noise_key = jax.random.split(key, 3)
    radius = 0.75 * jax.random.randint(ring_key, (n,), 1, 5)
    angle = 2.0 * jnp.pi * jax.random.uniform(angle_key, (n,))
    return radius[:, None] * _on_circle(angle) + 0.08 * jax.random.normal(noise_key, (n, 2))


def pinwheel(key: jax.Array, n: int) -> jax.Array:
    """Five blades, each a Gaussian sheared by a rotation that grows with its radius: [n, 2]."""
    blade_key, place_key = jax.random.split(key)
    along, across = jax.random.normal(place_key, (2, n)) * jnp.array([[0.3], [0.1]])
    angle = 0.4 * jnp.pi * jax.random.randint(blade_key, (n,), 0, 5) + 0.25 * jnp.exp(1.0 + along)
    direction = _on_circle(angle)
    normal = jnp.stack([-direction[:, 1], direction[:, 0]], axis=-1)
    return 2.0 * ((1.0 + along)[:, None] * direction + across[:, None] * normal)


def swiss_roll(key: jax.Array, n: int) -> jax.Array:
    """scikit-learn's roll seen from its side, with noise of 1, divided by 5: [n, 2]."""
    angle_key, noise_key = jax.random.split(key)
    angle = 1.5 * jnp.pi * (1.0 + 2.0 * jax.random.uniform(angle_key, (n,)))
    roll = angle[:, None] * _on_circle(angle)
    return (roll + jax.random.normal(noise_key, (n, 2))) / 5.0


def _on_circle(angle: jax.Array) -> jax.Array:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


DISTRIBUTIONS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "checkerboard": checkerboard,
    "eight_gaussians": eight_gaussians,
    "pinwheel": pinwheel,
    "rings": rings,
    "spirals": spirals,
    "swiss_roll": swiss_roll,
    "two_moons": two_moons,
}


def toy(name: str, source: str = "normal", *, feed: Feed) -> Dataset:
    """A 2-D problem as a data set: the step draws from it, nothing is fed from the host.

    Args:
      name: of the distribution of x1, a key of `DISTRIBUTIONS`.
      source: of the distribution of x0: another key, or "normal".
    Raises:
      UserError: unknown source.
    """
    draw = DISTRIBUTIONS[name]

    def heldout(index: int, batch_size: int, rows: np.ndarray | None = None) -> dict:
        key = jax.random.fold_in(jax.random.key(HELDOUT_SEED), index)
        points = np.asarray(draw(key, batch_size))
        return {"x1": points if rows is None else points[rows]}

    fingerprint = short_hash("toy", name, source)
    return Dataset(
        shape=(2,),
        num_classes=0,
        class_names=(),
        train=None,
        heldout=heldout,
        draw=draw,
        draw_source=choose("source", source, {**DISTRIBUTIONS, "normal": None}),
        sizes={"train": 0, "test": 0},
        examples={},
        pixels=False,
        fingerprint=fingerprint,
        state=iterator_state(feed.seed, fingerprint),
        source=source,
    )


METHODS = tuple(
    registry.DataSource(
        name=name,
        make=partial(toy, name),
        holds="points",
        drawn=True,
        beside_pairs=True,
        fed=True,
    )
    for name in DISTRIBUTIONS
)
