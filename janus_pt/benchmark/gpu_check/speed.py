"""The step of a real configuration on all GPUs of the node: how fast, how full, and its trace."""

from __future__ import annotations

import gzip
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from janus_pt.benchmark import train
from janus_pt.benchmark.case import config_case
from janus_pt.benchmark.gpu_check.engine import device_computes, random_batch, start
from janus_pt.benchmark.gpu_check.result import NOT_COMPARABLE, PASSED, Result
from janus_pt.benchmark.timing import now
from janus_pt.checks import read_config
from janus_pt.config.schema import Config
from janus_pt.launch import world_size
from janus_pt.parallel import groups
from janus_pt.parallel.engine import Engine
from janus_pt.planning.flops import flops_per_step
from janus_pt.planning.peaks import peak_flops
from janus_pt.planning.plan import sample_length
from janus_pt.train.counts import Sizes, workload
from janus_pt.train.report.phases import Phases
from janus_pt.train.report.ranks import compare_ranks
from janus_pt.train.step import StepResult, train_step

WARM_UP, TIMED, REPEATS = 3, 8, 8
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
COPIES = ("cudaMemcpyAsync", "cudaMemsetAsync", "cudaGraphLaunch")
"""What a trace calls the host's calls that give the device work."""


def training_speed(config: str, trace: str) -> Result:
    """Train on random samples of the longest length, one micro-batch a rank, data parallelism alone.

    Args:
        config: a configuration's name or file.
        trace: file for the first rank's trace of one step, gzipped.
    """
    ranks = world_size()
    size = read_config(config).data.micro_batch_size
    read = read_config(config, [f"data.global_batch_size={size * ranks}"], ranks)
    engine = start(read)
    phases = Phases(engine.device)
    _train(engine, read, phases, range(1, WARM_UP + 1))
    phases.drop()
    timed = range(WARM_UP + 1, WARM_UP + TIMED + 1)
    seconds, result = _train(engine, read, phases, timed)
    times = phases.take()
    numbers: dict[str, Any] = {
        "ranks": ranks,
        "micro_batch_size": read.data.micro_batch_size,
        "micro_batches": engine.gradient_accumulation_steps(),
        **_speeds(read, engine, result.counts.sizes(), statistics.median(seconds)),
        **times.metrics(),
        **compare_ranks(times, engine.device),
        **_trace_step(engine, read, phases, Path(trace)),
    }
    if not device_computes():
        return Result(NOT_COMPARABLE, "trained and traced; the device computes nothing", numbers)
    return Result(PASSED, f"{numbers['tokens_per_s']:,.0f} tokens/s", numbers)


def benchmark_train(config: str) -> Result:
    """`janus-pt benchmark train`: forward and backward beside a plain model's, and the parts of a step."""
    device = groups.initialize()
    numbers = train.measure(config_case(config, None), device, REPEATS, torch.get_num_threads())
    if not device_computes():
        return Result(NOT_COMPARABLE, "measured; the device computes nothing", numbers)
    message = (
        f"{numbers['tokens_per_s']:,.0f} tokens/s, {numbers['ratio']:.2f} of a plain step's time"
    )
    return Result(PASSED, message, numbers)


def _train(
    engine: Engine, config: Config, phases: Phases, steps: range
) -> tuple[list[float], StepResult]:
    """Seconds of each step, the device's work included, and the last step's numbers."""
    length = sample_length(config.data, config.model.longest_sample)
    # One batch again and again: what it takes to make them is another question.
    batches = [random_batch(config, length, dist.get_rank())] * engine.gradient_accumulation_steps()
    seconds = []
    for step in steps:
        started = now(engine.device)
        result = train_step(engine, batches, step, config.run.seed, phases)
        seconds.append(now(engine.device) - started)
    return seconds, result


def _speeds(config: Config, engine: Engine, sizes: Sizes, seconds: float) -> dict[str, float]:
    flops = flops_per_step(config.model, workload(sizes, config.objective.draws))
    numbers = {
        "step_s": seconds,
        "tokens_per_s": sizes.target_tokens / seconds,
        "flops": flops,
    }
    tf32 = config.precision.float32_matmul == "tf32"
    peak = peak_flops(engine.device, getattr(torch, config.precision.dtype), tf32)
    if peak is not None:
        numbers["mfu"] = flops / seconds / peak / dist.get_world_size()
    return numbers


def _trace_step(engine: Engine, config: Config, phases: Phases, path: Path) -> dict[str, Any]:
    """Trace a step on the first rank, and count what it gives the device to do; all ranks take part."""
    activities = [ProfilerActivity.CPU]
    if engine.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    first = 1 + WARM_UP + TIMED
    with profile(activities=activities) as recorded:
        _train(engine, config, phases, range(first, first + 1))
    if dist.get_rank() > 0:
        return {}
    recorded.export_chrome_trace(str(path))
    names = [
        event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    ]
    return {
        "trace": path.name,
        "launches": sum(name in LAUNCHES for name in names),
        "copies_and_graphs": sum(name in COPIES for name in names),
    }
