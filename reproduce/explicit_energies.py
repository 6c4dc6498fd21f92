"""EqM-E's energies (section 3.2, Table 5) in the plane, and which sign starts on the right side.

    python reproduce/explicit_energies.py --out=runs/energies --seeds=3

Trains EqM's field on 8 Gaussians to two moons, makes an energy of it by each of
`fields.ENERGIES`, and prints the cosine of ∇g to the target at the start, the loss there, and what
gradient descent makes of ∇g after further training, beside the dot product from scratch. Writes
explicit_energies.{md,json}; three seeds take about two minutes on two cores.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import markdown

from genfield import couplings, fields, losses, nets, paths, sampling
from genfield.data import toys
from genfield.metrics import point_cloud

BATCH, NUM, FIRST, FURTHER = 256, 2_000, 4_000, 2_000
DECAY = losses.decays.truncated(0.8, 4.0)  # the paper's
SAMPLER, STEPS = sampling.gradient_descent(0.0025), 150
ROWS = {  # title: (energy, whether it starts from the trained field)
    "no energy": (None, True),
    "⟨x, f⟩, from scratch": ("dot", False),
    "⟨x, f⟩": ("dot", True),
    "‖f‖²/2": ("squared_norm", True),
    "−‖f‖²/2": ("negative_squared_norm", True),
}


def draw(key):
    """A batch of eight Gaussians and two moons, rematched, between which points lie."""
    keys = jax.random.split(key, 3)
    x0, x1 = toys.eight_gaussians(keys[0], BATCH), toys.two_moons(keys[1], BATCH)
    sample = paths.interpolate(paths.linear, x0, x1, paths.uniform()(keys[2], BATCH))
    return couplings.nearest_target(paths.linear, sample)


def field_of(apply, energy: str | None):
    """params -> the field that is trained: the network, or the gradient of its energy."""

    def field(params):
        plain = lambda x, t=None, cond=None: apply(params, x)
        return plain if energy is None else fields.gradient_field(fields.ENERGIES[energy](plain))

    return field


def train(field, params, steps: int, seed: int):
    """Adam at 1e-3 on EqM's loss."""
    tx = optax.adam(1e-3)

    def step(carry, key):
        params, state = carry
        loss = lambda p: losses.equilibrium_matching(field(p), draw(key), decay=DECAY)[0].mean()
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    keys = jax.random.split(jax.random.key(seed), steps)
    run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), keys))
    (params, _), values = run(params)
    return params, values


def start(field, params) -> float:
    """The mean cosine of the field to its target, where that is not zero."""
    sample = draw(jax.random.key(99))
    target = -sample.v * DECAY(sample.t)[:, None]
    f = field(params)(sample.x)
    norms = jnp.linalg.norm(f, axis=1) * jnp.linalg.norm(target, axis=1)
    return float(jnp.mean((f * target).sum(1) / jnp.maximum(norms, 1e-6)))


def judge(field, params) -> dict[str, float]:
    """What gradient descent from the source makes of the field."""
    x = toys.eight_gaussians(jax.random.key(1), NUM)
    follow = lambda x: sampling.sample(
        jax.random.key(3), field(params), x, SAMPLER, num_steps=STEPS
    )
    found = np.asarray(jax.jit(follow)(x).x)
    if not np.isfinite(found).all():
        return dict.fromkeys(("w2", "chamfer"), np.nan)
    target = np.asarray(toys.two_moons(jax.random.key(2), NUM))
    compared = point_cloud.compare(found, target, 1_000)
    return {name: compared[name] for name in ("w2", "chamfer")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/energies"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    found = {title: [] for title in ROWS}
    for seed in range(options.seeds):
        section = {"name": "mlp", "width": 64, "depth": 3, "time_input": False}
        apply, initial = nets.create(section, jax.random.key(seed), shape=(2,))
        trained, _ = train(field_of(apply, None), initial, FIRST, seed)
        for title, (energy, continued) in ROWS.items():
            field, params = field_of(apply, energy), trained if continued else initial
            row = {"cosine at the start": start(field, params)}
            if title != "no energy":
                params, values = train(field, params, FURTHER, seed + 1_000)
                row |= {"loss at the start": float(values[0]), "loss": float(values[-500:].mean())}
            found[title].append(row | judge(field, params))
            print(f"seed {seed}  {title:24} {found[title][-1]}", flush=True)
    columns = list(found["‖f‖²/2"][0])
    spread = lambda values: f"{np.mean(values):.3f} ± {np.std(values):.3f}"
    lines = [
        [title, *(spread([row[c] for row in rows]) if c in rows[0] else "" for c in columns)]
        for title, rows in found.items()
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    text = markdown(["energy", *columns], lines)
    (options.out / "explicit_energies.md").write_text(text)
    (options.out / "explicit_energies.json").write_text(json.dumps(found, indent=1))
    print(text)


if __name__ == "__main__":
    main()
