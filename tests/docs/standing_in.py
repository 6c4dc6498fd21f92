"""What the examples of the docs leave to the reader: arrays, fields, files and runs, all tiny.

A name that a page uses and does not make is looked up here, first under the page; a file or folder
whose name stands in its code is put beside it.
"""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from blocks import ROOT
from programs import MOONS, TINY_DIGITS, trained
from tiny_autoencoders import facts, state, write

GOLDEN = ROOT / "tests" / "golden"


def normal(seed: int, *shape: int):
    return jax.random.normal(jax.random.key(seed), shape)


def field(x, t=None, cond=None):
    """Of a standard normal law: a gradient, and as good as a denoiser."""
    return 0.5 * x


def of_images(x, t=None, cond=None):
    return 0.5 * x


NAMES = {
    "key": lambda: jax.random.key(0),
    "x": lambda: normal(1, 8, 2),
    "x0": lambda: normal(2, 8, 2),
    "x1": lambda: normal(3, 8, 2),
    "t": lambda: jnp.linspace(0.1, 0.9, 8),
    "noise": lambda: normal(4, 8, 2),
    "noise_a": lambda: normal(5, 8, 2),
    "noise_b": lambda: normal(6, 8, 2),
    "labels": lambda: jnp.arange(8) % 3,
    "sigma": lambda: jnp.full(8, 0.5),
    "field": lambda: field,
    "velocity": lambda: field,
    "score": lambda: lambda x, t=None, cond=None: -x,
    "correction": lambda: lambda x, t=None, cond=None: 0.1 * x,
    "known": lambda: normal(7, 8, 2),
    "free": lambda: jnp.array([True, False]),
    "levels": lambda: jnp.linspace(2.0, 0.0, 5),
    "net": lambda: lambda params, x: params * x,
    "images": lambda: normal(8, 8, 2),
}
IMAGES = {"x": lambda: normal(1, 4, 8, 8, 1), "labels": lambda: jnp.array([0, 3, 5, 10])}
LATENTS = {"x": lambda: normal(1, 2, 8, 8, 4), "labels": lambda: jnp.array([0, 2])}
OF_PAGES = {
    "README.md": IMAGES,
    "docs/zoo.md": IMAGES,
    "docs/program.md": IMAGES,
    "docs/pretrained.md": LATENTS,
    "docs/couplings.md": {
        "x0": lambda: normal(2, 1000, 2),
        "x1": lambda: normal(3, 1000, 2),
        "samples": lambda: _samples(),
    },
    "docs/flux_matching.md": {
        "x": lambda: normal(1, 128, 2),
        "x1": lambda: normal(3, 128, 2),
        "sigma": lambda: jnp.full(128, 0.5),
    },
    "docs/autoencoder.md": {"images": lambda: normal(1, 1, 16, 16, 3), "noise": lambda: 0.0},
}


def _samples():
    from genfield import sampling

    return sampling.sample(
        jax.random.key(0), field, normal(1, 8, 2), sampling.euler(), num_steps=4, trace=1
    )


def names(page: str) -> dict:
    """Stand-ins by name: functions that make them."""
    return NAMES | OF_PAGES.get(page, {})


def _moons(place: Path, factory) -> None:
    shutil.copytree(trained(factory, MOONS, train__steps=2), place)


def _digits(place: Path, factory) -> None:
    shutil.copytree(trained(factory, TINY_DIGITS, small={"train.steps": 2}), place)


def _weights(place: Path, factory) -> None:
    shutil.copy(GOLDEN / "published" / "sit.pt", place)


def _shard(place: Path, factory) -> None:
    np.save(place, np.zeros((32, 2, 2, 4, 4, 4), np.float32))


def _autoencoder(place: Path, factory) -> None:
    write(place, state("published"), facts("published"))


FILES = {
    "runs/two_moons": _moons,
    "runs/digits": _digits,
    "EqM-XL-2.pt": _weights,
    "imagenet256/shards/00000.npy": _shard,
    "sd-vae-ft-ema.safetensors": _autoencoder,
}


def lay(text: str, folder: Path, factory) -> None:
    """Puts what the code names into a folder."""
    for name, make in FILES.items():
        if f'"{name}"' in text:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            make(folder / name, factory)
