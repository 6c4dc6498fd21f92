"""Fréchet and kernel distance, inception score, precision and recall: closed forms, brute force."""

import itertools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist

from genfield.distances import ROUNDING, squared_distances
from genfield.metrics import frechet, kernel
from genfield.metrics.frechet import Moments
from genfield.metrics.inception_score import inception_score
from genfield.metrics.neighbours import precision_recall


def rng(seed=0):
    return np.random.default_rng(seed)


def rotation(dim, seed=0):
    return np.linalg.qr(rng(seed).normal(size=(dim, dim)))[0]


def with_eigenvalues(values, basis):
    return (basis * np.asarray(values)[None, :]) @ basis.T


def assert_moments_equal(a: Moments, b: Moments, rtol=1e-12):
    """Means relative to the values, scatter relative to its diagonal."""
    assert a.count == b.count
    spread = np.sqrt(np.diag(b.scatter))
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol, atol=rtol * spread.max())
    error = np.abs(a.scatter - b.scatter) / np.outer(spread, spread)
    assert error.max() < rtol, error.max()


# Moments.


def test_moments_are_numpys():
    x = rng().normal(size=(5000, 7)) @ rng(1).normal(size=(7, 7)) + 3  # more rows than a block
    found = frechet.moments(x)
    assert type(found.count) is int and found.count == 5000
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(frechet.covariance(found), np.cov(x.T), rtol=1e-11)


PARTITIONS = {
    "ones": [1] * 600,
    "equal": [100] * 6,
    "uneven": [1, 0, 2, 397, 64, 136],
    "empty_first": [0, 0, 599, 1],
}


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_batches_merge_to_the_moments_of_all(name, dtype):
    x = (rng().normal(size=(600, 9)) * np.logspace(0, -2, 9) + 2).astype(dtype)
    batches = np.split(x, np.cumsum(PARTITIONS[name])[:-1])
    expected = frechet.moments(x.astype(np.float64))
    for order in (batches, batches[::-1]):
        merged = frechet.zero(9)
        for batch in order:
            merged = frechet.merge(merged, frechet.moments(batch))
        assert_moments_equal(merged, expected)
    # As a tree, as processes add theirs up.
    parts = [frechet.moments(batch) for batch in batches]
    while len(parts) > 1:
        pairs = itertools.zip_longest(parts[::2], parts[1::2], fillvalue=frechet.zero(9))
        parts = [frechet.merge(b, a) for a, b in pairs]
    assert_moments_equal(parts[0], expected)


def test_merging_nothing_is_exact():
    found = frechet.moments(rng().normal(size=(10, 3)))
    nothing = frechet.moments(np.zeros((0, 3), np.float32))
    for merged in (frechet.merge(nothing, found), frechet.merge(found, frechet.zero(3))):
        assert merged is found
    assert frechet.merge(nothing, nothing).count == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mean_far_above_the_spread_cancels_nothing(dtype):
    """Mean 1e4 and deviation 1e-2: naive sums of squares lose all digits."""
    x = (1e4 + 1e-2 * rng().normal(size=(9000, 5))).astype(dtype)
    small = x.astype(np.float64) - 1e4  # exact
    scatter = frechet.moments(small).scatter
    found = frechet.moments(x)
    exact = np.array([math.fsum(column) / 9000 for column in x.T.astype(np.float64)])
    np.testing.assert_array_max_ulp(found.mean, exact, 1)
    assert_moments_equal(found, Moments(9000, 1e4 + small.mean(0), scatter))
    merged = frechet.zero(5)
    for batch in np.array_split(x, 37):
        merged = frechet.merge(merged, frechet.moments(batch))
    # A float64 mean of 1e4 is itself only 1e-10 of the deviation exact.
    assert_moments_equal(merged, found, rtol=1e-10)


def test_float16_and_bfloat16_are_measured_in_float64():
    x = (20 + rng().normal(size=(3000, 4))).astype(np.float16)  # their sum overflows float16
    assert_moments_equal(frechet.moments(x), frechet.moments(x.astype(np.float64)))
    y = jnp.asarray(x, jnp.bfloat16)
    assert_moments_equal(frechet.moments(y), frechet.moments(np.asarray(y, np.float64)))


# The Fréchet distance.


def test_distance_of_commuting_covariances():
    """Σ (√a - √b)² over shared eigenvectors, and the means' part."""
    a, b = rng(1).uniform(0.1, 3, 40), rng(2).uniform(0.1, 3, 40)
    basis, shift = rotation(40), rng(3).normal(size=40)
    found = frechet.distance(
        shift, with_eigenvalues(a, basis), np.zeros(40), with_eigenvalues(b, basis)
    )
    expected = np.sum(shift**2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_distance_in_two_dimensions_is_the_closed_form():
    """tr √M = √(tr M + 2 √det M) for 2 x 2, with covariances that do not commute."""
    for seed in range(5):
        a, b = rng(seed).normal(size=(2, 2, 2))
        a, b = a @ a.T, b @ b.T
        root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
        expected = 1 + np.trace(a) + np.trace(b) - 2 * root
        found = frechet.distance([1, 0], a, [0, 0], b)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_distance_is_scipys_root_where_that_is_sound():
    a, b = np.cov(rng(1).normal(size=(30, 200))), np.cov(rng(2).normal(size=(30, 200)) * 2)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b)).real
    found = frechet.distance(np.zeros(30), a, np.zeros(30), b)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found == pytest.approx(frechet.distance(np.zeros(30), b, np.zeros(30), a), rel=1e-12)


@pytest.mark.parametrize("smallest", [-2, -6, -10])
def test_identical_and_scaled_and_shifted(smallest):
    dim = 60
    mean, cov = (
        rng().normal(size=dim),
        with_eigenvalues(np.logspace(1, smallest, dim), rotation(60)),
    )
    trace = np.trace(cov)
    assert frechet.distance(mean, cov, mean, cov) < 1e-12 * trace
    assert frechet.distance(mean, 4 * cov, mean, cov) == pytest.approx(trace, rel=1e-12)
    shifted = frechet.distance(mean + 0.5, cov, mean, cov)
    assert shifted == pytest.approx(dim / 4, rel=1e-12)


def test_rounding_is_never_a_negative_distance():
    for seed in range(20):
        mean, cov = np.zeros(10), np.cov(rng(seed).normal(size=(10, 30)))
        assert 0 <= frechet.distance(mean, cov, mean, cov) < 1e-13


@pytest.mark.parametrize("tiny", [0.0, 1e-3, 1e-8])
def test_unrelated_spectra_keep_a_part_in_1e9_of_the_trace(tiny):
    """Null spaces that differ: a root of the product errs by the root of the rounding here."""
    a, b = np.r_[np.linspace(1, 3, 50), np.full(50, tiny)], np.linspace(4, 1, 100)
    b[30:60] = tiny
    basis = rotation(100)
    zeros, total = np.zeros(100), a.sum() + b.sum()
    found = frechet.distance(zeros, with_eigenvalues(a, basis), zeros, with_eigenvalues(b, basis))
    assert abs(found - np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)) < 1e-12 * total


def test_noise_of_a_float32_covariance_is_no_dimension():
    """Statistics saved as float32 have eigenvalues of ±1e-8 where there is nothing."""
    a = with_eigenvalues(np.r_[np.ones(20), np.zeros(80)], rotation(100)).astype(np.float32)
    a = (a + a.T) / 2
    assert np.linalg.eigvalsh(a.astype(np.float64))[0] < -1e-9
    b, zeros = np.eye(100) * 100, np.zeros(100)
    assert abs(frechet.distance(zeros, a, zeros, b) - (20 * 81 + 80 * 100)) < 1e-2
    assert abs(frechet.distance(zeros, a, zeros, a)) < 1e-6


def test_degenerate_covariances():
    eye, none, zeros = np.eye(3), np.zeros((3, 3)), np.zeros(3)
    assert frechet.distance(zeros, none, zeros, eye) == pytest.approx(3)
    assert frechet.distance(zeros + 2, none, zeros, none) == pytest.approx(12)
    assert frechet.distance([1.0], [[4.0]], [0.0], [[9.0]]) == pytest.approx(2)


def test_samples_converge_to_the_distance_of_their_gaussians():
    """The error of the expected estimate falls like 1 / N."""
    a, b = np.linspace(0.5, 2, 8), np.linspace(2, 1, 8)
    basis = rotation(8)
    cov1, cov2 = with_eigenvalues(a, basis), with_eigenvalues(b, basis)
    exact = frechet.distance(np.ones(8), cov1, np.zeros(8), cov2)
    assert exact == pytest.approx(8 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), abs=1e-12)
    errors = []
    for n in (200, 2000, 200_000):
        x = rng(1).normal(size=(n, 8)) @ scipy.linalg.sqrtm(cov1) + 1
        y = rng(2).normal(size=(n, 8)) @ scipy.linalg.sqrtm(cov2)
        found = frechet.frechet_distance(frechet.moments(x), frechet.moments(y))
        errors.append(abs(found - exact))
    assert errors[2] < 0.05 and errors[2] < errors[0] / 5


def test_exact_moments_give_the_closed_form_without_a_warning():
    n, basis = 1000, rotation(8)
    a, b = np.linspace(0.5, 2, 8), np.linspace(2, 1, 8)
    first = Moments(n, np.full(8, 2.0), (n - 1) * with_eigenvalues(a, basis))
    second = Moments(n, np.zeros(8), (n - 1) * with_eigenvalues(b, basis))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = frechet.frechet_distance(first, second)
    assert found == pytest.approx(32 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rel=1e-12)


@pytest.mark.parametrize("count", [2, 20, 64])
def test_fewer_samples_than_dimensions(count):
    """Rotated into 64 dimensions from their own subspace, where SciPy's root is sound."""
    low = count - 1
    x, y = rng(1).normal(size=(count, low)), rng(2).normal(size=(300, low)) * 2 + 1
    basis = rotation(64)[:low]
    with pytest.warns(UserWarning, match=f"from {count} samples in 64 dim.*rank-deficient") as seen:
        found = frechet.frechet_distance(frechet.moments(x @ basis), frechet.moments(y @ basis))
    assert len(seen) == 1 and "\n" not in str(seen[0].message)
    a, b = np.cov(x.T).reshape(low, low), np.cov(y.T).reshape(low, low)
    means = np.sum((x.mean(0) - y.mean(0)) ** 2)
    root = scipy.linalg.sqrtm(a)
    cross = np.trace(scipy.linalg.sqrtm(root @ b @ root)).real
    assert found == pytest.approx(means + np.trace(a) + np.trace(b) - 2 * cross, rel=1e-9)


def test_the_warning_names_both_sides():
    x, y = rng().normal(size=(5, 8)), rng(1).normal(size=(8, 8))
    with pytest.warns(UserWarning, match="from 5 and 8 samples"):
        frechet.frechet_distance(frechet.moments(x), frechet.moments(y))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_names_its_first_row(value):
    x = rng().normal(size=(50, 4)).astype(np.float32)
    x[[31, 17], [0, 3]] = value
    for measure in (
        frechet.moments,
        lambda z: kernel.mmd(z, x[:5]),
        lambda z: inception_score(z, splits=2),
        lambda z: precision_recall(x[:9], z),
    ):
        with pytest.raises(ValueError, match="in 2 of 50 rows, the first is row 17"):
            measure(x)


def test_wrong_shapes_and_dtypes():
    x, eye = np.zeros((4, 3)), np.eye(3)
    for bad in (np.zeros(3), np.zeros((2, 3, 1)), np.zeros((4, 3), int), np.zeros((4, 3), complex)):
        with pytest.raises(ValueError, match=r"must be floats of shape \[N, D\]"):
            frechet.moments(bad)
    a, b = frechet.moments(x), frechet.moments(np.zeros((4, 2)))
    for call in (frechet.merge, frechet.frechet_distance):
        with pytest.raises(ValueError, match=r"differ in shape, \(3,\) and \(2,\)"):
            call(a, b)
    with pytest.raises(ValueError, match="2 samples or more, got 1"):
        frechet.covariance(frechet.moments(x[:1]))
    with pytest.raises(ValueError, match=r"covariances \[D, D\]"):
        frechet.distance(np.zeros(3), np.zeros(3), np.zeros(3), eye)
    with pytest.raises(ValueError, match="NaN"):
        frechet.distance(np.zeros(3), eye * np.nan, np.zeros(3), eye)
    with pytest.raises(ValueError, match="eigenvalue -1"):
        frechet.distance(np.zeros(3), np.diag([1, -1, 1]), np.zeros(3), eye)
    with pytest.raises(ValueError, match="not symmetric"):
        frechet.distance(np.zeros(3), eye + np.eye(3, k=1), np.zeros(3), eye)
    for measure in (kernel.mmd, kernel.kernel_distance, precision_recall):
        with pytest.raises(ValueError, match="one feature network"):
            measure(np.zeros((9, 3)), np.zeros((9, 2)))


# The kernel distance.


def double_sum(x, y):
    """Each pair in turn."""
    k = lambda a, b: (sum(float(u) * float(v) for u, v in zip(a, b, strict=True)) / len(a) + 1) ** 3
    mean = lambda pairs: np.mean([k(a, b) for a, b in pairs])
    across = mean(itertools.product(x, y))
    return mean(itertools.permutations(x, 2)) + mean(itertools.permutations(y, 2)) - 2 * across


@pytest.mark.parametrize("block", [1, 8, 1024])
def test_mmd_is_the_double_sum(block, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", block)
    x, y = rng(1).normal(size=(24, 5)), rng(2).normal(size=(17, 5)) * 1.5 + 0.5
    assert abs(kernel.mmd(x, y) - double_sum(x, y)) < 1e-10
    assert abs(kernel.mmd(x, y) - kernel.mmd(y, x)) < 1e-10
    x, y = x.astype(np.float32), y.astype(np.float16)
    assert abs(kernel.mmd(x, y) - double_sum(x, y)) < 1e-10


def test_mmd_is_unbiased():
    """Over draws of one distribution it averages to 0, though each is of two finite sets."""
    values = [kernel.mmd(*rng(i).normal(size=(2, 12, 4))) for i in range(3000)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error and min(values) < 0
    # A set with itself: the biased estimate is 0, the unbiased one is not.
    x = rng().normal(size=(12, 4))
    assert kernel.mmd(x, x) < -error


def test_mmd_of_shifted_gaussians_is_the_closed_form():
    """For x ~ N(0, 1) and y ~ N(m, 1): E k(x, y) = 1 + 3 m₁ m₂ + 3 E x² E y² + E x³ E y³."""
    shift = 0.7
    second, third = 1 + shift**2, shift**3 + 3 * shift
    expected = (1 + 3) + (1 + 3 * shift**2 + 3 * second**2 + third**2) - 2 * (1 + 3 * second)
    values = []
    for i in range(40):
        draw = rng(i)
        values.append(kernel.mmd(draw.normal(size=(500, 1)), draw.normal(size=(500, 1)) + shift))
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(len(values))


def test_subsets():
    x, y = rng(1).normal(size=(300, 6)), rng(2).normal(size=(200, 6)) * 1.3
    mean, deviation = kernel.kernel_distance(x, y, num_subsets=400, subset_size=50)
    whole = kernel.mmd(x, y)
    assert abs(mean - whole) < 4 * deviation / np.sqrt(400) and deviation > 0
    again = kernel.kernel_distance(x, y, num_subsets=400, subset_size=50)
    assert again == (mean, deviation)
    other = kernel.kernel_distance(x, y, num_subsets=400, subset_size=50, seed=1)
    assert other != (mean, deviation)
    # By hand, from the same draws.
    draw = rng(5)
    values = []
    for _ in range(3):
        i = draw.choice(300, 20, replace=False)
        values.append(kernel.mmd(x[i], y[draw.choice(200, 20, replace=False)]))
    found = kernel.kernel_distance(x, y, num_subsets=3, subset_size=20, seed=5)
    np.testing.assert_allclose(found, (np.mean(values), np.std(values)), rtol=1e-12)


def test_subsets_hold_no_point_twice(monkeypatch):
    sizes = []
    monkeypatch.setattr(kernel, "_mmd", lambda a, b: sizes.append((a, b)) or 0.0)
    x, y = np.arange(50.0)[:, None], np.arange(30.0)[:, None]
    kernel.kernel_distance(x, y, num_subsets=20, subset_size=25)
    assert all(len(np.unique(part)) == 25 for pair in sizes for part in pair)
    sizes.clear()
    kernel.kernel_distance(x, y, num_subsets=4, subset_size=40)  # cut to the smaller set
    assert [(len(a), len(b)) for a, b in sizes] == [(30, 30)] * 4
    assert all(len(np.unique(part)) == 30 for pair in sizes for part in pair)


@pytest.mark.parametrize("size", [50, 1000])
def test_one_subset_is_the_whole_sets(size):
    x, y = rng(1).normal(size=(50, 6)), rng(2).normal(size=(30, 6))
    value, deviation = kernel.kernel_distance(x, y, subset_size=size)
    assert value == kernel.mmd(x, y) and math.isnan(deviation)  # one value tells no spread
    assert math.isnan(kernel.kernel_distance(x, y, num_subsets=1, subset_size=20)[1])


def test_kernel_distance_refuses_what_it_cannot_do():
    x = np.zeros((5, 2))
    with pytest.raises(ValueError, match="2 points a set or more, got 1 and 5"):
        kernel.mmd(x[:1], x)
    with pytest.raises(ValueError, match="num_subsets >= 1"):
        kernel.kernel_distance(x, x, num_subsets=0)
    with pytest.raises(ValueError, match="subset_size >= 2"):
        kernel.kernel_distance(x, x, subset_size=1)


# The inception score.


def test_unsure_classifier_scores_one():
    assert inception_score(np.zeros((100, 7), np.float32)) == pytest.approx((1, 0), abs=1e-12)
    same = np.tile(rng().normal(size=(1, 7)), (100, 1))
    assert inception_score(same + 1e4) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize("height", [60.0, 1e4])
def test_sure_and_balanced_classifier_scores_the_classes(height):
    """With a class absent too, whose probability underflows to 0."""
    logits = np.zeros((60, 7))
    logits[np.arange(60), np.arange(60) % 6] = height
    for dtype in (np.float64, np.float32, np.float16):
        found = inception_score(logits.astype(dtype), splits=5)
        assert found == pytest.approx((6, 0), abs=1e-9)


def test_score_of_two_classes_by_hand():
    """p(y|x) is (q, 1 - q) or its mirror: log 2 minus the entropy of q."""
    q = 0.8
    logits = np.log([[q, 1 - q], [1 - q, q]])
    expected = np.exp(np.log(2) + q * np.log(q) + (1 - q) * np.log(1 - q))
    found = inception_score(np.tile(logits, (10, 1)), splits=1)
    assert found == pytest.approx((expected, np.nan), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_splits_are_even_and_contiguous(splits):
    logits = rng().normal(size=(103, 5)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    sizes = [103 // splits + (i < 103 % splits) for i in range(splits)]
    parts = np.split(p, np.cumsum(sizes)[:-1])
    scores = [np.exp((part * np.log(part / part.mean(0))).sum(1).mean()) for part in parts]
    found = inception_score(logits, splits=splits)
    expected = np.mean(scores), np.std(scores) if splits > 1 else np.nan
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("splits", [0, 11])
def test_more_splits_than_rows(splits):
    with pytest.raises(ValueError, match=f"got {splits} splits of 10 rows"):
        inception_score(np.zeros((10, 3)), splits=splits)


# Precision and recall, density and coverage.


def brute_force(generated, reference, k):
    def radii(x):
        distances = cdist(x, x)
        np.fill_diagonal(distances, np.inf)
        return np.sort(distances, axis=1)[:, k - 1]

    across = cdist(generated, reference)
    inside = across <= radii(reference)[None, :]
    return {
        "precision": inside.any(axis=1).mean(),
        "recall": (across <= radii(generated)[:, None]).any(axis=0).mean(),
        "density": inside.sum(axis=1).mean() / k,
        "coverage": inside.any(axis=0).mean(),
    }


@pytest.mark.parametrize("block", [1, 16, 40, 1024])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(k, block):
    generated, reference = rng(1).normal(size=(83, 3)) * 0.8 + 0.5, rng(2).normal(size=(61, 3))
    found = precision_recall(generated, reference, k=k, block=block)
    expected = brute_force(generated, reference, k)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 < found["recall"] < found["precision"] < 1 and found["coverage"] < 1
    assert all(type(value) is float for value in found.values())


def test_precision_and_recall_far_from_the_origin():
    generated, reference = (
        rng(1).normal(size=(90, 4)) * 0.7 + 1e3,
        rng(2).normal(size=(70, 4)) + 1e3,
    )
    expected = brute_force(generated, reference, 3)
    assert precision_recall(generated, reference) == pytest.approx(expected, abs=1e-12)


def test_copies_are_at_distance_zero():
    """Points that occur five times have k-th neighbours at distance 0, which hold copies."""
    base = rng(1).normal(size=(40, 2048)) * 7 + 3
    reference = np.concatenate([np.repeat(base[:10], 5, axis=0), base[10:30]])
    generated = np.concatenate([base[5:20], np.repeat(base[25:35], 5, axis=0)])
    for block in (8, 1024):
        found = precision_recall(generated, reference, block=block)
        assert found == pytest.approx(brute_force(generated, reference, 3), abs=1e-12)


def test_distances_are_of_full_float32():
    """GPUs and TPUs multiply in fewer digits unless told."""
    x = jnp.asarray(rng().normal(size=(200, 2048)) + 0.3, jnp.float32)
    run = lambda a, b: squared_distances(a, b, ROUNDING)  # as `precision_recall` has them
    assert "HIGHEST" in str(jax.make_jaxpr(run)(x, x))
    found = np.asarray(jax.jit(run)(x, x))
    np.testing.assert_allclose(found, cdist(x, x, "sqeuclidean"), rtol=1e-5)
    assert (np.diag(found) == 0).all()


def test_the_same_set_and_disjoint_sets():
    x = rng(1).normal(size=(50, 5)).astype(np.float16)
    found = precision_recall(rng().permutation(x), x, k=3)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["density"] == pytest.approx(4 / 3)  # each point lies in its own ball too
    for block in (1024, 7):  # the rows that fill up a block are no points
        found = precision_recall(x + 1000, x, block=block)
        assert found == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_one_mode_of_two_is_precise_and_recalls_half():
    reference = np.concatenate([rng(1).normal(size=(40, 3)), rng(2).normal(size=(40, 3)) + 100])
    found = precision_recall(reference[:40], reference, k=5)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 0.5, 0.5)
    found = precision_recall(reference, reference[:40], k=5)
    assert (found["precision"], found["recall"], found["coverage"]) == (0.5, 1, 1)


@pytest.mark.parametrize("sizes", [(3, 9), (9, 3)])
def test_too_few_neighbours(sizes):
    x, y = (np.zeros((size, 2)) for size in sizes)
    with pytest.raises(ValueError, match="k=3, 3 points in the smaller set"):
        precision_recall(x, y)
    with pytest.raises(ValueError, match="k=0"):
        precision_recall(x, y, k=0)
