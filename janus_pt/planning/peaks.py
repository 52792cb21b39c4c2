"""What accelerators can do at best, by the makers' data sheets."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """Dense matrix products in TFLOP/s, without sparsity; None: the device lacks that arithmetic."""

    bfloat16: float | None
    float32: float
    tf32: float | None


PEAKS = {
    # A word of the device's name, or two in their order; the longer name comes first.
    "GB300": Peak(2500.0, 80.0, 1250.0),
    "GB200": Peak(2500.0, 80.0, 1250.0),
    "B300": Peak(2250.0, 75.0, 1125.0),
    "B200": Peak(2250.0, 75.0, 1125.0),
    "GH200": Peak(989.0, 67.0, 494.0),
    "H200 NVL": Peak(835.0, 60.0, 417.0),
    "H200": Peak(989.0, 67.0, 494.0),
    "H100 PCIe": Peak(756.0, 51.0, 378.0),
    "H100 NVL": Peak(835.0, 60.0, 417.0),
    "H100": Peak(989.0, 67.0, 494.0),
    "H800 PCIe": Peak(756.0, 51.0, 378.0),
    "H800": Peak(989.0, 67.0, 494.0),
    "H20": Peak(148.0, 44.0, 74.0),
    "A100": Peak(312.0, 19.5, 156.0),
    "A800": Peak(312.0, 19.5, 156.0),
    "A40": Peak(149.7, 37.4, 74.8),
    "A30": Peak(165.0, 10.3, 82.0),
    "A10G": Peak(70.0, 31.5, 35.0),
    "A10": Peak(125.0, 31.2, 62.5),
    # It computes bfloat16 in float32; its tensor cores are for float16, which training does not use.
    "V100": Peak(None, 15.7, None),
    "L40S": Peak(362.0, 91.6, 183.0),
    "L40": Peak(181.0, 90.5, 90.5),
    "L4": Peak(121.0, 30.3, 60.0),
    "RTX A6000": Peak(154.8, 38.7, 77.4),
    "RTX 4090": Peak(165.0, 82.6, 82.6),
    "MI325X": Peak(1307.0, 163.4, 653.7),
    "MI300X": Peak(1307.0, 163.4, 653.7),
    # Half of what the card does: each of its two dies is a device.
    "MI250X": Peak(191.5, 47.9, None),
}


def peak_flops(device: torch.device, dtype: torch.dtype, tf32: bool = False) -> float | None:
    """Operations per second of the device at best, by the table; None if that does not have it.

    Args:
        tf32: products of float32 are computed in TF32.

    Nothing is measured in its place: a share of a peak that was itself measured, on a device that may
    have been busy, has come out above 100 %.
    """
    if device.type != "cuda":
        return None
    tflops = peak_tflops(torch.cuda.get_device_name(device), dtype, tf32)
    return None if tflops is None else 1e12 * tflops


def peak_tflops(device_name: str, dtype: torch.dtype, tf32: bool = False) -> float | None:
    """As `peak_flops`, in TFLOP/s, by the name that the driver gives the device."""
    # A laptop's chip has the name of a desktop's, and less of everything.
    if "Laptop" in device_name:
        return None
    for name, peak in PEAKS.items():
        if re.search(rf"\b{name}\b", device_name):
            if dtype == torch.bfloat16:
                return peak.bfloat16
            # Where there is no TF32, the switch has no effect.
            return (peak.tf32 if tf32 else None) or peak.float32
    return None
