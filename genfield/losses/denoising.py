"""Denoising score matching over noise levels: EDM, and its stable-target form."""

from typing import Annotated, Any

import jax.numpy as jnp
from jax import Array

from genfield import registry
from genfield.fields import Field, mean_features, score_to_denoiser, sum_features
from genfield.losses.checks import checks
from genfield.paths import PathSample
from genfield.registry import OneOf, Positive, PositiveInt
from genfield.scores import kde_field

WEIGHTINGS = {
    "edm": lambda sigma, data: (jnp.square(sigma) + data**2) / jnp.square(sigma * data),
    "inverse_variance": lambda sigma, data: 1 / jnp.square(sigma),
}
REDUCTIONS = {"mean": mean_features, "sum": sum_features}


@checks
def denoising(
    field: Field,
    sample: PathSample,
    cond: Any = None,
    *,
    sigma_data: Positive = 0.5,
    weighting: Annotated[str, OneOf(WEIGHTINGS)] = "edm",
    reduction: Annotated[str, OneOf(REDUCTIONS)] = "mean",
    stable_target: bool = False,
    group_size: PositiveInt | None = None,
    label: Array | None = None,
    null_class: int | None = None,
) -> tuple[Array, dict]:
    """λ(σ) · mean over features of (D(x, σ) - x1)² (EDM, Table 1).

    Args:
      field: the denoiser D, called with the noise level σ [B] (`fields.precondition`).
      sample: of `paths.variance_exploding`, whose t is σ.
      sigma_data: σ_d, standard deviation of the data.
      weighting: λ: "edm", (σ² + σ_d²) / (σ σ_d)²; "inverse_variance", 1 / σ², of the VP, VE and
        iDDPM preconditionings.
      reduction: over features, "mean" or "sum". EDM's code sums, which Adam does not notice but for
        its ε, which is so many times smaller beside the gradients.
      stable_target: the target is the posterior mean over the clean examples of a group, which has
        less variance and a bias that falls with the group (Xu et al., arXiv:2302.00670); the same
        kernel density estimate as Flux Matching's score.
      group_size: of the stable target; None is the batch.
      label: [B], classes of the examples; with `cond` integers [B], a target has those of its
        class, or all for `null_class`.
    Returns:
      The loss [B], and its terms (none).
    """
    target, sigma = sample.x1, sample.t
    if stable_target:
        score = kde_field(sample.x1, group_size, label, null_class)
        target = score_to_denoiser(score(sample.x, sigma, cond), sample.x, sigma)
    weight = registry.choose("weighting", weighting, WEIGHTINGS)(sigma, sigma_data)
    reduce = registry.choose("reduction", reduction, REDUCTIONS)
    return weight * reduce(jnp.square(field(sample.x, sigma, cond) - target)), {}


METHOD = registry.Loss(
    name="denoising",
    function=denoising,
    teaches="denoiser",
    outputs=("vector",),
    scalar=None,
    clock=lambda bound: True,
    couples=lambda bound: bound["stable_target"],
    shares_time=False,
    second_order=False,
    time_law=None,
    extras=("label", "null_class", "sigma_data"),
    roles=None,
    tables={},
)
