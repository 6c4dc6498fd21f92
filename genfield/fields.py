"""Fields: what networks compute and samplers follow, and the derivatives taken of them.

A field maps a batch to a batch and never lets examples interact, so that its divergence, its
energy gradient and its samplers can be taken for all examples at once.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array


class Field(Protocol):
    """A function of position, with its parameters already bound; batched."""

    def __call__(self, x: Array, t: Array | None = None, cond: Any = None) -> Any:
        """x [B, *D], t [B] or None, cond a pytree of [B, ...] -> [B, *D] or a Prediction."""
        ...


class Prediction(NamedTuple):
    """A vector and a scalar that belong together, as a distance-marching field returns them.

    (arXiv:2602.02928, section 3.3.) Of a scalar network the direction is the scalar's gradient, and
    the scalar is what its loss made of it, as the loss's record says (`scalar`): a distance, the
    energy of equilibrium matching, the action of action matching. Then `displacement` says nothing.
    """

    direction: Array  # [B, *D], points away from the data, about unit length far from it
    distance: Array  # [B], a distance in the units of x; or an energy, or an action


def checked(field: Field) -> Field:
    """The field, with one line where it is none: what it can be called with, what it gives.

    Raises:
      TypeError: no function of (x, t, cond). ValueError, when called: an output that is neither
        [B, *D] nor a Prediction.
    """
    if not callable(field):
        raise TypeError(
            f"a field is a function (x, t, cond) -> [B, *D], not {type(field).__name__}"
        )
    try:
        inspect.signature(field).bind(None, None, None)
    except TypeError as error:
        raise TypeError(
            f"a field is called as field(x, t, cond), t and cond perhaps None, and this one takes "
            f"{inspect.signature(field)}: write lambda x, t=None, cond=None: …"
        ) from error
    except ValueError:  # no signature to be had
        pass

    def call(x, t=None, cond=None):
        output = field(x, t, cond)
        shapes = jax.tree.map(jnp.shape, output)
        if shapes not in (x.shape, Prediction(x.shape, x.shape[:1])):
            raise ValueError(
                f"the field gave {shapes} for x of shape {x.shape}: a field gives [B, *D], the "
                "shape of x, or a fields.Prediction of that and [B]"
            )
        return output

    call.evaluations = evaluations(field)
    return call


def expand(a: Array, like: Array) -> Array:
    """[B] -> [B, 1, ...] with the rank of `like`, for products example by example."""
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))


def sum_features(x: Array) -> Array:
    """[B, *D] -> [B]."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def mean_features(x: Array) -> Array:
    """[B, *D] -> [B]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def squared_norm(x: Array) -> Array:
    """Sum of squares over features, [B, *D] -> [B]."""
    return sum_features(x * x)


def direction(output: Array | Prediction) -> Array:
    """The vector part of a field's output, [B, *D]."""
    return output.direction if isinstance(output, Prediction) else output


def displacement(output: Array | Prediction) -> Array:
    """From the data to x: distance times direction (DM eq. 1), or the vector itself, [B, *D]."""
    if isinstance(output, Prediction):
        return expand(output.distance, output.direction) * output.direction
    return output


def evaluations(field: Field) -> int:
    """Network evaluations that one call of the field costs: 2 under classifier-free guidance."""
    return getattr(field, "evaluations", 1)


def potential_field(potential: Callable) -> Field:
    """The field of a scalar network: its gradient, and the scalar as the distance.

    Args:
      potential: (x [B, *D], t, cond) -> [B].
    Returns:
      A field whose Prediction is (∇u, u); one backward pass gives both (DM eq. 1 and 3).
    """

    def field(x, t=None, cond=None):
        # Examples do not interact, so the gradient of the sum is each example's own gradient.
        u, pullback = jax.vjp(lambda z: potential(z, t, cond), x)
        return Prediction(pullback(jnp.ones_like(u))[0], u)

    return field


def gradient_field(potential: Callable) -> Field:
    """The gradient of a scalar network alone, [B, *D]: an explicit energy (EqM eq. 7)."""
    both = potential_field(potential)
    return lambda x, t=None, cond=None: both(x, t, cond).direction


def dot_energy(field: Field) -> Callable:
    """g(x) = <x, f(x)>, [B]: the energy that EqM-E trains from scratch (EqM section 3.2)."""
    return lambda x, t=None, cond=None: sum_features(x * direction(field(x, t, cond)))


def squared_norm_energy(field: Field) -> Callable:
    """g(x) = |f(x)|² / 2, [B]: EqM-E's other energy, from a trained field (section 3.2).

    The paper has the other sign, as its code's field points from noise to data. Here f points from
    data to noise: near one example x1 it is c (x - x1), so that ∇g = (∂f/∂x)ᵀ f = c² (x - x1) has
    its direction, and -|f|² / 2 the opposite one.
    """
    return lambda x, t=None, cond=None: 0.5 * squared_norm(direction(field(x, t, cond)))


def negative_squared_norm_energy(field: Field) -> Callable:
    """g(x) = -|f(x)|² / 2, [B]: what `squared_norm_energy` was before; runs of then need it."""
    positive = squared_norm_energy(field)
    return lambda x, t=None, cond=None: -positive(x, t, cond)


ENERGIES = {
    "dot": dot_energy,
    "squared_norm": squared_norm_energy,
    "negative_squared_norm": negative_squared_norm_energy,
}


def negate(field: Field) -> Field:
    """The velocity that descends a gradient field: what an ODE sampler takes from EqM."""

    def velocity(x, t=None, cond=None):
        return -direction(field(x, t, cond))

    velocity.evaluations = evaluations(field)
    return velocity


def backwards(field: Field) -> Field:
    """The velocity of a path gone from its end to its start: -v(x, 1 - t).

    Samplers that integrate a velocity from t = 0 to 1 then take data to noise.
    """

    def velocity(x, t=None, cond=None):
        return -direction(field(x, None if t is None else 1 - t, cond))

    velocity.evaluations = evaluations(field)
    return velocity


def divergence(field: Field, x: Array, t: Array | None = None, cond: Any = None) -> Array:
    """Exact divergence by one jvp a dimension, [B, *D] -> [B]; for few dimensions."""
    size = x[0].size

    def along(i):
        e = jnp.zeros((size,), x.dtype).at[i].set(1.0).reshape((1, *x.shape[1:]))
        tangent = jnp.broadcast_to(e, x.shape)
        return sum_features(tangent * jax.jvp(lambda z: field(z, t, cond), (x,), (tangent,))[1])

    return jnp.sum(jax.lax.map(along, jnp.arange(size)), axis=0)


def hutchinson_divergence(
    key: Array,
    field: Field,
    x: Array,
    t: Array | None = None,
    cond: Any = None,
    *,
    num_probes: int = 1,
    probe: str = "rademacher",
) -> Array:
    """Unbiased estimate of the divergence, E[εᵀ J ε], [B, *D] -> [B].

    Args:
      probe: "rademacher" (exact on diagonal Jacobians) or "normal".
    """
    draw = {"rademacher": jax.random.rademacher, "normal": jax.random.normal}[probe]

    def one(k):
        e = draw(k, x.shape, x.dtype)
        return sum_features(e * jax.jvp(lambda z: field(z, t, cond), (x,), (e,))[1])

    return jnp.mean(jax.lax.map(one, jax.random.split(key, num_probes)), axis=0)


def jacobian_parts(
    key: Array,
    field: Field,
    x: Array,
    t: Array | None = None,
    cond: Any = None,
    *,
    num_probes: int = 1,
) -> tuple[Array, Array]:
    """Unbiased |A|² and |S|² of the Jacobian J = A + S, A = (J - Jᵀ)/2: [B] each.

    A is zero where the field is a gradient, so |A|² / (|A|² + |S|²) tells how far it is from one.
    A probe ε costs a jvp and a vjp: E|(Jε - Jᵀε)/2|² is |A|², the sum of squares of A's entries.
    """
    call = lambda z: direction(field(z, t, cond))

    def one(k):
        e = jax.random.rademacher(k, x.shape, x.dtype)
        forward = jax.jvp(call, (x,), (e,))[1]
        [backward] = jax.vjp(call, x)[1](e)
        return squared_norm(forward - backward) / 4, squared_norm(forward + backward) / 4

    parts = jax.lax.map(one, jax.random.split(key, num_probes))
    return jax.tree.map(lambda a: jnp.mean(a, axis=0), parts)


def velocity_to_score(velocity: Array, x: Array, t: Array) -> Array:
    """Score of p_t on the linear path with a standard normal source, t in [0, 1): [B, *D].

    With v = E[x1 - x0 | x] and x = (1-t) x0 + t x1, E[x0 | x] = x - t v and the score is
    -E[x0 | x] / (1 - t).
    """
    t = expand(t, x)
    return (t * velocity - x) / (1 - t)


def score_to_velocity(score: Array, x: Array, t: Array) -> Array:
    """Inverse of `velocity_to_score`, t in (0, 1]."""
    t = expand(t, x)
    return (x + (1 - t) * score) / t


def velocity_to_denoiser(velocity: Array, x: Array, t: Array) -> Array:
    """E[x1 | x_t] on the linear path: x + (1 - t) v."""
    return x + expand(1 - t, x) * velocity


def denoiser_to_velocity(denoised: Array, x: Array, t: Array) -> Array:
    """Inverse of `velocity_to_denoiser`, t in [0, 1)."""
    return (denoised - x) / expand(1 - t, x)


def score_to_denoiser(score: Array, x: Array, sigma: Array) -> Array:
    """E[x1 | x] of x = x1 + σ ε: x + σ² s(x, σ) (Tweedie); sigma [B], x [B, *D] -> [B, *D]."""
    return x + expand(jnp.square(sigma), x) * score


def denoiser_to_score(denoised: Array, x: Array, sigma: Array) -> Array:
    """Inverse of `score_to_denoiser`: (D(x, σ) - x) / σ², σ > 0."""
    return (denoised - x) / expand(jnp.square(sigma), x)


def score_field(denoiser: Field) -> Field:
    """The score of a denoiser; both take the noise level σ [B] in the place of t."""

    def score(x, t=None, cond=None):
        return denoiser_to_score(denoiser(x, t, cond), x, t)

    score.evaluations = evaluations(denoiser)
    return score


def denoiser_field(score: Field) -> Field:
    """The denoiser of a score, or of a field that stands for one."""

    def denoiser(x, t=None, cond=None):
        return score_to_denoiser(score(x, t, cond), x, t)

    denoiser.evaluations = evaluations(score)
    return denoiser


def precondition(network: Field, sigma_data: float = 0.5) -> Field:
    """D(x, σ) = c_skip x + c_out F(c_in x, ln σ / 4) (EDM, arXiv:2206.00364, eq. 7 and Table 1).

    Args:
      network: F, called with its time input [B]. sigma_data: standard deviation of the data.
    Returns:
      The denoiser, called with the noise level σ [B], σ > 0.
    """

    def denoiser(x, t=None, cond=None):
        total = jnp.square(t) + sigma_data**2
        skip, out = sigma_data**2 / total, t * sigma_data / jnp.sqrt(total)
        inner = network(expand(1 / jnp.sqrt(total), x) * x, jnp.log(t) / 4, cond)
        return expand(skip, x) * x + expand(out, x) * inner

    return denoiser


def rotated_gradient(potential: Callable, rotation: float) -> Field:
    """(I + γ J) ∇φ, J a quarter turn in each plane (x_1, x_2), (x_3, x_4), …; x [B, D], D even.

    A field that is no gradient unless γ = 0, but has the stationary law of ∇φ, since
    ∇·(p J ∇ log p) = 0: Flux Matching learns it, score matching cannot.
    """
    gradient = gradient_field(potential)

    def field(x, t=None, cond=None):
        g = gradient(x, t, cond)
        pairs = g.reshape(*g.shape[:-1], -1, 2)
        turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(g.shape)
        return g + rotation * turned

    return field
