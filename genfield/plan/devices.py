"""Devices to compile for, where none of them is there."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from genfield.errors import UserError
from genfield.machine.chips import CHIPS, CPU, Chip, Machine

# An H100 SXM as XLA's compiler is told of it. Others differ in these fields.
GPU = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores}
  fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: 0 feature_extension: {extension} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "NVIDIA {name}"
"""
HOPPER = dict(shared=233472, optin=232448, cores=132, fpus=128, clock=1.98, cache=52428800, major=9)
HOPPER |= dict(extension="ACCELERATED_FEATURES")
AMPERE = dict(shared=167936, optin=166912, cores=108, fpus=64, clock=1.41, cache=41943040, major=8)
AMPERE |= dict(extension="NONE")
BLACKWELL = HOPPER | dict(cores=148, cache=132644864, major=10)
GPUS = {"a100": AMPERE, "h100": HOPPER, "h200": HOPPER, "b200": BLACKWELL}


def of(machine: Machine) -> list:
    """The machine's devices.

    Raises:
      UserError: what compiles for them is not installed, or knows no such machine.
    """
    if machine.kind == CPU:
        found = jax.devices("cpu")
        if len(found) < machine.count:
            raise UserError(f"JAX was started with {len(found)} CPU devices: start a new process")
        return found[: machine.count]
    platform = CHIPS[machine.kind].platform
    extra = {"tpu": "plan-tpu", "gpu": "plan-gpu"}[platform]
    try:
        found = _described(machine, platform)
        if len(found) != machine.count:
            raise ValueError(f"it has {len(found)} devices, not {machine.count}")
        return found
    except Exception as error:  # of whatever kind the compiler's library raises
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot compile for --topology={machine.name} ({line}): pip install "
            f"'genfield[{extra}]' brings the compiler, and cpu:N needs none"
        ) from error


def _described(machine: Machine, platform: str) -> list:
    if platform == "tpu":
        sides = "x".join(map(str, machine.sides))
        name = f"{machine.kind}:{sides}"
        more: dict = {"num_slices": machine.slices} if machine.slices > 1 else {}
        if machine.kind == "v4":  # its two cores are one device, as on v5p
            more["chip_config_name"] = "megacore"
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
        return list(found.devices)
    nodes = machine.sides[0] if len(machine.sides) == 2 else 1
    chip = CHIPS[machine.kind]
    about = {"bandwidth": int(chip.bandwidth), "memory": int(chip.memory), "name": machine.kind}
    found = topologies.get_topology_desc(
        platform="cuda",
        topology_name=machine.kind,
        topology=f"1x{nodes}x{machine.sides[-1]}",
        target_config=GPU.format(**GPUS[machine.kind], **about),
    )
    return list(found.devices)


def chip_of(machine: Machine) -> Chip:
    """The figures of its chips; a CPU's are measured here, and shared among its fake devices."""
    if machine.kind in CHIPS:
        return CHIPS[machine.kind]
    n = machine.count
    flops, bandwidth = _multiplied() / n, _copied() / n
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / n
    peak = {"bfloat16": flops, "float32": flops}
    return Chip(peak, memory, bandwidth, bandwidth / 2, bandwidth / 2, "cpu")


def _best(function, *arguments, rounds: int = 5) -> float:
    """Seconds of the fastest of some calls."""
    jax.block_until_ready(function(*arguments))
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        spent.append(time.perf_counter() - begun)
    return min(spent)


def _multiplied(side: int = 1536) -> float:
    """FLOP/s of a matrix product."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(side, side)), jnp.float32)
    return 2 * side**3 / _best(jax.jit(lambda a: a @ a), a)


def _copied(count: int = 2**20, times: int = 64) -> float:
    """Bytes/s read and written by passes over an array of the size of an activation.

    Within one program: allocating anew for each call would measure page faults.
    """
    passes = jax.jit(lambda a: jax.lax.fori_loop(0, times, lambda i, a: a * 0.999 + 0.5, a))
    return 2 * 4 * count * times / _best(passes, jnp.zeros(count, jnp.float32))
