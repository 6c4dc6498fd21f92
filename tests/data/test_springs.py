"""Springs: the simulator against SciPy, its order and energy; a training set that runs share."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT
from scipy.integrate import solve_ivp

from genfield.data import pipeline, springs
from genfield.errors import UserError
from genfield.program import config_io


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def initial_states(n, seed=0):
    noise = np.random.default_rng(seed).standard_normal((n, 4))
    return noise * np.array([[3.0, 1.5, 3.0, 1.5]])


def equation(_, x):
    """Equation 46, coordinate by coordinate, with the numbers of Table 5."""
    q1, v1, q2, v2 = x
    return [
        v1,
        -1.0 * q1 - 0.7 * (q1 - q2) - 0.08 * v1 - 0.08 * q1**3,
        v2,
        -1.0 * q2 - 0.7 * (q2 - q1) - 0.08 * v2 - 0.08 * q2**3,
    ]


def exact(initial, times):
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12, "t_eval": times}
    return np.stack([solve_ivp(equation, (0, times[-1]), x, **options).y.T for x in initial])


def test_derivative_is_equation_46(double):
    state = initial_states(6)
    expected = np.stack([equation(0, x) for x in state])
    np.testing.assert_allclose(springs.derivative(jnp.asarray(state)), expected, rtol=1e-14)
    reshaped = springs.derivative(jnp.asarray(state.reshape(2, 3, 4)))
    np.testing.assert_array_equal(reshaped.reshape(6, 4), springs.derivative(jnp.asarray(state)))


def test_simulation_is_fourth_order(double):
    initial, end = initial_states(4), 4.8
    reference = exact(initial, np.array([0.0, end]))[:, -1]
    steps = np.array([24, 48, 96, 192])
    errors = [
        np.abs(springs.simulate(initial, int(n) + 1, end / n)[:, -1] - reference).max()
        for n in steps
    ]
    order = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(order[1:] - 4) < 0.15), order
    assert errors[-1] < 1e-5


def test_default_trajectories_are_near_the_exact_ones():
    """Fifty states from the initial one on, 0.1 apart, in float32."""
    initial = initial_states(8, seed=1).astype(np.float32)
    trajectories = springs.simulate(jnp.asarray(initial))
    assert trajectories.shape == (8, 50, 4) and trajectories.dtype == jnp.float32
    np.testing.assert_array_equal(trajectories[:, 0], initial)
    reference = exact(initial.astype(np.float64), 0.1 * np.arange(50))
    error = np.abs(trajectories - reference)
    assert np.median(error) < 1e-4 and error.max() < 0.03  # the fastest has 12 steps a period
    assert springs.simulate(jnp.asarray(initial), 1).shape == (8, 1, 4)


def test_energy(double):
    """Conserved without damping; with it, it falls at the rate damping x |v|^2."""
    initial = jnp.asarray(initial_states(16, seed=2))
    free = springs.energy(springs.simulate(initial, 2000, 0.005, damping=0.0))
    np.testing.assert_allclose(free, np.broadcast_to(free[:, :1], free.shape), rtol=1e-7)
    damped = springs.energy(springs.simulate(initial))
    assert np.all(np.diff(damped, axis=1) <= 0) and np.all(damped[:, -1] < 0.8 * damped[:, 0])
    rate = jax.jvp(springs.energy, (initial,), (springs.derivative(initial),))[1]
    np.testing.assert_allclose(rate, -0.08 * (initial[:, 1::2] ** 2).sum(1), rtol=1e-12, atol=1e-12)


def test_simulation_is_differentiable(double):
    """In the initial state, the step size and the damping, under jit."""
    initial = jnp.asarray(initial_states(2))
    end = lambda *arguments: jax.jit(springs.simulate, static_argnums=1)(
        arguments[0], 6, arguments[1], damping=arguments[2]
    )[:, -1].sum()
    arguments = initial, jnp.float64(0.1), jnp.float64(0.08)
    for i, slope in enumerate(jax.grad(end, argnums=(0, 1, 2))(*arguments)):
        moved = lambda h, i=i: end(*(a + h * (i == j) for j, a in enumerate(arguments)))
        np.testing.assert_allclose(slope.sum(), (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-7)


def test_draws_have_table_5s_moments_and_depend_on_key_and_index():
    x = np.asarray(springs.draw_trajectories(jax.random.key(3), 20_000, 2))
    start, n = x[:, 0], len(x)
    scale = np.array([3.0, 1.5, 3.0, 1.5])
    assert np.all(np.abs(start.mean(0)) < 4 * scale / n**0.5)
    covariance = np.cov((start / scale[None]).T)
    np.testing.assert_allclose(covariance, np.eye(4), atol=4 * (2 / n) ** 0.5)
    np.testing.assert_allclose(springs.draw_trajectories(jax.random.key(3), 5, 2), x[:5], rtol=1e-5)
    assert np.abs(springs.draw_trajectories(jax.random.key(4), 5, 2) - x[:5]).max() > 0.1


# ---------------------------------------------------------------- the data set


def create(batch_size=4, seed=0, process_index=0, process_count=1, **fields):
    fields = {"num_trajectories": 10, "length": 5} | fields
    feed = pipeline.Feed(batch_size, seed, process_index, process_count, print)
    return springs.springs(**fields, feed=feed)


def batches(dataset, count, start=0):
    iterator = dataset.train(start)
    taken = [next(iterator)["x1"] for _ in range(count)]
    iterator.close()
    return np.stack(taken)


def test_default_data_set():
    """The shape of the paper's set, and the standard deviations that the docstring states."""
    dataset = create(num_trajectories=2000, length=50, batch_size=256)
    assert dataset.shape == (50, 4) and dataset.sizes == {"train": 2000, "test": 2000}
    assert dataset.num_classes == 0 and dataset.draw is None and not dataset.pixels
    x = dataset.examples["train"].arrays["x1"]
    assert x.shape == (2000, 50, 4) and x.dtype == np.float32
    assert abs(x.std() - 2.84) < 0.01
    np.testing.assert_allclose(x.std((0, 1)), [2.00, 3.39, 2.06, 3.55], atol=0.01)
    assert batches(dataset, 1)[0].shape == (256, 50, 4)


def test_training_set_is_the_same_for_every_run():
    runs = [create(seed=seed) for seed in (0, 1)]
    sets = [run.examples["train"].arrays["x1"] for run in runs]
    np.testing.assert_array_equal(*sets)
    assert runs[0].fingerprint == runs[1].fingerprint
    streams = [batches(run, 5).reshape(20, 5, 4) for run in runs]  # two epochs
    assert (streams[0] != streams[1]).any()
    known = {x.tobytes() for x in sets[0]}
    for stream in streams:
        for epoch in (stream[:10], stream[10:]):
            assert {x.tobytes() for x in epoch} == known
    assert np.abs(create(data_seed=1).examples["train"].arrays["x1"] - sets[0]).min() > 0


def test_a_smaller_set_is_the_first_of_a_larger():
    small, large = (create(num_trajectories=n).examples["train"].arrays["x1"] for n in (6, 10))
    np.testing.assert_allclose(small, large[:6], rtol=1e-5, atol=1e-5)


def test_resume_and_processes():
    """Batches hang on seed and step; processes share each."""
    whole = batches(create(seed=7), 8)
    np.testing.assert_array_equal(batches(create(seed=7), 5, start=3), whole[3:])
    halves = [batches(create(seed=7, process_index=r, process_count=2), 8) for r in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


def test_held_out_trajectories_are_others_and_fixed():
    dataset = create()
    held = dataset.heldout(0, 2000)["x1"]
    assert {x.tobytes() for x in held}.isdisjoint(
        x.tobytes() for x in dataset.examples["train"].arrays["x1"]
    )
    assert len({x.tobytes() for x in held}) == 2000
    other = create(seed=3, data_seed=5, num_trajectories=6)
    np.testing.assert_array_equal(other.heldout(0, 2000)["x1"], held)
    assert np.abs(dataset.heldout(0, 4)["x1"] - dataset.heldout(1, 4)["x1"]).max() > 0.1


def test_fingerprint_and_state():
    changes = ({}, {"num_trajectories": 9}, {"length": 6}, {"step_size": 0.2}, {"data_seed": 1})
    assert len({create(**change).fingerprint for change in changes}) == len(changes)
    dataset = create(seed=7)
    state = json.loads(json.dumps(dataset.state(np.int64(3))))
    assert state == {"step": 3, "seed": 7, "fingerprint": dataset.fingerprint}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_trajectories": 0}, "num_trajectories and length >= 1.*not 0, 5, 0.1 and 0"),
        ({"length": 0}, "length >= 1"),
        ({"step_size": 0.0}, "step_size > 0"),
        ({"step_size": float("nan")}, "step_size > 0"),
        ({"data_seed": -1}, "data_seed >= 0"),
        ({"step_size": 50.0, "length": 10}, "step_size=50.0 overflows"),
        ({"batch_size": 11}, "batch_size 11 exceeds the 10 training"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        create(**fields)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the configs


@pytest.mark.parametrize("variant", ["causal", "full", "causal,small", "full,small"])
def test_the_two_losses_have_the_same_setting(variant):
    flux, dsm = (
        config_io.load(str(ROOT / "configs" / f"{loss}_springs.py:{variant}")).to_dict()
        for loss in ("flux_matching", "denoising")
    )
    assert flux.pop("loss")["sigma_data"] == flux["sigma_data"]
    assert dsm.pop("loss")["stable_target"]
    assert flux == dsm and bool(flux["optimizer"]["clip_norm"]) == ("small" in variant)
    assert flux["net"]["causal"] == variant.startswith("causal")
