"""Peaks of accelerators by the names that drivers give them."""

from __future__ import annotations

import pytest
import torch

from janus_pt.planning.peaks import PEAKS, peak_flops, peak_tflops


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32", "tf32"),
    [
        ("NVIDIA GB200", 2500.0, 80.0, 1250.0),
        ("NVIDIA B200", 2250.0, 75.0, 1125.0),
        ("NVIDIA B300 SXM6 AC", 2250.0, 75.0, 1125.0),
        ("NVIDIA H200", 989.0, 67.0, 494.0),
        ("NVIDIA H100 PCIe", 756.0, 51.0, 378.0),
        ("NVIDIA H100 80GB HBM3", 989.0, 67.0, 494.0),
        ("NVIDIA H800", 989.0, 67.0, 494.0),
        ("NVIDIA H20", 148.0, 44.0, 74.0),
        ("NVIDIA A100-SXM4-80GB", 312.0, 19.5, 156.0),
        ("NVIDIA A800-SXM4-80GB", 312.0, 19.5, 156.0),
        ("NVIDIA A10", 125.0, 31.2, 62.5),
        ("NVIDIA A10G", 70.0, 31.5, 35.0),
        ("NVIDIA L40S", 362.0, 91.6, 183.0),
        ("NVIDIA L4", 121.0, 30.3, 60.0),
        ("AMD Instinct MI300X", 1307.0, 163.4, 653.7),
        ("Tesla V100-SXM2-32GB", None, 15.7, 15.7),
        ("NVIDIA RTX A4000", None, None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None, None),
    ],
)
def test_peak_of_known_accelerators(
    name: str, bfloat16: float | None, float32: float | None, tf32: float | None
) -> None:
    assert peak_tflops(name, torch.bfloat16) == bfloat16
    assert peak_tflops(name, torch.float32) == float32
    assert peak_tflops(name, torch.float32, tf32=True) == tf32


def test_a_processor_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu"), torch.float32) is None


def test_no_name_in_the_table_hides_a_longer_one() -> None:
    names = list(PEAKS)
    assert not [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a in b.split()]
