"""DeepSpeed's configuration, derived from ours: no value is set twice, so none can disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from janus_pt.config.parallel_schema import ParallelConfig, PrecisionConfig
from janus_pt.config.schema import DataConfig, OptimizerConfig

NEVER = 2**31 - 1
"""More steps than any run has, so that DeepSpeed prints no reports of its own."""

DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
"""DeepSpeed's names of our dtypes."""

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
    "bf16.immediate_grad_update": "parallel.zero_stage",
    "bfloat16.immediate_grad_update": "parallel.zero_stage",
    "communication_data_type": "parallel.gradient_reduce_dtype",
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
    "timers.throughput": "run.log_every",
}
"""DeepSpeed's keys that a `deepspeed` block may not set, and our key that decides each."""


def derived_deepspeed_config(
    data: DataConfig,
    optimizer: OptimizerConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    block: Mapping[str, Any],
    data_parallel_size: int,
) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`: the values that ours decides, and the user's.

    Args:
        block: our key `deepspeed`, the user's own settings.
    """
    accumulation = data.micro_batches_per_step // data_parallel_size
    bfloat16 = precision.dtype == "bfloat16"
    derived: dict[str, Any] = {
        # To DeepSpeed a micro-batch is one sample. Ours hold a number of tokens, and DeepSpeed only
        # ever divides by the number of micro-batches.
        "train_batch_size": accumulation * data_parallel_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "bf16": {
            "enabled": bfloat16,
            # ZeRO-1 adds each gradient to its float32 sum, and frees it, as soon as it is there.
            # Pipelines then would not call `update_hp_grads`, which `gradient_sums.py` needs; other
            # stages do not read the key.
            "immediate_grad_update": bfloat16 and parallel.pipeline_parallel_size == 1,
        },
        "communication_data_type": DTYPES[parallel.gradient_reduce_dtype],
        "zero_optimization": _zero_optimization(parallel),
        # DeepSpeed's own CPU Adam would be compiled at the start; ours is torch's.
        "zero_force_ds_cpu_optimizer": False,
        # Partitioned, a tensor between stages may only be followed by integer ones under tensor
        # parallelism.
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
        "steps_per_print": NEVER,
        # Its timer makes the host wait for the device twice a micro-batch. We report throughput.
        "timers": {"throughput": {"enabled": False}},
    }
    # Sums of many bfloat16 gradients lose small ones; only ZeRO-0 cannot add them up in float32.
    if bfloat16 and parallel.zero_stage > 0:
        derived["data_types"] = {"grad_accum_dtype": "fp32"}
    return merge(derived, block)


def zero_optimization(parallel: ParallelConfig, block: Mapping[str, Any]) -> dict[str, Any]:
    """The part `zero_optimization` of `derived_deepspeed_config`, which memory and traffic depend on."""
    return merge(_zero_optimization(parallel), block.get("zero_optimization", {}))


def _zero_optimization(parallel: ParallelConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "stage": parallel.zero_stage,
        # In elements. DeepSpeed's own 5e8 would take buffers of 2 GB.
        "reduce_bucket_size": 50_000_000,
        "allgather_bucket_size": 50_000_000,
    }
    in_host_memory = {"device": "cpu", "pin_memory": True}
    if parallel.offload_optimizer:
        settings["offload_optimizer"] = in_host_memory
    if parallel.offload_parameters:
        settings["offload_param"] = in_host_memory
    return settings


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `extra` added. Two objects under one key are merged; otherwise `extra` wins."""
    merged = dict(base)
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def clashes(block: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys of a `deepspeed` block that the user may not set: the path in the block, and the reason."""
    for dotted, ours in DECIDED_BY.items():
        path = _path_with_value(block, tuple(dotted.split(".")))
        if path:
            yield path, f"DeepSpeed's value is derived from {ours}: set that, and remove this key"


def _path_with_value(block: Any, path: tuple[str, ...]) -> tuple[str, ...]:
    """`path`, or the first part of it that already has a value in `block`; empty if none has."""
    for depth, key in enumerate(path):
        # A value where DeepSpeed expects an object, as `"fp16": true`, decides all keys in it.
        if not isinstance(block, Mapping):
            return path[:depth]
        if key not in block:
            return ()
        block = block[key]
    return path
