"""A sampler of one's own: the midpoint rule, and a metric of one's own beside it.

    python -m genfield.main --config=examples/own_sampler.py --workdir=runs/own_sampler

A sampler is a pair of pure functions; its memory holds the step's number. It follows a velocity
from t = 0 to 1, and says so: fields that learned a gradient are negated for it.
"""

import jax.numpy as jnp
import numpy as np

from genfield import configuration, registry
from genfield.fields import direction
from genfield.sampling.core import Sampler, advance, start


def midpoint() -> Sampler:
    """x <- x + h v(x + h/2 v(x, t), t + h/2); two evaluations a step."""

    def init(x, num_steps):
        return start(x, memory=(jnp.int32(0), jnp.int32(num_steps)))

    def step(key, field, state, cond):
        k, n = state.memory
        t, h = jnp.full(state.x.shape[:1], k / n, jnp.float32), 1.0 / n
        half = state.x + 0.5 * h * direction(field(state.x, t, cond))
        slope = direction(field(half, t + 0.5 * h, cond))
        return advance(state, state.x + h * slope, 2, memory=(k + 1, n))

    return Sampler(init=init, step=step)


def mean_error(samples, target, section) -> dict[str, float]:
    """How far the mean of samples [N, D] is from that of the target [M, D]."""
    return {"mean_error": float(np.linalg.norm(samples.mean(0) - target.mean(0)))}


METHODS = (
    registry.Sampler(
        name="midpoint",
        make=midpoint,
        follows="velocity",
        clock=True,
        noisy=lambda bound: False,
        needs_output=None,
        product="direction",
        step_scales_field=True,
        levels=None,
        steps=None,
        adaptive=False,
    ),
    registry.Metric(
        name="mean_error",
        reads="samples",
        against=lambda facts: None if len(facts.shape) == 1 else "is for points",
        gaussians=(),
        features=(),
        of_reference=True,
        least=2,
        smaller=("mean_error",),
        compute=mean_error,
    ),
)


def get_config():
    config = configuration.base()
    config.data = dict(name="two_moons", source="eight_gaussians")
    config.net = dict(name="mlp", time_input=True)
    config.sampler = dict(name="midpoint", num_steps=25)
    config.train.steps = 4_000
    config.evaluate.metrics = ("point_cloud", "mean_error", "heldout_loss")
    return config
