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


def save(folder: Path, images: Path, devices: list, mesh: tuple[int, int]) -> None:
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
    evaluator = evaluate.Evaluator(exp)
    found |= evaluator.bits_per_dim(params)
    found["samples"] = generate.make_drawer(exp)(params, SAMPLES, 0).x
    np.savez(folder / f"{jax.process_index()}.npz", **found)


if __name__ == "__main__":  # one of several processes
    address, count, rank, folder, images = sys.argv[1:]
    jax.distributed.initialize(address, int(count), int(rank))
    permuted = np.random.default_rng(1).permutation(np.array(jax.devices())).tolist()
    save(Path(folder), Path(images), permuted, (4, 2))
    tiny_statistics.save(Path(folder) / "statistics.npz", permuted)
