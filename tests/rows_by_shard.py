"""What a tiny run computes, on any processes and devices in any order, for tests of meshes."""

import sys
from pathlib import Path

import jax
import numpy as np
import tiny_statistics

from genfield.configuration import base
from genfield.machine import sharding
from genfield.program import evaluate, experiment, generate, match_sets

STEPS, SAMPLES = 3, 16


def config_of(images: Path, mesh: tuple[int, int]):
    config = base()
    config.batch_size = 16
    config.data = dict(name="images", path=str(images), labels=True)
    config.net = dict(name="mlp", width=16, depth=1)
    config.loss = dict(name="flow_matching")
    config.sampler = dict(name="heun", num_steps=2)
    config.label_dropout = 0.1
    config.train.eval_batches = 2
    config.sample.batch_size = 2
    config.evaluate.likelihood_images = 11
    config.mesh.update(data=mesh[0], fsdp=mesh[1])
    return config


def save(folder: Path, images: Path, devices: list, mesh: tuple[int, int], bits: bool) -> None:
    """Writes a file a process: figures that all have, and its rows of the batches."""
    exp = experiment.prepare(config_of(images, mesh), folder, devices=devices)
    step, state, found = experiment.jit_train_step(exp), exp.init(), {}
    for number, batch in zip(range(STEPS), match_sets.batches(exp, 0), strict=False):
        found["rows"], found[f"x1_{number}"] = sharding.own_rows(batch["x1"])
        _, found[f"label_{number}"] = sharding.own_rows(batch["label"])
        state, metrics = step(state, {"step": np.int32(number)} | batch)
        found[f"loss_{number}"] = np.array([metrics["loss"], metrics["grad_norm"]])
    params = generate.parameters(exp, state)
    found |= {f"heldout_{k}": v for k, v in evaluate.make_heldout_loss(exp)(params).items()}
    if bits:
        found |= evaluate.Evaluator(exp).bits_per_dim(params)
        found["paired"] = from_starts(folder, exp.config, devices)
    found["samples"] = generate.make_drawer(exp)(params, SAMPLES, 0).x
    np.savez(folder / f"{jax.process_index()}.npz", **found)


def from_starts(folder: Path, config, devices: list) -> np.ndarray:
    """Samples that begin at examples of their own, and not at noise."""
    draw, file = np.random.default_rng(0), folder / f"pairs_{jax.process_index()}.npz"
    arrays = {name: draw.normal(size=(90, 3)).astype(np.float32) for name in ("x0", "x1")}
    np.savez(file, **arrays, labels=draw.integers(0, 3, 90))
    config.data = dict(name="arrays", path=str(file), labels=True)
    exp = experiment.prepare(config, folder, devices=devices)
    params = jax.tree.map(jax.numpy.ones_like, exp.init().params)
    return generate.make_drawer(exp)(params, SAMPLES, 0).x


if __name__ == "__main__":  # one of several processes
    address, count, rank, folder, images, *bits = sys.argv[1:]
    jax.distributed.initialize(address, int(count), int(rank))
    permuted = np.random.default_rng(1).permutation(np.array(jax.devices())).tolist()
    save(Path(folder), Path(images), permuted, (4, 2), bool(bits))
    tiny_statistics.save(Path(folder) / "statistics.npz", permuted)
