"""The flags of XLA that a run sets, by platform: all of them, and here alone.

On accelerators they decide when work is done and when chips exchange data, never what is computed;
the one for CPUs changes what rounding does. What the user has in XLA_FLAGS or LIBTPU_INIT_ARGS
stands: a flag that is named there is left alone.
"""

import importlib.metadata
import importlib.util
import os
import platform as host
from pathlib import Path
from typing import NamedTuple


class Flag(NamedTuple):
    """A flag with its value, why it is set, and who says so."""

    flag: str
    why: str
    source: str


# XLA ends a process that names a flag it does not know, and an experimental one may go.
MEASURED = importlib.metadata.version("jaxlib").startswith("0.10.")

FLAGS: dict[str, tuple[Flag, ...]] = {
    "gpu": (
        Flag(
            "--xla_gpu_enable_pipelined_all_gather=true",
            "with fsdp, the next layer's weights are gathered while one computes. In a step of "
            "SiT-S/2 of two layers at batch 256, compiled for h100:8, gathers have 5 to 20 kernels "
            "beside them and not 1 to 9; they send as much; temporaries grow from 301 to 351 MB",
            "NVIDIA/JAX-Toolbox, rosetta/docs/GPU_performance.md",
        ),
    ),
    # Looked at and left as they are, as XLA of jax 0.10 compiles the very same program either way
    # (SiT-S/2 with fsdp, on v5e:4x4, two slices of v5e:2x2, and h100:8):
    # xla_gpu_enable_latency_hiding_scheduler, xla_gpu_enable_pipelined_reduce_scatter;
    # xla_tpu_enable_async_collective_fusion with its fuse_all_gather and multiple_steps,
    # xla_tpu_overlap_compute_collective_tc, xla_enable_async_all_gather,
    # xla_tpu_enable_data_parallel_all_reduce_opt, xla_tpu_data_parallel_opt_different_sized_ops.
    # Other kernels, sizes of collectives or generators of random numbers would change results.
    "tpu": (),
    "cpu": (
        Flag(
            "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE",
            "convolutions and products by Eigen, and only sums by YNNPACK, which XLA of jax 0.10 "
            "takes for all three: of a 3x3 convolution of 128 channels, 32x32 pixels, batch 8, the "
            "gradient of the weights takes 21 ms and not 33, forward 14 and not 18",
            "measured, see docs/performance.md",
        ),
    )
    if host.machine() in ("x86_64", "AMD64") and MEASURED
    else (),
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


def added(name: str) -> list[str]:
    """The flags of a platform that the environment does not name yet."""
    named = {flag.partition("=")[0] for value in told().values() for flag in value.split()}
    return [one.flag for one in FLAGS.get(name, ()) if one.flag.partition("=")[0] not in named]


def apply() -> None:
    """Adds the platform's flags to the environment; before JAX starts its backend."""
    name = platform()
    if flags := added(name):
        variable = VARIABLES[name]
        os.environ[variable] = " ".join([os.environ.get(variable, ""), *flags]).strip()


def told() -> dict[str, str]:
    """The variables with flags, as they are set: what summary.json has."""
    names = sorted(set(VARIABLES.values()))
    return {name: os.environ[name] for name in names if os.environ.get(name)}
