"""What a checkpoint's files depend on, besides the model."""

from __future__ import annotations

from janus_pt.config.schema import ParallelConfig

Layout = dict[str, int]


def layout(parallel: ParallelConfig, world_size: int) -> Layout:
    """How the model and its optimizer are spread over the processes."""
    return {
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "data_parallel_size": world_size // parallel.model_parallel_size,
        "zero_stage": parallel.zero_stage,
    }


def describe(layout: Layout) -> str:
    """In a few words, as TP2 x PP1 x DP4, ZeRO-1."""
    tensor, pipeline, data, stage = layout.values()
    return f"TP{tensor} x PP{pipeline} x DP{data}, ZeRO-{stage}"
