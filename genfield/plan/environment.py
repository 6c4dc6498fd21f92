"""What must be in the environment before JAX is imported, for a plan of a machine."""

import os

from genfield.machine import xla
from genfield.machine.chips import CHIPS, CPU, Machine


def of(machine: Machine) -> dict[str, str]:
    """The variables, beside those that are set."""
    out = {"JAX_PLATFORMS": "cpu"}  # nothing runs on the devices that are planned for
    if machine.kind == CPU:
        fakes = f"--xla_force_host_platform_device_count={machine.count}"
        flags = [os.environ.get("XLA_FLAGS", ""), *xla.added("cpu"), fakes]
        return out | {"XLA_FLAGS": " ".join(flags).strip()}
    if CHIPS[machine.kind].platform == "tpu":
        # Several processes may compile at once, and no metadata server is asked for a TPU.
        out |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        out |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}
        return out | {"TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    # No GPU is there to try kernels on, and without that Triton's find no tile sizes.
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_gpu_enable_triton_gemm=false"]
    return out | {"XLA_FLAGS": " ".join([*flags, *xla.added("gpu")]).strip()}
