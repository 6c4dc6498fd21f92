"""genfield's side of `side_by_side.py`: python ours.py ROW. The configs are the package's own."""

import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from served import Row, serve

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield import couplings, features, sampling  # noqa: E402
from genfield.machine import allocator, compiled, xla  # noqa: E402
from genfield.program import config_io, evaluate, experiment, loop  # noqa: E402

FOLDER = tempfile.TemporaryDirectory()
WHERE = Path(FOLDER.name)


def load(name: str, **sections):
    """A config of the package in float32, changed by section."""
    config = config_io.load(str(ROOT / "configs" / name))
    config.update(sections)
    if "dtype" in config.net:
        config.net.dtype = "float32"
    return config


def size(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def stepping(config) -> Row:
    """The compiled train step on a batch that lies on the device."""
    exp = experiment.prepare(config, WHERE / "run")
    batch = {}
    if exp.data.train is not None:
        batches = exp.data.train(0)
        batch = jax.device_put(next(batches))
        batches.close()
    state = exp.init()
    step = experiment.jit_train_step(exp).lower(state, batch).compile()

    def run(n):
        nonlocal state
        for _ in range(n):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        assert metrics["finite"], "the step that was timed changes nothing"

    return Row(run, size(state.params["field"]))


def latents() -> str:
    import rounds

    folder = rounds.write_latents(WHERE / "latents", 4000)
    np.save(folder / "labels.npy", np.arange(4000) % 1000)  # all classes, as the peer has
    return str(folder)


def images() -> str:
    import rounds

    return str(rounds.write_images(WHERE / "images.npz", 64))


def equilibrium():
    config = load("equilibrium_matching_imagenet256.py:S/2", batch_size=8)
    config.data.path = latents()
    config.net.update(remat="none", attention="xla")  # as the peer; both are for accelerators
    return config


def sit() -> Row:
    return stepping(equilibrium())


def sit_loop() -> Row:
    """The training loop: feeding, figures, a checkpoint; neither compiling nor evaluating."""
    config = equilibrium()
    config.train.update(log_every=10, loggers=(), steps=1, eval_every=0)
    config.checkpoint.every = 10**9
    exp = experiment.prepare(config, WHERE / "loop")
    exp.workdir.mkdir()
    running = loop.Loop(exp, evaluate.Evaluator(exp))

    def run(n):
        config.train.steps = running.step + n
        config.checkpoint.every = config.train.steps
        spent = lambda part: running.clock.read().get(part, 0.0)
        idle = lambda: spent("compiling") + spent("evaluation")
        before, begun = idle(), time.perf_counter()
        running.run()
        return time.perf_counter() - begun - (idle() - before)

    return Row(run, size(running.state.params["field"]))


def sample() -> Row:
    """25 of the 250 steps, which are all alike."""
    config = equilibrium()
    exp = experiment.prepare(config, WHERE / "run")
    params = exp.init().params["field"]
    label = jnp.array([1, 2])
    sampler = sampling.gradient_descent(0.003)

    @jax.jit
    def draw(params, key):
        field = exp.objective.field({"field": params})
        x = jax.random.normal(key, (2, 32, 32, 4))
        return sampling.sample(key, field, x, sampler, num_steps=25, cond=label).x

    def run(n):
        for k in range(n):
            jax.block_until_ready(draw(params, jax.random.key(k)))

    return Row(run, size(params))


def ddpmpp() -> Row:
    config = load("edm_cifar10.py:medium", batch_size=4)
    config.data.path = images()
    config.augmentation = 0.12
    return stepping(config)


def unet() -> Row:
    config = load("flow_matching_cifar10.py:medium", batch_size=8)
    config.data.path = images()
    return stepping(config)


def flux() -> Row:
    config = load("flux_matching_cifar10.py:small", batch_size=16)
    config.net = dict(name="unet", channels=32, channel_multipliers=(2, 2, 2), num_res_blocks=2)
    config.net.update(attention_levels=(2,), dropout=0.0)
    config.loss.group_size = 16
    config.data.path = images()
    return stepping(config)


def mlp() -> Row:
    config = load("equilibrium_matching_two_moons.py", batch_size=256)
    config.net.update(output="vector", time_input=False)
    config.rematching.name = "none"
    return stepping(config)


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def dopri5(per_sample: bool) -> Row:
    weights = [numbers(*s, seed=i) for i, s in enumerate(((3, 64), (64, 64), (64, 2)))]

    def field(x, t=None, cond=None):
        h = jnp.concatenate([x, t[:, None]], axis=1)
        for w in weights[:-1]:
            h = jnp.tanh(h @ w / np.sqrt(len(w)))
        return h @ weights[-1] / 8

    solve = jax.jit(lambda x: sampling.solve_ode(field, x, per_sample=per_sample).x)
    x = numbers(1024, 2, seed=9)

    def run(n):
        for _ in range(n):
            jax.block_until_ready(solve(x))

    return Row(run, value=float(jnp.square(solve(x)).mean()))


def matching(function, n: int, **options) -> Row:
    x0, x1 = numbers(n, 3072, seed=0), numbers(n, 3072, seed=1)
    match = jax.jit(lambda a, b: function(a, b, **options))

    def run(count):
        for _ in range(count):
            jax.block_until_ready(match(x0, x1))

    cost = float(np.square(x1 - np.asarray(match(x0, x1))).sum(1).mean())
    return Row(run, value=None if function is couplings.greedy else cost)


def inception() -> Row:
    network = features.create("inception_v3", seed=0)
    params = jax.device_put(network.params)
    x = jax.random.uniform(jax.random.key(0), (16, 299, 299, 3)) * 255
    pool = jax.jit(lambda params, x: network.apply(params, x)["pool"])

    def run(n):
        for _ in range(n):
            jax.block_until_ready(pool(params, x))

    return Row(run, size(params))


ROWS = {
    "sit": sit,
    "sit_loop": sit_loop,
    "sample": sample,
    "ddpmpp": ddpmpp,
    "unet": unet,
    "flux": flux,
    "mlp": mlp,
    "dopri5": lambda: dopri5(False),
    "dopri5, per sample": lambda: dopri5(True),
    "greedy": lambda: matching(couplings.greedy, 1000),
    "exact": lambda: matching(couplings.exact_assignment, 2000),
    "exact, POT's solver": lambda: matching(couplings.exact_assignment, 2000, backend="pot"),
    "inception": inception,
}

if __name__ == "__main__":
    xla.apply()
    allocator.keep(xla.platform())
    compiled.keep(None)
    serve(ROWS[sys.argv[1]])
