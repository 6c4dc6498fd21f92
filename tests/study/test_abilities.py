"""Abilities against closed forms: Gaussians, exact distances, SciPy and scikit-learn."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from genfield import distances, guidance, sampling
from genfield.fields import Prediction, evaluations, potential_field
from genfield.guidance import classifier_free
from genfield.metrics.detection import auroc
from genfield.study import measures

A, B = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])


def gaussian(mean, std):
    """The gradient of -log N(mean, std²)."""
    return lambda x, t=None, cond=None: (x - mean[None]) / std**2


def to_point(point, c0=0.0):
    """The exact distance to one point, as Distance Marching learns it (DM eq. 4)."""

    def field(x, t=None, cond=None):
        offset = x - point[None]
        u = jnp.sqrt(jnp.sum(offset**2, axis=-1) + c0)
        return Prediction(offset / jnp.maximum(u, 1e-9)[:, None], u)

    return field


def cloud(n=50, dim=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, dim)) * 3, jnp.float32)


# Composition


def test_the_sum_of_two_gaussian_energies_is_the_products():
    x, weights, stds = cloud(), (1.0, 2.0), (0.5, 2.0)
    field = guidance.compose([gaussian(A, stds[0]), gaussian(B, stds[1])], weights)
    precisions = [w / s**2 for w, s in zip(weights, stds, strict=True)]
    mean = (precisions[0] * A + precisions[1] * B) / sum(precisions)
    np.testing.assert_allclose(field(x), (x - mean[None]) * sum(precisions), rtol=2e-5, atol=1e-5)
    gd = sampling.gradient_descent(0.1)
    out = sampling.sample(jax.random.key(0), field, x, gd, num_steps=100)
    np.testing.assert_allclose(out.x, jnp.broadcast_to(mean, x.shape), atol=1e-5)
    assert (out.nfe == 200).all()


def test_composed_directions_are_the_gradient_of_composed_distances():
    energies = [lambda z, t, c: jnp.sum(jnp.cos(z), -1), lambda z, t, c: jnp.sum(z**4, -1)]
    field = guidance.compose([potential_field(e) for e in energies], (0.5, -1.5))
    x = cloud()
    out = field(x)
    np.testing.assert_allclose(
        out.direction, jax.grad(lambda z: field(z).distance.sum())(x), rtol=1e-4, atol=1e-4
    )


def test_composed_displacements_meet_between_two_points():
    fields = [to_point(A), to_point(B)]
    field = guidance.compose(fields, (0.25, 0.75), on="displacement")
    x = cloud()
    jump = sampling.sphere_tracing(1.0)
    out = sampling.sample(jax.random.key(0), field, x, jump, num_steps=1)
    meeting = jnp.broadcast_to(0.25 * A + 0.75 * B, x.shape)
    np.testing.assert_allclose(out.x, meeting, atol=1e-5)
    np.testing.assert_allclose(field(x).distance, jnp.linalg.norm(x - meeting, axis=1), rtol=1e-5)


def test_one_field_composed_is_itself():
    x = cloud()
    for on in ("direction", "displacement"):
        one, out = to_point(A)(x), guidance.compose([to_point(A)], on=on)(x)
        np.testing.assert_allclose(out.direction, one.direction, rtol=1e-5)
        np.testing.assert_allclose(out.distance, one.distance, rtol=1e-5)


def test_conditions_are_bound_and_guidance_is_counted():
    means = jnp.stack([A, B, jnp.zeros(2)])
    field = lambda x, t=None, cond=None: x - means[cond]
    x = cloud()
    for label in (0, 1):
        bound = guidance.conditioned(field, label)
        np.testing.assert_allclose(bound(x, None, jnp.full(50, 2)), x - means[label][None])
    guided = classifier_free(field, 3.0, 2)
    parts = [guidance.conditioned(guided, 0), guidance.conditioned(field, 1)]
    both = guidance.compose(parts)
    assert evaluations(both) == 3
    np.testing.assert_allclose(both(x), (x - 3 * A[None]) + (x - B[None]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: guidance.compose([]), ValueError, "got 0 and 0"),
        (lambda: guidance.compose([to_point(A)], (1.0, 2.0)), ValueError, "got 1 and 2"),
        (lambda: guidance.compose([to_point(A)], on="both"), ValueError, "'displacement'"),
        (
            lambda: guidance.compose([to_point(A), gaussian(B, 1.0)])(cloud()),
            TypeError,
            "of one kind",
        ),
        (lambda: distances.nearest(cloud(3), cloud(2), 3), ValueError, "got 2"),
        (lambda: distances.nearest(cloud(3), cloud(2), 0), ValueError, "positive"),
        (lambda: distances.nearest(cloud(3), cloud(2, 3)), ValueError, r"\[2\].*\[3\]"),
        (lambda: measures.distance_errors(cloud(), cloud(), A, 1.0), TypeError, "Prediction"),
        (lambda: auroc([], [1.0]), ValueError, "inside"),
        (lambda: auroc([1.0], [[1.0]]), ValueError, "outside"),
        (lambda: auroc([1.0], [np.nan, 2.0]), ValueError, "NaN in 1 of 2"),
    ],
)
def test_mistakes_are_told(make, error, words):
    with pytest.raises(error, match=words):
        make()


# Step sizes


@pytest.mark.parametrize(
    "make, velocity",
    [
        (lambda step: sampling.gradient_descent(0.1 * step), False),
        (lambda step: sampling.nesterov(0.1 * step, 0.3), False),
        (lambda step: sampling.sphere_tracing(0.1 * step), False),
        (sampling.euler, True),
        (sampling.heun, True),
    ],
    ids=["gradient_descent", "nesterov", "sphere_tracing", "euler", "heun"],
)
def test_a_scaled_field_takes_scaled_steps_without_compiling_anew(make, velocity):
    traced = []
    field = (lambda x, t, cond: A[None] - x) if velocity else to_point(A)
    make = (lambda step, make=make: make()) if velocity else make
    x = cloud()

    @jax.jit
    def run(x, factor):
        traced.append(1)
        held = guidance.scaled(field, factor)
        return sampling.sample(jax.random.key(0), held, x, make(1.0), num_steps=4).x

    for factor in (0.5, 1.0, 2.0):
        if velocity:  # the clock goes on as it was
            h = factor / 4
            shrink = 1 - h if make(1.0).step.__qualname__.startswith("euler") else 1 - h + h * h / 2
            expected = A[None] + shrink**4 * (x - A[None])
        else:
            key = jax.random.key(0)
            expected = sampling.sample(key, field, x, make(factor), num_steps=4).x
        np.testing.assert_allclose(run(x, jnp.float32(factor)), expected, rtol=1e-4, atol=1e-5)
    assert len(traced) == 1


# Partially noised inputs


def test_an_exact_field_recovers_its_data_from_any_noise():
    x1 = jnp.broadcast_to(A, (50, 2))
    for t in (0.0, 0.5, 1.0):
        start = measures.partially_noised(cloud(), x1, t)
        np.testing.assert_allclose(start, (1 - t) * cloud() + t * x1, rtol=1e-6)
        gd = sampling.gradient_descent(0.2)
        out = sampling.sample(jax.random.key(0), gaussian(A, 1.0), start, gd, num_steps=60)
        np.testing.assert_allclose(out.x, x1, atol=1e-4)


# Scores


def test_scores_of_exact_fields():
    x = cloud()
    r = jnp.linalg.norm(x - A[None], axis=1)
    out = measures.scores(to_point(A), x)
    np.testing.assert_allclose(out["distance"], r, rtol=1e-6)
    np.testing.assert_allclose(out["displacement"], r, rtol=1e-5)
    np.testing.assert_allclose(out["gradient_norm"], 1, rtol=1e-5)
    out = measures.scores(gaussian(A, 0.5), x)
    np.testing.assert_allclose(out["gradient_norm"], 4 * r, rtol=1e-5)
    np.testing.assert_allclose(out["dot_energy"], 4 * (x * (x - A[None])).sum(1), rtol=1e-4)


def test_a_distance_tells_data_from_what_is_further():
    data = A[None] + 0.1 * cloud()
    far = A[None] + 5 * cloud(seed=1)
    near, away = (np.asarray(measures.scores(to_point(A), x)["distance"]) for x in (data, far))
    assert auroc(near, away) > 0.99 and auroc(near, near) == 0.5


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_auroc_is_scikit_learns(levels):
    rng = np.random.default_rng(levels)
    for n, m in ((1, 1), (30, 50), (400, 3)):
        inside, outside = rng.integers(0, levels, n), rng.integers(0, levels, m) + levels // 4
        expected = roc_auc_score(np.repeat([0, 1], [n, m]), np.concatenate([inside, outside]))
        assert auroc(inside, outside) == pytest.approx(expected, abs=1e-12)
        assert auroc(outside, inside) == pytest.approx(1 - expected, abs=1e-12)


def test_auroc_of_infinite_scores():
    assert auroc([0.0, 1.0], [np.inf, np.inf]) == 1
    assert auroc([np.inf], [np.inf, 0.0]) == 0.25


def test_auroc_is_exact_on_many_ties():
    values = np.zeros(100_000)
    assert auroc(values, values) == 0.5


# Sets to tell apart


def images(n=6, height=9, width=8):
    shape = (n, height, width, 3)
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


@pytest.mark.parametrize("std", [0.4, 1.3])
def test_blurring_is_scipys_filter(std):
    x, radius = images(), int(np.ceil(3 * std))
    for given, out in zip(x, measures.blurred(x, std), strict=True):
        blur = gaussian_filter(
            np.asarray(given), (std, std, 0), mode="nearest", radius=(radius,) * 2 + (0,)
        )
        np.testing.assert_allclose(out, blur, atol=1e-6)


def test_sets_made_of_nothing():
    x, key = images(), jax.random.key(0)
    flat = measures.constant_like(key, x, -1, 1)
    assert flat.shape == x.shape and flat.std((1, 2)).max() < 1e-6
    assert len(np.unique(flat)) == 6 * 3
    low, high = np.array([0.0, 10.0], np.float32), np.array([1.0, 20.0], np.float32)
    box = measures.uniform_like(key, jnp.zeros((2000, 2)), low, high)
    np.testing.assert_allclose(box.mean(0), [0.5, 15.0], rtol=0.05)
    assert (box >= low[None]).all() and (box <= high[None]).all()


def test_shuffling_keeps_the_pixels_of_an_image():
    x = images()
    out = measures.shuffled(jax.random.key(0), x)
    sort = lambda a: np.sort(np.asarray(a).reshape(6, -1, 3).view("f4,f4,f4"), axis=1)
    np.testing.assert_array_equal(sort(out), sort(x))
    places = jnp.broadcast_to(jnp.arange(72.0).reshape(1, 9, 8, 1), (6, 9, 8, 1))
    orders = np.asarray(measures.shuffled(jax.random.key(0), places)).reshape(6, -1)
    assert len({tuple(order) for order in orders}) == 6


# Neighbours


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("block", [7, 1000])
def test_neighbours_are_exact(block, offset):
    rng = np.random.default_rng(1)
    queries, points = (rng.normal(size=(n, 2, 3)).astype(np.float32) + offset for n in (70, 200))
    queries[:5] = points[100:105]  # copies
    flat = [a.reshape(len(a), -1).astype(np.float64) for a in (queries, points)]
    expected = cdist(*flat)
    done = []
    out = distances.nearest(queries, points, 4, block=block, on_block=done.append)
    order = np.argsort(expected, axis=1)[:, :4]
    np.testing.assert_array_equal(out.index, order)
    np.testing.assert_allclose(out.distance, np.take_along_axis(expected, order, 1), rtol=1e-5)
    assert (out.distance[:5, 0] == 0).all() and done[-1] == 200


def test_neighbours_among_points_that_come_in_parts():
    points, queries = np.asarray(cloud(100)), cloud(9, seed=1)
    parts = (part for part in np.split(points, [3, 40]))
    for a, b in zip(
        distances.nearest(queries, parts, 5), distances.nearest(queries, points, 5), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# Distances


def test_an_exact_distance_has_no_error():
    x, x1 = cloud(), jnp.broadcast_to(A, (50, 2))
    for c0 in (0.01, 4.0):
        out = measures.distance_errors(to_point(A, c0)(x), x, x1, c0)
        np.testing.assert_allclose(out["r"], jnp.linalg.norm(x - x1, axis=1), rtol=1e-5)
        assert out["distance"].max() < 1e-6 and out["displacement"].max() < 1e-5
    wrong = to_point(A, 4.0)(x)._replace(distance=2 * to_point(A, 4.0)(x).distance)
    out = measures.distance_errors(wrong, x, x1, 4.0)
    np.testing.assert_allclose(out["distance"], 1, rtol=1e-5)
    np.testing.assert_allclose(out["displacement"], 1, rtol=1e-4)


def test_the_joint_minimiser_on_one_point_has_no_error():
    """DM eq. 8 on a data set of one point is minimised by u = √(r² + c0) and u v = x - x1."""
    point, x = np.array([1.0, -2.0]), np.array([0.5, 1.5])
    posterior = oracles.posterior(x, point[None], oracles.log_uniform_density)
    u, v = oracles.joint(posterior, 0.1, 0.1, 0.5, 2.0)
    out = measures.distance_errors(
        Prediction(jnp.asarray(v, jnp.float32)[None], jnp.float32(u)[None]),
        jnp.asarray(x, jnp.float32)[None],
        jnp.asarray(point, jnp.float32)[None],
        0.1,
    )
    assert out["distance"].max() < 1e-5 and out["displacement"].max() < 1e-5


def test_bins_hold_their_edges():
    out = measures.binned([1.0, 3.0, 5.0, 7.0, 100.0], [0.0, 0.4, 0.5, 1.0, 2.0], [0, 0.5, 1, 1.5])
    np.testing.assert_array_equal(out["count"], [2, 1, 1])
    out = measures.binned([1.0, 3.0, 5.0, 7.0], [0.0, 0.4, 0.5, 1.0], [0, 0.5, 0.8, 1.0])
    np.testing.assert_array_equal(out["mean"], [2, 5, 7])
    np.testing.assert_array_equal(out["std"], [1, 0, 0])
    assert np.isnan(measures.binned([1.0], [0.1], [0, 0.5, 1])["median"][1])


@pytest.mark.parametrize("how", ["sphere_tracing", "gradient_descent"])
def test_distances_fall_as_the_paper_says(how):
    """DM Fig. 30: sphere tracing exponentially, gradient descent linearly."""
    x = A[None] + 4 + jnp.abs(cloud(8))
    sampler = getattr(sampling, how)(0.1)
    run = lambda x: sampling.sample(
        jax.random.key(0), to_point(A), x, sampler, num_steps=9, trace=1
    )
    out = measures.along(to_point(A), run(x).trace)
    first, steps = out["distance"][:1], jnp.arange(10.0)[:, None]
    expected = first * 0.9**steps if how == "sphere_tracing" else first - 0.1 * steps
    np.testing.assert_allclose(out["distance"], expected, rtol=1e-4)
    np.testing.assert_allclose(out["moved"], expected[:-1] - expected[1:], rtol=1e-3)
    update = out["displacement" if how == "sphere_tracing" else "gradient_norm"]
    np.testing.assert_allclose(0.1 * update[:-1], out["moved"], rtol=1e-3)


def test_it_belongs_to_the_core():
    tree = ast.parse(Path(measures.__file__).read_text())
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    roots = {
        alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
        for node in nodes
        for alias in node.names
    }
    ours = {name.split(".")[1] for name in roots if name.startswith("genfield")}
    assert ours <= {"fields", "paths", "rng", "sampling"}
    assert {name.split(".")[0] for name in roots} <= {
        *("collections", "typing", "jax", "numpy", "genfield")
    }
