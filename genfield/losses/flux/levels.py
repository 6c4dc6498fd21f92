"""Flux Matching over noise levels or along a flow path, as training uses it (eq. 10-11, 49-51, 61).

Beside the field it trains small functions of the noise level: a normaliser, which weighs levels
against each other, and the rate of the horizon's law. Their parameters come in `roles`, and
stop-gradients keep the players apart, so that one backward pass serves all.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from genfield import registry
from genfield.fields import Field, direction, expand, squared_norm, sum_features
from genfield.losses.checks import checks
from genfield.losses.flux.estimator import (
    CHAIN_STEPS,
    HORIZON,
    flux_estimator,
    group_of,
    truncated_exponential_log_density,
)
from genfield.losses.flux.mixing import mixing_proxy
from genfield.paths import PathSample
from genfield.registry import NotNegative, Positive, PositiveInt
from genfield.rng import fold_in
from genfield.scores import kde_field, kde_velocity

LEVEL_WIDTH = 32
BUCKETS = 32  # of ln σ, for running statistics
BUCKET_RANGE = (-7.0, 5.0)  # ln σ from 0.001 to 150


def level_network(key: Array) -> dict:
    """Parameters of a function of the noise level with one hidden layer; it starts at 0."""
    k1, k2 = jax.random.split(key)
    hidden = (1, LEVEL_WIDTH)
    return {
        "weight": jax.random.normal(k1, hidden),
        "bias": jax.random.normal(k2, hidden),
        "out": jnp.zeros((LEVEL_WIDTH, 1)),
        "shift": jnp.zeros((1,)),
    }


def at_level(params: dict, sigma: Array) -> Array:
    """The function at σ [B] -> [B]; it sees ln σ / 4."""
    hidden = jax.nn.silu(jnp.log(sigma)[:, None] / 4 * params["weight"] + params["bias"])
    return (hidden @ params["out"])[:, 0] + params["shift"]


def normalized(loss: Array, log_scale: Array) -> Array:
    """loss / e^s + s (eq. 11): minimal over s at s = ln E[loss], where all levels weigh alike."""
    return loss * jnp.exp(-log_scale) + log_scale


def bucket_normalized(loss: Array, sigma: Array, statistics: Array) -> tuple[Array, Array]:
    """A signed loss over its running root mean square at its noise level, and the statistics' loss.

    (Flux Matching section 3.6.) `statistics` [BUCKETS] are mean squares; a step of gradient descent
    at rate η on the second result moves each towards the squares it sees: a running mean.
    """
    low, high = BUCKET_RANGE
    place = (jnp.log(sigma) - low) / (high - low) * BUCKETS
    mine = statistics[jnp.clip(place.astype(jnp.int32), 0, BUCKETS - 1)]
    scale = jax.lax.stop_gradient(jnp.sqrt(jnp.maximum(mine, 1e-12)))
    track = 0.5 * jnp.square(mine - jax.lax.stop_gradient(jnp.square(loss)))
    return loss / scale, track


def circulation(field: Field, x: Array, sigma: Array, cond: Any = None) -> Array:
    """-<f(x), J x> / D, [B]: falls where f turns anticlockwise in the planes of its coordinates.

    A signed application loss (section 3.6), unbounded below: weigh it against the norm's.
    """
    flat = x.reshape(len(x), -1, 2)
    turned = jnp.stack([-flat[..., 1], flat[..., 0]], axis=-1).reshape(x.shape)
    return -sum_features(direction(field(x, sigma, cond)) * turned) / turned[0].size


def flux_roles(
    key: Array,
    *,
    learned_normalizer: bool = True,
    learned_horizon: bool = True,
    rate: NotNegative | None = None,
    mixing_weight: NotNegative = 0.0,
    norm_weight: float = 0.0,
    circulation_weight: float = 0.0,
    **_,
) -> dict:
    """Parameters that `flux_matching` trains beside the field, by role."""
    keys = iter(jax.random.split(key, 4))
    used = {
        "flux": learned_normalizer,
        "mixing": learned_normalizer and mixing_weight > 0,
        "norm": learned_normalizer and norm_weight > 0,
    }
    roles = {}
    networks = {name: level_network(next(keys)) for name, use in used.items() if use}
    if networks:
        roles["normalizer"] = networks
    if learned_horizon and rate is None:
        roles["horizon"] = level_network(next(keys))
    if circulation_weight:
        roles["statistics"] = {"circulation": jnp.ones((BUCKETS,))}
    return roles


@checks
def flux_matching(
    field: Field,
    sample: PathSample,
    cond: Any = None,
    *,
    key: Array,
    roles: dict,
    label: Array | None = None,
    null_class: int | None = None,
    group_size: PositiveInt | None = None,
    horizon: Positive = HORIZON,
    num_steps: PositiveInt = CHAIN_STEPS,
    estimator: str = "cross_chain",
    divergence: str = "hutchinson",
    num_probes: PositiveInt = 1,
    probe: str = "rademacher",
    probed: float = 1.0,
    chunk: PositiveInt | None = None,
    learned_normalizer: bool = True,
    learned_horizon: bool = True,
    rate: NotNegative | None = None,
    mixing_weight: NotNegative = 0.0,
    norm_weight: float = 0.0,
    circulation_weight: float = 0.0,
    sigma_data: Positive | None = None,
) -> tuple[Array, dict]:
    """Flux Matching with the kernel density of each group, at the group's noise level (eq. 10-11).

    Args:
      field: f(x, σ [B], cond), which takes the place of the score.
      sample: of `paths.variance_exploding`; one σ a group. Of "pathwise" chains each has a time of
        its own, so that there a group may mix levels too.
      key, group_size, horizon, num_steps, estimator, divergence, num_probes, probe, probed, chunk:
        see `flux_estimator`.
      roles: as `flux_roles` made them with the same options.
      label, null_class: as `denoising`.
      learned_normalizer: off: the loss as it is. learned_horizon: the law of the horizon is a
        truncated exponential whose rate is learned (eq. 51); off: uniform.
      rate: of that law where it is fixed, in the place of a learned one; 0 is uniform.
      mixing_weight: λ of the mixing proxy (eq. 45). norm_weight: of |σ f|², which selects the
        score.
      circulation_weight: of `circulation`, normalised by running statistics; its sign is the
        sense of rotation.
      sigma_data: standard deviation of the data, of fields preconditioned as EDM's: the normaliser
        then starts at their scale. Else it starts at 1/σ a feature, which at σ = 80 is far too
        large for them, and little is learned there until it has come down.
    Returns:
      The loss [B], and its terms: "flux" unweighted, "horizon", and those of the added losses.
    Raises:
      ValueError: as `flux_estimator`; with mixing_weight, groups of an odd size.
    """
    score = kde_field(sample.x1, group_of(len(sample.x), group_size), label, null_class)
    options = dict(horizon=horizon, num_steps=num_steps, estimator=estimator, probed=probed)
    options["rate"] = rate
    options |= dict(divergence=divergence, num_probes=num_probes, probe=probe, chunk=chunk)
    if sigma_data is not None and not sigma_data > 0:
        raise ValueError(f"sigma_data is a standard deviation > 0, got {sigma_data}")
    log_size = math.log(sample.x[0].size)
    offset = log_size + _start_of_scale(sample.t, sigma_data)
    loss, terms = _annealed(
        fold_in(key, 0), field, sample.x, score, cond, sample.t, roles, offset, group_size, options
    )
    if mixing_weight:
        terms["mixing"] = mixing_proxy(
            fold_in(key, 1), field, sample.x, cond, sigma=sample.t, group_size=group_size
        )
        loss = loss + mixing_weight * _scaled(roles, "mixing", terms["mixing"], sample.t)
    if norm_weight:
        f = expand(sample.t, sample.x) * direction(field(sample.x, sample.t, cond))
        terms["norm"] = squared_norm(f)
        loss = loss + norm_weight * _scaled(roles, "norm", terms["norm"], sample.t, log_size)
    if circulation_weight:
        terms["circulation"] = circulation(field, sample.x, sample.t, cond)
        statistics = roles["statistics"]["circulation"]
        value, track = bucket_normalized(terms["circulation"], sample.t, statistics)
        loss = loss + circulation_weight * value + track
    return loss, terms


@checks
def velocity_flux_matching(
    field: Field,
    sample: PathSample,
    cond: Any = None,
    *,
    key: Array,
    roles: dict,
    label: Array | None = None,
    null_class: int | None = None,
    group_size: PositiveInt | None = None,
    horizon: Positive = HORIZON,
    num_steps: PositiveInt = CHAIN_STEPS,
    estimator: str = "cross_chain",
    divergence: str = "hutchinson",
    num_probes: PositiveInt = 1,
    probe: str = "rademacher",
    probed: float = 1.0,
    chunk: PositiveInt | None = None,
    learned_normalizer: bool = True,
    learned_horizon: bool = True,
    rate: NotNegative | None = None,
) -> tuple[Array, dict]:
    """v-Flux Matching along the linear path (eq. 55-61): the marginals of a flow, other particles.

    The velocity's flux is matched at the time of each group, t in (0, 1), by the kernel density of
    the group's data (eq. 59-60). Arguments as `flux_matching`; `field` is the velocity
    f(x, t, cond), `sample` of `paths.linear` with one t a group. Raises as `flux_estimator`.
    """
    group = group_of(len(sample.x), group_size)
    score = kde_field(expand(sample.t, sample.x1) * sample.x1, group, label, null_class)
    options = dict(horizon=horizon, num_steps=num_steps, estimator=estimator, probed=probed)
    options["rate"] = rate
    options |= dict(divergence=divergence, num_probes=num_probes, probe=probe, chunk=chunk)
    options["target"] = kde_velocity(score)
    at_noise = lambda x, sigma=None, cond=None: field(x, 1 - sigma, cond)
    sigma = 1 - sample.t
    offset = math.log(sample.x[0].size) - 2 * jnp.log(sigma)
    return _annealed(
        key, at_noise, sample.x, score, cond, sigma, roles, offset, group_size, options
    )


def _log_scale(roles: dict, name: str, sigma: Array, offset) -> Array | None:
    """ln of the normaliser of a loss, which starts at `offset`; None where it has none."""
    networks = roles.get("normalizer", {})
    return at_level(networks[name], sigma) + offset if name in networks else None


def _scaled(roles: dict, name: str, value: Array, sigma: Array, offset=0.0) -> Array:
    """The loss over its normaliser, where it has one."""
    scale = _log_scale(roles, name, sigma, offset)
    return value if scale is None else normalized(value, scale)


def _start_of_scale(sigma: Array, sigma_data: float | None) -> Array:
    """ln of the square by which a field of the right scale misses a feature of the score, [B].

    1/σ²; under EDM's preconditioning (σ_d / (σ √(σ² + σ_d²)))², which the network's output is
    multiplied by to make the field.
    """
    scale = -2 * jnp.log(sigma)
    return scale if sigma_data is None else scale - jnp.log1p(jnp.square(sigma / sigma_data))


def _annealed(key, field: Callable, x, score, cond, sigma, roles, offset, group_size, options):
    """The normalised Flux loss, its scale starting at e^offset, and that of the horizon's rate."""
    learned = "horizon" in roles
    if learned:
        rate = jnp.exp(at_level(roles["horizon"], sigma))
        options = options | {"rate": rate}
    flux, terms = flux_estimator(
        key, field, x, score, cond, sigma=sigma, group_size=group_size, **options
    )
    loss = _scaled(roles, "flux", flux, sigma, offset)
    if learned:
        scale = _log_scale(roles, "flux", sigma, offset)
        realized = jax.lax.stop_gradient(flux if scale is None else flux * jnp.exp(-scale))
        log_density = truncated_exponential_log_density(terms["horizon"], rate, options["horizon"])
        # Its gradient counts, its value does not (eq. 51).
        fit = -realized * log_density
        loss = loss + fit - jax.lax.stop_gradient(fit)
    return loss, {"flux": flux, **terms}


STATISTICS_RATE = 0.01  # of running means, which follow about the last hundred steps


def _of_levels(section) -> optax.GradientTransformation:
    """Adam for the small functions of the noise level."""
    return optax.adam(section.level_learning_rate)


def _method(name: str, function: Callable, teaches: str, outputs: tuple) -> registry.Loss:
    """Both losses share all that is not named here."""
    return registry.Loss(
        name=name,
        function=function,
        teaches=teaches,
        outputs=outputs,
        scalar=None,
        clock=lambda bound: True,
        couples=lambda bound: True,
        shares_time=True,
        second_order=True,
        time_law=None,
        extras=("key", "roles", "label", "null_class"),
        roles=registry.Roles(
            init=flux_roles,
            optimizers={
                "normalizer": _of_levels,
                "horizon": _of_levels,
                "statistics": lambda section: optax.sgd(STATISTICS_RATE),
            },
        ),
        tables={},
    )


METHODS = (
    _method("flux_matching", flux_matching, "score", ("vector", "potential")),
    _method("velocity_flux_matching", velocity_flux_matching, "velocity", ("vector",)),
)
