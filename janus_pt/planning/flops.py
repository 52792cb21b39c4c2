"""Floating-point operations of a training step by formula, and what a device can do at best."""

from __future__ import annotations

import time

import torch

from janus_pt.config.schema import ModelConfig
from janus_pt.model.cost import Workload
from janus_pt.parallel.stages import layer_costs

CONTENT_READ = 1 / 3
"""Share of its sample's content slots that a slot reads on average.

A slot reads half of the AR content slots or all NAR ones.
"""

PEAK_TFLOPS = {
    # accelerator: (bfloat16, float32) of dense matrix products, from the makers' data sheets; a name comes before
    # those it contains. V100: float16.
    "B200": (2250.0, 75.0),
    "GH200": (989.0, 67.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "A10G": (70.0, 31.5),
    "A10": (125.0, 31.2),
    "V100": (125.0, 15.7),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "RTX 4090": (165.0, 82.6),
    "MI300X": (1307.0, 163.4),
}


def flops_per_step(model: ModelConfig, work: Workload) -> float:
    """Floating-point operations that one step needs, forward and backward.

    The layers' own multiply-adds, added up: query, output and feed-forward projections of every slot
    that is computed, keys and values of content slots and source tokens, scores and weighted sums of
    what is read, and the output projection. With d the hidden and f the ffn size, for a plain model:

        encoder layer   source_tokens · (4d² + 2df + 2d · source_length)
        decoder layer   slots · (4d² + 2df + 2d · content_length + 2d · source_length)
                        + (content_slots + source_tokens) · 2d²       in the last layer only of slots that predict

    Embeddings, norms, softmax, the length head and what activation checkpointing recomputes are not
    counted, as is usual for MFU (Chowdhery et al. 2022, appendix B), nor is the first pass of CMLMC,
    which has no gradient.
    """
    multiply_adds = sum(cost.multiply_adds for cost in layer_costs(model, work))
    # A multiply-add is two operations. The backward pass multiplies twice: for the gradients of the
    # inputs and of the weights.
    return 2.0 * (1 + 2) * multiply_adds


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second the device could do at best: from a table of accelerators, else measured (< 0.3 s)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for known, (bfloat16, float32) in PEAK_TFLOPS.items():
        if known in name:
            return 1e12 * (float32 if dtype == torch.float32 else bfloat16)
    return _measured_flops(device, dtype)


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate over matrix products of growing size, up to one that takes long enough."""
    best = 0.0
    for size in (64, 256, 512, 1024, 2048, 4096, 8192):
        factor = torch.ones(size, size, device=device, dtype=dtype)
        # The first product of a size may include the time to load a kernel.
        seconds = min(_seconds_of_product(factor) for _ in range(2))
        best = max(best, 2 * size**3 / seconds)
        if seconds > 0.02:
            break
    return best


def _seconds_of_product(factor: torch.Tensor) -> float:
    started = time.perf_counter()
    # Reading a number waits for the device.
    (factor @ factor)[0, 0].item()
    return time.perf_counter() - started
