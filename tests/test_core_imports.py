"""The core needs JAX, optax and diffrax only: it works where everything else is absent."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import importlib.abc
import sys

BLOCKED = {"flax", "grain", "orbax", "clu", "ml_collections", "tensorflow", "torch", "matplotlib"}


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
        return None


sys.meta_path.insert(0, Blocker())
for name in sorted(BLOCKED):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} was not blocked")

from genfield import couplings, fields, guidance, losses, paths, sampling, scores

import jax
import jax.numpy as jnp
import optax

# A linear time-free gradient field, trained by equilibrium matching to one data point.
target = jnp.array([1.0, -2.0])
params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
bind = lambda params: lambda x, t=None, cond=None: x @ params["a"] + params["b"][None]
tx = optax.adam(0.03)
draw_times = paths.uniform()


@jax.jit
def train(params, opt_state):
    def step(carry, i):
        params, opt_state = carry
        k0, kt = jax.random.split(jax.random.fold_in(jax.random.key(0), i))
        x1 = jnp.broadcast_to(target, (64, 2))
        x0 = couplings.independent(jax.random.normal(k0, x1.shape), x1)
        batch = paths.interpolate(paths.linear, x0, x1, draw_times(kt, 64))
        risk = lambda p: losses.equilibrium_matching(
            bind(p), batch, decay=losses.decays.linear(1.0)
        )[0].mean()
        value, gradient = jax.value_and_grad(risk)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return jax.lax.scan(step, (params, opt_state), jnp.arange(400))


(params, _), values = train(params, tx.init(params))
field = bind(params)
x = jax.random.normal(jax.random.key(1), (8, 2))
out = sampling.sample(
    jax.random.key(2), field, x, sampling.gradient_descent(0.2), num_steps=100
)
# The target is (x0 - x1) (1-t) = x - x1: A = I and b = -x1 fit it without error.
assert values[-1] < 1e-3 * values[0], values
assert jnp.abs(out.x - target[None]).max() < 0.02, out.x
assert sampling.solve_ode(fields.negate(field), x, t1=0.1).x.shape == x.shape
assert not BLOCKED & set(sys.modules), BLOCKED & set(sys.modules)
print("core works")
"""


def test_the_core_works_without_the_rest():
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "core works"
