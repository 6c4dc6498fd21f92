"""Flux Matching (Pao-Huang, Qiu & Ermon): fields that need not be scores.

The divergence of the probability flux p f is matched, so any f = s + v with ∇·(p v) = 0 is a
minimiser. The estimators hang on the scale of time and on a weighting; both are in the docstrings
and in docs/flux_matching.md, with what each was measured to estimate.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from genfield.fields import Field, direction, expand, sum_features
from genfield.rng import fold_in, normal, typed

ESTIMATORS = ("cross_chain", "cross_chain_normalized", "pathwise")
DIVERGENCES = ("exact", "hutchinson")
PROBES = {"rademacher": lambda z: jnp.sign(z) + (z == 0), "normal": lambda z: z}
HORIZON = 4.0  # T in units of σ² (section 3.3)
CHAIN_STEPS = 4  # Langevin steps of a chain (section 3.3)


def flux_estimator(
    key: Array,
    field: Field,
    x: Array,
    score: Field,
    cond: Any = None,
    *,
    sigma: Array | float,
    target: Field | None = None,
    group_size: int | None = None,
    horizon: float = HORIZON,
    rate: Array | None = None,
    num_steps: int = CHAIN_STEPS,
    estimator: str = "cross_chain",
    divergence: str = "hutchinson",
    num_probes: int = 1,
    probe: str = "rademacher",
    probed: float = 1.0,
    chunk: int | None = None,
) -> tuple[Array, dict]:
    """-σ²/q(t) u(x)ᵀ sg((∂x_t/∂x)ᵀ ∇r(x_t)) with u = f - s and r = ∇·u + u·s (eq. 6).

    Summed over features. The mean is the projected Fisher divergence J (eq. 4) up to the truncation
    at T, and its gradient half of ∇J (theorem 3.1). x_t is the end of a Langevin chain of p from x.
    Time is counted in units of σ², hence the factor σ²: t in [0, T] stands for σ² t. By default
    the chains need p's variance to be above 0.316 σ² in every direction: below, they blow up.

    Estimators of (∂x_t/∂x)ᵀ ∇r(x_t):
      "pathwise": the derivative through each chain; unbiased for the chain as it is run. Each
        example has a time of its own, at the cost of a shared one and with far less noise.
      "cross_chain": e^{-t} Σ_j w_ij ∇r(x_t^j), w the softmax over the starts i of a group (eq. 9
        and 52): the mean over all chains of the group, weighted by how likely each began at x_i.
        e^{-t} stands for ∂x_t/∂x, exact for isotropic Gaussians of variance σ².
      "cross_chain_normalized": w normalised over the ends j and no e^{-t}, as the text before
        eq. 9 has it; for comparison. Biased, and no bound: on isotropic Gaussians 1.25 J where u is
        linear in x - E x and T J where it is constant.

    Args:
      key: one, or keys [B], one an example: then the noise does not depend on the batch's layout.
      field: f, called as f(x, σ [B], cond). score: s = ∇ log p, called likewise; no gradient
        reaches its parameters. `scores.kde_field` is that of a batch.
      x: draws of p, [B, *D]. cond: a pytree of [B, ...]; integers [B] are classes, whose chains do
        not mix, and then `score` is that of each class.
      sigma: σ > 0, or [B], equal within a group.
      target: what u is taken from instead of s; v-Flux Matching's velocity (eq. 55), zero for a
        correction (eq. 48).
      group_size: examples whose chains are weighted against each other, and which share t;
        pathwise chains are on their own.
      horizon: T. rate: λ >= 0 of the truncated exponential q, [] or [B] and equal within a group
        that shares t (eq. 49); None and 0 are U(0, T).
      num_steps: of a chain, of equal length (eq. 8).
      divergence: "hutchinson" with `num_probes` of "rademacher" or "normal" law, or "exact".
      probed: share of the chains that are run and differentiated; cross-chain only. Fewer cost less
        time and more variance.
      chunk: examples whose second derivatives are taken at a time; None: all at once.
    Returns:
      The loss [B] and {"horizon": t [B]}, float32.
    Raises:
      ValueError: unknown names, numbers out of range, shapes that do not fit, or sizes that do not
        divide.
    """
    key, n = typed(key), group_of(len(x), group_size)
    _check_names(estimator=estimator, divergence=divergence, probe=probe)
    _check_numbers(horizon, num_steps=num_steps, num_probes=num_probes, chunk=chunk)
    kept = _chains(len(x), n, estimator, probed, key, sigma, rate)
    groups, target = len(x) // n, score if target is None else target
    sigma = jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), (len(x),))
    shared = 1 if estimator == "pathwise" else n
    t, inverse_density = _draw_horizon(fold_in(key, 0), len(x), shared, horizon, rate)

    first = lambda a: a.reshape(groups, n, *a.shape[1:])[:, :kept].reshape(-1, *a.shape[1:])
    chains = (first(x), first(sigma), jax.tree.map(first, cond))
    chain_key = lambda i: fold_in(key, i) if key.ndim == 0 else fold_in(first(key), i)

    def run(z):
        return langevin_chain(chain_key(1), score, z, *chains[1:], first(t), num_steps)

    def second_order():
        probes = _probes(chain_key(2), chains[0], divergence, num_probes, probe)
        at = lambda z: stein_gradient(field, score, target, z, *chains[1:], probes, chunk)
        if estimator == "pathwise":
            end, pullback = jax.vjp(run, x)
            return pullback(at(end))[0]
        end = run(chains[0])
        whole = getattr(cond, "ndim", None) == 1 and jnp.issubdtype(cond.dtype, jnp.integer)
        labels = cond if whole else None
        mean = x + expand(jnp.square(sigma) * -jnp.expm1(-t), x) * direction(score(x, sigma, cond))
        axis = 1 if estimator == "cross_chain" else 2
        cut = lambda a, size: a.reshape(groups, size, *a.shape[1:])
        width = (2 * jnp.square(sigma) * -jnp.expm1(-2 * t)).reshape(groups, n)[:, 0]
        same = None if labels is None else (cut(labels, n), cut(first(labels), kept))
        weights = _weights(cut(mean, n), cut(end, kept), width, same, axis)
        weights = weights * (n / kept) if axis == 1 else weights
        slopes = cut(at(end), kept).reshape(groups, kept, -1)
        mixed = jnp.einsum("gij,gjd->gid", weights, slopes, precision="highest").reshape(x.shape)
        return expand(jnp.exp(-t), x) * mixed if axis == 1 else mixed

    pulled = jax.lax.stop_gradient(second_order())
    u = direction(field(x, sigma, cond)) - jax.lax.stop_gradient(direction(target(x, sigma, cond)))
    loss = -jnp.square(sigma) * inverse_density * sum_features(u * pulled)
    return loss, {"horizon": t}


def flux_augment(key: Array, field: Field, x: Array, score: Field, cond=None, **options):
    """Flux Matching of a correction v added to a given score s: ∇·(p v) = 0 (eq. 48).

    `field` is v; s + v then has the law of s. Options as `flux_estimator`.
    """
    zero = lambda x, t=None, cond=None: jnp.zeros_like(x)
    return flux_estimator(key, field, x, score, cond, target=zero, **options)


def group_of(batch: int, group_size: int | None) -> int:
    """The size of a group, the batch where None is given; ValueError where it cuts no batch."""
    n = batch if group_size is None else group_size
    _check_whole("group_size", n)
    if batch % n:
        raise ValueError(f"group_size {n} does not divide the batch of {batch} examples")
    return n


def _check_whole(name: str, value) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _check_names(**names: str) -> None:
    known = {"estimator": ESTIMATORS, "divergence": DIVERGENCES, "probe": PROBES}
    for kind, name in names.items():
        if name not in known[kind]:
            raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(known[kind])}")


def _check_numbers(horizon: float, **sizes: int | None) -> None:
    if not 0 < horizon < np.inf:
        raise ValueError(f"horizon is T > 0 in units of σ² (4 in the paper), got {horizon}")
    for name, value in sizes.items():
        if value is not None or name != "chunk":
            _check_whole(name, value)


def _check_arrays(batch: int, key: Array, sigma, rate) -> None:
    """Shapes, and values where they are known: under jit they are not."""
    if key.shape not in ((), (batch,)):
        raise ValueError(f"key must be one key, or one an example: {batch}, not {key.shape}")
    for name, value in (("sigma", sigma), ("rate", 0.0 if rate is None else rate)):
        if np.shape(value) not in ((), (batch,)):
            raise ValueError(f"{name} must be a number or [{batch}], not {np.shape(value)}")
        if isinstance(value, jax.core.Tracer):
            continue
        value, wanted = np.asarray(value), "positive" if name == "sigma" else "0 (uniform) or more"
        fits = np.isfinite(value) & (value > 0 if name == "sigma" else value >= 0)
        if not np.all(fits):
            raise ValueError(f"{name} must be finite and {wanted}, got {value[~fits].ravel()[:1]}")


def _chains(batch: int, group: int, estimator: str, probed: float, key, sigma, rate) -> int:
    """The number of chains a group runs; ValueError where `probed` or an array does not fit."""
    _check_arrays(batch, key, sigma, rate)
    if not 0 < probed <= 1 or round(probed * group) < 1:
        raise ValueError(f"probed must be in (0, 1] and leave a chain, got {probed} of {group}")
    kept = round(probed * group)
    if kept < group and estimator != "cross_chain":
        raise ValueError(f"{estimator} needs every chain: probed must be 1")
    return kept


def _draw_horizon(key, batch: int, shared: int, horizon: float, rate) -> tuple[Array, Array]:
    """Times t [B], one for each `shared` examples, and 1 / q(t) [B]."""
    if key.ndim:
        v = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(key[::shared])
    else:
        v = jax.random.uniform(key, (batch // shared,), jnp.float32)
    v = jnp.repeat(1 - v, shared)  # in (0, 1]: at t = 0 the transition has no density
    rate = jnp.broadcast_to(jnp.asarray(0.0 if rate is None else rate, jnp.float32), v.shape)
    rate = jax.lax.stop_gradient(rate)
    t = truncated_exponential(v, rate, horizon)
    return t, _mass(rate, horizon) * jnp.exp(rate * t)


def truncated_exponential(v: Array, rate: Array, horizon: float) -> Array:
    """The quantile at v in (0, 1] of λ e^{-λt} / (1 - e^{-λT}) on [0, T] (eq. 49); v T at λ = 0."""
    uniform, rate = _uniform(rate, horizon)
    # In float32 the last quantile is infinite where e^{-λT} is lost beside 1.
    t = jnp.minimum(-jnp.log1p(v * jnp.expm1(-rate * horizon)) / rate, horizon)
    return jnp.where(uniform, v * horizon, t)


def truncated_exponential_log_density(t: Array, rate: Array, horizon: float) -> Array:
    """log q_λ(t) (eq. 49); -log T at λ = 0."""
    return -rate * t - jnp.log(_mass(rate, horizon))


def _mass(rate: Array, horizon: float) -> Array:
    """∫ e^{-λt} dt over [0, T]."""
    uniform, safe = _uniform(rate, horizon)
    near = horizon * (1 - 0.5 * rate * horizon)  # whose derivative at 0 counts too
    return jnp.where(uniform, near, -jnp.expm1(-safe * horizon) / safe)


def _uniform(rate: Array, horizon: float) -> tuple[Array, Array]:
    """Where q is U(0, T) to the digits of float32, and a rate by which one can divide."""
    uniform = jnp.abs(rate) * horizon < 1e-7
    return uniform, jnp.where(uniform, 1.0, rate)


def langevin_chain(
    key: Array, score: Field, x: Array, sigma: Array, cond: Any, t: Array, num_steps: int
) -> Array:
    """x_t from x by exponential-integrator Langevin steps of length t / num_steps (eq. 8).

    t [B] in units of σ²: z <- z + (1 - ρ) σ² s(z) + σ √(1 - ρ²) ξ, ρ = e^{-h}.
    """
    h = t / num_steps
    pull = expand(jnp.square(sigma) * -jnp.expm1(-h), x)
    spread = expand(sigma * jnp.sqrt(-jnp.expm1(-2 * h)), x)

    def step(z, k):
        drift = pull * direction(score(z, sigma, cond))
        return (z + drift + spread * normal(fold_in(key, k), z)).astype(z.dtype), None

    return jax.lax.scan(step, x, jnp.arange(num_steps))[0]


def _probes(key, like: Array, divergence: str, num_probes: int, probe: str) -> Array:
    """Vectors ε [K, B, *D] with mean εᵀ A ε = tr A, exactly so where `divergence` is exact."""
    if divergence == "exact":
        size = like[0].size
        basis = jnp.sqrt(size) * jnp.eye(size, dtype=like.dtype)
        basis = basis.reshape(size, 1, *like.shape[1:])
        return jnp.broadcast_to(basis, (size, *like.shape))
    draws = [normal(fold_in(key, k), like) for k in range(num_probes)]
    return jnp.stack([PROBES[probe](z) for z in draws])


def stein_gradient(
    field: Field,
    score: Field,
    target: Field,
    x: Array,
    sigma: Array,
    cond: Any,
    probes: Array,
    chunk: int | None = None,
) -> Array:
    """∇r at x, r = ∇·u + u·s with u = field - target, the divergence by `probes` [K, B, *D].

    One probe is shared by all of r, so that this is the gradient of one scalar.
    """
    at = lambda g: lambda z: direction(g(z, sigma, cond)).astype(z.dtype)
    s, pullback = jax.vjp(at(score), x)
    of_target, taken = _second_order(at(target), x, s, probes)
    parts = _chunked(chunk, x, s, sigma, jnp.moveaxis(probes, 0, 1), cond)

    def of_part(part):
        z, s, sigma, probes, cond = part
        probes = jnp.moveaxis(probes, 1, 0)
        at = lambda z: direction(field(z, sigma, cond)).astype(z.dtype)
        return _second_order(at, z, s, probes)

    if chunk is None or chunk == len(x):
        out, network = of_part(parts)
    else:
        out, network = jax.tree.map(_joined, jax.lax.map(of_part, parts))
    return network - taken + pullback(out - of_target)[0]


def _chunked(chunk: int | None, *arrays):
    """[B, ...] -> [B / chunk, chunk, ...], every k-th example, so that devices keep theirs."""
    if chunk is None or chunk == len(arrays[0]):
        return arrays
    if len(arrays[0]) % chunk:
        raise ValueError(f"chunk {chunk} does not divide {len(arrays[0])} chains")
    split = lambda a: jnp.swapaxes(a.reshape(chunk, len(a) // chunk, *a.shape[1:]), 0, 1)
    return jax.tree.map(split, arrays)


def _joined(a: Array) -> Array:
    """The inverse of `_chunked`."""
    return jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:])


def _second_order(g: Callable, x: Array, s: Array, probes: Array) -> tuple[Array, Array]:
    """g(x), and ∇(εᵀ J ε) + Jᵀ s with J = ∂g/∂x, averaged over probes.

    Both are the derivative of z, c -> J(z)ᵀ c at (x, ε) along (ε, s): one forward derivative of a
    backward one, cheaper than differentiating εᵀ J ε.
    """

    def pulled(z, c):
        y, pullback = jax.vjp(g, z)
        return y, pullback(c)[0]

    def one(e):
        (y, _), (_, out) = jax.jvp(pulled, (x, e), (e, s))
        return y, out

    if len(probes) == 1:
        return one(probes[0])
    y, out = jax.lax.map(one, probes)
    return y[0], jnp.mean(out, axis=0)


def _weights(mean: Array, end: Array, width: Array, labels, axis: int) -> Array:
    """Softmax over `axis` of -|end_j - mean_i|² / width: [G, n, *D], [G, m, *D], [G] -> [G, n, m].

    labels: of the starts [G, n] and ends [G, m]; ends weigh nothing on starts of another class.
    """
    flat = lambda a: a.reshape(*a.shape[:2], -1)
    mean, end = flat(mean), flat(end)
    origin = mean.mean(1, keepdims=True)  # the products below would lose digits far from it
    mean, end = mean - origin, end - origin
    cross = jnp.einsum("gid,gjd->gij", mean, end, precision="highest")
    squared = jnp.sum(mean**2, -1)[:, :, None] + jnp.sum(end**2, -1)[:, None] - 2 * cross
    logits = -squared / width[:, None, None]
    if labels is not None:
        logits = jnp.where(labels[0][:, :, None] == labels[1][:, None], logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=axis)
