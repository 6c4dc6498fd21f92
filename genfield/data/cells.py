"""Cells with spliced and unspliced counts, from .h5ad files: what RNA velocity is inferred from.

Preprocessing is that of Flux Matching, section B.2, by scanpy and scVelo. A state is (u, s): the
first moments over neighbouring cells, scVelo's layers Mu and Ms, of the G genes that are left.
"""

import contextlib
import warnings
import zlib
from pathlib import Path

import numpy as np

from genfield import hdf5, registry
from genfield.data.pipeline import (
    SPLIT_SEED,
    Dataset,
    Feed,
    assemble,
    from_arrays,
    short_hash,
    subset,
)
from genfield.errors import UserError
from genfield.reading import most, reason, room_for
from genfield.registry import Place, choose

TOP_GENES = 2000  # highly variable genes (Flux Matching, section B.2)
MIN_SHARED_COUNTS = 20  # spliced and unspliced, for a gene to stay (section B.2)
COMPONENTS = NEIGHBOURS = 30  # principal components and neighbours (section B.2)
LAYERS = ("spliced", "unspliced")
FEWEST_CELLS, FEWEST_GENES = 10, 3  # below, neighbours and components mean nothing


def cells(
    *,
    path: Place | None = None,
    top_genes: int = TOP_GENES,
    labels: bool = False,
    clusters: str = "clusters",
    feed: Feed,
) -> Dataset:
    """States (u, s) of the cells in a file, float32 [2G]; a tenth of the cells is held out.

    Moments are taken before the split, so that held-out cells lend a little of themselves to
    their neighbours.

    Args:
      path: an .h5ad file with layers spliced and unspliced.
      top_genes: at most so many genes are kept, the most variable.
      labels: class conditioning. clusters: the column of the file's obs with the labels.
    Raises:
      UserError: what `read` and `preprocess` raise; no such column.
    """
    if path is None:
        raise UserError("data.path is not set: pass --config.data.path=…, an .h5ad file")
    adata = preprocess(read(path), top_genes=top_genes)
    arrays, class_names = {"x1": states(adata)}, ()
    if labels:
        column = choose("data.clusters", clusters, dict(adata.obs)).astype("category").cat
        arrays["label"] = column.codes.to_numpy().astype(np.int32)
        class_names = tuple(map(str, column.categories))
        if arrays["label"].min() < 0:
            raise UserError(f"data.clusters={clusters!r} names no cluster for some cells of {path}")
    everything = from_arrays(arrays)
    rows = np.random.default_rng(SPLIT_SEED).permutation(everything.size)
    count = everything.size // 10
    return assemble(
        subset(everything, rows[count:]),
        subset(everything, rows[:count]),
        class_names=class_names,
        labels=labels,
        flip=False,
        fingerprint=short_hash("cells", arrays["x1"].shape, zlib.crc32(arrays["x1"].tobytes())),
        feed=feed,
    )


def packages():
    """The modules (anndata, scanpy, scvelo).

    Raises:
      UserError: one of them is not installed.
    """
    try:
        import anndata
        import scanpy
        import scvelo
    except ImportError as error:
        missing = error.name or "a package"
        raise UserError(f"cells need {missing}: pip install 'genfield[cells]'") from error
    return anndata, scanpy, scvelo


@contextlib.contextmanager
def quiet():
    """Without the reports and the deprecation warnings of scanpy and scVelo."""
    scvelo = packages()[2]
    before = scvelo.settings.verbosity
    scvelo.settings.verbosity = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        scvelo.settings.verbosity = before


def read(path: str | Path):
    """The counts of an .h5ad file: an AnnData with X, obs, both layers and a UMAP if there is one.

    Neighbours, moments and fits that the file may hold are left out.

    Raises:
      UserError: no such file, no .h5ad file, layers absent, negative or not finite, too few cells,
        a package that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}: expected an .h5ad file of cells")
    anndata = packages()[0]
    try:
        hdf5.check(path)
        with quiet(), room_for(most(path.stat().st_size)):  # a text may say that it has gigabytes
            found = anndata.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise all kinds on damaged files
        raise UserError(f"{path} is not a readable .h5ad file: {reason(error)}") from error
    for name in LAYERS:
        if name not in found.layers:
            known = ", ".join(found.layers) or "none"
            raise UserError(f"{path} has no layer {name!r}; its layers: {known}")
        layer = found.layers[name]
        values = layer.data if hasattr(layer, "indptr") else np.asarray(layer)
        if values.dtype.kind not in "fiu":
            raise UserError(f"layer {name!r} of {path} holds {values.dtype}, no counts")
        if not np.isfinite(values).all() or (values < 0).any():
            raise UserError(f"layer {name!r} of {path} has entries that are no counts")
    if found.n_obs < FEWEST_CELLS:
        raise UserError(f"{path} has {found.n_obs} cells: at least {FEWEST_CELLS} are needed")
    layers = {name: found.layers[name] for name in LAYERS}
    umap = {k: found.obsm[k] for k in ("X_umap",) if k in found.obsm}
    counts = layers["spliced"] if found.X is None else found.X
    out = anndata.AnnData(counts.copy(), obs=found.obs, layers=layers, obsm=umap)
    out.var_names = found.var_names
    out.var_names_make_unique()
    return out


def preprocess(
    adata,
    *,
    top_genes: int = TOP_GENES,
    min_shared_counts: int = MIN_SHARED_COUNTS,
    components: int = COMPONENTS,
    neighbours: int = NEIGHBOURS,
):
    """Filtered, normalised, the most variable genes, neighbours and moments (section B.2): a copy.

    Numbers larger than the data allow are cut to it. X is log-transformed where it is not yet:
    scVelo did so within `filter_and_normalize` up to 0.3.2, and scanpy's choice of genes needs it.

    Raises:
      UserError: too few cells or genes are left, a package that is not installed.
    """
    _, scanpy, scvelo = packages()
    adata = adata.copy()
    with quiet():
        scanpy.pp.filter_cells(adata, min_counts=1)
        _check_left(adata, "filtering")
        linear = _is_linear(adata)
        scvelo.pp.filter_and_normalize(adata, min_shared_counts=min_shared_counts)
        _check_left(adata, f"asking for {min_shared_counts} shared counts a gene")
        if linear:
            scanpy.pp.log1p(adata)
        scanpy.pp.highly_variable_genes(
            adata, n_top_genes=min(top_genes, adata.n_vars), flavor="seurat", subset=True
        )
        scanpy.pp.pca(adata)
        scanpy.pp.neighbors(
            adata,
            n_pcs=min(components, adata.obsm["X_pca"].shape[1]),
            n_neighbors=min(neighbours, adata.n_obs - 1),
        )
        scvelo.pp.moments(adata, n_neighbors=None, n_pcs=None)
    return adata


def states(adata) -> np.ndarray:
    """(Mu, Ms) of preprocessed cells, float32 [N, 2G]."""
    return np.concatenate([adata.layers["Mu"], adata.layers["Ms"]], axis=1, dtype=np.float32)


def neighbour_indices(adata) -> np.ndarray:
    """Indices of the neighbours of preprocessed cells, [N, K], as scVelo takes them."""
    from scvelo.tools.utils import get_indices

    return np.asarray(get_indices(dist=adata.obsp["distances"])[0])


def _check_left(adata, why: str) -> None:
    if adata.n_obs < FEWEST_CELLS or adata.n_vars < FEWEST_GENES:
        raise UserError(
            f"{why} leaves {adata.n_obs} cells and {adata.n_vars} genes: at least "
            f"{FEWEST_CELLS} and {FEWEST_GENES} are needed"
        )


def _is_linear(adata) -> bool:
    """Whether X holds counts, or spliced abundances, and not the logarithms of some."""
    x, spliced = adata.X, adata.layers["spliced"]
    values = x.data if hasattr(x, "indptr") else np.asarray(x)
    whole = bool(np.all(values == np.round(values)))
    return whole or bool(np.isclose(x.sum(), spliced.sum(), rtol=1e-3))


METHOD = registry.DataSource(
    name="cells",
    make=cells,
    holds="points",
    drawn=False,
    beside_pairs=False,
    fed=True,
)
