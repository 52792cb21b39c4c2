"""One training step: global counts, coefficients, forward and backward of every micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from janus_pt.model.dropout import Seed
from janus_pt.objectives.coefficients import coefficients
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.packing.batch import Batch
from janus_pt.parallel.engine import Engine, note_gradient_norm
from janus_pt.parallel.pipeline import evaluate_batches, is_pipeline, train_batches
from janus_pt.train.counts import Counts, global_counts
from janus_pt.train.report.phases import Phases


@dataclass(frozen=True)
class StepResult:
    """A step's numbers, on the device."""

    sums: Tensor
    """Sums of the loss terms on this rank, `[terms]`."""
    counts: Counts
    """Of the whole job."""


def train_step(
    engine: Engine, batches: Sequence[Batch], step: int, seed: int, phases: Phases | None = None
) -> StepResult:
    """Forward, backward and update; all ranks take part.

    The host waits for the device at the end alone, where DeepSpeed reads the gradient's norm.

    Args:
        phases: takes the times of the step.
    """
    loss = engine.module.loss
    rank = parallel_state.get_data_parallel_rank()
    ranks = parallel_state.get_data_parallel_world_size()
    counts = global_counts(batches, loss.terms, engine.device)
    mean = coefficients(loss, counts.rows, counts.target_tokens)
    # DeepSpeed averages gradients over data-parallel ranks and micro-batches. Our terms are divided
    # by counts of the whole step already, so its division is undone here.
    scaled = mean * (ranks * len(batches))
    # Dropout depends on the number of the micro-batch within the step, counted over all ranks: it is
    # the same on every layout.
    seeds = [(seed, step, index * ranks + rank) for index in range(len(batches))]
    phases = phases or Phases(engine.device)
    # Behind the sum of the counts, in which all ranks wait for each other.
    phases.enter("before_exchange")
    sums = run_step(engine, batches, scaled, seeds, phases)
    phases.end_step()
    return StepResult(sums, counts)


def run_step(
    engine: Engine,
    batches: Sequence[Batch],
    scaled: Tensor,
    seeds: Sequence[Seed],
    phases: Phases,
) -> Tensor:
    """Forward and backward of the batches, then the update; the sums of the terms `[terms]`.

    All ranks take part.

    Args:
        scaled: coefficients of the terms `[terms]`, times ranks and micro-batches.
        phases: is entered; a pipeline is one phase.
    """
    if is_pipeline(engine):
        return train_batches(engine, batches, scaled, seeds)
    module = engine.module
    assert isinstance(module, TrainingModule)
    sums = torch.zeros_like(scaled)
    for batch, seed in zip(batches, seeds, strict=True):
        module.seed_dropout(seed)
        loss, batch_sums = engine(batch.to(engine.device), scaled)
        if engine.is_gradient_accumulation_boundary():
            phases.enter("last_backward")
        engine.backward(loss)
        # Between the last backward pass, which reduces the gradients, and the update in `step`.
        if engine.is_gradient_accumulation_boundary():
            phases.enter("update")
            note_gradient_norm(engine)
        engine.step()
        sums += batch_sums
    return sums


@torch.no_grad()
def evaluate(engine: Engine, batches: Iterable[Batch | None]) -> StepResult:
    """Sums and counts of this rank's validation batches, without dropout; all ranks take part.

    Args:
        batches: None where this rank has no batch left, but others have.
    """
    loss = engine.module.loss
    local = [batch for batch in batches if batch is not None]
    # Only the sums are used, so the coefficients of the total may be zero.
    zeros = torch.zeros(len(loss.names), device=engine.device)
    if is_pipeline(engine):
        sums = evaluate_batches(engine, local, zeros)
    else:
        module = engine.module
        assert isinstance(module, TrainingModule)
        sums = zeros.clone()
        module.eval()
        for batch in local:
            # The module, not the engine, whose forward pass counts and prepares a backward pass.
            _, batch_sums = module(batch.to(engine.device), zeros)
            sums += batch_sums
        module.train()
    return StepResult(sums, global_counts(local, loss.terms, engine.device))


def report(loss: ObjectiveLoss, result: StepResult) -> dict[str, float]:
    """The step's losses over the whole job: `loss/total`, and every term's mean over its own rows.

    Waits for the device; all ranks take part.
    """
    sums = result.sums.double()
    # Tensor-parallel ranks have the same sums, which count once.
    if parallel_state.get_tensor_model_parallel_rank() > 0:
        sums = torch.zeros_like(sums)
    # Over the whole job: of a pipeline's stages, all but the last bring zeros.
    dist.all_reduce(sums)
    counts = result.counts
    weighted = coefficients(loss, counts.rows, counts.target_tokens).double() @ sums
    means = (sums / counts.rows.clamp(min=1)).tolist()
    return {"loss/total": float(weighted), **dict(zip(loss.names, means, strict=True))}
