"""Records tell the truth: each method of the package does what its record says of it."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genfield import paths, registry, rng, sampling
from genfield.errors import UserError
from genfield.fields import Prediction
from genfield.losses.flux.levels import flux_roles
from genfield.program.methods import package

METHODS = package()
KINDS = (
    *(registry.Loss, registry.Sampler, registry.StopRule, registry.Coupling, registry.Rematching),
    *(registry.Path, registry.TimeLaw, registry.Network, registry.DataSource, registry.Metric),
    registry.Logger,
)
GIVEN = {  # fields that a method has no default for
    "gradient_descent": {"step_size": 0.1},
    "nesterov": {"step_size": 0.1, "momentum": 0.3},
    "langevin": {"step_size": 0.1},
    "distance_marching": {"epsilon": 0.1, "c0": 0.1},
    "sinkhorn": {"regularization": 0.5},
    "fixed": {"level": 0.5},
    "gradient_norm": {"threshold": 0.1},
}
# Settings under which a fact that hangs on them is the other way round.
SETTINGS = {
    "edm_heun": ({}, {"churn": 10.0}),
    "edm_euler": ({}, {"churn": 10.0}),
    "multistep": ({}, {"indices": (0, 3)}, {"indices": (0, 3), "noise": "line"}),
    "flow_matching": ({}, {"time_input": False}),
    "equilibrium_matching": ({}, {"time_input": True}),
}
KEY = jax.random.key(0)
X = jax.random.normal(KEY, (16, 2))


def settings(name: str) -> list[dict]:
    return [GIVEN.get(name, {}) | more for more in SETTINGS.get(name, ({},))]


def all_of(kind: type) -> list[str]:
    return sorted(METHODS[kind])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_entry_has_every_fact(kind):
    """No field of a record has a default but those that files of one's own may be older than."""
    assert METHODS[kind]
    given = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    assert given <= {"larger", "pieces", "times", "scored", "blocks"}
    with pytest.raises(TypeError):
        kind(name="lacking")


def test_the_order_of_methods_is_that_of_their_files():
    names = [record.name for record in registry.find("genfield.losses")]
    assert names == [record.name for record in registry.find("genfield.losses")]
    assert names.index("action_matching") < names.index("flow_matching")
    with pytest.raises(UserError, match="two of the name 'mlp'"):
        package().with_own([METHODS[registry.Network]["mlp"]])


def test_values_of_facts_are_known_ones():
    with pytest.raises(UserError, match="teaches='speed' is none of gradient, velocity"):
        dataclasses.replace(METHODS[registry.Loss]["flow_matching"], teaches="speed")
    with pytest.raises(UserError, match="extras='keys' is none of key, roles"):
        dataclasses.replace(METHODS[registry.Loss]["flow_matching"], extras=("keys",))


def field(x, t=None, cond=None):
    """A field of every kind of output: potential u = |x|²/2, whose clock shows."""
    return x if t is None else x * (1 + 0.5 * t)[:, None]


def score(x, t=None, cond=None):
    """Of N(0, I) at a noise level."""
    return -x / (1 + t**2)[:, None]


def plain_field(method: registry.Sampler):
    """A field of the kind that a sampler follows."""
    if method.needs_output:
        return potential
    return score if method.follows == "score" else field


def potential(x, t=None, cond=None):
    return Prediction(field(x, t), 0.5 * jnp.sum(x * x, axis=-1))


@functools.cache
def sampled(name: str) -> list[tuple[np.ndarray, np.ndarray, set[bool]]]:
    """For each of a sampler's settings: samples of two keys, and whether the field was told t."""
    method, found = METHODS[registry.Sampler][name], []
    for section in settings(name):
        seen = set()

        def listening(x, t=None, cond=None, seen=seen):
            seen.add(t is not None)
            return plain_field(method)(x, t)

        @jax.jit
        def run(key, section=section, listening=listening):
            if method.adaptive:
                return method.make(listening, X, rtol=0.01, **section).x
            steps = 4 if method.steps is None else method.steps(registry.bound(method, section))
            return sampling.sample(key, listening, X, method.make(**section), num_steps=steps).x

        found.append((*(np.asarray(run(jax.random.key(k))) for k in (1, 2)), seen))
    return found


@pytest.mark.parametrize("name", all_of(registry.Sampler))
def test_a_sampler_that_says_it_is_noisy_is_and_one_that_does_not_is_not(name):
    method = METHODS[registry.Sampler][name]
    for section, (one, other, _) in zip(settings(name), sampled(name), strict=True):
        assert np.isfinite(one).all()
        noisy = method.noisy(registry.bound(method, section))
        assert (one != other).any() == noisy, (name, section)


@pytest.mark.parametrize("name", all_of(registry.Sampler))
def test_a_sampler_with_a_clock_tells_the_time_and_one_without_does_not(name):
    method = METHODS[registry.Sampler][name]
    for _, _, seen in sampled(name):
        assert seen == {method.clock}


@pytest.mark.parametrize(
    "name", [n for n, m in METHODS[registry.Sampler].items() if m.step_scales_field]
)
def test_a_step_that_scales_its_field_is_linear_in_it(name):
    method = METHODS[registry.Sampler][name]
    plain = potential if method.needs_output else lambda x, t=None, cond=None: jnp.ones_like(x)
    made = method.make(**GIVEN.get(name, {}))

    def moved(factor):
        def scaled(x, t=None, cond=None):
            out = plain(x, t)
            if isinstance(out, Prediction):
                return out._replace(direction=factor * out.direction)
            return factor * out

        return sampling.sample(KEY, scaled, X, made, num_steps=1).x - X

    np.testing.assert_allclose(moved(3.0), 3 * moved(1.0), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [n for n, m in METHODS[registry.Sampler].items() if m.levels])
def test_the_levels_that_a_sampler_stands_at_fall_from_its_start(name):
    method = METHODS[registry.Sampler][name]
    for section in settings(name):
        arguments = registry.bound(method, section)
        steps = 5 if method.steps is None else method.steps(arguments)
        levels = np.asarray(method.levels(arguments, steps))
        assert len(levels) == steps + 1 and (np.diff(levels) < 0).all()
        np.testing.assert_allclose(levels[0], arguments["sigma_max"], rtol=1e-5)


def called_with(name: str, section: dict, t: float) -> tuple[np.ndarray, list]:
    """A loss at one x and time t, of a field that shows its clock, and what it told the field."""
    run, told = loss_of(name, tuple(sorted(section.items())))
    return np.asarray(run(jnp.float32(t))), told


@functools.cache
def loss_of(name: str, section: tuple):
    """The loss of a time, as one program, and what it tells its field of it."""
    method, told = METHODS[registry.Loss][name], []
    n = len(X)

    def listening(x, t=None, cond=None):
        told.append(t is not None)
        return field(x, t) if "vector" in method.outputs else potential(x, t)

    keys = jax.random.split(KEY, n)
    extras = registry.Extras(
        key=keys,
        roles=flux_roles(KEY),
        label=None,
        null_class=0,
        sigma_data=0.5,
        step=None,
        real=None,
        real_label=None,
        last_layer=None,
    )
    given = {extra: getattr(extras, extra) for extra in method.extras}

    def run(t):
        sample = paths.PathSample(X + 1, X - 1, jnp.full(n, t), X, jnp.ones_like(X))
        return method.function(listening, sample, None, **dict(section), **given)[0]

    return jax.jit(run), told


@pytest.mark.parametrize("name", [n for n in all_of(registry.Loss) if "adversarial" not in n])
def test_a_loss_that_says_it_has_no_clock_tells_its_field_no_time(name):
    method = METHODS[registry.Loss][name]
    for section in settings(name):
        clock = method.clock(registry.bound(method, section))
        loss, told = called_with(name, section, 0.4)
        assert np.isfinite(loss).all() and loss.shape == (len(X),)
        assert set(told) == {clock}, (name, section)


def test_a_loss_without_a_clock_is_the_same_at_two_times():
    """Of the same x: but for the weight that equilibrium matching's decay gives the target."""
    for name, section in (("flow_matching", {"time_input": False}), ("distance_marching", {})):
        section = GIVEN.get(name, {}) | section
        early, late = (called_with(name, section, t)[0] for t in (0.2, 0.7))
        np.testing.assert_array_equal(early, late)
    with_clock = [called_with("flow_matching", {}, t)[0] for t in (0.2, 0.7)]
    assert (with_clock[0] != with_clock[1]).all()


@pytest.mark.parametrize("name", all_of(registry.Coupling))
def test_a_coupling_takes_what_its_record_offers(name):
    method = METHODS[registry.Coupling][name]
    known = inspect.signature(method.function).parameters
    assert ("group_size" in known) == method.groups
    assert {"key", "label"} & set(known) == set(method.extras)


@pytest.mark.parametrize("name", all_of(registry.TimeLaw))
def test_a_law_of_times_stays_where_its_record_says(name):
    method = METHODS[registry.TimeLaw][name]
    section = GIVEN.get(name, {})
    t = np.asarray(method.make(**section)(rng.stream(0, "t"), 4_000))
    assert (t > 0).all() if method.noise_levels else ((t >= 0) & (t <= 1)).all()
    one = method.one and method.one(registry.bound(method, section))
    assert (len(np.unique(t)) == 1) == (one is not None)
    assert one is None or t[0] == np.float32(one)


def test_every_field_of_a_config_that_methods_take_is_checked_by_its_own_range():
    """Steps, sizes and levels of every method refuse zero, wherever they stand."""
    wanted = {"step_size", "num_leapfrog", "sigma_min", "sigma_max", "rho", "group_size", "horizon"}
    found = set()
    for record in METHODS.records:
        if isinstance(record, registry.Path | registry.Metric):
            continue
        for name, parameter in registry.parameters(record.target).items():
            ranges = [m for m in registry.marks(parameter.annotation) if m is registry.POSITIVE]
            if name in wanted:
                assert ranges, (record.name, name)
                found.add(name)
    assert found == wanted


def test_a_name_out_of_somebodys_json_may_be_a_list():
    with pytest.raises(UserError, match=r"unknown kind of weights \['sit'\]"):
        registry.choose("kind of weights", ["sit"], {"sit": 1})
