"""A proxy of mixing speed that can be trained on (Flux Matching, appendix B.4)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from genfield.fields import Field, direction, expand
from genfield.losses.flux.estimator import group_of
from genfield.rng import fold_in, normal, typed

STEP = 0.2  # h_σ in units of σ² (eq. 43)


def sinkhorn_divergence(x: Array, y: Array, epsilon: float = 0.05, iterations: int = 50) -> Array:
    """Debiased entropic transport cost between points [N, *D] and [M, *D] (ott-jax), a scalar.

    epsilon: regularisation as a share of the mean squared distance, since distances grow with the
    noise level (B.4 gives 0.05 without its unit). iterations: of Sinkhorn, always all of them.
    """
    try:
        from ott.geometry import pointcloud
        from ott.tools import sinkhorn_divergence as ott
    except ImportError as error:
        raise ImportError("mixing needs ott-jax: pip install 'genfield[transport]'") from error
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    spread = jnp.var(x, 0) + jnp.var(y, 0) + jnp.square(x.mean(0) - y.mean(0))
    # ott promotes ranks, and takes squared distances by products that lose digits in TF32 and bf16.
    with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):
        value, _ = ott.sinkhorn_divergence(
            pointcloud.PointCloud,
            x=x,
            y=y,
            epsilon=epsilon * jax.lax.stop_gradient(jnp.sum(spread)),
            solve_kwargs={"min_iterations": iterations, "max_iterations": iterations},
        )
    return value


def mixing_proxy(
    key: Array,
    field: Field,
    x: Array,
    cond: Any = None,
    *,
    sigma: Array,
    group_size: int | None = None,
    epsilon: float = 0.05,
    iterations: int = 50,
) -> Array:
    """How much nearer to p_σ one Langevin step of the field moves points with noise added, [B].

    The second half of each group gets noise σ and then makes the step; the Sinkhorn divergence to
    the first half after it over that before it (eq. 43-44). Each example carries its group's value.

    Args:
      x: draws of p_σ, [B, *D]. sigma: [B], equal within a group. key: one, or keys [B].
    Raises:
      ValueError: a group is not even, or does not divide the batch.
    """
    n = group_of(len(x), group_size)
    if n % 2:
        raise ValueError(f"mixing halves its groups: group_size must be even, got {n}")
    key, groups = typed(key), len(x) // n
    halves = lambda a, i: a.reshape(groups, 2, n // 2, *a.shape[1:])[:, i]
    second = lambda a: halves(a, 1).reshape(-1, *a.shape[1:])
    at = lambda i: fold_in(key if key.ndim == 0 else second(key), i)
    start, level, label = second(x), second(sigma), jax.tree.map(second, cond)
    noisy = start + expand(level, start) * normal(at(0), start)
    step = STEP * jnp.square(level)
    kick = expand(jnp.sqrt(2 * step), start) * normal(at(1), start)
    moved = noisy + expand(step, start) * direction(field(noisy, level, label)) + kick
    distance = jax.vmap(lambda a, b: sinkhorn_divergence(a, b, epsilon, iterations))
    split = lambda a: a.reshape(groups, n // 2, *a.shape[1:])
    reference = halves(x, 0)
    before = jax.lax.stop_gradient(distance(split(noisy), reference))
    return jnp.repeat(distance(split(moved), reference) / before, n)
