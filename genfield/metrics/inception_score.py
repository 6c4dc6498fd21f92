"""The inception score: how sure a classifier is of each image, and how varied over all of them.

Salimans et al. 2016, arXiv:1606.03498 section 4.
"""

import math

import numpy as np
from scipy.special import log_softmax, logsumexp

from genfield import registry
from genfield.metrics import needs
from genfield.metrics.frechet import check_features


def inception_score(logits, *, splits: int = 10) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) of each split; their mean and standard deviation.

    Splits are runs of consecutive rows, as even as `np.array_split` makes them, so shuffle images
    that are sorted by class. Scores lie in [1, C]. In float64.

    The softmax of the original Inception graph reads logits without their bias (pool features
    times weights, 1008 classes): pass those to compare with published scores.

    Args:
      logits: [N, C].
      splits: how many; published scores take 10, of 50,000 images.
    Returns:
      mean and standard deviation (over splits, not splits - 1), NaN of one split, which tells none.
    Raises:
      ValueError: other shapes and dtypes, NaN or infinity, more splits than rows.
    """
    logits = check_features(logits, "logits")
    if not 1 <= splits <= len(logits):
        raise ValueError(
            f"inception_score needs 1 <= splits <= rows, got {splits} splits of {len(logits)} rows"
        )
    scores = [_score(part.astype(np.float64)) for part in np.array_split(logits, splits)]
    return float(np.mean(scores)), float(np.std(scores)) if splits > 1 else math.nan


def _score(logits: np.ndarray) -> float:
    log_conditional = log_softmax(logits, axis=1)
    log_marginal = logsumexp(log_conditional, axis=0) - np.log(len(logits))
    divergence = np.exp(log_conditional) * (log_conditional - log_marginal[None, :])
    return np.exp(divergence.sum(axis=1).mean())


def _scores(generated, reference) -> dict[str, float]:
    mean, spread = inception_score(generated.features["logits_unbiased"])
    return {"inception_score": mean, "inception_score_split_std": spread}


METHOD = registry.Metric(
    name="inception_score",
    reads="features",
    against=needs.images,
    gaussians=(),
    features=("logits_unbiased",),
    of_reference=False,
    least=10,
    smaller=(),
    compute=_scores,
    larger=("inception_score",),
)
