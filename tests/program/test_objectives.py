"""From configs to objectives: label dropout, the time input, what samplers are given."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from programs import TINY_DIGITS

from genfield import configuration, couplings, data, nets, placement, registry
from genfield.errors import UserError
from genfield.fields import Prediction
from genfield.nets import attention
from genfield.program import config_io, parts
from genfield.program import objective as objectives
from genfield.program.experiment import check_names
from genfield.program.methods import package
from genfield.program.sampler import create_sampler


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


def drawn(config):
    _, objective, _ = make(config)
    batch = {"x1": jnp.zeros((8, 2))}
    return jax.jit(objective.draw)(jax.random.key(5), batch).sample


def test_couplings_are_given_labels_where_they_match_by_them():
    x0, x1 = np.random.default_rng(0).standard_normal((2, 8, 2)).astype(np.float32)
    key, label = jax.random.key(0), jnp.arange(8) % 2
    config = configuration.base()
    assert parts.create_coupling(config)(x0, x1, key, label) is x0
    config.coupling = {"name": "greedy", "within_classes": True}
    found = parts.create_coupling(config)(x0, x1, key, label)
    expected = couplings.greedy(jnp.asarray(x0), jnp.asarray(x1), label=label, within_classes=True)
    np.testing.assert_array_equal(found, expected)


def test_a_bridge_and_a_sinkhorn_coupling_leave_other_noise_alone():
    plain, config = drawn(points("flow_matching")), points("flow_matching")
    config.path_noise = 0.5
    noisy = drawn(config)
    np.testing.assert_array_equal((noisy.x0, noisy.x1), (plain.x0, plain.x1))
    np.testing.assert_array_equal(noisy.t, plain.t)
    spread = (
        np.abs(np.asarray(noisy.x - plain.x))
        / np.sqrt(np.asarray(plain.t * (1 - plain.t)))[:, None]
    )
    assert 0 < spread.max() < 0.5 * 5
    config.coupling = ConfigDict({"name": "sinkhorn", "regularization": 0.5})
    paired = drawn(config)
    assert set(map(tuple, np.asarray(paired.x0))) <= set(map(tuple, np.asarray(plain.x0)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path_noise": 0.5, "rematching": {"name": "nearest"}}, "config.rematching moves targets"),
        ({"loss": {"name": "action_matching"}, "time": {"name": "skewed"}}, "time.name=uniform"),
        ({"loss": {"name": "action_matching"}}, "net.output='scalar'"),
    ],
    ids=["bridge", "time", "scalar"],
)
def test_parts_that_do_not_fit(change, words):
    config = points("flow_matching")
    for name, value in change.items():
        config[name] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=words):
        make(config)


X = jax.random.normal(jax.random.key(1), (5, 2))
T = jnp.full((5,), 0.7)


@pytest.mark.parametrize("time_input", [True, False])
@pytest.mark.parametrize("loss", ["flow_matching", "equilibrium_matching"])
def test_a_field_trained_without_t_is_never_shown_one(loss, time_input):
    config = points(loss, time_input=True)
    config.loss.time_input = time_input
    _, objective, params = make(config)
    field = objective.field(params)
    same = np.allclose(field(X, T), field(X, jnp.zeros(5)), atol=1e-6)
    assert same == (not time_input)
    if time_input:
        with pytest.raises(ValueError, match="was trained with t"):
            field(X, None)
    else:
        np.testing.assert_array_equal(field(X, T), field(X, None))


def test_label_dropout_replaces_its_share_by_the_null_class():
    config = config_io.load(str(TINY_DIGITS))
    config.label_dropout = 0.3
    dataset, objective, _ = make(config)
    batch = {"x1": np.zeros((4000, 8, 8, 1), np.uint8), "label": np.full(4000, 3, np.int32)}
    cond = np.asarray(jax.jit(objective.draw)(jax.random.key(0), batch).cond)
    assert set(cond) == {3, dataset.num_classes}
    # 0.3 within five standard deviations of 4000 draws.
    assert abs(np.mean(cond == dataset.num_classes) - 0.3) < 5 * np.sqrt(0.21 / 4000)


def test_bytes_become_units_and_noise_its_own():
    dataset, objective, _ = make(config_io.load(str(TINY_DIGITS)))
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
    euler = create_sampler(config, 0, objective.output)(key, field, X)
    config.sampler = ConfigDict({"name": "gradient_descent", "num_steps": 10, "step_size": 0.1})
    descent = create_sampler(config, 0, objective.output)(key, field, X)
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
        create_sampler(config, 0, output)
    else:
        with pytest.raises(UserError, match=f"sampler '{sampler}' needs a network with an energy"):
            create_sampler(config, 0, output)


def test_what_a_network_gives_is_known():
    assert make(points("distance_marching", output="scalar"))[1].output == "potential"
    assert make(points("flow_matching"))[1].output == "vector"
    _, objective, params = make(config_io.load(f"{TINY_DIGITS}:sit"))
    out = objective.field(params)(jnp.zeros((2, 8, 8, 1)), None, jnp.zeros(2, jnp.int32))
    assert objective.output == "predicted" and isinstance(out, Prediction)


ENERGY_NETS = {
    "mlp": ("two_moons", {"name": "mlp", "width": 8, "depth": 1}),
    "unet": ("digits", dict(name="unet", channels=8, channel_multipliers=(1, 1), num_res_blocks=1)),
    "sit": ("digits", dict(name="sit", depth=1, width=16, num_heads=2)),
}


@pytest.mark.parametrize(
    ("net", "energy"),
    [
        ("mlp", "dot"),
        ("mlp", "squared_norm"),
        ("sit", "dot"),
        pytest.param("sit", "squared_norm", marks=pytest.mark.slow),
        pytest.param("unet", "dot", marks=pytest.mark.slow),
        pytest.param("unet", "squared_norm", marks=pytest.mark.slow),
    ],
)
def test_an_energy_is_trained_by_its_gradient_and_given_in_one_pass(net, energy):
    """EqM eq. 7: the field is ∇g of g = <x, f> or |f|²/2, whatever the network."""
    config = points("equilibrium_matching")
    name, section = ENERGY_NETS[net]
    config.data, config.net = ConfigDict({"name": name}), ConfigDict(section)
    dataset, _, params = make(config)
    params = jax.tree.map(lambda a: a + 0.05, params)  # a fresh image network gives zeros
    plain = make(config)[1].field(params)
    config.energy = energy
    objective = make(config)[1]
    assert objective.output == "energy"
    x = jax.random.normal(jax.random.key(2), (3, *dataset.shape))
    f = {"dot": lambda x, y: (x * y).sum(), "squared_norm": lambda x, y: 0.5 * (y * y).sum()}[
        energy
    ]
    single = lambda z: f(z, plain(z[None])[0])
    out = jax.jit(objective.field(params))(x)
    value, gradient = jax.vmap(jax.value_and_grad(single))(x)
    np.testing.assert_allclose(out.distance, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.direction, gradient, rtol=1e-3, atol=1e-4)
    batch = {"x1": jnp.zeros((8, *dataset.shape))}
    loss = lambda p: objective(jax.random.key(0), p, batch, False)[0].mean()
    norms = jax.tree.map(lambda a: float(jnp.abs(a).max()), jax.jit(jax.grad(loss))(params))
    assert max(jax.tree.leaves(norms)) > 0 and np.isfinite(jax.tree.leaves(norms)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(energy="dto"), "unknown config.energy 'dto': did you mean 'dot'"),
        (dict(energy="dot", loss={"name": "flow_matching"}), "is for equilibrium_matching"),
        (dict(energy="dot", net={"name": "mlp", "output": "scalar"}), "of a vector network"),
    ],
)
def test_an_energy_that_cannot_be_is_one_line(change, message):
    config = points("equilibrium_matching")
    for field, value in change.items():
        config[field] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message):
        make(config)


def test_samplers_of_energies_are_known():
    config = points("equilibrium_matching")
    config.sampler = ConfigDict({"name": "hamiltonian", "num_steps": 2})
    assert create_sampler(config, output="energy") is not None
    config.sampler = ConfigDict({"name": "sphere_tracing", "num_steps": 2})
    with pytest.raises(UserError, match="needs a network with an energy"):
        create_sampler(config, output="energy")


# Noise levels


def levels(loss="flux_matching", **net) -> ConfigDict:
    config = points(loss, **net)
    config.path, config.time = "variance_exploding", ConfigDict({"name": "log_normal"})
    if loss == "flux_matching":
        config.loss.group_size = 4
    return config


def test_flux_draws_one_noise_level_a_group_and_denoising_one_an_example():
    flux, plain = drawn(levels()), drawn(levels("denoising"))
    assert len(set(np.asarray(flux.t).tolist())) == 2
    np.testing.assert_array_equal(flux.t[:4], jnp.broadcast_to(flux.t[0], (4,)))
    assert len(set(np.asarray(plain.t).tolist())) == 8
    np.testing.assert_allclose(flux.x, flux.x1 + flux.t[:, None] * flux.x0, rtol=1e-6)


def test_a_preconditioned_field_is_a_denoiser_or_its_score():
    found = {}
    for loss in ("denoising", "flux_matching"):
        config = levels(loss, time_input=True)
        config.preconditioning, config.sigma_data = "edm", 0.7
        _, objective, params = make(config)
        x, sigma = jax.random.normal(jax.random.key(1), (8, 2)), jnp.linspace(0.1, 3, 8)
        found[loss] = objective.field(params)(x, sigma)
    denoised, score = found["denoising"], found["flux_matching"]
    np.testing.assert_allclose(score, (denoised - x) / sigma[:, None] ** 2, rtol=1e-4)


def test_a_rotated_gradient_is_the_gradient_and_its_quarter_turn():
    _, plain, params = make(levels(output="scalar"))
    config = levels(output="scalar")
    config.rotation = 1.5
    _, turned, _ = make(config)
    x, sigma = jax.random.normal(jax.random.key(1), (8, 2)), jnp.ones(8)
    g, f = plain.field(params)(x, sigma), turned.field(params)(x, sigma)
    expected = g + 1.5 * np.stack([-g[:, 1], g[:, 0]], -1)
    np.testing.assert_allclose(f, expected, rtol=1e-5, atol=1e-6)


def test_the_players_of_the_flux_loss_are_parameters_by_role():
    config = levels()
    config.loss.mixing_weight = 0.1
    _, objective, _ = make(config)
    roles = objective.roles(jax.random.key(0))
    assert set(roles) == {"normalizer", "horizon"} and set(roles["normalizer"]) == {
        "flux",
        "mixing",
    }
    assert make(points("flow_matching"))[1].roles(jax.random.key(0)) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "linear"}, "path='variance_exploding'"),
        ({"time": {"name": "uniform"}}, "log_normal"),
        ({"coupling": {"name": "greedy"}, "path_noise": 0.1}, "no bridge"),
        ({"preconditioning": "edn"}, "did you mean 'edm'"),
        ({"rotation": 0.5}, "net.output='scalar'"),
        ({"data": {"name": "two_moons", "source": "eight_gaussians"}}, "source='normal'"),
        ({"optimizer": {"accumulate": 4}}, "loss.group_size"),
        ({"sampler": {"name": "euler", "num_steps": 2}}, "predictor_corrector"),
        ({"sampler": {"name": "langevin", "num_steps": 2, "step_size": 0.1}}, "does not follow"),
    ],
)
def test_what_does_not_go_with_noise_levels_is_said(change, words):
    config = levels()
    config.sampler = ConfigDict({"name": "reverse_ve", "num_steps": 2})
    for name, value in change.items():
        if isinstance(value, dict) and name == "optimizer":
            config[name].update(value)
        else:
            config[name] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=words):
        check_names(config, package())
        make(config)


def of_one_derivative(name, second_order):
    """The methods, and a network of one's own with something in it that stands against a second."""
    facts = dict(last_layer=None, stack=(), augmented=False)
    own = registry.Network(
        name=name, make=nets.Transformer, second_order=lambda bound: second_order, **facts
    )
    return package().with_own([own])


def test_a_network_of_one_derivative_is_refused_under_flux_matching():
    config = levels()
    config.net = ConfigDict({"name": "own"})
    with pytest.raises(UserError, match="which my kernel cannot have differentiated: change"):
        check_names(config, of_one_derivative("own", "my kernel"))
    parts.create(config, of_one_derivative("own", None))


@pytest.mark.parametrize(
    ("loss", "energy", "fused"),
    [
        ("flow_matching", "none", True),
        ("equilibrium_matching", "none", True),
        ("equilibrium_matching", "dot", False),
        ("flux_matching", "none", False),
    ],
)
def test_training_takes_kernels_of_one_derivative_where_the_loss_does(
    loss, energy, fused, monkeypatch
):
    config = levels() if loss == "flux_matching" else points(loss)
    config.data = ConfigDict({"name": "springs", "num_trajectories": 8, "length": 4})
    config.net = ConfigDict({"name": "transformer", "width": 16, "depth": 1, "num_heads": 2})
    config.net.update(dtype="bfloat16", attention="auto")
    config.energy, config.batch_size = energy, 8
    monkeypatch.setattr(placement, "platform", lambda: "gpu")
    own = []  # gradients that the kernel took itself
    kernel = jax.custom_vjp(lambda q, k, v: q + k + v)
    kernel.defvjp(lambda *a: (kernel(*a), own.append(a)), lambda _, y: (y, y, y))
    monkeypatch.setattr(attention, "cudnn", lambda q, k, v, causal: kernel(q, k, v))
    dataset, objective, params = make(config)
    batch = {"x1": jnp.zeros((8, *dataset.shape))}
    for train in (False, True):
        total = lambda params, train=train: objective(jax.random.key(0), params, batch, train)[0]
        jax.eval_shape(jax.grad(lambda params, total=total: total(params).sum()), params)
        assert bool(own) is (train and fused)


def test_preconditioning_is_for_noise_levels_only():
    config = points("flow_matching")
    config.preconditioning = "edm"
    with pytest.raises(UserError, match="losses of noise levels"):
        check_names(config, package())


@pytest.mark.parametrize("name", ["edm_heun", "reverse_ve", "predictor_corrector"])
@pytest.mark.parametrize("loss", ["denoising", "flux_matching"])
def test_samplers_of_noise_levels_follow_what_either_loss_teaches(loss, name):
    """Of a field that is the exact one of N(0, 1), the samples have variance near 1."""
    config = levels(loss)
    config.sampler = ConfigDict({"name": name, "num_steps": 40, "sigma_max": 20.0})
    run = create_sampler(config)

    def field(x, t=None, cond=None):
        score = -x / (1 + t**2)[:, None]
        return score if loss == "flux_matching" else x + (t**2)[:, None] * score

    x = jax.random.normal(jax.random.key(0), (128, 64))
    out = jax.jit(lambda x: run(jax.random.key(1), field, x))(x)
    assert abs(float(out.x.std()) - 1) < 0.15


def test_langevin_follows_a_score_at_its_fixed_level():
    config = levels()
    config.time = ConfigDict({"name": "fixed", "level": 0.5})
    config.sampler = ConfigDict({"name": "langevin", "num_steps": 200, "step_size": 0.05})
    run = create_sampler(config)

    def field(x, t=None, cond=None):
        return -x / 4 * (t / 0.5)[:, None]  # of N(0, 4), if it is asked at 0.5

    x = jax.random.normal(jax.random.key(0), (4096, 2))
    out = run(jax.random.key(1), field, x)
    assert abs(float(out.x.var()) - 4) < 0.3
