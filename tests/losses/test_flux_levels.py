"""Losses over noise levels: denoising, annealed Flux Matching and what both train beside."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genfield import fields, losses, paths
from genfield.losses.flux import levels, mixing
from genfield.losses.flux.estimator import _weights as flux_weights

N, D, GROUP = 16, 2, 8


def sample(seed=0, levels=(0.4, 1.3)):
    """Two groups of eight points, each with one noise level."""
    k0, k1 = jax.random.split(jax.random.key(seed))
    sigma = jnp.repeat(jnp.asarray(levels), GROUP)
    x0, x1 = jax.random.normal(k0, (N, D)), 2 * jax.random.normal(k1, (N, D))
    return paths.interpolate(paths.variance_exploding, x0, x1, sigma)


def posterior_mean(x, sigma, centres):
    """E[centre | x], float64, one query at a time."""
    x, centres = np.asarray(x, np.float64), np.asarray(centres, np.float64)
    logits = -np.sum((x - centres) ** 2, -1) / (2 * float(sigma) ** 2)
    weights = np.exp(logits - logits.max())
    return weights @ centres / weights.sum()


def linear(params):
    return lambda x, t=None, cond=None: params["scale"] * x + params["shift"]


PARAMS = {"scale": jnp.float32(0.3), "shift": jnp.array([[0.2, -0.1]])}


def test_denoising_is_edms_weighted_error():
    s = sample()
    loss, terms = losses.denoising(linear(PARAMS), s, sigma_data=0.7)
    sigma = np.asarray(s.t)
    weight = (sigma**2 + 0.7**2) / (sigma * 0.7) ** 2
    error = np.asarray(linear(PARAMS)(s.x)) - np.asarray(s.x1)
    np.testing.assert_allclose(loss, weight * (error**2).mean(-1), rtol=1e-5)
    assert terms == {}


@pytest.mark.parametrize("label", [None, [0, 1] * (N // 2)])
def test_a_stable_target_is_the_posterior_mean_of_its_group_and_class(label):
    s = sample()
    classes = np.zeros(N, int) if label is None else np.array(label)
    asked = np.where(np.arange(N) % 5 == 0, 9, classes)  # 9: the null class, which has all
    options = {}
    if label is not None:
        options = dict(label=jnp.asarray(classes), null_class=9, cond=jnp.asarray(asked))
    field = lambda x, t=None, cond=None: jnp.zeros_like(x)
    loss, _ = losses.denoising(field, s, stable_target=True, group_size=GROUP, **options)
    for i in range(N):
        group = np.arange(N) // GROUP == i // GROUP
        own = group & ((classes == asked[i]) | (label is None) | (asked[i] == 9))
        target = posterior_mean(s.x[i], s.t[i], s.x1[own])
        weight = (float(s.t[i]) ** 2 + 0.25) / (float(s.t[i]) * 0.5) ** 2
        np.testing.assert_allclose(loss[i], weight * np.mean(target**2), rtol=1e-4)


def evaluate(roles, params=PARAMS, key=jax.random.key(3), **options):
    return losses.flux_matching(
        linear(params), sample(), key=key, roles=roles, group_size=GROUP, **options
    )


def test_without_players_the_loss_is_flux_matching_with_the_groups_density():
    from genfield.rng import fold_in
    from genfield.scores import kde_field

    off = dict(learned_normalizer=False, learned_horizon=False)
    loss, terms = evaluate({}, **off)
    s, key = sample(), fold_in(jax.random.key(3), 0)
    score = kde_field(s.x1, GROUP)
    expected, _ = losses.flux_estimator(
        key, linear(PARAMS), s.x, score, sigma=s.t, group_size=GROUP
    )
    np.testing.assert_array_equal(loss, expected)
    np.testing.assert_array_equal(terms["flux"], expected)


@pytest.mark.parametrize("rate", [0.0, 2.0])
def test_a_rate_that_is_given_is_fixed(rate):
    """It is the estimator's own, and nothing of the horizon's law is left to be learned."""
    from genfield.rng import fold_in
    from genfield.scores import kde_field

    options = dict(learned_normalizer=False, rate=rate)
    assert levels.flux_roles(jax.random.key(0), **options) == {}
    s = sample()
    expected, terms = losses.flux_estimator(
        fold_in(jax.random.key(3), 0),
        linear(PARAMS),
        s.x,
        kde_field(s.x1, GROUP),
        sigma=s.t,
        group_size=GROUP,
        rate=jnp.float32(rate),
    )
    loss, found = evaluate({}, **options)
    np.testing.assert_array_equal(loss, expected)
    np.testing.assert_array_equal(found["horizon"], terms["horizon"])
    # The quantile of the uniform law at the same draw, by the density's own integral.
    even = np.asarray(evaluate({}, **options | {"rate": 0.0})[1]["horizon"], np.float64) / 4
    quantile = -np.log1p(even * np.expm1(-4 * rate)) / rate if rate else 4 * even
    np.testing.assert_allclose(found["horizon"], quantile, rtol=1e-4)


def test_velocities_take_a_fixed_rate_too():
    k0, k1 = jax.random.split(jax.random.key(5))
    x0, x1 = jax.random.normal(k0, (N, 2)), jax.random.normal(k1, (N, 2))
    s = paths.interpolate(paths.linear, x0, x1, jnp.full(N, 0.6))
    run = lambda **options: losses.velocity_flux_matching(
        linear(PARAMS), s, key=jax.random.key(0), roles={}, learned_normalizer=False, **options
    )[1]["horizon"]
    even = np.asarray(run(learned_horizon=False), np.float64) / 4
    expected = -np.log1p(even * np.expm1(-8.0)) / 2
    np.testing.assert_allclose(run(rate=2.0), expected, rtol=1e-4)


OPTIONS = dict(mixing_weight=0.1, norm_weight=0.2, circulation_weight=0.3)


@pytest.mark.parametrize("estimator", ["cross_chain", "pathwise"])
def test_the_players_gradients_do_not_leak_into_each_other(estimator):
    roles = levels.flux_roles(jax.random.key(0), **OPTIONS)
    roles = jax.tree.map(lambda a: a + 0.1, roles)
    options = OPTIONS | {"estimator": estimator}

    def mean(params, roles):
        return jnp.mean(evaluate(roles, params, **options)[0])

    # The field's gradient is that of the weighted losses with all scales held fixed.
    scales = {
        "flux": jnp.log(2.0) - 2 * jnp.log(sample().t),
        "mixing": jnp.zeros(N),
        "norm": jnp.full(N, jnp.log(2.0)),
    }
    for name in scales:
        scales[name] += levels.at_level(roles["normalizer"][name], sample().t)
    rms = jnp.sqrt(roles["statistics"]["circulation"][0])  # all buckets are alike here

    def by_hand(params):
        terms = evaluate(roles, params, **options)[1]
        weights = {"flux": 1.0, "mixing": 0.1, "norm": 0.2}
        total = sum(w * terms[name] * jnp.exp(-scales[name]) for name, w in weights.items())
        return jnp.mean(total + 0.3 * terms["circulation"] / rms), terms

    of_field, of_roles = jax.jit(jax.grad(mean, argnums=(0, 1)))(PARAMS, roles)
    expected, terms = jax.jit(jax.grad(by_hand, has_aux=True))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), of_field, expected)
    # The horizon's parameters move by eq. 51 alone: no other loss depends on them.
    assert len(np.unique(terms["horizon"])) == (N if estimator == "pathwise" else N // GROUP)
    realized = terms["flux"] * jnp.exp(-scales["flux"])

    def fit(horizon):
        rate = jnp.exp(levels.at_level(horizon, sample().t))
        density = jnp.log(rate) - rate * terms["horizon"] - jnp.log(1 - jnp.exp(-4 * rate))
        return -jnp.mean(realized * density)

    expected = jax.jit(jax.grad(fit))(roles["horizon"])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    jax.tree.map(close, of_roles["horizon"], expected)


@pytest.mark.parametrize("estimator", ["cross_chain", "pathwise"])
def test_the_rate_settles_where_the_loss_decays(estimator):
    """N(0, I) and u linear: the loss is in proportion to e^{-2t}, so that eq. 51 ends at λ = 2."""
    score, field = (lambda x, t=None, cond=None, a=a: -a * x for a in (1.0, 1.8))
    options = {"horizon": 4.0, "estimator": estimator}

    def slope(log_rate, key):
        def total(shift):
            roles = {"horizon": levels.level_network(jax.random.key(0)) | {"shift": shift}}
            k0, k1 = jax.random.split(key)
            x, sigma = jax.random.normal(k0, (64, 2)), jnp.ones(64)
            given = (None, sigma, roles, 0.0, 16, options)
            loss = levels._annealed(k1, field, x, score, *given)[0]
            return loss.mean()

        return jax.grad(total)(log_rate[None])[0]

    keys = jax.random.split(jax.random.key(1), 4096)
    run = jax.jit(lambda rate: jax.lax.map(lambda k: slope(jnp.log(rate), k), keys, batch_size=256))
    slopes = {rate: np.asarray(run(jnp.float32(rate)), np.float64) for rate in (1.0, 2.0, 3.0)}
    z = {rate: a.mean() / (a.std() / np.sqrt(len(a))) for rate, a in slopes.items()}
    assert z[1.0] < -4 and abs(z[2.0]) < 4 and z[3.0] > 4, z


@pytest.mark.parametrize("loss", [losses.flux_matching, losses.velocity_flux_matching])
@pytest.mark.parametrize("size", [0, -8, 5, 2.0])
def test_groups_that_cut_no_batch_are_refused(loss, size):
    with pytest.raises(ValueError, match=r"group_size .*(at least 1|does not divide)"):
        loss(linear(PARAMS), sample(), key=jax.random.key(0), roles={}, group_size=size)


@pytest.mark.parametrize("level", [0.03, 3.0, 300.0])
def test_the_normaliser_starts_at_the_scale_of_a_preconditioned_field(level):
    """Of networks of outputs of variance 1 beside those it should have; else at 1/σ."""
    x, sigma = jnp.zeros((4096, 2)), jnp.full(4096, level)
    network = lambda seed: lambda z, t, c: jax.random.normal(jax.random.key(seed), z.shape)
    field = lambda seed: fields.score_field(fields.precondition(network(seed), 3.0))(x, sigma)
    missed = jnp.mean(jnp.square(field(0) - field(1))) / 2
    np.testing.assert_allclose(jnp.log(missed), levels._start_of_scale(sigma, 3.0)[0], atol=0.1)
    roles = levels.flux_roles(jax.random.key(0), learned_horizon=False)
    off = {"learned_horizon": False}
    run = jax.jit(
        lambda sigma_data: evaluate(roles, sigma_data=sigma_data, **off), static_argnums=0
    )
    flux = run(None)[1]["flux"]
    for sigma_data, root in ((None, 1.0), (0.7, 0.7**2 / (0.7**2 + sample().t ** 2))):
        scale = jnp.log(2 * root / sample().t ** 2)
        found = run(sigma_data)[0]
        np.testing.assert_allclose(found, flux * jnp.exp(-scale) + scale, rtol=1e-4)
    with pytest.raises(ValueError, match="sigma_data is a standard deviation > 0, got 0"):
        evaluate(roles, sigma_data=0.0)


def test_a_normaliser_settles_at_the_log_of_the_loss():
    scale, tx = jnp.zeros(()), optax.adam(0.05)
    state = tx.init(scale)

    def step(_, carried):
        scale, state = carried
        gradient = jax.grad(lambda s: levels.normalized(jnp.float32(7.0), s))(scale)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(scale, updates), state

    scale, _ = jax.lax.fori_loop(0, 400, step, (scale, state))
    np.testing.assert_allclose(scale, np.log(7.0), atol=1e-3)


def test_running_statistics_are_a_step_of_gradient_descent():
    statistics = jnp.full(levels.BUCKETS, 4.0)
    loss, sigma = jnp.array([3.0, -3.0]), jnp.array([0.01, 50.0])
    value, _ = levels.bucket_normalized(loss, sigma, statistics)
    np.testing.assert_allclose(value, [1.5, -1.5])
    track = lambda s: levels.bucket_normalized(loss, sigma, s)[1].sum()
    moved = statistics - 0.1 * jax.grad(track)(statistics)
    expected = np.full(levels.BUCKETS, 4.0)
    low, high = levels.BUCKET_RANGE
    for level in (0.01, 50.0):
        expected[int((np.log(level) - low) / (high - low) * levels.BUCKETS)] = 4 + 0.1 * (9 - 4)
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


def test_circulation_falls_where_the_field_turns_anticlockwise():
    x = jax.random.normal(jax.random.key(0), (5, 2))
    turning = lambda x, t=None, cond=None: jnp.stack([-x[:, 1], x[:, 0]], -1)
    np.testing.assert_allclose(
        levels.circulation(turning, x, jnp.ones(5)),
        -np.sum(np.asarray(x) ** 2, -1) / 2,
        rtol=1e-5,
    )


def test_the_norm_alone_selects_the_score():
    """Among x -> A x with the law of N(0, I), |f|² is least at A = -I (section 3.6)."""
    x = jax.random.normal(jax.random.key(1), (4096, 2))
    norm = lambda turn: jnp.mean(jnp.sum((x @ jnp.array([[-1.0, turn], [-turn, -1.0]])) ** 2, -1))
    assert norm(0.0) < norm(0.3) < norm(1.0)


# Mixing


def test_the_sinkhorn_divergence_of_shifted_clouds_is_the_squared_shift():
    """The debiased divergence of a cloud and its translate is |shift|², at any regularisation."""
    x = jax.random.normal(jax.random.key(0), (64, 3))
    shift = jnp.array([[0.5, -1.0, 0.25]])
    far = jax.jit(mixing.sinkhorn_divergence)(x, x + shift)
    np.testing.assert_allclose(far, np.sum(np.asarray(shift) ** 2), rtol=1e-3)
    np.testing.assert_allclose(jax.jit(mixing.sinkhorn_divergence)(x, x), 0.0, atol=1e-4)


def test_a_field_that_moves_points_to_the_law_mixes_better():
    """x ~ N(0, 1): the score of N(0, 1) pulls noised points back, its negative pushes them away."""
    x = jax.random.normal(jax.random.key(0), (128, 2))
    proxy = lambda sign: mixing.mixing_proxy(
        jax.random.key(1),
        lambda x, t=None, cond=None: -sign * x,
        x,
        sigma=jnp.ones(128),
        group_size=64,
    )
    run = jax.jit(proxy)
    towards, away = run(1.0), run(-1.0)
    assert towards.shape == (128,) and len(np.unique(np.asarray(towards))) == 2  # one a group
    assert towards.mean() < 0.8 < 1.2 < away.mean()


def products(jaxpr):
    """The matrix products of a program, those of its inner ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from products(inner)


def test_squared_distances_keep_their_digits():
    """Where products are taken in TF32 or bfloat16, |x|² + |y|² - 2 x·y would not."""
    x = jnp.ones((4, 3))
    for run in (
        mixing.sinkhorn_divergence,
        lambda x, y: flux_weights(x[None], y[None], jnp.ones(1), None, 1),
    ):
        found = list(products(jax.make_jaxpr(run)(x, 2 * x).jaxpr))
        assert found
        for equation in found:
            assert equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


@pytest.mark.parametrize(("batch", "size"), [(9, 9), (12, 8), (12, 0), (12, -4)])
def test_mixing_refuses_uneven_groups(batch, size):
    with pytest.raises(ValueError, match=r"even|divide|at least 1"):
        mixing.mixing_proxy(
            jax.random.key(0),
            linear(PARAMS),
            jnp.ones((batch, 2)),
            sigma=jnp.ones(batch),
            group_size=size,
        )


# Flows


def test_velocity_flux_vanishes_at_the_density_s_own_velocity_and_beside_it():
    """u = w with ∇·(p w) = 0 costs nothing on average, u = s does (eq. 55-56)."""
    from genfield.scores import kde_field, kde_velocity

    k0, k1 = jax.random.split(jax.random.key(5))
    x0, x1 = jax.random.normal(k0, (64, 2)), 2 * jax.random.normal(k1, (64, 2))
    s = paths.interpolate(paths.linear, x0, x1, jnp.full(64, 0.6))
    score = kde_field(0.6 * s.x1)

    def excess(add):
        def field(x, t=None, cond=None):
            sigma = 1 - t
            g = score(x, sigma)
            return kde_velocity(score)(x, sigma) + add(g)

        options = dict(learned_normalizer=False, learned_horizon=False, divergence="exact")
        run = lambda key: losses.velocity_flux_matching(
            field, s, key=key, roles={}, estimator="pathwise", **options
        )[0]
        return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 8)))

    np.testing.assert_allclose(excess(jnp.zeros_like), 0.0, atol=1e-5)
    turned = lambda g: jnp.stack([-g[:, 1], g[:, 0]], -1)
    preserved = np.abs(excess(turned))  # rounding of float32 second derivatives, at a few points
    assert np.median(preserved) < 1e-4 and preserved.max() < 2e-2
    assert excess(lambda g: g).mean() > 0.5


def test_a_mixing_step_has_the_noise_of_langevin(monkeypatch):
    """The kick has the variance 2 h σ² (eq. 43): a variance in the divergence's place shows it."""
    monkeypatch.setattr(mixing, "sinkhorn_divergence", lambda x, y, *options: jnp.var(x))
    still, n = lambda x, t=None, cond=None: jnp.zeros_like(x), 20_000
    ratio = mixing.mixing_proxy(jax.random.key(0), still, jnp.zeros((n, 2)), sigma=jnp.full(n, 0.5))
    np.testing.assert_allclose(ratio, 1 + 2 * mixing.STEP, rtol=0.03)
