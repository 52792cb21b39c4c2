"""The sections `parallel` and `precision`: how a run uses its devices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from janus_pt.config.section import Positive, Section


def _all_or_none(given: Any) -> Any:
    """`parallel.activation_checkpointing` once was true or false."""
    return {True: "all", False: "none"}[given] if isinstance(given, bool) else given


class ParallelConfig(Section):
    """How the model is spread over processes; the data-parallel size is what remains of the world size."""

    tensor_parallel_size: Positive = 1
    """Ranks that share each layer: attention heads, feed-forward columns and the vocabulary are split over them."""
    sequence_parallel: bool = False
    """Between the layers that they share, tensor-parallel ranks share the rows of a micro-batch too: norms, residual
    connections, dropout, and what these keep in memory (Korthikanti et al. 2022). It changes no number."""
    pipeline_parallel_size: Positive = 1
    """Stages that the layers are dealt out to in order, balanced by their cost."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What the data-parallel ranks share out: 0 nothing, 1 the optimizer state, 2 also gradients, 3 also weights."""
    offload_optimizer: bool = False
    """Keep the optimizer state, and do the update, in the host's memory."""
    offload_parameters: bool = False
    """Keep the weights in the host's memory between uses; ZeRO-3 only."""
    gradient_reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic in which data-parallel ranks add up their gradients. With `precision.dtype` bfloat16, bfloat16 sends
    half as many bytes, and rounds every partial sum to 8 bits."""
    activation_checkpointing: Annotated[
        Literal["none", "attention", "feed_forward", "all"], BeforeValidator(_all_or_none)
    ] = "none"
    """What is computed again in the backward pass instead of being kept: attention sublayers, feed-forward networks, or
    whole layers. True and false stand for "all" and "none"."""

    @property
    def row_parallel_size(self) -> int:
        """Ranks that share the rows of a micro-batch between sharded layers."""
        return self.tensor_parallel_size if self.sequence_parallel else 1

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


VOCAB_MULTIPLE = 8
"""Rows of each tensor-parallel rank's part of the vocabulary are a multiple of this, as matrix units like them."""


def padded_vocab_size(vocab_size: int, tensor_parallel_size: int) -> int:
    """Rows of the embedding table in training: real tokens, then padding that no loss ever sees."""
    multiple = VOCAB_MULTIPLE * tensor_parallel_size
    return -(-vocab_size // multiple) * multiple


class PrecisionConfig(Section):
    """Arithmetic of the forward and backward pass; master weights and optimizer state are float32."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    float32_matmul: Literal["ieee", "tf32"] = "ieee"
    """How a GPU multiplies matrices of float32: in full, or on its tensor cores with factors rounded to 11 bits (TF32),
    by the data sheet seven times as fast on an H100. Of no effect on a CPU, and on what is computed in bfloat16."""
