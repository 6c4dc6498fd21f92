"""Peak figures of chips, and the machines that are made of them.

Sources: for v4, v5e, v5p and v6e Google's pages, docs.cloud.google.com/tpu/docs/v4 … v6e (peak
compute, memory and its bandwidth, inter-chip bandwidth of v5e to v6e, data-centre network of a pod
over its chips; v5e's and v6e's memory bandwidth to three digits, 800 and 1600 GB/s there). v4's
links are six of 50 GB/s one way, as NVIDIA's are halves of what its data sheets add up over both
ways: A100 80GB SXM 600, H100 and H200 SXM 900, HGX B200 1800 GB/s. Their peaks are dense, with TF32
for float32. What programs may use of a v5e's memory is what XLA's compiler for it says. Not
published, so our guesses: that share of the others' memory, v4's network (the lowest of the others
stands), and the network between GPU nodes, which is the buyer's: one 400 Gbit/s adapter a GPU, 200
for the A100.
"""

import math
import re
from typing import NamedTuple

from genfield.errors import UserError
from genfield.registry import choose

GIB = 2**30


class Chip(NamedTuple):
    """One chip.

    Attributes:
      flops: peak FLOP/s by the dtype of what is multiplied, at JAX's default precision.
      memory: bytes that a program may use. bandwidth: of that memory, bytes/s.
      links: bytes/s one way to the other chips of a slice or node, all links together.
      network: bytes/s one way to other slices or nodes.
      platform: as JAX names it. node: chips of a GPU node.
      axes: of a TPU's torus. wraps: the length from which an axis of a slice is a ring.
    """

    flops: dict[str, float]
    memory: float
    bandwidth: float
    links: float
    network: float
    platform: str
    node: int = 0
    axes: int = 0
    wraps: int = 0


def _tpu(peak, memory, bandwidth, links, network, axes, wraps) -> Chip:
    flops = {"bfloat16": peak, "float32": peak}  # float32 is multiplied in a pass of bfloat16
    return Chip(flops, memory * GIB, bandwidth, links, network, "tpu", axes=axes, wraps=wraps)


def _gpu(peak, memory, bandwidth, links, network) -> Chip:
    flops = {"bfloat16": peak, "float32": peak / 2}
    return Chip(flops, memory * GIB, bandwidth, links, network, "gpu", node=8)


CHIPS = {
    "v4": _tpu(275e12, 30.75, 1200e9, 300e9, 3.125e9, axes=3, wraps=4),
    "v5e": _tpu(197e12, 15.75, 819e9, 200e9, 3.125e9, axes=2, wraps=16),
    "v5p": _tpu(459e12, 95.74, 2765e9, 600e9, 6.25e9, axes=3, wraps=4),
    "v6e": _tpu(918e12, 31.25, 1638e9, 400e9, 12.5e9, axes=2, wraps=16),
    "a100": _gpu(312e12, 79.2, 2039e9, 300e9, 25e9),
    "h100": _gpu(989.4e12, 79.1, 3352e9, 450e9, 50e9),
    "h200": _gpu(989.4e12, 139.8, 4800e9, 450e9, 50e9),
    "b200": _gpu(2250e12, 178.0, 8000e9, 900e9, 50e9),
}
CPU = "cpu"  # measured on the spot
# What JAX calls their devices. Boards with another peak (H100 PCIe and NVL, H200 NVL, GH200, parts
# of a GPU) are none of them.
DEVICES = {
    r"TPU v4": "v4",
    r"TPU v5( lite|e)": "v5e",
    r"TPU v5p?": "v5p",
    r"TPU v6( lite|e)": "v6e",
    r"NVIDIA A100(-SXM4-\d+GB|-PCIE-\d+GB| 80GB PCIe)": "a100",
    r"NVIDIA H100 80GB HBM3": "h100",
    r"NVIDIA H200": "h200",
    r"NVIDIA B200": "b200",
}


def at_peak(counted: dict[str, float], peak: dict[str, float]) -> float:
    """Seconds of FLOPs at the peak, both by dtype; one without a peak goes by float32's."""
    return sum(count / peak.get(dtype, peak["float32"]) for dtype, count in counted.items())


def of_device(kind: str) -> str | None:
    """The name in CHIPS of what JAX calls a device; None where its figures are not known."""
    return next((name for known, name in DEVICES.items() if re.fullmatch(known, kind)), None)


class Machine(NamedTuple):
    """So many chips of a kind: `sides` of a slice or (nodes, GPUs), of `slices` slices."""

    name: str
    kind: str
    sides: tuple[int, ...]
    slices: int

    @property
    def count(self) -> int:
        """Chips in all."""
        return math.prod(self.sides) * self.slices

    @property
    def domain(self) -> int:
        """Chips that are joined by fast links."""
        node = CHIPS[self.kind].node if self.kind in CHIPS else 0
        return min(self.sides[-1], node) if node else math.prod(self.sides)

    def link_rate(self, chip: Chip) -> float:
        """Bytes/s one way that a chip gets of its fast links, as the shape of the slice has them.

        An axis of length 1 has no links; one that is no ring is as fast as half of one that is.
        """
        if not chip.axes:
            return chip.links
        share = [(n > 1) * (1.0 if n >= chip.wraps else 0.5) for n in self.sides]
        return chip.links * max(sum(share), 0.5) / chip.axes


def parse(topology: str, slices: int = 1) -> Machine:
    """v5e:4x4, v5p:2x2x1, h100:8, h100:8x8 (nodes x GPUs), cpu:8.

    Raises:
      UserError: an unknown chip, or sides that are none.
    """
    kind, _, shape = topology.partition(":")
    choose("chip", kind, {**CHIPS, CPU: None})
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError(f"--topology={topology}: write it as v5e:4x4, v5p:2x2x1, h100:8 or cpu:8")
    sides, axes = tuple(map(int, shape.split("x"))), CHIPS[kind].axes if kind in CHIPS else 0
    if axes and len(sides) != axes:
        example = "x".join(["2"] * axes)
        raise UserError(
            f"--topology={topology}: a slice of {kind} has {axes} sides: {kind}:{example}"
        )
    if not axes and len(sides) > (1 if kind == CPU else 2):
        raise UserError(f"--topology={topology}: write it as {kind}:8, or h100:8x8 (nodes x GPUs)")
    if slices < 1 or (slices > 1 and not axes):
        raise UserError("--slices is how many slices of TPUs there are; nodes of GPUs are h100:2x8")
    return Machine(topology, kind, sides, slices)
