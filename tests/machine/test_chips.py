"""Chips: what JAX calls them, and how long they take at their peak."""

import pytest

from genfield.machine import chips

KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    # Of other peaks, or unknown.
    "NVIDIA H100 PCIe": None,
    "NVIDIA H100 NVL": None,
    "NVIDIA GH200 480GB": None,
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None,
    "TPU v4 lite": None,
    "TPU v3": None,
    "cpu": None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_is_known_by_its_whole_name(kind):
    assert chips.of_device(kind) == KINDS[kind]


def test_seconds_at_the_peak_go_by_dtype():
    h100 = chips.CHIPS["h100"]
    peak = h100.flops["bfloat16"]
    spent = lambda **counted: chips.at_peak(counted, h100.flops)
    assert spent(bfloat16=peak, float32=peak) == pytest.approx(3)
    assert spent(float64=peak) == spent(float32=peak)
