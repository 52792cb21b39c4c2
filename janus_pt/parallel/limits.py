"""Problems of how a configuration is spread over processes: layouts that cannot be, or that
DeepSpeed would compute wrongly, and keys of DeepSpeed's that are derived."""

from __future__ import annotations

from collections.abc import Iterator

from janus_pt.config.content import Sections
from janus_pt.config.messages import Problem
from janus_pt.config.parallel_schema import ParallelConfig, PrecisionConfig, padded_vocab_size
from janus_pt.config.schema import AUTO, DataConfig, ModelConfig
from janus_pt.packing.padded import ROW_STEP
from janus_pt.parallel.deepspeed_config import clashes


def parallel_problems(sections: Sections, world_size: int | None) -> Iterator[Problem]:
    """Problems of the layout; `world_size` is None if the number of ranks is not known."""
    parallel = sections.parallel
    if parallel:
        layout = [
            *_world_problems(parallel, world_size),
            *(_split_problems(parallel, sections.model) if sections.model else ()),
            *_deepspeed_problems(parallel, sections.precision),
        ]
        yield from layout
        # Whether ranks can share a batch is a question only for a layout that can be.
        if sections.data and not layout:
            data_parallel = world_size // parallel.model_parallel_size if world_size else None
            yield from _batch_problems(sections.data, data_parallel)
    for path, reason in clashes(sections.deepspeed):
        yield ("deepspeed", *path), reason


def _world_problems(parallel: ParallelConfig, world_size: int | None) -> Iterator[Problem]:
    if world_size is None or world_size % parallel.model_parallel_size == 0:
        return
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    reason = (
        f"a model spread over {tensor} tensor-parallel times {pipeline} pipeline-parallel ranks "
        f"does not fit {world_size} processes: start a multiple of {tensor * pipeline}"
    )
    yield ("parallel",), reason


def _split_problems(parallel: ParallelConfig, model: ModelConfig) -> Iterator[Problem]:
    """What cannot be split as evenly as megatron-core's layers and DeepSpeed's stages need it."""
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    for name in ("num_attention_heads", "num_key_value_heads", "ffn_hidden_size"):
        size = getattr(model, name)
        # By default there are as many heads of keys as of queries, which are checked.
        if size is not None and size % tensor:
            reason = f"{tensor} does not divide model.{name} ({size}): use a divisor of it"
            yield ("parallel", "tensor_parallel_size"), reason
    if parallel.sequence_parallel and (tensor == 1 or ROW_STEP % tensor):
        reason = (
            f"ranks share rows in multiples of {ROW_STEP}, which tensor_parallel_size ({tensor}) "
            "must divide, and be more than 1: set it to false, or that to 2, 4, 8, 16 or 32"
        )
        yield ("parallel", "sequence_parallel"), reason
    for size in filter(None, (model.vocab_size, model.source_vocab_size)):
        padded = padded_vocab_size(size, tensor)
        # The padding is at the end: a whole rank of it would compute on no token at all.
        if padded - size >= padded // tensor:
            reason = (
                f"a vocabulary of {size} leaves some of {tensor} ranks without a token: use fewer"
            )
            yield ("parallel", "tensor_parallel_size"), reason
    layers = model.encoder_layers + model.decoder_layers
    if pipeline > layers:
        reason = (
            f"{pipeline} stages cannot share {layers} layers "
            f"(model.encoder_layers + model.decoder_layers): use at most {layers}"
        )
        yield ("parallel", "pipeline_parallel_size"), reason


def _deepspeed_problems(
    parallel: ParallelConfig, precision: PrecisionConfig | None
) -> Iterator[Problem]:
    stage = parallel.zero_stage
    is_pipeline = parallel.pipeline_parallel_size > 1
    if is_pipeline and stage != 1:
        # Stage 0 runs, but each pipeline stage then clips by the norm of its own gradients.
        defect = (
            "clips by a wrong gradient norm there, without an error"
            if stage == 0
            else "has no pipelines with it"
        )
        reason = (
            f"must be 1 with pipeline_parallel_size above 1, but is {stage}: DeepSpeed {defect}"
        )
        yield ("parallel", "zero_stage"), reason
    if is_pipeline and parallel.offload_optimizer:
        reason = "pipelines keep the optimizer state on the device: set it to false"
        yield ("parallel", "offload_optimizer"), reason
    is_bfloat16 = precision is not None and precision.dtype == "bfloat16"
    if stage == 0 and parallel.tensor_parallel_size > 1 and is_bfloat16:
        reason = (
            "with bfloat16 and tensor_parallel_size above 1 DeepSpeed reports a wrong gradient norm "
            "at stage 0: use 1"
        )
        yield ("parallel", "zero_stage"), reason
    if parallel.gradient_reduce_dtype == "bfloat16" and precision is not None and not is_bfloat16:
        reason = "bfloat16 needs precision.dtype bfloat16: set one of the two"
        yield ("parallel", "gradient_reduce_dtype"), reason
    if parallel.offload_optimizer and stage == 0:
        yield ("parallel", "offload_optimizer"), "needs zero_stage 1 or higher, but that is 0"
    if parallel.offload_parameters and stage != 3:
        yield ("parallel", "offload_parameters"), f"needs zero_stage 3, but that is {stage}"


def _batch_problems(data: DataConfig, data_parallel: int | None) -> Iterator[Problem]:
    """A step must be whole micro-batches, the same number on each data-parallel rank."""
    batch, micro = data.global_batch_size, data.micro_batch_size
    path = ("data", "global_batch_size")
    if micro == AUTO:
        if data_parallel and batch % data_parallel:
            yield path, f"must be a multiple of the {data_parallel} data-parallel ranks"
        return
    count = batch // micro
    if batch % micro:
        nearest = max(micro, count * micro)
        reason = f"must be a multiple of data.micro_batch_size ({micro}), but is {batch}"
        yield path, f"{reason}: use {nearest}"
    elif data_parallel and count % data_parallel:
        reason = (
            f"a step of {count} micro-batches of {micro} "
            f"cannot be shared by {data_parallel} data-parallel ranks"
        )
        yield path, f"{reason}: use a multiple of {micro * data_parallel}"
