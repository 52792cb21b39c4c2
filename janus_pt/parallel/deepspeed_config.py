"""DeepSpeed's configuration, derived from ours: nothing is said twice, so nothing can disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from janus_pt.config.schema import Config, ParallelConfig

NEVER = 2**31 - 1
"""More steps than any run has: DeepSpeed prints nothing of its own."""

DECIDED_BY = {
    "train_batch_size": "data.global_batch_size",
    "train_micro_batch_size_per_gpu": "data.micro_batch_size",
    "gradient_accumulation_steps": "data.global_batch_size and data.micro_batch_size",
    "managed_gradient_accumulation": "data.global_batch_size and data.micro_batch_size",
    "gradient_allreduce_op": "objective.normalize_by",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "gradient_clipping": "optimizer.clip_norm",
    "bf16.enabled": "precision.dtype",
    "bfloat16.enabled": "precision.dtype",
    "fp16": "precision.dtype",
    "amp": "precision.dtype",
    "torch_autocast": "precision.dtype",
    "data_types": "precision.dtype",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer": "parallel.offload_optimizer",
    "zero_optimization.offload_param": "parallel.offload_parameters",
    "pipeline.pipe_partitioned": "parallel.pipeline_parallel_size",
    "pipeline.grad_partitioned": "parallel.pipeline_parallel_size",
    "steps_per_print": "run.log_every",
}
"""DeepSpeed's keys that a `deepspeed` block may not set, and the key of ours that decides each."""


def derived_deepspeed_config(config: Config, data_parallel_size: int) -> dict[str, Any]:
    """What `deepspeed.initialize` gets: all that our configuration decides, and the user's `deepspeed` block.

    A micro-batch counts as one sample, because ours are built by token budget: DeepSpeed divides by numbers of
    micro-batches only. With bfloat16, gradients are accumulated in float32, but for ZeRO-0, which cannot.
    """
    accumulation = config.micro_batches_per_step // data_parallel_size
    bfloat16 = config.precision.dtype == "bfloat16"
    derived: dict[str, Any] = {
        "train_batch_size": accumulation * data_parallel_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip_norm,
        "bf16": {"enabled": bfloat16},
        # In elements. DeepSpeed's own 5e8 would take buffers of 2 GB.
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            **_offload(config.parallel),
        },
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own would be compiled at the start
        # With tensor parallelism, only then may any but the first tensor between stages be an integer one.
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
        "steps_per_print": NEVER,
    }
    if bfloat16 and config.parallel.zero_stage > 0:
        derived["data_types"] = {"grad_accum_dtype": "fp32"}
    return merge(derived, config.deepspeed)


def _offload(parallel: ParallelConfig) -> dict[str, Any]:
    given = {
        "offload_optimizer": parallel.offload_optimizer,
        "offload_param": parallel.offload_parameters,
    }
    return {name: {"device": "cpu", "pin_memory": True} for name, wanted in given.items() if wanted}


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `extra` added; where both have an object these are merged, else `extra` wins."""
    merged = dict(base)
    for key, value in extra.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def clashes(block: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys of a `deepspeed` block that are not the user's to set: the path in the block, and what to do."""
    for dotted, ours in DECIDED_BY.items():
        if path := _given(block, tuple(dotted.split("."))):
            yield path, f"DeepSpeed's value is derived from {ours}: set that, and remove this key"


def _given(block: Any, path: tuple[str, ...]) -> tuple[str, ...]:
    """`path`, or the part of it that already has a value in `block`; empty if nothing there touches it."""
    for depth, key in enumerate(path):
        if not isinstance(block, Mapping):
            return path[:depth]
        if key not in block:
            return ()
        block = block[key]
    return path
