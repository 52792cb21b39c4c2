"""Process groups: torch.distributed, started once, with megatron-core's `parallel_state` as the one truth."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from megatron.core import parallel_state

JUST_IN_TIME_OPS = ("deepspeed_shm_comm",)
"""DeepSpeed would compile these at every start on a CPU, for a minute or two; gloo does their work."""


class Mpu:
    """What DeepSpeed asks of an `mpu`, answered by `parallel_state` (which lacks two of the names)."""

    get_model_parallel_world_size = staticmethod(
        parallel_state.get_tensor_model_parallel_world_size
    )
    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_group = staticmethod(parallel_state.get_model_parallel_group)
    get_tensor_model_parallel_world_size = staticmethod(
        parallel_state.get_tensor_model_parallel_world_size
    )
    get_tensor_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_tensor_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)


def device() -> torch.device:
    """This process's device."""
    return torch.device(get_accelerator().current_device_name())


def initialize(
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    before_division: Callable[[], None] = lambda: None,
    timeout_s: float = 600.0,
) -> torch.device:
    """Join the job's process groups and return this process's device; all ranks take part.

    `before_division` is called when all ranks can be reached, before anything depends on how they are divided.
    `timeout_s` is the longest a collective waits for a rank.

    Under plain `python` the job is one process. The launcher's environment (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`,
    `MASTER_ADDR`, `MASTER_PORT`) is that of torchrun, DeepSpeed and Slurm's wrappers alike.
    """
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=_free_port(),
        )
    accelerator = get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    if not on_cpu:
        accelerator.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        share_cores()
    for op in JUST_IN_TIME_OPS:
        deepspeed.ops.__compatible_ops__[op] = False
    timeout = timedelta(seconds=timeout_s)
    backend = "gloo" if on_cpu else accelerator.communication_backend_name()
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        _meet_again(backend, timeout)
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timeout
    )
    if not parallel_state.model_parallel_is_initialized():
        before_division()
        parallel_state.initialize_model_parallel(
            tensor_parallel_size, pipeline_parallel_size, distributed_timeout_minutes=timeout_s / 60
        )
    return device()


def _meet_again(backend: str, timeout: timedelta) -> None:
    """Join the group after torchrun has started its ranks again: apart from what the ranks before have left in the
    store, which torchrun keeps, and in which gloo would find their addresses."""
    store, rank, ranks = next(iter(dist.rendezvous("env://", timeout=timeout)))
    fresh = dist.PrefixStore(f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=ranks, timeout=timeout)


def topology() -> PipeModelDataParallelTopology:
    """DeepSpeed's picture of the ranks for pipelines; it must be megatron-core's, which is checked."""
    pipeline, data, tensor = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_data_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    ranks = PipeModelDataParallelTopology(num_pp=pipeline, num_mp=tensor, num_dp=data)
    theirs = ranks.get_coord(dist.get_rank())
    ours = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    assert (theirs.pipe, theirs.data, theirs.model) == ours, (
        f"rank order: DeepSpeed has {theirs}, megatron-core {ours}"
    )
    return ranks


def share_cores() -> None:
    """Give the processes of this node equal numbers of threads, unless OMP_NUM_THREADS decides."""
    if "OMP_NUM_THREADS" not in os.environ:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


def shutdown() -> None:
    """Leave the process groups."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
