"""From configs to objectives: label dropout, the time input, what samplers are given."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from programs import TINY_DIGITS

from genfield import configuration, data, objectives
from genfield.errors import UserError
from genfield.fields import Prediction


def make(config, seed=0):
    dataset = data.create(config.data, batch_size=config.batch_size, seed=0)
    apply, params = objectives.create_net(config, dataset, jax.random.key(seed))
    return dataset, objectives.create(config, dataset, apply, params), {"field": params}


def points(loss: str, **net) -> ConfigDict:
    config = configuration.base()
    config.net = ConfigDict({"name": "mlp", "width": 8, "depth": 1, **net})
    config.loss = ConfigDict({"name": loss})
    if loss == "distance_marching":
        config.loss.epsilon = config.loss.c0 = 0.1
    config.batch_size = 8
    return config


X = jax.random.normal(jax.random.key(1), (5, 2))
T = jnp.full((5,), 0.7)


@pytest.mark.parametrize("time_input", [True, False])
@pytest.mark.parametrize("loss", ["flow_matching", "equilibrium_matching"])
def test_a_field_trained_without_t_is_never_shown_one(loss, time_input):
    config = points(loss, time_input=True)
    config.loss.time_input = time_input
    _, objective, params = make(config)
    field = objective.field(params)
    same = np.allclose(field(X, T), field(X, None), atol=1e-6)
    assert same == (not time_input)


def test_label_dropout_replaces_its_share_by_the_null_class():
    config = configuration.load(str(TINY_DIGITS))
    config.label_dropout = 0.3
    dataset, objective, _ = make(config)
    batch = {"x1": np.zeros((4000, 8, 8, 1), np.uint8), "label": np.full(4000, 3, np.int32)}
    cond = np.asarray(jax.jit(objective.draw)(jax.random.key(0), batch).cond)
    assert set(cond) == {3, dataset.num_classes}
    # 0.3 within five standard deviations of 4000 draws.
    assert abs(np.mean(cond == dataset.num_classes) - 0.3) < 5 * np.sqrt(0.21 / 4000)


def test_bytes_become_units_and_noise_its_own():
    dataset, objective, _ = make(configuration.load(str(TINY_DIGITS)))
    batch = {"x1": np.full((16, 8, 8, 1), 255, np.uint8), "label": np.zeros(16, np.int32)}
    drawn = objective.draw(jax.random.key(0), batch)
    np.testing.assert_array_equal(drawn.sample.x1, 1.0)
    assert len(np.unique(drawn.sample.x0)) == drawn.sample.x0.size
    assert dataset.draw_source is None


def test_an_ode_sampler_descends_a_gradient():
    """Euler with n steps on a gradient field is gradient descent with step 1/n."""
    config = points("equilibrium_matching")
    _, objective, params = make(config)
    field = objective.field(params)
    key = jax.random.key(0)
    config.sampler = ConfigDict({"name": "euler", "num_steps": 10})
    euler = objectives.create_sampler(config, 0, objective.output)(key, field, X)
    config.sampler = ConfigDict({"name": "gradient_descent", "num_steps": 10, "step_size": 0.1})
    descent = objectives.create_sampler(config, 0, objective.output)(key, field, X)
    chex.assert_trees_all_close(euler.x, descent.x, rtol=1e-5)
    assert not np.allclose(euler.x, X)


@pytest.mark.parametrize(
    "sampler, output, allowed",
    [
        ("hamiltonian", "potential", True),
        ("hamiltonian", "predicted", False),
        ("hamiltonian", "vector", False),
        ("sphere_tracing", "predicted", True),
        ("sphere_tracing", "vector", False),
    ],
)
def test_samplers_that_need_an_energy_say_so(sampler, output, allowed):
    config = points("distance_marching", output="scalar")
    config.sampler = ConfigDict({"name": sampler, "num_steps": 1})
    if allowed:
        objectives.create_sampler(config, 0, output)
    else:
        with pytest.raises(UserError, match=f"sampler '{sampler}' needs a network with an energy"):
            objectives.create_sampler(config, 0, output)


def test_what_a_network_gives_is_known():
    assert make(points("distance_marching", output="scalar"))[1].output == "potential"
    assert make(points("flow_matching"))[1].output == "vector"
    _, objective, params = make(configuration.load(str(TINY_DIGITS)))
    out = objective.field(params)(jnp.zeros((2, 8, 8, 1)), None, jnp.zeros(2, jnp.int32))
    assert objective.output == "predicted" and isinstance(out, Prediction)
