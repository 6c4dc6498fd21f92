"""Regression to each loss over the posterior of a finite data set agrees with its closed form."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.integrate
import scipy.optimize

from genfield import fields, losses, paths

TOLERANCE = 1e-4  # float32 stays below half of it; 1e-3 is what was asked for
CUTOFF = 0.05
FAST_COMPILE = {"xla_backend_optimization_level": 0}
interpolate = jax.jit(paths.interpolate, static_argnums=0)
WEIGHTS = {  # of eq. 8; epsilon and c0 differ, so that their places cannot be swapped
    "plain": {"epsilon": 0.3, "c0": 0.7, "one_step_weight": 1.0, "eikonal_weight": 1.0},
    "toy": {"epsilon": 0.01, "c0": 0.01, "one_step_weight": 1.0, "eikonal_weight": 1.0},
    "images": {"epsilon": 4.0, "c0": 2.0, "one_step_weight": 0.1, "eikonal_weight": 3.0},
}
PROBLEMS = [(2, 5, "uniform"), (2, 5, "skewed"), (8, 6, "uniform"), (8, 6, "skewed")]
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p[0]}d-{p[2]}")


@functools.cache
def problem_data(dim, num_points):
    """Points, and x far from them, between them and close to one of them."""
    rng = np.random.default_rng(5)
    points, far = rng.normal(size=(num_points, dim)), rng.normal(size=dim)
    between = 0.6 * points[0] + 0.4 * points[1] + 0.1 * rng.normal(size=dim)
    close = points[2] + 0.3 * rng.normal(size=dim) / np.sqrt(dim)
    return points, np.stack([far, between, close])


@functools.cache
def posteriors(problem):
    dim, num_points, density = problem
    points, xs = problem_data(dim, num_points)
    return [oracles.posterior(x, points, oracles.DENSITIES[density]) for x in xs]


def constant(vector):
    return lambda x, t=None, cond=None: jnp.broadcast_to(vector, x.shape)


def free_prediction(theta):
    """u = theta[0], v = theta[1:], wherever asked."""
    return lambda x, t=None, cond=None: fields.Prediction(
        jnp.broadcast_to(theta[1:], x.shape), jnp.broadcast_to(theta[0], x.shape[:1])
    )


def unit_distance(vector):
    """u = 1 and v free: what is left when one term of eq. 8 is off."""
    return free_prediction(jnp.concatenate([jnp.ones(1), vector]))


def dm(name, make_field=free_prediction):
    return lambda theta, sample: losses.distance_marching(
        make_field(theta), sample, **WEIGHTS[name]
    )


OBJECTIVES = {
    "flow": lambda v, s: losses.flow_matching(constant(v), s, time_input=False),
    "reweighted": lambda v, s: losses.flow_matching(
        constant(v), s, time_input=False, weight=losses.inverse_square(CUTOFF)
    ),
    "linear": lambda v, s: losses.equilibrium_matching(
        constant(v), s, decay=losses.decays.linear(2.0)
    ),
    "truncated": lambda v, s: losses.equilibrium_matching(constant(v), s),
    "piecewise": lambda v, s: losses.equilibrium_matching(
        constant(v), s, decay=losses.decays.piecewise(0.8, 1.4, 3.0)
    ),
    "constant": lambda v, s: losses.equilibrium_matching(
        constant(v), s, decay=losses.decays.constant()
    ),
    "one_step": lambda v, s: losses.distance_marching(
        unit_distance(v), s, epsilon=0.3, c0=0.7, eikonal_weight=0.0
    ),
    "eikonal": lambda v, s: losses.distance_marching(
        unit_distance(v), s, epsilon=0.3, c0=0.7, one_step_weight=0.0
    ),
}
CLOSED_FORMS = {
    "flow": oracles.flow,
    "reweighted": lambda p: oracles.reweighted_flow(p, CUTOFF),
    "linear": lambda p: oracles.equilibrium(p, lambda t: 2 * oracles.linear_decay(t)),
    "truncated": lambda p: oracles.equilibrium(p, lambda t: 4 * oracles.truncated_decay(t, 0.8)),
    "piecewise": lambda p: oracles.equilibrium(
        p, lambda t: 3 * oracles.piecewise_decay(t, 0.8, 1.4)
    ),
    "constant": lambda p: -oracles.flow(p),
    "one_step": lambda p: p.x - oracles.one_step(p, 0.3),  # v = x - ŝ where u = 1
    "eikonal": lambda p: oracles.eikonal(p, 0.7),
}


def batch(p):
    """The nodes as the package sees a batch: float32, interpolated by the package; the weights."""
    x0, x1, t, weight = (jnp.asarray(a, jnp.float32) for a in (p.x0, p.x1, p.t, p.weight))
    return interpolate(paths.linear, x0, x1, t), weight


@functools.cache
def derivatives(objective):
    """Value and gradient, gradient and Hessian in theta of the posterior mean of the loss."""

    def risk(theta, sample, weight):
        loss, _ = objective(theta, sample)
        chex.assert_equal_shape([loss, weight])
        return jnp.sum(weight * loss)

    def in_double(function):
        compiled = jax.jit(function, compiler_options=FAST_COMPILE)
        return lambda theta, nodes: jax.tree.map(
            lambda a: np.asarray(a, np.float64), compiled(jnp.asarray(theta, jnp.float32), *nodes)
        )

    slope = jax.value_and_grad(risk)
    return in_double(slope), in_double(lambda *a: (slope(*a)[1], jax.hessian(risk)(*a)))


def newton(objective, nodes, theta, num_steps):
    for _ in range(num_steps):
        gradient, hessian = derivatives(objective)[1](theta, nodes)
        theta = theta - np.linalg.solve(hessian, gradient)
    return theta


def minimise(objective, nodes, start):
    """BFGS from `start` to about float32's resolution, then Newton steps for the last digits."""
    slope, curvature = derivatives(objective)
    found = scipy.optimize.minimize(
        slope, start, args=(nodes,), jac=True, method="BFGS", options={"gtol": 1e-4}
    )
    theta = newton(objective, nodes, found.x, 3)
    assert np.linalg.eigvalsh(curvature(theta, nodes)[1]).min() > 0, "not a minimum"
    return theta


@problems
@pytest.mark.parametrize("name", OBJECTIVES)
def test_regression_finds_the_closed_form(problem, name):
    for p in posteriors(problem):
        learned = newton(
            OBJECTIVES[name], batch(p), np.zeros(len(p.x)), 2
        )  # quadratic: one step is exact
        np.testing.assert_allclose(learned, CLOSED_FORMS[name](p), rtol=0, atol=TOLERANCE)


JOINT = {name: dm(name) for name in WEIGHTS}


@problems
@pytest.mark.parametrize("name", WEIGHTS)
def test_joint_minimiser_of_distance_and_direction(problem, name):
    for p in posteriors(problem):
        u, v = oracles.joint(p, **WEIGHTS[name])
        assert u > 0
        start = np.concatenate([[1.0], 0.1 * np.ones_like(p.x)])
        start[1:] *= np.sign(v)  # BFGS is to find the size, the branch is the oracle's
        learned = minimise(JOINT[name], batch(p), start)
        np.testing.assert_allclose(learned, [u, *v], rtol=0, atol=TOLERANCE)


@problems
def test_joint_minimiser_of_a_scalar_potential(problem):
    """The low-dimensional form v = ∇u: a potential whose value and slope at x are free."""

    for p in posteriors(problem)[:1]:
        x = jnp.asarray(p.x, jnp.float32)[None]

        def affine(theta, x=x):
            return fields.potential_field(
                lambda z, t, cond: theta[0] + jnp.sum((z - x) * theta[None, 1:], -1)
            )

        u, v = oracles.joint(p, **WEIGHTS["plain"])
        start = np.concatenate([[1.0], 0.1 * np.sign(v)])
        learned = minimise(dm("plain", affine), batch(p), start)
        np.testing.assert_allclose(learned, [u, *v], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("dim", "num_points"), [(2, 5), (8, 6)])
def test_flow_with_a_time_input_learns_each_time(dim, num_points):
    points, xs = problem_data(dim, num_points)
    times = np.array([0.3, 0.7])

    def field(theta):
        def at(x, t=None, cond=None):
            assert t is not None
            return theta[(t > 0.5).astype(int)]

        return at

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def quadratic(sample, weight):
        def risk(flat):
            return jnp.sum(weight * losses.flow_matching(field(flat.reshape(2, dim)), sample)[0])

        zero = jnp.zeros(2 * dim)
        return jax.hessian(risk)(zero), jax.grad(risk)(zero)

    for x in xs[:2]:
        t, x1 = np.repeat(times, num_points), np.tile(points, (2, 1))
        x0 = (x - t[:, None] * x1) / (1 - t[:, None])
        log_weight = -0.5 * np.sum(x0**2, -1).reshape(2, -1)
        weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
        weight = (weight / weight.sum(1, keepdims=True)).ravel()
        x0, x1, t, weight = (jnp.asarray(a, jnp.float32) for a in (x0, x1, t, weight))
        hessian, gradient = quadratic(interpolate(paths.linear, x0, x1, t), weight)
        learned = -np.linalg.solve(hessian, gradient).reshape(2, dim)
        expected = np.stack([oracles.flow_at_time(x, time, points) for time in times])
        np.testing.assert_allclose(learned, expected, rtol=0, atol=TOLERANCE)


# The oracles themselves.


@problems
def test_quadrature_has_converged(problem):
    dim, num_points, density = problem
    points, xs = problem_data(dim, num_points)
    for x, p in zip(xs, posteriors(problem), strict=True):
        fine = oracles.posterior(x, points, oracles.DENSITIES[density], num_panels=300, order=8)
        for name, closed_form in CLOSED_FORMS.items():
            np.testing.assert_allclose(
                closed_form(p), closed_form(fine), rtol=0, atol=1e-7, err_msg=name
            )


@problems
def test_index_posterior_is_theorem_a2(problem):
    """Against SciPy's adaptive quadrature of eq. 28 in t itself."""
    dim, num_points, density = problem
    points, xs = problem_data(dim, num_points)

    def mass(x, s):
        def integrand(t):
            gap = np.sum((x - t * s) ** 2) / (2 * (1 - t) ** 2)
            log_p = oracles.DENSITIES[density](np.array(t), np.array(1 - t))
            return np.exp(log_p - dim * np.log(1 - t) - gap)

        at = float(np.clip(x @ s / (s @ s), 0.05, 0.95))
        pieces = np.unique([1e-9, 0.5 * at, at, 0.5 * (1 + at), 0.9, 0.97, 0.99, 1 - 1e-6])
        return sum(
            scipy.integrate.quad(integrand, a, b, limit=200)[0]
            for a, b in itertools.pairwise(pieces)
        )

    for x, p in zip(xs, posteriors(problem), strict=True):
        expected = np.array([mass(x, s) for s in points])
        found = oracles.index_posterior(p, num_points)
        np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-6)


@problems
@pytest.mark.parametrize("name", WEIGHTS)
def test_joint_oracle_is_the_global_minimum(problem, name):
    """Against a scan of u on both branches, with the best v of each u by least squares."""
    for p in posteriors(problem):
        u, v = oracles.joint(p, **WEIGHTS[name])
        best = oracles.joint_loss(p, u, v, **WEIGHTS[name])
        root = np.sqrt(p.weight)[:, None]
        r2 = np.sum((p.x - p.x1) ** 2, -1)[:, None]
        a = np.sqrt(WEIGHTS[name]["one_step_weight"] / (r2 + WEIGHTS[name]["epsilon"])) * root
        b = np.sqrt(WEIGHTS[name]["eikonal_weight"]) * root
        to = np.concatenate(
            [a * (p.x - p.x1), b * (p.x - p.x1) / np.sqrt(r2 + WEIGHTS[name]["c0"])]
        )

        def profile(u, a=a, b=b, to=to, p=p):
            column = np.concatenate([a * u, b])
            v = (column.T @ to / (column.T @ column)).ravel()
            return oracles.joint_loss(p, u, v, **WEIGHTS[name]), v

        grid = np.concatenate([-np.geomspace(1e-3, 1e3, 25), np.geomspace(1e-3, 1e3, 25)])
        values = [profile(g)[0] for g in grid]
        assert best <= min(values) + 1e-12
        start = grid[np.argmin(values)]
        bounds = sorted((start / 2, start * 2))
        refined = scipy.optimize.minimize_scalar(
            lambda g: profile(g)[0], bounds=bounds, method="bounded", options={"xatol": 1e-9}
        ).x
        np.testing.assert_allclose(refined, u, rtol=1e-4)
        np.testing.assert_allclose(profile(refined)[1], v, atol=1e-4)


def test_joint_minimiser_is_neither_terms_own():
    """By far more than the tolerance: eq. 8 cannot be tested one term at a time."""
    p = posteriors((2, 5, "uniform"))[0]
    u, v = oracles.joint(p, **WEIGHTS["plain"])
    assert np.linalg.norm(p.x - u * v - oracles.one_step(p, 0.3)) > 500 * TOLERANCE
    assert np.linalg.norm(v - oracles.eikonal(p, 0.7)) > 500 * TOLERANCE


def test_joint_oracle_tends_to_the_terms_own_minimisers():
    p = posteriors(PROBLEMS[0])[0]
    u, v = oracles.joint(p, 0.3, 0.7, 1.0, 1e-7)
    np.testing.assert_allclose(p.x - u * v, oracles.one_step(p, 0.3), atol=1e-5)
    _, v = oracles.joint(p, 0.3, 0.7, 1e-7, 1.0)
    np.testing.assert_allclose(v, oracles.eikonal(p, 0.7), atol=1e-5)
