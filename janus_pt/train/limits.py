"""Problems of how long a run is, how its learning rate goes, when it ends or validates, and of CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from janus_pt.config.content import Sections
from janus_pt.config.messages import Problem
from janus_pt.config.run_schema import CheckpointConfig, RunConfig
from janus_pt.model.flex import MIN_HEAD_SIZE
from janus_pt.model.masks import uses_block_masks
from janus_pt.objectives.table import OBJECTIVES


def run_problems(sections: Sections) -> Iterator[Problem]:
    """Problems of the run's length, schedule, validation and checkpoints together."""
    run, schedule, data = sections.run, sections.schedule, sections.data
    if schedule and run and schedule.warmup_steps > run.max_steps:
        reason = (
            f"{schedule.warmup_steps} warm-up steps do not fit in run.max_steps, which is "
            f"{run.max_steps}: lower one or raise the other"
        )
        yield ("schedule", "warmup_steps"), reason
    if schedule and sections.optimizer and schedule.final_lr > sections.optimizer.lr:
        reason = f"must be at most optimizer.lr ({sections.optimizer.lr:g}): the rate only falls"
        yield ("schedule", "final_lr"), reason
    if data and run and run.eval_every and not data.valid:
        reason = "needs a validation corpus: set data.valid, or eval_every to 0"
        yield ("run", "eval_every"), reason
    if run and run.patience and sections.checkpoint:
        yield from _patience_problems(run, sections.checkpoint)
    if run and run.cuda_graphs:
        for reason in _graph_problems(sections):
            yield ("run", "cuda_graphs"), f"{reason}; or set this to false"


def _patience_problems(run: RunConfig, checkpoint: CheckpointConfig) -> Iterator[Problem]:
    """Where `run.patience` is set, the best validation's checkpoint must be there to be exported."""
    if not run.eval_every:
        yield ("run", "patience"), "counts validations: set run.eval_every, or patience to 0"
    elif run.eval_every % checkpoint.every:
        reason = (
            f"must be a multiple of checkpoint.every ({checkpoint.every}) where run.patience is set, "
            f"so that what is best is saved, but is {run.eval_every}"
        )
        yield ("run", "eval_every"), reason
    if not checkpoint.keep_best:
        reason = "must be at least 1 where run.patience is set: what is best is exported"
        yield ("checkpoint", "keep_best"), reason


def _graph_problems(sections: Sections) -> Iterator[str]:
    """Why a micro-batch cannot be recorded as CUDA graphs (`parallel/captured_pass.py`)."""
    model, parallel, precision = sections.model, sections.parallel, sections.precision
    if parallel:
        if parallel.model_parallel_size > 1:
            yield (
                "graphs hold no exchange between ranks: set parallel.tensor_parallel_size and "
                "parallel.pipeline_parallel_size to 1"
            )
        if parallel.zero_stage != 1:
            yield "graphs add gradients to ZeRO-1's sums: set parallel.zero_stage to 1"
        if parallel.activation_checkpointing != "none":
            yield 'graphs do not recompute: set parallel.activation_checkpointing to "none"'
    if precision and precision.dtype != "bfloat16":
        yield "graphs add gradients to bfloat16's float32 sums: set precision.dtype to bfloat16"
    if model and not uses_block_masks(
        torch.device("cuda"), model.attention_dropout, model.head_size
    ):
        yield (
            "graphs need FlexAttention, other masks have a size for each batch: set "
            f"model.attention_dropout to 0, and heads of {MIN_HEAD_SIZE} elements or more"
        )
    if model and model.activation_dropout:
        yield "graphs have one state for all dropout: set model.activation_dropout to 0"
    if sections.objective:
        name = sections.objective.name
        if OBJECTIVES[name].before_decode is not None:
            yield f'graphs hold one pass of the decoder, objective "{name}" has two'
        if OBJECTIVES[name].alignment_loss is not None:
            yield f'graphs hold losses of some fixed numbers of rows, objective "{name}" aligns any'
