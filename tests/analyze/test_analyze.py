"""genfield.analyze: neighbours along the path, lengths, exact minimisers in images' dimensions."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

from genfield import couplings, rng
from genfield.analyze import lengths, matching, neighbours, posterior, studies
from genfield.analyze.__main__ import main
from genfield.metrics import path_geometry

KEY = jax.random.key(3)
BINS = [(0.0, 0.0), *neighbours.uniform_bins(4), (1.0, 1.0)]


def make_images(num: int, dimension: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(num, dimension)) * 0.5, jnp.float32)


# ---------------------------------------------------------------- neighbours


def test_nearest_images_are_those_of_brute_force():
    images, done = make_images(40, 12), []
    found = neighbours.nearest_along_path(KEY, images, BINS, 33, block=7, on_block=done.append)
    assert done == [7, 14, 21, 28, 33]
    x0, x1, t = map(np.asarray, neighbours.sample_points(KEY, images, BINS, 33)(np.arange(33)))
    assert np.all(t[0] == 0) and np.all(t[-1] == 1)
    for row, (low, high) in enumerate(BINS):
        assert np.all((low <= t[row]) & (t[row] <= high))
        x = (1 - t[row][:, None]) * x0.astype(np.float64) + t[row][:, None] * x1
        distance = np.linalg.norm(x[:, None] - np.asarray(images, np.float64)[None], axis=-1)
        np.testing.assert_array_equal(found[row], distance.argmin(1))
    np.testing.assert_array_equal(np.asarray(images)[found[-1]], x1)  # at t = 1: themselves
    assert np.all(neighbours.excess_distance(KEY, images, BINS, found, 33) == 0)
    wrong = (found + 1) % 40
    assert np.all(neighbours.excess_distance(KEY, images, BINS, wrong, 5) > 0)


def test_points_depend_neither_on_the_block_nor_on_other_bins():
    images = make_images(40, 12)
    one = neighbours.nearest_along_path(KEY, images, BINS, 33, block=33)
    for block in (1, 8, 100):
        other = neighbours.nearest_along_path(KEY, images, BINS, 33, block=block)
        np.testing.assert_array_equal(one, other)
    ends = [BINS[0], BINS[-1]]
    few = neighbours.nearest_along_path(KEY, images, ends, 33)
    np.testing.assert_array_equal(few, one[[0, -1]])
    other = neighbours.nearest_along_path(jax.random.key(4), images, BINS, 33)
    assert np.any(other != one)


def test_each_image_is_a_target_before_any_is_one_twice():
    assert sorted(neighbours.draw_targets(KEY, 9, 9)) == list(range(9))
    assert len(set(neighbours.draw_targets(KEY, 5, 9))) == 5
    counts = np.bincount(neighbours.draw_targets(KEY, 22, 9))
    assert set(counts) == {2, 3} and list(neighbours.draw_targets(KEY, 9, 9)) != list(range(9))
    found = neighbours.nearest_along_path(KEY, make_images(30, 12), BINS, 30)
    assert neighbours.coverage(found[-1], 30) == 1.0


def test_a_grey_image_takes_the_noise_end():
    """In many dimensions noise lies nearest to what is shortest (DM section 4.1)."""
    images = make_images(50, 768).at[7].set(0.01)
    found = neighbours.nearest_along_path(KEY, images, [(0.0, 0.0), (0.9, 1.0)], 50)
    assert np.all(found[0] == 7) and neighbours.coverage(found[0], 50) == 1 / 50
    assert neighbours.coverage(found[1], 50) == 1.0


def test_coverage_and_shares():
    found = np.array([4, 4, 4, 1, 0, 1, 4, 9])
    assert neighbours.coverage(found, 16) == 4 / 16
    rows, shares = neighbours.most_frequent(found, 3)
    assert list(rows) == [4, 1, 0] and list(shares) == [4 / 8, 2 / 8, 1 / 8]
    rows, shares = neighbours.most_frequent(found, 8)
    assert list(rows) == [4, 1, 0, 9] and shares.sum() == 1
    assert neighbours.uniform_bins(4)[1:3] == [(0.25, 0.5), (0.5, 0.75)]


# ---------------------------------------------------------------- lengths


def test_lengths(monkeypatch):
    images = make_images(30, 500)
    whole = lengths.pair_lengths(KEY, images, 70)
    monkeypatch.setattr(lengths, "BLOCK", 16)
    np.testing.assert_allclose(lengths.pair_lengths(KEY, images, 70), whole, rtol=1e-6)
    # ‖x1 - x0‖² given x1 is a non-central χ² of 500 degrees of freedom.
    squares = np.mean(np.sum(np.square(images), axis=1))
    assert abs(np.mean(whole**2) - 500 - squares) < 5 * np.std(whole**2) / np.sqrt(70)
    x = jnp.ones(500)
    expected = np.linalg.norm(np.asarray(images, np.float64) - 1, axis=1)
    np.testing.assert_allclose(lengths.lengths_from(x, images), expected, rtol=1e-6)


def test_summary():
    values = np.random.default_rng(0).gamma(2.0, size=1000)
    row = lengths.summary(values)
    assert row["skewness"] == pytest.approx(stats.skew(values), rel=1e-12)
    assert row["quantiles"]["0.0"] == values.min() and row["quantiles"]["0.5"] == np.median(values)
    assert (row["mean"], row["std"]) == (values.mean(), values.std()) and row["count"] == 1000
    assert lengths.summary(np.ones(3))["skewness"] == 0.0


# ---------------------------------------------------------------- minimisers


@pytest.mark.parametrize("time", ["uniform", "skewed"])
@pytest.mark.parametrize("dimension", [1, 2, 8])
def test_minimisers_are_those_of_the_oracle(dimension, time):
    random = np.random.default_rng(dimension)
    points = 1.5 * random.normal(size=(7, dimension))
    x = random.normal(size=(5, dimension))
    x[3:] = points[:2] + 0.2 * x[3:]  # near the data, where t is near 1
    p = [oracles.posterior(at, points, oracles.DENSITIES[time]) for at in x]
    found = posterior.minimisers(x, points, time=time, epsilon=0.3, c0=0.2, num_nodes=256)
    for name, expected in (
        ("one_step", [oracles.one_step(at, 0.3) - at.x for at in p]),
        ("flow", [oracles.flow(at) for at in p]),
        ("eikonal", [oracles.eikonal(at, 0.2) for at in p]),
    ):
        np.testing.assert_allclose(getattr(found, name), expected, atol=1e-6, err_msg=name)


def test_minimisers_at_time_zero():
    """There all images are equally likely, whatever x."""
    random = np.random.default_rng(0)
    points, x = random.normal(size=(6, 4)), random.normal(size=(3, 4))
    found = posterior.minimisers(x, points, time="zero", epsilon=0.3, c0=0.2)
    gap = points[None] - x[:, None]
    r2 = np.sum(gap**2, -1, keepdims=True)
    np.testing.assert_allclose(found.flow, points.mean(0)[None] - x, atol=1e-12)
    np.testing.assert_allclose(found.eikonal, -(gap / np.sqrt(r2 + 0.2)).mean(1), atol=1e-12)
    closer = 1 / (r2 + 0.3)
    expected = (gap * closer).sum(1) / closer.sum(1)
    np.testing.assert_allclose(found.one_step, expected, atol=1e-12)


@pytest.fixture(scope="module")
def like_images():
    """Noises and 20 points of the dimension, mean and spread of contrasts of CIFAR-10."""
    random = np.random.default_rng(0)
    contrast = random.uniform(0.1, 0.8, size=(20, 1))
    return random.normal(size=(6, 3072)), contrast * random.normal(size=(20, 3072)) - 0.05


def on_a_grid(x, points, time: str, epsilon: float, c0: float):
    """The minimisers by the trapezoidal rule on a fine grid of t, from eq. 28 as printed."""
    t = np.linspace(0, 0.3, 20_001)[1:]  # what comes later weighs less than e^-100 here
    out = []
    for at in x:
        squared = at @ at - 2 * t[:, None] * (points @ at) + t[:, None] ** 2 * (points**2).sum(1)
        logs = oracles.DENSITIES[time](t, 1 - t) - len(at) * np.log(1 - t)
        logs = logs[:, None] - 0.5 * squared / (1 - t[:, None]) ** 2
        weights = np.exp(logs - logs.max())
        weights[-1] *= 0.5
        if time == "uniform":  # the grid leaves t = 0 out; it weighs half a step
            first = np.exp(-0.5 * at @ at - logs.max())
        else:
            first = 0.0
        index = weights.sum(0) + 0.5 * first
        speed = (weights / (1 - t[:, None])).sum(0) + 0.5 * first
        gap, total = points - at, index.sum()
        r2 = (gap**2).sum(1)
        closer = index / (r2 + epsilon)
        out.append(
            (
                closer @ gap / closer.sum(),
                speed @ gap / total,
                -(index / np.sqrt(r2 + c0)) @ gap / total,
            )
        )
    return [np.stack(each) for each in zip(*out, strict=True)]


@pytest.mark.parametrize("time", ["uniform", "skewed"])
def test_minimisers_in_the_dimension_of_images(like_images, time):
    expected = on_a_grid(*like_images, time, 4.0, 4.0)
    found = posterior.minimisers(*like_images, time=time, epsilon=4.0, c0=4.0)
    for one, other in zip(found, expected, strict=True):
        assert np.linalg.norm(one - other) < 1e-6 * np.linalg.norm(other)


@pytest.mark.parametrize("time", ["uniform", "skewed"])
def test_twice_the_nodes_change_nothing(like_images, time):
    at = lambda num: posterior.minimisers(
        *like_images, time=time, epsilon=4.0, c0=4.0, num_nodes=num
    )
    nodes = posterior.NUM_NODES
    for one, other in zip(at(nodes), at(2 * nodes), strict=True):
        assert np.linalg.norm(one - other) < 1e-9 * np.linalg.norm(other)


def test_blocks_of_points_and_images_change_nothing(like_images, monkeypatch):
    x, points = like_images
    settings, done = dict(time="uniform", epsilon=4.0, c0=4.0), []
    whole = posterior.minimisers(x, points, **settings)
    monkeypatch.setattr(posterior, "BLOCK_WEIGHTS", 4 * len(points))
    monkeypatch.setattr(posterior, "IMAGES", 7)
    parts = posterior.minimisers(x, points, on_block=done.append, **settings)
    for one, other in zip(whole, parts, strict=True):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)
    assert done == [4, 6]


def test_minimisers_refuse():
    points, settings = np.ones((3, 2)), dict(time="uniform", epsilon=1.0, c0=1.0)
    with pytest.raises(ValueError, match="unknown time 'late': known are zero, uniform, skewed"):
        posterior.minimisers(points, points, **(settings | {"time": "late"}))
    for wrong in (np.ones(2), np.ones((3, 3))):
        with pytest.raises(ValueError, match="must be"):
            posterior.minimisers(wrong, points, **settings)
    with pytest.raises(ValueError, match="distance 0"):
        posterior.minimisers(points, points, **settings)


# ---------------------------------------------------------------- angles


def turned(*angles) -> np.ndarray:
    return np.stack([[np.cos(a), np.sin(a), 0.0] for a in angles])


def test_angles_are_accurate_near_their_ends():
    wanted = [0.0, 1e-9, 1e-4, 1.0, np.pi / 2, np.pi - 1e-6, np.pi]
    found = posterior.angle(np.tile(turned(0.0), (7, 1)), 3 * turned(*wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-15)


def test_the_ratio_of_angles():
    """1 where -h lies between f and g; by Pythagoras on a small sphere where it lies aside."""
    m = posterior.Minimisers(turned(0, 0), turned(0.1, 2e-3), -turned(0.03, 1e-3))
    m.eikonal[1, 2] = -1e-3
    found = posterior.angles(m)
    np.testing.assert_allclose(found.one_step_flow, [0.1, 2e-3], rtol=1e-12)
    np.testing.assert_allclose(found.ratio, [1.0, np.sqrt(2)], rtol=1e-5)
    assert np.isnan(posterior.angles(posterior.Minimisers(*[turned(1.0)] * 3)).ratio[0])


def test_the_ratio_in_single_precision_is_noisy(like_images):
    found = posterior.minimisers(*like_images, time="zero", epsilon=4.0, c0=4.0)
    exact, rough = posterior.angles(found).ratio, posterior.single_precision_ratio(found)
    assert np.all(exact >= 1) and np.all(abs(rough - exact) < 0.2)
    wide = posterior.Minimisers(turned(0.0), turned(1.0), -turned(0.4))
    assert posterior.single_precision_ratio(wide)[0] == pytest.approx(1.0, abs=1e-6)


# ---------------------------------------------------------------- matching


def test_spans_cover_all_in_match_sets():
    assert list(matching.spans(25, 4, chunk=9)) == [(0, 8, 4), (8, 16, 4), (16, 24, 4), (24, 25, 1)]
    assert list(matching.spans(24, 24)) == [(0, 24, 24)]
    assert list(matching.spans(7, 9)) == [(0, 7, 7)]
    assert list(matching.spans(5, 1, chunk=3)) == [(0, 3, 1), (3, 5, 1)]


def test_matched_pairs_are_those_of_greedy_matching():
    images, everyone = make_images(26, 12), np.arange(26)
    random = matching.match_images(KEY, images, 1, everyone)
    rows = (random.x1[:, None] == np.asarray(images)[None]).all(-1).argmax(1)
    assert sorted(rows) == list(range(26)) and list(rows) != list(range(26))
    expected = np.linalg.norm(random.x1.astype(np.float64) - random.x0, axis=1)
    np.testing.assert_allclose(random.lengths, expected, rtol=1e-6)
    done = []
    matched = matching.match_images(KEY, images, 8, everyone, on_chunk=done.append)
    assert done == [24, 26]
    np.testing.assert_array_equal(matched.x1, random.x1)
    for start in (0, 8, 16, 24):  # the last set has two
        part = slice(start, start + 8)
        x0 = couplings.greedy(jnp.asarray(random.x0[part]), jnp.asarray(random.x1[part]))
        np.testing.assert_array_equal(matched.x0[part], x0)
    assert matched.lengths.mean() < random.lengths.mean()
    again = matching.greedy_in_sets(random.x0, random.x1, 8)
    np.testing.assert_array_equal(again, matched.x0)
    few = matching.match_images(KEY, images, 8, np.array([3, 8, 25]))
    np.testing.assert_array_equal(few.x0, matched.x0[[3, 8, 25]])
    np.testing.assert_array_equal(few.lengths, matched.lengths)


def test_points_in_the_plane():
    random = np.random.default_rng(0)
    flat = {"a": random.normal(size=(5, 2)), "b": random.normal(size=(3, 2))}
    kept = matching.embed(flat, 0)
    assert all(np.array_equal(kept[name], flat[name]) for name in flat)
    # Two clouds far apart in 40 dimensions stay apart in the plane.
    near, far = random.normal(size=(2, 20, 40)) + np.array([0, 30])[:, None, None]
    plane = matching.embed({"near": near, "far": far}, 0)
    assert {name: points.shape for name, points in plane.items()} == dict(near=(20, 2), far=(20, 2))
    gap = np.linalg.norm(plane["near"].mean(0) - plane["far"].mean(0))
    assert gap > 2 * max(points.std() for points in plane.values()) / np.sqrt(2)


def test_the_share_of_lines_that_cross():
    start = np.array([[0, 0], [0, 1], [2, 0], [5, 5]])
    end = np.array([[1, 1], [1, 0], [2, 1], [6, 6]])  # the first two cross; two lie on one line
    assert matching.crossing_share(start, end) == 1 / 6
    fan = np.arange(4.0)[:, None] * np.array([[1.0, 0.0]])
    assert matching.crossing_share(fan, fan[::-1] + np.array([[0.0, 1.0]])) == 1
    assert matching.crossing_share(fan, fan + np.array([[0.0, 1.0]])) == 0


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    random = np.random.default_rng(0)
    shade, contrast = random.uniform(60, 200, (24, 1, 1, 1)), random.uniform(5, 60, (24, 1, 1, 1))
    pixels = shade + contrast * random.normal(size=(24, 8, 8, 3))
    path = tmp_path_factory.mktemp("tiny") / "tiny.npz"
    levels = np.clip(pixels, 0, 255).astype(np.uint8)
    np.savez(path, train_images=levels, test_images=levels[:2])
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    return code, *capsys.readouterr()


def test_the_command(tiny, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    flags = (f"--path={tiny}", f"--out={out}", "--points=5", "--bins=3")
    code, told, err = run(capsys, *flags)
    assert (code, err) == (0, "")
    result = json.loads((out / "analysis.json").read_text())
    assert result["data"]["images"] == result["coverage"]["points"] == 24
    assert result["coverage"]["bins"][:2] == [[0, 0], [0, pytest.approx(1 / 3)]]
    assert len(result["coverage"]["coverage"]) == 4 and result["coverage"]["coverage"][-1] > 0.9
    assert result["coverage"]["not_nearest_in_float64"] == 0
    assert sum(row["share"] for row in result["coverage"]["noise_end_images"]) <= 1
    assert result["lengths"]["from_one_noise"]["count"] == 24
    assert [row["match_size"] for row in result["couplings"]["rows"]] == [1, 10]  # those that fit
    for time in posterior.TIMES:
        row = result["angles"][time]
        assert row["ratio"]["count"] == 5 and row["ratio"]["quantiles"]["0.0"] >= 1 - 1e-9
        assert max(row["twice_the_nodes"].values()) < 1e-6
    for name in ("coverage", "lengths", "angles", "couplings"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert result[name]["seconds"] > 0
    for line in ("coverage, t = 0 ", "skewness ", "ratio of angles, t = 0: mean ", "92.8%"):
        assert line in told
    assert "24/24" in told and "5/5" in told  # progress

    code, _, _ = run(capsys, *flags, "--only", "lengths", "--num=10")
    again = json.loads((out / "analysis.json").read_text())
    assert code == 0 and "coverage" not in again
    assert again["lengths"]["from_one_noise"] == result["lengths"]["from_one_noise"]
    assert again["lengths"]["pairs"]["count"] == 10
    _, _, _ = run(capsys, *flags, "--only", "lengths", "--seed=1")
    other = json.loads((out / "analysis.json").read_text())
    assert other["lengths"]["pairs"]["mean"] != result["lengths"]["pairs"]["mean"]


def test_couplings(tiny, tmp_path, capsys):
    flags = (f"--path={tiny}", f"--out={tmp_path}", "--only", "couplings", "--match_sizes=4,10,24")
    code, told, err = run(capsys, *flags)
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "analysis.json").read_text())["couplings"]
    assert "match size 10: the last 4 images are a set of their own" in told
    assert "match size 4: the last" not in told and "276/276" in told
    random, *matched = found["rows"]
    assert [row["match_size"] for row in found["rows"]] == [1, 4, 10, 24]
    assert random["paths"] == 24 and random["lengths"]["count"] == 24
    assert all(row["length"] < random["length"] for row in matched)
    assert all(0 < row["d_min"] < row["d_avg"] for row in found["rows"])
    assert set(found["crossings"]["share"]) == {"1", "24"}
    for name in ("couplings", "crossings"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    for line in ("mean length, random pairs ", "minimal distance, match size 24 ", "0.1916"):
        assert line in told
    # By hand: the pairs of the same seed, and their distances.
    images = studies.load(str(tiny), None).flat
    key = rng.stream(0, "couplings")
    pairs = matching.match_images(key, images, 10, np.arange(24))
    by_hand = path_geometry.summary(path_geometry.distances(pairs.x0, pairs.x1))
    assert matched[1]["d_avg"] == pytest.approx(by_hand["d_avg"], rel=1e-6)
    assert matched[1]["length"] == pytest.approx(pairs.lengths.mean(), rel=1e-6)

    code, told, _ = run(capsys, *flags[:-1], "--match_sizes=24", "--paths=9")
    fewer = json.loads((tmp_path / "analysis.json").read_text())["couplings"]
    assert code == 0 and "9 of 24" in told and fewer["paths"] == 9
    assert fewer["rows"][1]["length"] == matched[2]["length"]


def test_couplings_without_scikit_learn(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    flags = (f"--path={tiny}", f"--out={tmp_path}", "--only", "couplings")
    code, told, _ = run(capsys, *flags)
    assert code == 0 and "needs scikit-learn" in told and not (tmp_path / "crossings.png").exists()


def test_fewer_points_than_images_are_said(tiny, tmp_path, capsys):
    flags = (f"--path={tiny}", f"--out={tmp_path}", "--only", "coverage", "--num=7", "--bins=1")
    code, told, _ = run(capsys, *flags)
    assert code == 0 and "7 of 24" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "required: --path"),
        (["--path=nothing.npz"], "nothing.npz does not exist"),
        (["--path={tiny}", "--points=0"], "--points: 0 is not positive"),
        (["--path={tiny}", "--num=many"], "--num: invalid count value: 'many'"),
        (["--path={tiny}", "--seed=-1"], "--seed=-1 must be"),
        (["--path={tiny}", "--only", "ages"], "invalid choice: 'ages'"),
        (["--path={tiny}", "--match_sizes=5,25"], "has 25, but there are 24 training images"),
        (["--path={tiny}", "--match_sizes=5,x"], "--match_sizes: invalid counts value: '5,x'"),
        (["--path={tiny}", "--match_sizes=0"], "--match_sizes: 0 is not positive"),
        (["--path={tiny}", "--only", "couplings", "--paths=1"], "take two or more"),
        (["--path={tiny}", "--verbose"], "unrecognized arguments: --verbose"),
        (["--path={tiny}", "--out={tiny}/out"], "cannot make the folder --out="),
        (["--path={same}", "--only", "angles", "--points=2"], "pass images that differ"),
        (["--path={one}"], "1 training image"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, capsys, flags, message):
    same, one = tmp_path / "same.npz", tmp_path / "one.npz"
    grey = np.full((4, 8, 8, 3), 99, np.uint8)
    np.savez(same, train_images=grey, test_images=grey)
    np.savez(one, train_images=grey[:1], test_images=grey)
    places = dict(tiny=tiny, same=same, one=one)
    flags = [f"--out={tmp_path / 'out'}", *(flag.format(**places) for flag in flags)]
    code, _, err = run(capsys, *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("genfield: error: ") and message in err


@pytest.mark.slow
def test_cifar10(real_data, tmp_path, capsys):
    """The figures of DM section 4, on the public JPEG re-encoding; minutes on two cores."""
    path = real_data / "cifar10_jpeg.tar.xz"
    flags = (f"--path={path}", f"--out={tmp_path}", "--points=128", "--only")
    code, _, err = run(capsys, *flags, "coverage", "lengths", "angles")
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "analysis.json").read_text())
    coverage = result["coverage"]
    assert coverage["not_nearest_in_float64"] == 0
    # The paper's noise end is its first bin; at t = 0 exactly, 101 images were met, 0.202%.
    assert 0.0012 <= coverage["coverage"][1] <= 0.0020
    for row in (0, 1):  # t = 0, and the first bin
        assert 0.90 <= coverage["top_8_share"][row] <= 0.95
        assert 0.58 <= coverage["top_1_share"][row] <= 0.70
    assert coverage["coverage"][-1] > 0.99
    pairs = result["lengths"]["pairs"]
    assert 45 < pairs["quantiles"]["0.001"] and pairs["quantiles"]["0.999"] < 85
    assert pairs["within_50_to_80"] > 0.98 and pairs["skewness"] > 0.3
    for time in posterior.TIMES:
        assert 1.000 <= result["angles"][time]["ratio"]["mean"] <= 1.003
        assert max(result["angles"][time]["twice_the_nodes"].values()) < 1e-6


@pytest.mark.slow
def test_couplings_of_cifar10(real_data, tmp_path, capsys):
    """DANSM Table 2; lengths of all images, distances of 10,000 paths."""
    flags = (f"--path={real_data / 'cifar10_jpeg.tar.xz'}", f"--out={tmp_path}")
    code, _, err = run(capsys, *flags, "--only", "couplings")
    assert (code, err) == (0, "")
    rows = json.loads((tmp_path / "analysis.json").read_text())["couplings"]["rows"]
    for row, paper in zip(rows, (62.04, 61.73, 61.36, 61.06, 60.83), strict=True):
        assert row["length"] == pytest.approx(paper, abs=0.15)
    for name in ("d_avg", "d_min"):
        assert sorted(row[name] for row in rows) == [row[name] for row in rows]
    assert rows[0]["d_avg"] == pytest.approx(33.97, rel=0.015)
    assert 0.18 < rows[0]["t_star_avg"] < 0.20
