"""The Fréchet distance between two sets of features, from moments that merge over batches.

Heusel et al. 2017, arXiv:1706.08500 eq. 6; merging after Chan, Golub and LeVeque 1983. In float64.
"""

import warnings
from typing import NamedTuple

import jax
import numpy as np

from genfield import registry
from genfield.metrics import needs

ROWS = 4096  # converted to float64 at a time
INDEFINITE = 1e-3  # of the largest eigenvalue: below minus this, rounding is no excuse


class Moments(NamedTuple):
    """Count, mean and scatter of a set of features; `merge` adds them up."""

    count: int
    mean: np.ndarray  # [D] float64
    scatter: np.ndarray  # [D, D] float64: sum of (x - mean)(x - mean)ᵀ


def zero(dim: int) -> Moments:
    """Moments of no features of `dim` dimensions: what merging starts from."""
    return Moments(0, np.zeros(dim), np.zeros((dim, dim)))


def check_features(features, name: str = "features") -> np.ndarray:
    """`features` as a NumPy array of its own float dtype, [N, D].

    Raises:
      ValueError: not two axes, no float dtype, or NaN or infinity in a row.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not jax.dtypes.issubdtype(features.dtype, np.floating):
        raise ValueError(
            f"{name} must be floats of shape [N, D], got {features.dtype} {features.shape}: "
            "flatten or pool what a network returns, and convert integers"
        )
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{name} hold NaN or infinity in {bad.size} of {len(features)} rows, the first is row "
            f"{bad[0]}: look at that image and at the dtype of the network that made them"
        )
    return features


def check_pair(a, b, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features, [N, D] and [M, D]; raises ValueError as `check_features` does."""
    a, b = check_features(a, names[0]), check_features(b, names[1])
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{names[0]} have {a.shape[1]} dimensions and {names[1]} {b.shape[1]}: "
            "take both from one feature network"
        )
    return a, b


def moments(features) -> Moments:
    """Moments of features [N, D] of any float dtype; N may be 0.

    Centred before it is squared, so a mean far above the spread cancels nothing.

    Raises:
      ValueError: other shapes and dtypes, NaN or infinity.
    """
    features = check_features(features)
    count, dim = features.shape
    if not count:
        return zero(dim)
    blocks = [features[i : i + ROWS] for i in range(0, count, ROWS)]
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / count
    scatter, rest = np.zeros((dim, dim)), np.zeros(dim)
    for block in blocks:
        centred = block.astype(np.float64) - mean[None, :]
        scatter += centred.T @ centred
        rest += centred.sum(axis=0)  # what the rounding of the mean left
    return Moments(count, mean + rest / count, scatter)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of both sets together; the order does not matter beyond rounding.

    Raises:
      ValueError: the dimensions differ.
    """
    _check_dimensions(a.mean, b.mean)
    if not a.count or not b.count:
        return a if a.count else b
    count = a.count + b.count
    shift = b.mean - a.mean
    mean = a.mean + shift * (b.count / count)
    between = np.outer(shift, shift) * (a.count * (b.count / count))
    return Moments(count, mean, a.scatter + b.scatter + between)


def covariance(m: Moments) -> np.ndarray:
    """scatter / (count - 1), [D, D]: unbiased, the convention of all FID tools (`np.cov`).

    Raises:
      ValueError: fewer than two samples.
    """
    if m.count < 2:
        raise ValueError(f"a covariance needs 2 samples or more, got {m.count}: add samples")
    return m.scatter / (m.count - 1)


def distance(mean1, cov1, mean2, cov2) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½).

    Heusel et al. eq. 6. The last trace is the sum of the singular values of Σ1^½ Σ2^½, which needs
    no root of a product that is not symmetric: at any rank the error is about 1e-13 of the traces.
    Eigenvalues within a covariance's rounding, D·2e-16 of its largest, count as zero.

    Args:
      mean1, mean2: [D].
      cov1, cov2: [D, D], symmetric and positive semidefinite.
    Raises:
      ValueError: shapes that do not fit, NaN or infinity, matrices that are no covariances.
    """
    mean1, mean2 = np.asarray(mean1, np.float64), np.asarray(mean2, np.float64)
    cov1, cov2 = np.asarray(cov1, np.float64), np.asarray(cov2, np.float64)
    _check_dimensions(mean1, mean2)
    for mean, cov in ((mean1, cov1), (mean2, cov2)):
        if mean.ndim != 1 or cov.shape != 2 * mean.shape:
            raise ValueError(
                f"means are [D] and covariances [D, D], got {mean.shape} and {cov.shape}: "
                "pass mean1, cov1, mean2, cov2"
            )
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError("a mean or covariance holds NaN or infinity: recompute the moments")
    cross = np.linalg.svd(_root(cov1).T @ _root(cov2), compute_uv=False).sum()
    squared = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * cross
    return max(float(squared), 0.0)


def frechet_distance(a: Moments, b: Moments) -> float:
    """`distance` of the Gaussians that have these moments: the FID where features are Inception's.

    Warns where a side has no more samples than dimensions.

    Raises:
      ValueError: the dimensions differ, or a side has fewer than two samples.
    """
    _check_dimensions(a.mean, b.mean)
    dim, few = len(a.mean), [str(m.count) for m in (a, b) if m.count <= len(a.mean)]
    if few:
        warnings.warn(
            f"Fréchet distance from {' and '.join(few)} samples in {dim} dimensions: the "
            "covariance is rank-deficient and the figure depends on the count; compare only with "
            f"equal counts, or take more than {dim} samples",
            stacklevel=2,
        )
    return distance(a.mean, covariance(a), b.mean, covariance(b))


def _check_dimensions(mean1: np.ndarray, mean2: np.ndarray) -> None:
    if mean1.shape != mean2.shape:
        raise ValueError(
            f"the means differ in shape, {mean1.shape} and {mean2.shape}: "
            "take both from one feature network"
        )


def _root(cov: np.ndarray) -> np.ndarray:
    """[D, rank] with root rootᵀ = cov, up to rounding."""
    if not len(cov):
        return cov
    scale = np.abs(cov).max()
    if np.abs(cov - cov.T).max() > INDEFINITE * scale:
        raise ValueError("a covariance is not symmetric: pass mean1, cov1, mean2, cov2")
    values, vectors = np.linalg.eigh(cov)
    if values[0] < -INDEFINITE * scale:
        raise ValueError(
            f"a covariance has the eigenvalue {values[0]:.3g} beside {values[-1]:.3g}: "
            "recompute the moments"
        )
    rounding = max(len(cov) * np.finfo(np.float64).eps * values[-1], -values[0])
    kept = values > rounding
    return vectors[:, kept] * np.sqrt(values[kept])[None, :]


def _method(name: str, output: str, figure: str) -> registry.Metric:
    """The distance in one output of a feature network, as a figure."""
    return registry.Metric(
        name=name,
        reads="features",
        against=needs.images,
        gaussians=(output,),
        features=(),
        of_reference=True,
        least=2,
        smaller=(figure,),
        compute=lambda a, b: {figure: distance(*a.gaussians[output], *b.gaussians[output])},
    )


METHODS = (_method("frechet", "pool", "fid"), _method("sfid", "spatial", "sfid"))
