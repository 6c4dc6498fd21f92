"""Distances between point clouds against hand values, brute force and each other."""

import itertools

import numpy as np
import pytest

from genfield.metrics import point_cloud

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(40, 3)), RNG.normal(size=(30, 3)) + 0.5

# By hand: a's points are 1 and 0 from b's nearest; b's are 0, 1 and 3 from a's nearest.
HAND_A = np.array([[0.0, 0.0], [1.0, 0.0]])
HAND_B = np.array([[1.0, 0.0], [1.0, 1.0], [4.0, 0.0]])


def nearest(a, b):
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min(1)


def test_wasserstein_of_a_shifted_cloud_is_the_shift():
    shift = np.array([3.0, -4.0, 12.0])
    shuffled = RNG.permutation(A + shift)
    np.testing.assert_allclose(point_cloud.wasserstein2(A, shuffled), 13, rtol=1e-12)


def test_wasserstein_is_the_best_of_all_permutations():
    a, b = A[:6], B[:6]
    best = min(np.mean(np.sum((a - b[list(p)]) ** 2, 1)) for p in itertools.permutations(range(6)))
    np.testing.assert_allclose(point_cloud.wasserstein2(a, b), np.sqrt(best), rtol=1e-12)


def test_wasserstein_on_a_line_sorts():
    a, b = RNG.normal(size=(50, 1)), 2 * RNG.normal(size=(50, 1))
    expected = np.sqrt(np.mean((np.sort(a, 0) - np.sort(b, 0)) ** 2))
    np.testing.assert_allclose(point_cloud.wasserstein2(a, b), expected, rtol=1e-12)


def test_network_simplex_is_the_assignment(monkeypatch):
    ot = pytest.importorskip("ot")
    a, b = RNG.normal(size=(60, 2)), RNG.normal(size=(60, 2)) + 1
    expected = point_cloud.wasserstein2(a, b)
    calls = []
    solve = ot.emd2
    monkeypatch.setattr(ot, "emd2", lambda *v, **k: calls.append(1) or solve(*v, **k))
    monkeypatch.setattr(point_cloud, "ASSIGNMENT_LIMIT", 59)
    np.testing.assert_allclose(point_cloud.wasserstein2(a, b), expected, rtol=1e-9)
    assert calls == [1]


def test_wasserstein_needs_equal_sizes():
    with pytest.raises(ValueError, match="equal size"):
        point_cloud.wasserstein2(A, B)


def test_hausdorff_and_chamfer_by_hand():
    for a, b in ((HAND_A, HAND_B), (HAND_B, HAND_A)):  # both are symmetric
        assert point_cloud.hausdorff(a, b) == 3
        np.testing.assert_allclose(point_cloud.chamfer(a, b), 1 / 2 + 10 / 3, rtol=1e-12)
    # The strays are one-sided.
    np.testing.assert_allclose(point_cloud.distance_quantile(HAND_A, HAND_B, 1.0), 1)
    np.testing.assert_allclose(point_cloud.distance_quantile(HAND_B, HAND_A, 1.0), 3)
    np.testing.assert_allclose(point_cloud.distance_quantile(HAND_B, HAND_A, 0.5), 1)


def test_hausdorff_and_chamfer_by_brute_force():
    there, back = nearest(A, B), nearest(B, A)
    expected = max(there.max(), back.max())
    np.testing.assert_allclose(point_cloud.hausdorff(A, B), expected, rtol=1e-12)
    expected = (there**2).mean() + (back**2).mean()
    np.testing.assert_allclose(point_cloud.chamfer(A, B), expected, rtol=1e-12)
    found = point_cloud.distance_quantile(A, B)
    np.testing.assert_allclose(found, np.quantile(there, 0.999), rtol=1e-12)


def test_a_subset_is_far_one_way_only():
    """Every point of a is one of b: only b's directions count."""
    a = A[:10]
    back = nearest(A, a)
    assert nearest(a, A).max() == 0 < back.max()
    np.testing.assert_allclose(point_cloud.hausdorff(a, A), back.max(), rtol=1e-12)
    np.testing.assert_allclose(point_cloud.chamfer(a, A), (back**2).mean(), rtol=1e-12)
    assert point_cloud.distance_quantile(a, A) == 0


def test_identical_clouds_are_at_distance_zero():
    # The cost matrix subtracts squares in float64, so W2 is 0 up to √1e-15.
    assert point_cloud.wasserstein2(A, RNG.permutation(A)) < 1e-7
    assert point_cloud.hausdorff(A, A) == point_cloud.chamfer(A, A) == 0


def test_float32_clouds_are_measured_in_float64():
    a, b = A.astype(np.float32)[:30], B.astype(np.float32)
    for measure in (point_cloud.wasserstein2, point_cloud.hausdorff, point_cloud.chamfer):
        expected = measure(a.astype(np.float64), b.astype(np.float64))
        assert isinstance(measure(a, b), float)
        np.testing.assert_allclose(measure(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize("points", [12, 1000])
def test_compare_reports_all_of_them(points):
    out = point_cloud.compare(A, B, transport_points=points)
    n = min(points, len(B))
    assert out == {
        "w2": point_cloud.wasserstein2(A[:n], B[:n]),
        "hausdorff": point_cloud.hausdorff(A, B),
        "chamfer": point_cloud.chamfer(A, B),
        "stray_999": point_cloud.distance_quantile(A, B),
    }
