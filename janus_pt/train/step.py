"""One training step: global counts, coefficients, forward and backward of every micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from janus_pt.model.dropout import Seed
from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.loss import ObjectiveLoss
from janus_pt.packing.batch import Batch
from janus_pt.parallel.engine import is_pipeline, note_gradient_norm
from janus_pt.parallel.pipeline import evaluate_batches, train_batches

SIZES = (
    "source_tokens",
    "content_slots",
    "query_slots",
    "predicted_slots",
    "target_tokens",
    "sentences",
)
"""What is counted of each batch besides the rows of its loss terms; padding left out."""


@dataclass
class StepResult:
    """Sums of the terms of one step on this rank (`sums`), counts over the job (`counts`); both on the device.

    `before` is the state of the training data's loader before the step.
    """

    sums: Tensor
    counts: Tensor
    before: dict[str, Any] = field(default_factory=dict)


def batch_counts(batch: Batch, terms: Terms) -> list[int]:
    """Rows of every loss term (length last), then `SIZES`."""
    rows = {name: len(index) for name, index in batch.predict.items()}
    sentences = len(batch.lengths)
    per_term = (
        [rows[s] for s in terms.streams]
        + [min(rows[a], rows[b]) for a, b in terms.pairs]
        + [sentences]
    )
    real = batch.slots.samples >= 0
    content = int(real[:, : batch.slots.num_content].sum())
    sizes = [
        int((batch.source.samples >= 0).sum()),
        content,
        int(real.sum()) - content,
        sum(rows.values()),
    ]
    return [*per_term, *sizes, len(batch.targets), sentences]


def global_counts(batches: Sequence[Batch], terms: Terms, device: torch.device) -> Tensor:
    """Counts over all `batches` of all data-parallel ranks, float64 on the device; all ranks take part."""
    counted = [
        [0] * (len(terms.names) + 1 + len(SIZES)),
        *(batch_counts(b, terms) for b in batches),
    ]
    counts = torch.tensor(counted, dtype=torch.float64).sum(0).to(device)
    dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
    return counts


def coefficients(loss: ObjectiveLoss, counts: Tensor) -> Tensor:
    """Weight over global count of every term: the loss is a mean over the whole step, however it is split."""
    terms = len(loss.terms.names)
    normalisers = counts[: terms + 1].clone()
    if loss.objective.normalize_by == "tokens":
        normalisers[:terms] = counts[terms + 1 + SIZES.index("target_tokens")]
    return (counts.new_tensor(loss.weights) / normalisers.clamp(min=1)).float()


def train_step(engine: Any, batches: Sequence[Batch], step: int, seed: int) -> StepResult:
    """Forward, backward and update; nothing in here waits for the device.

    DeepSpeed averages gradients over data-parallel ranks and micro-batches, so the coefficients are multiplied by
    both numbers. Dropout is seeded by the number of the micro-batch within the step, counted over all ranks. All
    ranks take part.
    """
    loss: ObjectiveLoss = engine.module.loss
    rank, ranks = (
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )
    counts = global_counts(batches, loss.terms, engine.device)
    scaled = coefficients(loss, counts) * (ranks * len(batches))
    seeds = [(seed, step, index * ranks + rank) for index in range(len(batches))]
    return StepResult(run_step(engine, batches, scaled, seeds), counts)


def run_step(
    engine: Any, batches: Sequence[Batch], scaled: Tensor, seeds: Sequence[Seed]
) -> Tensor:
    """Forward and backward of the batches with the coefficients `scaled`, then the update; the sums of the terms.

    All ranks take part.
    """
    if is_pipeline(engine):
        return train_batches(engine, batches, scaled, seeds)
    sums = torch.zeros_like(scaled)
    for batch, seed in zip(batches, seeds, strict=True):
        engine.module.model.seed_dropout(seed)
        loss, parts = engine(batch.to(engine.device), scaled)
        engine.backward(loss)
        if engine.is_gradient_accumulation_boundary():
            note_gradient_norm(engine)
        engine.step()
        sums += parts
    return sums


@torch.no_grad()
def evaluate(engine: Any, batches: Iterable[Batch | None]) -> StepResult:
    """Sums of all terms over this rank's validation batches, dropout off; all ranks take part."""
    module = engine.module
    zeros = torch.zeros(len(module.loss.names), device=engine.device)
    local = [batch for batch in batches if batch is not None]
    if is_pipeline(engine):
        sums = evaluate_batches(engine, local, zeros)
    else:
        sums = zeros.clone()
        module.eval()
        for batch in local:
            sums += module(batch.to(engine.device), zeros)[1]
        module.train()
    return StepResult(sums, global_counts(local, module.loss.terms, engine.device))


def report(loss: ObjectiveLoss, result: StepResult) -> dict[str, float]:
    """The step's numbers over the whole job: `loss/total`, every term's mean over its own rows, and `SIZES`.

    Waits for the device; all ranks take part.
    """
    sums = result.sums.double()
    if parallel_state.get_tensor_model_parallel_rank() > 0:
        sums = torch.zeros_like(sums)  # the same on all ranks that share the layers: counted once
    dist.all_reduce(sums)
    total = float(coefficients(loss, result.counts).double() @ sums)
    rows = result.counts[: len(loss.names)].clamp(min=1)
    named = dict(zip(loss.names, (sums / rows).tolist(), strict=True))
    sizes = dict(zip(SIZES, result.counts[len(loss.names) :].tolist(), strict=True))
    return {"loss/total": total, **named, **sizes}
