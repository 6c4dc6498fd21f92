"""The flags of XLA that a run sets, by platform: all of them, and here alone.

They decide when work is done and when chips exchange data, never what is computed. What the user
has in XLA_FLAGS or LIBTPU_INIT_ARGS stands: a flag that is named there is left alone.
"""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple


class Flag(NamedTuple):
    """A flag with its value, why it is set, and who says so."""

    flag: str
    why: str
    source: str


FLAGS: dict[str, tuple[Flag, ...]] = {
    "gpu": (
        Flag(
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "starts collectives as early as their inputs are there and awaits them late, so that "
            "they go on beside kernels: gathered weights and gradients of a mesh with fsdp",
            "docs.jax.dev/en/latest/gpu_performance_tips.html; NVIDIA sets it in its JAX images, "
            "docs.nvidia.com/jax-toolbox/environment-variables",
        ),
    ),
}
# Of TPUs the compiler reads its flags from a variable of its own; others would refuse them.
VARIABLES = {"gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS", "cpu": "XLA_FLAGS"}


def platform() -> str:
    """What JAX will run on, before it is imported: JAX_PLATFORMS, else what is here."""
    asked = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if asked:
        return {"cuda": "gpu", "rocm": "gpu"}.get(asked, asked)
    if Path("/dev/nvidiactl").exists() and importlib.util.find_spec("jax_plugins") is not None:
        return "gpu"
    tpus = (Path("/dev/accel0"), Path("/dev/vfio"))
    there = any(place.exists() for place in tpus)
    return "tpu" if there and importlib.util.find_spec("libtpu") is not None else "cpu"


def apply() -> None:
    """Adds the platform's flags to the environment; before JAX starts its backend."""
    name = platform()
    set_ = {flag.partition("=")[0] for value in told().values() for flag in value.split()}
    added = [f.flag for f in FLAGS.get(name, ()) if f.flag.partition("=")[0] not in set_]
    if added:
        variable = VARIABLES[name]
        os.environ[variable] = " ".join([os.environ.get(variable, ""), *added]).strip()


def told() -> dict[str, str]:
    """The variables with flags, as they are set: what summary.json has."""
    names = sorted(set(VARIABLES.values()))
    return {name: os.environ[name] for name in names if os.environ.get(name)}
