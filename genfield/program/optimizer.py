"""From a configuration to its optimisers, one a role, and to the rate of its average."""

from collections.abc import Collection, Mapping

import jax.numpy as jnp
import optax

from genfield.errors import UserError
from genfield.machine import fixed as fixed_arrays
from genfield.registry import choose

STEEP = 1e15


def ema_rate(section, batch_size: int) -> float:
    """Decay a step, from `rate` or from `half_life` in images; 0 is no average."""
    rate, half_life = section.rate, section.half_life
    if rate and half_life:
        raise UserError("config.ema takes rate or half_life, not both")
    if not 0 <= rate < 1 or half_life < 0:
        raise UserError(f"config.ema needs 0 <= rate < 1 and half_life >= 0, got {rate}")
    return 0.5 ** (batch_size / half_life) if half_life else float(rate)


def schedule(section, steps: int) -> optax.Schedule:
    """step -> the learning rate of the field, as the section `optimizer` says, for so many steps.

    Raises:
      UserError: an unknown schedule, a warm-up as long as the training.
    """
    peak, warmup = section.learning_rate, section.warmup_steps
    if not 0 <= warmup < steps:
        raise UserError(f"config.optimizer.warmup_steps {warmup} must be below {steps} steps")
    rest = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps - warmup),
        "linear": lambda: optax.linear_schedule(peak, 0.0, steps - warmup),
    }
    after = choose("schedule", section.schedule, rest)()
    if not warmup:
        return after
    # Step 0 already learns: the ramp reaches the peak at step `warmup`.
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([ramp, after], [warmup])


def steep(section) -> bool:
    """Whether a learning rate could carry a parameter beyond float32 in one step.

    The norm of a finite gradient is below 1e20, as its square is finite; an optimiser moves a
    parameter by no more than the rate times that, or times a small number.
    """
    return section.learning_rate > STEEP


def make_optimizer(
    section, steps: int, roles: Mapping = {}, fixed: Collection[tuple[str, ...]] = ()
) -> optax.GradientTransformation:
    """The optimiser of the role "field", with schedule and clipping, and those of other roles.

    roles: role -> (section) -> its optimiser, as the loss declares them.
    fixed: paths of arrays that stay as they are: of these it keeps nothing.

    Raises:
      UserError: unknown optimiser or schedule, or a weight decay that would be ignored.
    """
    rate = schedule(section, steps)
    adam = dict(b1=section.b1, b2=section.b2)
    table = {
        "adam": lambda: optax.adam(rate, **adam),
        "adamw": lambda: optax.adamw(rate, **adam, weight_decay=section.weight_decay),
        "radam": lambda: optax.radam(rate, **adam),
        "sgd": lambda: optax.sgd(rate, momentum=section.b1),
    }
    inner = choose("optimizer", section.name, table)()
    if section.weight_decay and section.name != "adamw":
        raise UserError("config.optimizer.weight_decay needs config.optimizer.name='adamw'")
    if section.clip_norm:
        inner = optax.chain(optax.clip_by_global_norm(section.clip_norm), inner)
    players = {"field": inner} | {role: make(section) for role, make in roles.items()}
    return _leaving(optax.partition(players, lambda params: {k: k for k in params}), fixed)


def _leaving(inner: optax.GradientTransformation, paths) -> optax.GradientTransformation:
    """An optimiser that neither sees the arrays at these paths nor moves them."""
    paths = tuple(paths)
    if not paths:
        return inner
    pruned = lambda tree: fixed_arrays.without(tree, paths)

    def update(updates, state, params=None):
        zeros = {path: jnp.zeros_like(fixed_arrays.at(updates, path)) for path in paths}
        params = None if params is None else pruned(params)
        moved, state = inner.update(pruned(updates), state, params)
        return fixed_arrays.put(moved, zeros), state

    return optax.GradientTransformation(lambda params: inner.init(pruned(params)), update)
