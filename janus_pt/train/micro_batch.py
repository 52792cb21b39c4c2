"""`data.micro_batch_size: "auto"`: the largest micro-batch that fits, the same on all ranks.

First by the formula of memory, with room for what it does not count. On a GPU the dry step then says
how far the formula is off, and if a larger one fits by that measure, the engine is built again.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from megatron.core import parallel_state

from janus_pt.checkpoint.store import CHECKPOINTS, LATEST
from janus_pt.config.schema import AUTO, Config
from janus_pt.objectives.expected_sizes import sample_sizes
from janus_pt.parallel import groups
from janus_pt.parallel.engine import Engine
from janus_pt.parallel.job_store import from_all_ranks, from_first_rank
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.memory import stage_memory
from janus_pt.utils.errors import UserError, warn

BY_FORMULA = 0.7
"""Share of the memory that the formula may fill: it counts up to 15 % less than torch allocates, which
reserves more than that."""
BY_MEASURE = 0.9
"""Share of a GPU that what was measured may fill."""
GIB = 2**30


def resolve_micro_batch(config: Config, longest: int, resume: bool) -> Config:
    """The configuration with a number for "auto"; all ranks take part.

    A run that goes on keeps its number: the order of the samples depends on it.

    Args:
        longest: tokens of the longest sample, bos and eos counted.

    Raises:
        UserError: no micro-batch that the layout allows fits into memory.
    """
    folder = Path(config.run.output_dir)
    number = AUTO
    if resume and (folder / CHECKPOINTS / LATEST).exists():
        number = _saved_number(folder)
    # One rank has read the file for all: a shared disk may show another an older one.
    number = from_first_rank(number)
    if number != AUTO:
        _check_sharing(config, number)
        return _with_size(config, number)
    # The smallest: ranks on other nodes may have less.
    memory = min(from_all_ranks(_available_memory()))
    fitting = largest_fitting(config, longest, BY_FORMULA * memory)
    if fitting is None:
        raise UserError(
            f'data.micro_batch_size "auto": no micro-batch fits into {memory / GIB:.1f} GiB by the '
            "formula of docs/reference/memory.md: set parallel.activation_checkpointing, share the "
            "model among more ranks, or give a number to try"
        )
    warn(f"data.micro_batch_size: {fitting} {config.data.batch_unit} by the formula of memory")
    return _with_size(config, fitting)


def build_largest(
    config: Config, longest: int, build: Callable[[Config], Engine]
) -> tuple[Config, Engine]:
    """Build the engine, and once more if its dry step shows that larger micro-batches fit.

    All ranks take part.

    Args:
        config: with the number that the formula gives.
        build: builds the engine and takes the dry step.
    """
    if groups.device().type != "cuda":
        return config, build(config)
    torch.cuda.reset_peak_memory_stats()
    engine = build(config)
    memory = min(from_all_ranks(_available_memory()))
    reserved = max(from_all_ranks(torch.cuda.max_memory_reserved()))
    # All of what was reserved is taken to grow with the micro-batch, which is on the safe side.
    formula_limit = BY_MEASURE * memory * formula_peak(config, longest) / reserved
    larger = largest_fitting(config, longest, formula_limit)
    if larger is None or larger <= config.data.micro_batch_size:
        return config, engine
    warn(f"data.micro_batch_size: {larger} {config.data.batch_unit} by what the dry step took")
    # DeepSpeed's engine is part of cycles.
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    config = _with_size(config, larger)
    return config, build(config)


def largest_fitting(config: Config, longest: int, limit: float) -> int | None:
    """The largest micro-batch that the layout allows and that needs no more than `limit` bytes."""
    for size in possible_sizes(config, longest, parallel_state.get_data_parallel_world_size()):
        if formula_peak(_with_size(config, size), longest) <= limit:
            return size
    return None


def possible_sizes(config: Config, longest: int, data_parallel: int) -> list[int]:
    """Sizes that make a step whole micro-batches, as many on each rank, and hold the longest sample.

    The largest first.
    """
    batch = config.data.global_batch_size
    smallest = longest if config.data.batch_unit == "tokens" else 1
    most = batch // smallest
    counts = range(data_parallel, most + 1, data_parallel)
    return [batch // count for count in counts if batch % count == 0]


def formula_peak(config: Config, longest: int) -> float:
    """Bytes at the peak of the fullest stage, with micro-batches of the longest samples."""
    sizes = sample_sizes(config.model, config.objective, longest)
    size = config.data.micro_batch_size
    samples = max(1, size // longest) if config.data.batch_unit == "tokens" else size
    on_cpu = groups.device().type == "cpu"
    batch = MicroBatch(config.objective.draws * samples, sizes, on_cpu)
    data_parallel = parallel_state.get_data_parallel_world_size()
    return max(stage.peak for stage in stage_memory(config, data_parallel, batch))


def _with_size(config: Config, size: int) -> Config:
    data = config.data.model_copy(update={"micro_batch_size": size})
    return config.model_copy(update={"data": data})


def _check_sharing(config: Config, size: int) -> None:
    """Refuse a number that a run began with, but that these ranks cannot share."""
    ranks = parallel_state.get_data_parallel_world_size()
    batch = config.data.global_batch_size
    if batch % (size * ranks):
        raise UserError(
            f"data.micro_batch_size: this run began with {size}, of which {ranks} data-parallel ranks "
            f"cannot share data.global_batch_size ({batch}): start as many ranks as before"
        )


def _available_memory() -> float:
    """Bytes of this rank's GPU, or its share of what the host has left."""
    if groups.device().type == "cuda":
        return float(torch.cuda.mem_get_info()[1])
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    return psutil.virtual_memory().available / processes


def _saved_number(folder: Path) -> int:
    """The number that the run in this folder began with; `AUTO` if its file does not say."""
    try:
        saved = Config.model_validate_json((folder / "config.json").read_text())
    except (OSError, ValueError):
        return AUTO
    return saved.data.micro_batch_size
