"""Copies from the host to the device for which the host does not wait."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`.

    CUDA copies from page-locked memory by itself. From any other memory the host has to help, and
    waits until all work queued before the copy is done.
    """
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)
