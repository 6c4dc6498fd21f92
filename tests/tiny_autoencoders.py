"""The tiny autoencoders of tests/golden/make_autoencoder.py, and files of them."""

import functools
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from genfield.features import autoencoder_kl, weights

GOLDEN = Path(__file__).parent / "golden" / "autoencoder.npz"
CASES = ("published", "sixteen", "plain")


@functools.cache
def stored() -> tuple[dict, dict]:
    """The configs by case, and the arrays."""
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("configs"))), arrays


def facts(case: str) -> dict:
    """What a config.json says of a case."""
    found = dict(stored()[0][case])
    return {k: v for k, v in found.items() if k not in ("names", "compvis", "shapes")}


def sizes(case: str) -> autoencoder_kl.Config:
    """The sizes of a case."""
    known = {k: v for k, v in facts(case).items() if k in autoencoder_kl.Config._fields}
    return autoencoder_kl.Config(
        **(known | {"block_out_channels": tuple(known["block_out_channels"])})
    )


def state(case: str) -> dict[str, np.ndarray]:
    """The state dict of a case, under diffusers' names."""
    config, flat = stored()[0][case], stored()[1][f"{case}:parameters"].astype(np.float32)
    ends = np.cumsum([int(np.prod(shape)) for shape in config["shapes"]])
    parts = np.split(flat, ends[:-1])
    return {
        name: part.reshape(shape)
        for name, part, shape in zip(config["names"], parts, config["shapes"], strict=True)
    }


def params(case: str) -> dict:
    """The parameters of a case, as the functions take them."""
    return weights.nested(state(case))


def made(case: str) -> dict[str, np.ndarray]:
    """What diffusers made of it: x, mean, std, decoded (of the mean), channels last."""
    return {k: stored()[1][f"{case}:{k}"] for k in ("x", "mean", "std", "decoded")}


def write(path: Path, tensors: dict[str, np.ndarray], config: dict | None = None) -> Path:
    """A .safetensors file, and config.json beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    if config is not None:
        path.with_name("config.json").write_text(json.dumps(config))
    return path
