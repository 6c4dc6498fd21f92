"""Trajectories of two masses on nonlinear springs: data with a direction of time.

Source: Flux Matching, Appendix B.5 (Table 5, eq. 46).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from genfield import registry
from genfield.data.pipeline import Dataset, Feed, assemble, from_arrays, short_hash
from genfield.data.toys import HELDOUT_SEED
from genfield.errors import UserError
from genfield.registry import Positive

# Flux Matching, Table 5; the step size is that of the text above eq. 46.
WALL_STIFFNESS = 1.0
COUPLING_STIFFNESS = 0.7
DAMPING = 0.08
CUBIC_STIFFNESS = 0.08
POSITION_STD, VELOCITY_STD = 3.0, 1.5  # of the initial states
NUM_TRAJECTORIES, LENGTH, STEP_SIZE = 2000, 50, 0.1
HELDOUT = 2000  # as many as the paper generates to measure W2


def derivative(state: jax.Array, damping: float = DAMPING) -> jax.Array:
    """dx/dtau of eq. 46: [..., 4] -> [..., 4], the state being (q1, v1, q2, v2)."""
    q, v = state[..., 0::2], state[..., 1::2]
    springs = WALL_STIFFNESS * q + COUPLING_STIFFNESS * (q - q[..., ::-1]) + CUBIC_STIFFNESS * q**3
    return jnp.stack([v, -springs - damping * v], axis=-1).reshape(state.shape)


def energy(state: jax.Array) -> jax.Array:
    """Kinetic and potential energy of unit masses: [..., 4] -> [...].

    Along eq. 46 it falls at the rate damping x (v1^2 + v2^2).
    """
    q, v = state[..., 0::2], state[..., 1::2]
    terms = v**2 / 2 + WALL_STIFFNESS * q**2 / 2 + CUBIC_STIFFNESS * q**4 / 4
    return terms.sum(axis=-1) + COUPLING_STIFFNESS * (q[..., 0] - q[..., 1]) ** 2 / 2


def simulate(
    initial: jax.Array,
    length: int = LENGTH,
    step_size: float = STEP_SIZE,
    *,
    damping: float = DAMPING,
) -> jax.Array:
    """Solves eq. 46 by the classical fourth-order Runge-Kutta method.

    Args:
      initial: [n, 4] states (q1, v1, q2, v2) at time 0.
      length: of a trajectory, the initial state included: length - 1 steps are made.
      step_size: physical time between two states.
      damping: 0 conserves the energy.
    Returns:
      [n, length, 4], the state at times 0, step_size, 2 step_size, ...
    """
    slope = partial(derivative, damping=damping)

    def step(x, _):
        k1 = slope(x)
        k2 = slope(x + step_size / 2 * k1)
        k3 = slope(x + step_size / 2 * k2)
        k4 = slope(x + step_size * k3)
        x = x + step_size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x, x

    _, later = jax.lax.scan(step, initial, length=length - 1)
    return jnp.concatenate([initial[:, None], jnp.moveaxis(later, 0, 1)], axis=1)


@partial(jax.jit, static_argnums=(1, 2))
def draw_trajectories(
    key: jax.Array, n: int, length: int = LENGTH, step_size: float = STEP_SIZE
) -> jax.Array:
    """[n, length, 4] from the initial states of Table 5; the i-th depends on the key and i alone,
    so that the first trajectories of a larger set are those of a smaller one."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(n))
    noise = jax.vmap(lambda key: jax.random.normal(key, (4,), jnp.float32))(keys)
    scale = jnp.array([[POSITION_STD, VELOCITY_STD] * 2], jnp.float32)
    return simulate(scale * noise, length, step_size)


def springs(
    num_trajectories: int = NUM_TRAJECTORIES,
    length: int = LENGTH,
    step_size: Positive = STEP_SIZE,
    data_seed: int = 0,
    *,
    feed: Feed,
) -> Dataset:
    """Trajectories as float32 [length, 4] in the simulator's units, without labels.

    The training set is fixed: the run's seed only orders it. The 2,000 held-out trajectories are
    the same for every `data_seed`. The default set's standard deviation is 2.84 in all; 2.00 and
    2.06 for the positions, 3.39 and 3.55 for the velocities.

    Args:
      num_trajectories: to train on; fewer are the first of the larger set.
      length, step_size: see `simulate`.
      data_seed: draws the training set.
    Raises:
      UserError: a number out of range, a step so large that the simulation overflows, a batch
        larger than the training set.
    """
    if num_trajectories < 1 or length < 1 or data_seed < 0 or not step_size > 0:
        raise UserError(
            "data 'springs' needs num_trajectories and length >= 1, step_size > 0 and "
            f"data_seed >= 0, not {num_trajectories}, {length}, {step_size} and {data_seed}"
        )
    train, heldout = (
        np.asarray(draw_trajectories(jax.random.key(seed), n, length, step_size))
        for seed, n in ((data_seed, num_trajectories), (HELDOUT_SEED, HELDOUT))
    )
    if not (np.isfinite(train).all() and np.isfinite(heldout).all()):
        raise UserError(f"data.step_size={step_size} overflows the simulation: 0.1 is the paper's")
    return assemble(
        from_arrays({"x1": train}),
        from_arrays({"x1": heldout}),
        class_names=(),
        labels=False,
        flip=False,
        fingerprint=short_hash("springs", length, float(step_size), data_seed),
        feed=feed,
    )


METHOD = registry.DataSource(
    name="springs",
    make=springs,
    holds="sequences",
    drawn=False,
    beside_pairs=False,
    fed=True,
)
