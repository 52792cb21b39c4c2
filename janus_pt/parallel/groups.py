"""Process groups: torch.distributed, started once and divided by megatron-core's `parallel_state`."""

from __future__ import annotations

import math
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

from janus_pt.config.parallel_schema import PrecisionConfig
from janus_pt.utils.processes import allow_open_files

JUST_IN_TIME_OPS = ("deepspeed_shm_comm",)
"""DeepSpeed would compile these at the start on a CPU, in a minute or two. gloo does their work."""


NCCL_MARGIN_S = 60
"""Seconds by which NCCL's time limits are later than the heartbeat's."""


class Mpu:
    """DeepSpeed's interface `mpu`, answered by `parallel_state`, which lacks two of the names.

    It has none of the names about sequence parallelism: DeepSpeed would turn that on.
    """

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

    Under plain `python` the job is one process. Otherwise the launcher sets `RANK`, `WORLD_SIZE`,
    `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`: torchrun, DeepSpeed and Slurm's wrappers all do.

    Args:
        before_division: called when all ranks can reach each other, before the groups are made.
        timeout_s: the longest a collective waits for a rank. On NCCL, which then aborts the process,
            it is `NCCL_MARGIN_S` more: by then the heartbeat has ended the job and named the rank.
    """
    if "RANK" not in os.environ:
        _be_the_only_process()
    on_cpu = get_accelerator().device_name() == "cpu"
    if on_cpu:
        share_cores()
    else:
        # Before any tensor is made: else all processes of a node allocate on its first device.
        get_accelerator().set_device(int(os.environ.get("LOCAL_RANK", "0")))
    for op in JUST_IN_TIME_OPS:
        deepspeed.ops.__compatible_ops__[op] = False
    backend = "gloo" if on_cpu else get_accelerator().communication_backend_name()
    if backend == "nccl":
        timeout_s += NCCL_MARGIN_S
        set_nccl_timeouts(timeout_s)
    timeout = timedelta(seconds=timeout_s)
    # The first rank has three connections to every other one.
    allow_open_files()
    _join(backend, timeout)
    # It takes over the group that is there. Without MPI it need not look for MPI's variables.
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timeout
    )
    if not parallel_state.model_parallel_is_initialized():
        # Ranks that were started with other sizes would make other groups, and hang in the first
        # of them: so they are compared first.
        before_division()
        parallel_state.initialize_model_parallel(
            tensor_parallel_size,
            pipeline_parallel_size,
            distributed_timeout_minutes=timeout_s / 60,
            # Groups on the host that nobody uses; each connects every two of its ranks.
            create_gloo_process_groups=False,
        )
    return device()


def set_float32_products(precision: PrecisionConfig) -> None:
    """Say how GPUs multiply matrices of float32."""
    # Not `set_float32_matmul_precision`, which changes products on a CPU as well.
    torch.backends.cuda.matmul.allow_tf32 = precision.float32_matmul == "tf32"


def _be_the_only_process() -> None:
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port()
    )


def _join(backend: str, timeout: timedelta) -> None:
    """Join the group of all ranks.

    DeepSpeed's own way binds the group to the device. Then NCCL splits each later group off this
    one, on every rank, members or not: thousands of collectives at the start of a large job.
    """
    if dist.is_initialized():
        return
    store, rank, ranks = next(iter(dist.rendezvous("env://", timeout=timeout)))
    # When torchrun starts its ranks again it keeps the store, and in it the addresses of the ranks
    # that have ended, to which gloo would connect. Another prefix leaves them behind.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    fresh = dist.PrefixStore(f"start_{start}", store)
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=ranks, timeout=timeout)


def set_nccl_timeouts(collective_s: float) -> None:
    """Say how NCCL's own watchdog, a thread of torch, ends a process: later than the heartbeat does.

    The watchdog aborts the process, with exit code 134 and a C++ trace, and names no rank. It stays on
    as the last resort. Variables that are set already stay as they are.

    Args:
        collective_s: the longest a collective takes.
    """
    settings = {
        # An error or a collective that takes too long ends the process.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        # The other ranks' errors are looked for while it waits so long to write its trace: the heartbeat
        # needs a third of it.
        "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": str(1000 * NCCL_MARGIN_S),
        # The watchdog itself hangs, in the driver: after the collectives' own time.
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(math.ceil(collective_s + NCCL_MARGIN_S)),
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def topology() -> PipeModelDataParallelTopology:
    """DeepSpeed's map of the ranks, for pipelines."""
    ranks = PipeModelDataParallelTopology(
        num_pp=parallel_state.get_pipeline_model_parallel_world_size(),
        num_mp=parallel_state.get_tensor_model_parallel_world_size(),
        num_dp=parallel_state.get_data_parallel_world_size(),
    )
    theirs = ranks.get_coord(dist.get_rank())
    ours = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    # Both libraries number the ranks by a convention of their own. If these ever part, gradients
    # would be reduced over the wrong ranks without an error.
    assert (theirs.pipe, theirs.data, theirs.model) == ours, (
        f"rank order: DeepSpeed has {theirs}, megatron-core {ours}"
    )
    return ranks


def share_cores() -> None:
    """Give the processes of this node equal numbers of threads, unless OMP_NUM_THREADS decides."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    # The cores that this process may use, which in a container or a Slurm job are not all.
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // processes))


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
