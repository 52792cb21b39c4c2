"""What all ranks bring to a report: which one is the slowest, and how much memory the fullest has."""

from __future__ import annotations

import torch
import torch.distributed as dist

from janus_pt.train.report.phases import StepTimes

GIB = 2**30


def compare_ranks(times: StepTimes, device: torch.device) -> dict[str, float]:
    """The slowest rank, and on GPUs the peaks of memory; all ranks take part. Waits for the device.

    The slowest is the one that works the longest before it needs the others: in the exchange it is
    the one that all wait for, so there all take the same time.
    """
    own = [times.data + times.before_exchange, *_peak_memory(device)]
    table = torch.zeros(dist.get_world_size(), len(own), dtype=torch.float64)
    table[dist.get_rank()] = torch.tensor(own, dtype=torch.float64)
    table = table.to(device)
    dist.all_reduce(table)
    work, *memory = table.cpu().unbind(1)
    metrics: dict[str, float] = {}
    if len(work) > 1:
        metrics["slowest_rank"] = int(work.argmax())
        # 1: all take the same time.
        metrics["slowest_rank_ratio"] = float(work.max() / work.mean().clamp(min=1e-12))
    for name, values in zip(("allocated", "reserved"), memory, strict=False):
        metrics[f"memory/{name}_gib"] = float(values.max()) / GIB
    return metrics


def _peak_memory(device: torch.device) -> tuple[float, ...]:
    """Bytes that tensors have taken at most, and that torch's allocator has; nothing on a CPU."""
    if device.type != "cuda":
        return ()
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
