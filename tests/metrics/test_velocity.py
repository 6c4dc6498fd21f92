"""RNA velocity: the kinetic field, the reader of cells, and the measures."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT

from genfield import fields, nets
from genfield.data import cells
from genfield.data.pipeline import Feed
from genfield.errors import UserError
from genfield.metrics import velocity
from genfield.nets import kinetics

sys.path.insert(0, str(ROOT / "reproduce"))

import rna_velocity as study

RNG = np.random.default_rng(0)
FEED = Feed(batch_size=20, seed=0, process_index=0, process_count=1, log=lambda line: None)

# Measures


def test_consistency_is_the_mean_correlation():
    v, near = RNG.normal(size=(12, 9)), np.stack([RNG.permutation(12)[:4] for _ in range(12)])
    found = velocity.consistency(v, near)
    for i in range(12):
        expected = np.mean([np.corrcoef(v[i], v[j])[0, 1] for j in near[i]])
        np.testing.assert_allclose(found[i], max(expected, 0), atol=1e-12)


def test_consistency_of_equal_opposite_and_constant_velocities():
    v, near = np.tile(RNG.normal(size=7), (2, 1)), np.array([[1], [0]])
    np.testing.assert_allclose(velocity.consistency(3 * v + 2, near), 1)
    np.testing.assert_allclose(velocity.consistency(v * [[1], [-1]], near), 0)
    np.testing.assert_allclose(velocity.consistency(np.full((2, 7), 0.1), near), 0)


def test_boundary_scores_are_cosines():
    """Two clusters on a line, A left of B; velocities turned by an angle score its cosine."""
    x = np.stack([np.arange(6.0), np.zeros(6)], -1)
    near = np.array([[1, 2], [0, 2], [1, 3], [2, 4], [3, 5], [3, 4]])
    labels = ["A", "A", "A", "B", "B", "B"]
    v = np.tile([np.cos(0.7), np.sin(0.7)], (6, 1)) * RNG.uniform(0.1, 9, (6, 1))
    scores = velocity.boundary_scores(x, v, near, labels, [("A", "B"), ("B", "A"), ("A", "C")])
    np.testing.assert_allclose(scores["A", "B"], [np.cos(0.7)])
    np.testing.assert_allclose(scores["B", "A"], [-np.cos(0.7)])
    assert len(scores["A", "C"]) == 0
    np.testing.assert_allclose(velocity.cross_boundary_correctness(scores), 0, atol=1e-12)
    assert np.isnan(velocity.cross_boundary_correctness({("A", "C"): np.array([])}))


def test_boundary_scores_average_neighbours_then_cells_then_transitions():
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-5.0, 0.0], [9.0, 9.0]])
    near = np.array([[1, 2, 3], [2, 0, 3], [1, 0, 3], [1, 0, 2], [0, 1, 2]])
    v = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    labels = np.array([0, 1, 1, 0, 2])
    scores = velocity.boundary_scores(x, v, near, labels, [(0, 1), (2, 1)])
    far = np.mean([-1.0, -5 / np.sqrt(26)])  # the cell at (-5, 0): B at (1, 0) and at (0, 1)
    np.testing.assert_allclose(scores[0, 1], [0.5, far])
    np.testing.assert_allclose(scores[2, 1], [0.0])  # at rest
    np.testing.assert_allclose(velocity.cross_boundary_correctness(scores), (0.5 + far) / 4)


def test_agreement_does_not_see_scales():
    truth = RNG.normal(size=(20, 6))
    by_gene = velocity.agreement(truth * RNG.uniform(0.5, 2, 6)[None] + 1.0, truth)
    np.testing.assert_allclose(by_gene["gene_pearson"], 1)
    by_cell = velocity.agreement(truth * RNG.uniform(0.5, 2, (20, 1)), truth)
    np.testing.assert_allclose([by_cell["cell_pearson"], by_cell["cell_cosine"]], 1)
    np.testing.assert_allclose(list(velocity.agreement(-truth, truth).values()), -1)
    v = RNG.normal(size=truth.shape)
    expected = np.mean([np.corrcoef(v[:, g], truth[:, g])[0, 1] for g in range(6)])
    np.testing.assert_allclose(velocity.agreement(v, truth)["gene_pearson"], expected)


def test_agreement_where_nothing_varies():
    """A gene at rest in truth is left out; one at rest in the velocities counts 0."""
    truth, v = RNG.normal(size=(2, 20, 4))
    truth[:, 0] = 0.3
    at_rest = velocity.agreement(np.where(np.arange(4)[None] == 1, 0.7, truth), truth)
    np.testing.assert_allclose(at_rest["gene_pearson"], 2 / 3)
    expected = velocity.agreement(v[:, 1:], truth[:, 1:])["gene_pearson"]
    np.testing.assert_allclose(velocity.agreement(v, truth)["gene_pearson"], expected)


def test_measures_refuse_what_they_cannot_use():
    v = np.ones((3, 2))
    with pytest.raises(ValueError, match="finite"):
        velocity.consistency(np.array([[1.0, np.nan]]), np.array([[0]]))
    with pytest.raises(ValueError, match=r"\[3, 2\]"):
        velocity.agreement(np.ones((3, 1)), v)
    with pytest.raises(ValueError, match=r"\[3, 2\]"):
        velocity.boundary_scores(v, v[:, :1], np.zeros((3, 1), int), [0, 0, 1], [(0, 1)])


# The field


def create(shape, key=None, **more):
    key = jax.random.key(0) if key is None else key
    return nets.create({"name": "rna_kinetics"}, key, shape=shape, **more)


def drawn(params, seed):
    keys = jax.random.split(jax.random.key(seed), len(params))
    return {
        n: jax.random.normal(k, v.shape) for (n, v), k in zip(params.items(), keys, strict=True)
    }


def test_kinetics_is_equation_41():
    apply, params = create((6,))
    assert sorted(params) == sorted(kinetics.PARAMETERS)
    params, x = drawn(params, 1), RNG.uniform(0, 5, (4, 6)).astype(np.float32)
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    softplus, u, s = lambda z: np.log1p(np.exp(z)), x[:, :3], x[:, 3:]
    beta, gamma = softplus(p["splicing"])[None], softplus(p["degradation"])[None]
    inner = p["slope_unspliced"][None] * u + p["slope_spliced"][None] * s + p["offset"][None]
    expected = np.concatenate([softplus(inner) - beta * u, beta * u - gamma * s], -1)
    found = apply(params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kinetics.spliced_velocity(found), expected[:, 3:], rtol=1e-5)
    rates = kinetics.rates(params)
    np.testing.assert_allclose(rates["splicing"], beta[0], rtol=1e-5)
    np.testing.assert_allclose(rates["degradation"], gamma[0], rtol=1e-5)


def test_kinetics_divergence():
    """∇·f = Σ_g a σ(z) - β - γ; genes do not interact."""
    apply, params = create((8,))
    params, x = drawn(params, 2), jnp.asarray(RNG.uniform(0, 3, (5, 8)), jnp.float32)
    u, s = x[:, :4], x[:, 4:]
    a, b, c = (params[k][None] for k in ("slope_unspliced", "slope_spliced", "offset"))
    lost = sum(kinetics.rates(params).values())
    expected = (jax.nn.sigmoid(a * u + b * s + c) * a - lost[None]).sum(-1)
    found = fields.divergence(lambda z, t, cond: apply(params, z), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_kinetics_starts_linear():
    """At the start α = β = γ = ln 2, whatever the key (section B.2)."""
    apply, params = create((4,), jax.random.key(7))
    x = RNG.uniform(0, 5, (3, 4)).astype(np.float32)
    expected = np.log(2) * np.concatenate([1 - x[:, :2], x[:, :2] - x[:, 2:]], -1)
    np.testing.assert_allclose(apply(params, x), expected, rtol=1e-5, atol=1e-6)


def test_kinetics_refuses_other_shapes_and_labels():
    for shape in ((5,), (0,), (2, 2)):
        with pytest.raises(UserError, match="2 x genes"):
            create(shape)
    with pytest.raises(UserError, match="no labels"):
        create((4,), num_classes=3)


# Cells


def test_files_are_checked_before_packages(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"data\.path is not set"):
        cells.cells(feed=FEED)
    with pytest.raises(UserError, match=r"no file .*none\.h5ad"):
        cells.cells(path=str(tmp_path / "none.h5ad"), feed=FEED)
    monkeypatch.setitem(sys.modules, "anndata", None)
    (tmp_path / "some.h5ad").touch()
    with pytest.raises(UserError, match=r"anndata.*pip install 'genfield\[cells\]'"):
        cells.cells(path=str(tmp_path / "some.h5ad"), feed=FEED)


@pytest.fixture
def make_file(tmp_path):
    """Writes cells with Poisson counts along a line; `change(adata)` may spoil them."""
    anndata = pytest.importorskip("anndata", reason="needs genfield[cells]")
    pytest.importorskip("scvelo", reason="needs genfield[cells]")

    def make(change=lambda adata: None, num_cells=40, num_genes=30):
        draw = np.random.default_rng(1)
        mean = 5 + 20 * draw.uniform(size=num_genes) * draw.uniform(size=(num_cells, 1))
        spliced = draw.poisson(mean).astype(np.float32)
        unspliced = draw.poisson(mean / 2).astype(np.float32)
        layers = {"spliced": spliced, "unspliced": unspliced}
        adata = anndata.AnnData(spliced.copy(), layers=layers)
        adata.obs["clusters"] = np.where(np.arange(num_cells) % 3, "late", "early")
        change(adata)
        adata.write_h5ad(tmp_path / "cells.h5ad")
        return str(tmp_path / "cells.h5ad")

    return make


def test_cells_as_a_data_set(make_file):
    data = cells.cells(path=make_file(), labels=True, feed=FEED)
    assert data.shape == (60,) and data.sizes == {"train": 36, "test": 4} and not data.pixels
    assert data.class_names == ("early", "late") and data.num_classes == 2
    feed = data.train(0)
    batch = next(feed)
    feed.close()
    assert batch["x1"].shape == (20, 60) and batch["x1"].dtype == np.float32
    assert set(batch["label"]) == {0, 1} and (batch["x1"] >= 0).all()
    fewer = cells.cells(path=make_file(), top_genes=10, feed=FEED)
    assert fewer.shape == (20,) and fewer.num_classes == 0
    assert fewer.fingerprint != data.fingerprint


def test_states_are_moments_over_neighbours(make_file):
    """Mu and Ms, unspliced first: the mean over a cell and its neighbours, by connectivity."""
    adata = cells.preprocess(cells.read(make_file()))
    x, near = cells.states(adata), cells.neighbour_indices(adata)
    np.testing.assert_array_equal(x[:, :30], adata.layers["Mu"])
    np.testing.assert_array_equal(x[:, 30:], adata.layers["Ms"])
    assert near.shape[0] == 40 and near.max() < 40
    assert not (near == np.arange(40)[:, None]).any()
    smooth, rough = x[:, 30:].var(0).sum(), np.asarray(adata.layers["spliced"]).var(0).sum()
    assert 0 < smooth < rough


def test_logarithms_are_taken_once(make_file):
    counts = cells.preprocess(cells.read(make_file()))
    logged = cells.preprocess(cells.read(make_file(lambda a: np.log1p(a.X, out=a.X))))
    assert 3 < counts.X.max() < 5 and 3 < logged.X.max() < 5  # counts reach about 40


def spoil(what):
    def change(adata):
        if what == "layer":
            del adata.layers["unspliced"]
        elif what == "negative":
            adata.layers["spliced"][3, 2] = -1
        elif what == "nan":
            adata.layers["unspliced"][3, 2] = np.nan
        elif what == "empty":
            adata.layers["unspliced"][:] = 0

    return change


@pytest.mark.parametrize(
    "what, message",
    [
        ("layer", "no layer 'unspliced'; its layers: spliced"),
        ("negative", "no counts"),
        ("nan", "no counts"),
        ("empty", "leaves 40 cells and 0 genes"),
    ],
)
def test_spoilt_cells(make_file, what, message):
    with pytest.raises(UserError, match=message):
        cells.cells(path=make_file(spoil(what)), feed=FEED)


def test_other_mistakes_with_cells(make_file):
    with pytest.raises(UserError, match="9 cells: at least 10"):
        cells.read(make_file(num_cells=9))
    path = make_file()
    with pytest.raises(UserError, match=r"unknown data.clusters 'age'.*Known: clusters"):
        cells.cells(path=path, labels=True, clusters="age", feed=FEED)
    with pytest.raises(UserError, match="batch_size 50 exceeds the 36"):
        cells.cells(path=path, feed=FEED._replace(batch_size=50))
    Path(path).write_bytes(b"no cells")
    with pytest.raises(UserError, match=r"not a readable \.h5ad file"):
        cells.read(path)


def test_consistency_is_scvelos_confidence(real_data):
    """On real cells, with the velocities of the field before training."""
    scvelo = pytest.importorskip("scvelo", reason="needs genfield[cells]")
    path = real_data / "cells" / "dentategyrus_100cells_annotated.h5ad"
    adata = cells.preprocess(cells.read(path))
    assert adata.shape == (100, 217)
    v = np.log(2) * (adata.layers["Mu"] - adata.layers["Ms"])
    adata.layers["velocity"] = v.copy()
    adata.obs["velocity_confidence_transition"] = 0.0  # spares its velocity graph
    scvelo.tl.velocity_confidence(adata)
    found = velocity.consistency(v, cells.neighbour_indices(adata))
    np.testing.assert_allclose(found, adata.obs["velocity_confidence"], atol=1e-5)
    assert 0.9 < found.mean() < 1


# The reproduction


def test_training_starts_from_the_kinetics_and_is_decided_by_the_seed():
    x = RNG.uniform(0, 3, (12, 6)).astype(np.float32)
    start, _ = study.train(x, 0, study.Setting(steps=0))
    np.testing.assert_allclose(start, np.log(2) * (x[:, :3] - x[:, 3:]), rtol=1e-5, atol=1e-6)
    (first, params), (again, _) = (study.train(x, 1, study.Setting(steps=3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all() and (first != start).any()
    moved = max(float(jnp.abs(v).max()) for v in params.values())
    assert 0 < moved <= 3.1e-3  # a step of Adam moves no parameter by more than its rate
