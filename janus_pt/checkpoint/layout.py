"""The layout of a job: what a checkpoint's files depend on besides the model."""

from __future__ import annotations

from janus_pt.config.parallel_schema import ParallelConfig

Layout = dict[str, int]
"""Sizes by name, as they stand in a checkpoint's `state.json`."""


def job_layout(parallel: ParallelConfig, world_size: int) -> Layout:
    """How the model and its optimizer are spread over `world_size` processes."""
    # Written into `state.json` and compared as a whole: a key more, and no older checkpoint fits.
    return {
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "data_parallel_size": world_size // parallel.model_parallel_size,
        "zero_stage": parallel.zero_stage,
    }


def describe_layout(layout: Layout) -> str:
    """In a few words, as TP2 x PP1 x DP4, ZeRO-1."""
    tensor = layout["tensor_parallel_size"]
    pipeline = layout["pipeline_parallel_size"]
    data = layout["data_parallel_size"]
    return f"TP{tensor} x PP{pipeline} x DP{data}, ZeRO-{layout['zero_stage']}"
